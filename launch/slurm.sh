#!/usr/bin/env bash
# Train on a Slurm cluster:   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --data DATA --out RUN --preset 1.5b ...
#
# sbatch takes the nodes and GPUs, all other arguments go to train.py. Data, run folder and project must be on a file system
# that every node sees. Slurm starts one task a node; torchrun there starts one process a GPU. No ssh and no hostfile is
# involved: the first node of the job is the meeting point.
#SBATCH --job-name=rwkv-music
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
set -euo pipefail

project=${RWKV_MUSIC:-$SLURM_SUBMIT_DIR}  # sbatch runs a copy of this file, so its own place says nothing
if [[ ! -f $project/train.py ]]; then
  echo "launch/slurm.sh: no train.py in $project; submit from the project's folder, or set RWKV_MUSIC to it." >&2
  exit 1
fi
export PATH="$project/.venv/bin:$PATH"

config=(--deepspeed_config "$project/ds_configs/zero2.json")
[[ " $* " == *" --deepspeed_config "* ]] && config=()

master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$master" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
port=$((20000 + SLURM_JOB_ID % 20000))                # two jobs on one node do not meet
processes=${SLURM_GPUS_ON_NODE:-1}                    # one a GPU; without GPUs one a node

# The threads of a process share its node's cores with the other processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( (${SLURM_CPUS_ON_NODE:-1} + processes - 1) / processes ))}

srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" --nproc-per-node="$0" \
  --master-addr="$1" --master-port="$2" "${@:3}"' "$processes" "${address:-$master}" "$port" "$project/train.py" "${config[@]}" "$@"
