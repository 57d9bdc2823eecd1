#!/usr/bin/env bash
# Train on a Slurm cluster:   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --data DATA --out RUN --preset 1.5b ...
#
# sbatch takes the nodes, GPUs and limits; all other arguments go to train.py. Data, run folder and project must be on a
# file system that every node sees. Slurm starts one task a node, which starts one process a GPU (without GPUs, one). No
# ssh and no hostfile is involved: the job's first node is the meeting point.
#
# The job comes back by itself: after a time limit, a preemption, a lost node or a crash it is queued again and goes on
# from its last checkpoint. It does not after CRASHES crashes in which it got no further, nor when train.py has said in a
# sentence what is wrong. `scancel` ends it for good, with a checkpoint.
#
# With   sbatch --no-kill --nodes=4 ... launch/slurm.sh --elastic 3 ...   it does not wait in the queue for a lost node:
# while three are left it goes on with them, and takes a node back whose processes were killed (launch/elastic.py). Only
# the loss of its first node, or of more than one, has it queued again, for all four.
#SBATCH --job-name=rwkv-music
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the time limit the ranks are told to save. A preempted job is told by SIGTERM: the cluster's
# GraceTime (and KillWait) must be long enough to write a checkpoint.
#SBATCH --signal=USR1@180
set -euo pipefail

CRASHES=${CRASHES:-3}
say() { echo "launch/slurm.sh: $*" >&2; }

if [[ ! -v SLURM_JOB_ID ]]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
  say "no Slurm job: submit this file with sbatch."
  exit 2
fi
project=${RWKV_MUSIC:-$SLURM_SUBMIT_DIR}  # sbatch runs a copy of this file, so its own place says nothing
if [[ ! -f $project/train.py ]]; then
  say "no train.py in $project; submit from the project's folder, or set RWKV_MUSIC to it."
  exit 1
fi
export PATH="$project/.venv/bin:$PATH"

config=(--deepspeed_config "$project/ds_configs/zero2.json")
run=
least=  # of the nodes, to go on with
previous=
for argument in "$@"; do
  [[ $argument == --deepspeed_config* ]] && config=()
  [[ $previous == --out ]] && run=$argument
  [[ $argument == --out=* ]] && run=${argument#--out=}
  [[ $previous == --elastic ]] && least=$argument
  [[ $argument == --elastic=* ]] && least=${argument#--elastic=}
  previous=$argument
done
[[ $least == 0 ]] && least=  # all or none
if [[ -z $run ]]; then
  say "no --out: name the run folder."
  exit 2
fi

# The meeting point: an address of this node, which is the job's first, and a port that nobody listens on there.
address=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
port=$((20000 + SLURM_JOB_ID % 20000))
while (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do port=$((port + 1)); done
export MASTER_ADDR=$address MASTER_PORT=$port NODES=$SLURM_NNODES

# One process a GPU; without GPUs one a node. The threads of each share the node's cores with the others.
processes=${SLURM_GPUS_ON_NODE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((${SLURM_CPUS_ON_NODE:-1} + processes - 1) / processes))}

# NCCL finds the fastest network by itself. Where it errs, NCCL_SOCKET_IFNAME and NCCL_IB_HCA set before sbatch reach it.
# A dead rank is not waited for: its node's launcher ends (node.py), and 10 seconds later srun ends the other nodes'. One
# that hangs is found by train.py's --hang_minutes.
# By when it was written: a damaged one of a later step may be there.
started_from=$(ls -t "$run/checkpoints" 2>/dev/null | sed -n '/^step_/{p;q}' || true)
status=0
if [[ -z $least ]]; then
  srun --kill-on-bad-exit=0 --wait=10 bash -c 'NODE_RANK=$SLURM_NODEID exec python "$@"' - \
    "$project/launch/node.py" "$processes" "$project/train.py" "${config[@]}" "$@" || status=$?
else
  # A launcher that was killed is started again, and its node taken back; but for the first, where all meet.
  srun --no-kill --kill-on-bad-exit=0 --wait=0 bash -c '
    export NODE_RANK=$SLURM_NODEID
    trap "kill -TERM \$launcher" TERM USR1
    while :; do
      python "$@" & launcher=$!
      while kill -0 $launcher 2>/dev/null; do wait $launcher; done  # the trap ends a `wait` as well
      wait $launcher
      status=$?
      [[ $status != 137 || $NODE_RANK == 0 ]] && exit $status
    done' - "$project/launch/elastic.py" "$least" "$processes" "$project/train.py" "${config[@]}" "$@" || status=$?
fi

queue_again() {
  # Slurm may be ending this job already: to requeue it itself, or because it was cancelled.
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

case $status in
  0) ;;
  75) say "stopped with a checkpoint; queued again." && queue_again ;;
  1 | 2 | 130) ;;  # told in a sentence, wrong usage, or interrupted by hand
  *)
    # Counted by where the run was: a crash after progress is a first one again. It may come before train.py began, as
    # when a time limit is so short that its warning finds it still starting.
    mkdir -p "$run"
    echo "${started_from:-the beginning}" >>"$run/.crashes"
    count=$(grep -cxF "${started_from:-the beginning}" "$run/.crashes")
    if ((count < CRASHES)); then
      say "crash $count (status $status) of at most $CRASHES from ${started_from:-the beginning}; queued again." && queue_again
    else
      say "crash $count (status $status) from ${started_from:-the beginning}: not queued again. Look above for its cause."
    fi
    ;;
esac
exit "$status"
