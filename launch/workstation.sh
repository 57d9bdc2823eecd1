#!/usr/bin/env bash
# Train on every GPU of one machine (or on its CPU):   launch/workstation.sh --data DATA --out RUN --preset 0.1b ...
#
# All arguments go to train.py; the DeepSpeed file is ZeRO-2 unless --deepspeed_config names another.
# CUDA_VISIBLE_DEVICES=0,1 launch/workstation.sh ... takes two GPUs, RANKS=2 starts two processes without any.
# Ctrl-C stops with a checkpoint.
#
# Several machines that may come and go:   NODES=3 NODE_RANK=0 MASTER_ADDR=HOST launch/workstation.sh --elastic 1 ...
# on each, with its own NODE_RANK; HOST is the one of NODE_RANK 0. The run goes on while --elastic machines are left, and
# takes one back when the same line is started on it again (launch/elastic.py).
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$project/.venv/bin:$PATH"

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  echo "What train.py takes:"
  exec python "$project/train.py" --help
fi
config=(--deepspeed_config "$project/ds_configs/zero2.json")
[[ " $* " == *" --deepspeed_config"* ]] && config=()
launcher=("$project/launch/node.py")
least= previous=
for argument in "$@"; do
  [[ $argument == --elastic=* ]] && least=${argument#--elastic=}
  [[ $previous == --elastic ]] && least=$argument
  previous=$argument
done
[[ ${least:-0} != 0 ]] && launcher=("$project/launch/elastic.py" "$least")
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
# Machines that are to meet must name the same port; on a machine of its own a run takes a free one.
port=29500
if [[ ! -v NODES ]]; then
  port=$((20000 + $$ % 20000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
fi
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-$port}
exec python "${launcher[@]}" "${RANKS:-$((gpus ? gpus : 1))}" "$project/train.py" "${config[@]}" "$@"
