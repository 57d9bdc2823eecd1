#!/usr/bin/env bash
# Train on every GPU of one machine (or on its CPU):   launch/workstation.sh --data DATA --out RUN --preset 0.1b ...
#
# All arguments go to train.py; the DeepSpeed file is ZeRO-2 unless --deepspeed_config names another.
# CUDA_VISIBLE_DEVICES=0,1 launch/workstation.sh ... takes two GPUs, RANKS=2 starts two processes without any.
# Ctrl-C stops with a checkpoint.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$project/.venv/bin:$PATH"

config=(--deepspeed_config "$project/ds_configs/zero2.json")
[[ " $* " == *" --deepspeed_config"* ]] && config=()
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
export MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-$((20000 + $$ % 20000))}
exec python "$project/launch/node.py" "${RANKS:-$((gpus ? gpus : 1))}" "$project/train.py" "${config[@]}" "$@"
