#!/usr/bin/env bash
# Train on every GPU of one machine (or on its CPU):   launch/workstation.sh --data DATA --out RUN --preset 0.1b ...
#
# All arguments go to train.py. Without --deepspeed_config, this script adds ds_configs/zero2.json.
# CUDA_VISIBLE_DEVICES=0,1 launch/workstation.sh ... uses two GPUs. On a host without GPUs, RANKS=2 launch/workstation.sh
# ... starts two processes. Ctrl-C saves a checkpoint and stops.
#
# Elastic, on several hosts:   NODES=3 NODE_RANK=0 MASTER_ADDR=HOST launch/workstation.sh --elastic 1 ...
# Run this on every host with its own NODE_RANK. HOST is the address of the host with NODE_RANK=0. With --elastic N,
# training continues while at least N hosts remain. A host joins again when the same command is run on it
# (launch/elastic.py).
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$project/.venv/bin:$PATH"

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  echo "Arguments of train.py:"
  exec python "$project/train.py" --help
fi
config=(--deepspeed_config "$project/ds_configs/zero2.json")
[[ " $* " == *" --deepspeed_config"* ]] && config=()
launcher=("$project/launch/node.py")
min_hosts= previous=
for argument in "$@"; do
  [[ $argument == --elastic=* ]] && min_hosts=${argument#--elastic=}
  [[ $previous == --elastic ]] && min_hosts=$argument
  previous=$argument
done
[[ ${min_hosts:-0} != 0 ]] && launcher=("$project/launch/elastic.py" "$min_hosts")
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
# The hosts of a run need the same port. A run on a single host uses a free one.
port=29500
if [[ ! -v NODES ]]; then
  port=$((20000 + $$ % 20000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
fi
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-$port}
exec python "${launcher[@]}" "${RANKS:-$((gpus ? gpus : 1))}" "$project/train.py" "${config[@]}" "$@"
