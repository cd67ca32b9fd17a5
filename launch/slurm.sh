#!/bin/bash
# Trains on the GPUs of several SLURM nodes, one process per GPU. Submit it from the root of the project:
#
#   sbatch launch/slurm.sh --config=configs/ffhq128.py --config.data.path=/data/ffhq
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh --config=configs/ffhq128.py ...
#
# Options before the script's name go to SLURM and win over the lines below; all arguments after it go to
# diffae_jax.main. The run folder must lie where all nodes see it. Before its time is up, the job saves its state and
# goes back to the queue. To stop it for good with its state saved: scancel --signal=INT JOBID.

#SBATCH --job-name=diffae
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120

set -euo pipefail

refuse() {
  echo "Error: $1" >&2
  exit 2
}

[[ -f diffae_jax/main.py ]] || refuse "$PWD is not the root of the project: submit the job from there."

# jax gives GPU i of a node to task i of that node; a GPU without a task would be idle.
gpus=${SLURM_GPUS_ON_NODE:-} tasks=${SLURM_NTASKS_PER_NODE:-}
if [[ -n $gpus && -n $tasks && $gpus != "$tasks" ]]; then
  refuse "$tasks tasks on a node with $gpus GPUs: make --ntasks-per-node and --gpus-per-node equal."
fi

python=python3 # of the environment that is active; where none is, of .venv
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi

# On several GPUs, O1 lets XLA exchange gradients while it computes; it costs some compile time.
export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1}
# Since SLURM 22.05, srun no longer takes this over from sbatch by itself.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# A task that was bound to one GPU (by the site, --gpu-bind or --gpus-per-task) sees that one alone, as number 0.
# shellcheck disable=SC2016 # expanded in the task
task='[[ ${CUDA_VISIBLE_DEVICES:-,} == *,* ]] || export JAX_LOCAL_DEVICE_IDS=0; exec "$@"'

# --kill-on-bad-exit=0: a process that ends with 143 has saved its part; the others must be let save theirs.
# --wait=60: but not longer than this after the first has ended, so that one that died does not hold up the job.
code=0
srun --kill-on-bad-exit=0 --wait=60 bash -c "$task" task "$python" -m diffae_jax.main "$@" || code=$?

if [[ $code == 143 ]]; then # stopped by SIGTERM: the time is up, or the nodes are wanted for another job
  echo "Back to the queue: the same job goes on where this one stopped."
  scontrol requeue "$SLURM_JOB_ID" # ends this script
fi
exit "$code"
