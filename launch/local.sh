#!/usr/bin/env bash
# Starts several processes of a run on this machine, to try a cluster run without a cluster. With NVIDIA GPUs, each
# process uses one. Run it in the root of the project:
#
#   launch/local.sh 2 --config=configs/digits.py --workdir=runs/cluster
#   CUDA_VISIBLE_DEVICES=2,3 launch/local.sh 2 --config=configs/ffhq128.py --config.data.path=/data/ffhq
#   JAX_PLATFORMS=cpu launch/local.sh 2 ...     # does not use the GPUs
#
# Arguments after the number of processes go to diffae_jax.main. The terminal shows process 0. The output of process I
# is in LOGS/I.log; LOGS is runs/local unless you set it. Ctrl-C and SIGTERM go to all processes, which save and exit.
# If a process fails, the others end by themselves. Those that do not are killed 30 s after --cluster_timeout.
# The exit code is the first one that is not 0.

set -euo pipefail

refuse() {
  echo "Error: $1" >&2
  exit 2
}

case ${1:-} in
  '' | -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
[[ $1 =~ ^[1-9][0-9]*$ ]] || refuse "$1 is not a number of processes: use launch/local.sh N --config=CONFIG ..."
[[ -f diffae_jax/main.py ]] || refuse "$PWD is not the root of the project: run launch/local.sh from there."
count=$1
shift

python=python3 # of the active environment, or else of .venv
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi

limit=120 # the default of --cluster_timeout
for argument in "$@"; do
  [[ $argument =~ ^--?cluster_timeout=([0-9]+)$ ]] && limit=${BASH_REMATCH[1]}
done
limit=$((limit + 30))

gpus=()
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  # without a driver, nvidia-smi prints a sentence
  found=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader | grep -x '[0-9]*' | paste -sd, - || true)}
  IFS=', ' read -r -a gpus <<<"$found"
  if ((${#gpus[@]} > 0 && ${#gpus[@]} < count)); then
    refuse "$count processes need $count GPUs, and there are ${#gpus[@]}: start fewer, or set JAX_PLATFORMS=cpu."
  fi
fi

port=$("$python" -c 'import socket; server = socket.create_server(("", 0)); print(server.getsockname()[1])')
logs=${LOGS:-runs/local}
mkdir -p "$logs"
rm -f "$logs"/*.log

pids=() running=() # running: the numbers of processes that have not ended
set -m # gives each process its own group, so that Ctrl-C reaches it only through this script: a second one would not save
for ((i = 0; i < count; i++)); do
  command=("$python" -m diffae_jax.main "$@" --coordinator="localhost:$port" --num_processes="$count" --process_id="$i")
  ((${#gpus[@]} == 0)) || command=(env CUDA_VISIBLE_DEVICES="${gpus[i]}" "${command[@]}")
  if ((i == 0)); then
    "${command[@]}" </dev/null & # on the terminal itself, so that it shows progress as a single process does
  else
    "${command[@]}" </dev/null >"$logs/$i.log" 2>&1 &
  fi
  pids+=($!)
  running+=("$i")
done
set +m
((count == 1)) || echo "This is the output of process 0. That of the others is in $logs/1.log and so on." >&2

signal_all() {
  local i
  for i in ${running[@]+"${running[@]}"}; do
    kill -s "$1" -- "-${pids[i]}" 2>/dev/null || true
  done
}
trap 'signal_all INT' INT
trap 'signal_all TERM' TERM HUP

code=0 failed_at=
while ((${#running[@]} > 0)); do
  sleep 0.2 &
  wait "$!" || true # a signal ends the wait and runs its trap at once, which a sleep in the foreground may swallow
  left=()
  for i in "${running[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then
      left+=("$i")
      continue
    fi
    ended=0
    wait "${pids[i]}" || ended=$?
    if ((ended != 0)); then
      echo "Process $i ended with exit code $ended." >&2
      ((i == 0)) || tail -n 5 "$logs/$i.log" >&2
      if ((code == 0)); then
        code=$ended failed_at=$SECONDS
      fi
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if [[ -n $failed_at ]] && ((${#running[@]} > 0 && SECONDS - failed_at > limit)); then
    echo "Killed the processes ${running[*]}, which did not end within $limit s." >&2
    signal_all KILL
    failed_at=
  fi
done
exit "$code"
