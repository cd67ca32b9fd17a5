#!/usr/bin/env bash
# Runs the project on all hosts of a Cloud TPU slice, one process per host. Requires gcloud with a login and a project.
#
#   export TPU_NAME=diffae TPU_ZONE=us-east5-b TPU_TYPE=v6e-16
#   export TPU_SHARE=10.0.0.2:/share   # optional: an NFS export, such as Filestore; all hosts mount it at /mnt/share
#   launch/tpu_pod.sh create           # passes further arguments to gcloud, such as --spot
#   launch/tpu_pod.sh setup            # copies this project to all hosts and installs it; repeat after changes
#   launch/tpu_pod.sh run --config=configs/ffhq128.py --config.data.path=/mnt/share/ffhq \
#       --workdir=gs://BUCKET/runs/ffhq128
#   launch/tpu_pod.sh watch            # shows the log of host 0; Ctrl-C does not stop the run
#   launch/tpu_pod.sh status           # shows the state of all hosts
#   launch/tpu_pod.sh stop             # saves the state; `run` with the same arguments resumes
#   launch/tpu_pod.sh delete
#
# `run` passes all arguments to diffae_jax.main on every host. The run folder must be in a bucket, or on a disk that all
# hosts share, because each host writes its part of every checkpoint.

set -euo pipefail

refuse() {
  echo "Error: $1" >&2
  exit 2
}

# --- functions that run on the hosts ---------------------------------------------------------------

# Unpacks and installs the project. Mounts the NFS export $1, unless it is empty.
host_setup() {
  set -e
  mkdir -p ~/diffae_jax
  cd ~/diffae_jax
  tar -xzf ~/diffae_jax.tar.gz
  if [[ ! -x .venv/bin/python ]]; then # with uv, because Python on the hosts may be too old
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 .venv
  fi
  .venv/bin/python -m pip install --quiet --editable '.[tpu,gcs]'
  if [[ -n $1 ]] && ! mountpoint -q /mnt/share; then
    sudo apt-get -o DPkg::Lock::Timeout=300 install --yes -qq nfs-common
    sudo mkdir -p /mnt/share
    sudo mount -t nfs "$1" /mnt/share
  fi
  echo "$(hostname): ready"
}

# Creates the file $2 in the run folder $1. Creates the folder if necessary.
host_mark() {
  mkdir -p "$1" && rm -f "$1"/.shared-* && touch "$1/$2"
}

# Fails if a run is active, or if the run folder $1 does not contain the file $2. Without $2, the folder is in a bucket.
host_check() {
  cd ~/diffae_jax || exit
  if [[ -n $2 && ! -e $1/$2 ]]; then
    echo "Error: $(hostname) does not share $1 with host 0: put --workdir on storage that all hosts mount." >&2
    exit 2
  fi
  if host_is_running; then
    echo "Error: $(hostname) has an active run: stop it first." >&2
    exit 2
  fi
}

# Starts training with the given arguments, in a shell that survives the connection and records the exit code.
host_run() {
  cd ~/diffae_jax || exit
  rm -f run.exit
  # shellcheck disable=SC2016 # the started shell expands it
  nohup bash -c '"$@" & echo $! >run.pid; wait $!; echo $? >run.exit' run \
    .venv/bin/python -m diffae_jax.main "$@" >>run.log 2>&1 </dev/null &
  echo "$(hostname): started"
}

host_is_running() {
  grep -qs diffae_jax.main "/proc/$(cat run.pid 2>/dev/null)/cmdline"
}

host_status() {
  cd ~/diffae_jax || exit
  local state="no run"
  if host_is_running; then
    state=running
  elif [[ -s run.exit ]]; then
    state="ended with exit code $(cat run.exit)"
  fi
  echo "$(hostname): $state; last line: $(tail -n 1 run.log 2>/dev/null)"
}

# Signals the run to save and exit, and waits for it.
host_stop() {
  cd ~/diffae_jax || exit
  if host_is_running; then
    kill -TERM "$(cat run.pid)"
    for _ in {1..300}; do
      [[ -s run.exit ]] && break
      sleep 1
    done
  fi
  host_status
}

# --- functions that run on this machine ------------------------------------------------------------

# Runs the function $2 from above on host $1, a number or "all". The remaining arguments are its arguments. They are
# quoted once, for the shell of the host.
on_host() {
  local worker=$1
  shift
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker="$worker" \
    --command="$(declare -f host_is_running host_status "$1"); $(printf '%q ' "$@")"
}

create() {
  local type=${TPU_TYPE:?must be the type of the slice, such as v6e-16} version
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) version=tpu-ubuntu2204-base ;;
    *) version=${TPU_VERSION:?must be the runtime version for $type} ;;
  esac
  gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$TPU_ZONE" \
    --accelerator-type="$type" --version="${TPU_VERSION:-$version}" "$@"
}

setup() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  git -C "$root" ls-files -z --cached --others --exclude-standard | tar -C "$root" --null -T - -czf "$archive"
  gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:diffae_jax.tar.gz" --zone="$TPU_ZONE" --worker=all
  on_host all host_setup "${TPU_SHARE:-}"
}

# Prints the value of --workdir from the arguments.
workdir() {
  local folder=
  while (($#)); do
    case $1 in
      --workdir=*) folder=${1#*=} ;;
      --workdir) folder=${2:-} ;;
    esac
    shift
  done
  echo "$folder"
}

run() {
  local folder marker=
  folder=$(workdir "$@")
  case $folder in
    gs://?*) ;;
    /*)
      # Host 0 creates a file in the run folder, and all hosts look for it. Without this check, a folder that is not
      # shared would only be noticed when a checkpoint is needed.
      marker=.shared-$(date +%s)-$$
      on_host 0 host_mark "$folder" "$marker"
      ;;
    *) refuse "Set --workdir=gs://BUCKET/PATH, or an absolute path on a disk that all hosts share." ;;
  esac
  on_host all host_check "$folder" "$marker"
  on_host all host_run "$@"
}

watch() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker=0 --ssh-flag=-t \
    --command='tail -n 50 -F diffae_jax/run.log'
}

status() {
  on_host all host_status
}

stop() {
  on_host all host_stop
}

delete() {
  gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$TPU_ZONE" "$@"
}

case ${1:-} in
  create | setup | run | watch | status | stop | delete)
    : "${TPU_NAME:?must be the name of the TPU}" "${TPU_ZONE:?must be its zone}"
    "$@"
    ;;
  '' | -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  *) refuse "There is no command $1: the commands are create, setup, run, watch, status, stop, delete." ;;
esac
