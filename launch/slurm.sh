#!/bin/bash
# Trains on the GPUs of several SLURM nodes, one process per GPU. Submit it from the root of the project:
#
#   sbatch launch/slurm.sh --config=configs/ffhq128.py --config.data.path=/data/ffhq
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh --config=configs/ffhq128.py ...
#
# Options before the script name go to SLURM and override the #SBATCH lines below. Arguments after the
# script name go to diffae_jax.main. All nodes must share the run folder. Before its time limit, the job
# saves its state and requeues itself. To save the state and stop: scancel --signal=INT JOBID

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

# jax assigns GPU i of a node to task i of the node. A GPU without a task would be idle.
gpus=${SLURM_GPUS_ON_NODE:-} tasks=${SLURM_NTASKS_PER_NODE:-}
if [[ -n $gpus && -n $tasks && $gpus != "$tasks" ]]; then
  refuse "$tasks tasks on a node with $gpus GPUs: make --ntasks-per-node and --gpus-per-node equal."
fi

python=python3 # of the active environment, or else of .venv
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi

# On several GPUs, O1 lets XLA exchange gradients during computation. Compilation takes longer.
export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1}
# Since SLURM 22.05, srun does not inherit this value from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# A task that is bound to one GPU (by the site, --gpu-bind or --gpus-per-task) sees only this GPU, as number 0.
# shellcheck disable=SC2016 # the task expands it
task='[[ ${CUDA_VISIBLE_DEVICES:-,} == *,* ]] || export JAX_LOCAL_DEVICE_IDS=0; exec "$@"'

# --kill-on-bad-exit=0: exit code 143 means that a process has saved its part; the others must save theirs, too.
# --wait=60: wait at most 60 s after the first exit, so that a crashed process does not block the job.
code=0
srun --kill-on-bad-exit=0 --wait=60 bash -c "$task" task "$python" -m diffae_jax.main "$@" || code=$?

if [[ $code == 143 ]]; then # stopped by SIGTERM at the time limit, or because the job was preempted
  echo "Requeued: the job will resume from the saved state."
  scontrol requeue "$SLURM_JOB_ID" # ends this script
fi
exit "$code"
