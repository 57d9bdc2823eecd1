#!/usr/bin/env bash
# Train on a Slurm cluster:   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --data DATA --out RUN --preset 1.5b ...
#
# Options before the script name (nodes, GPUs, limits) go to sbatch, those after it to train.py. The dataset, the run
# folder and the project must be on a file system that every node mounts. Slurm starts one task per node, which starts
# one process per GPU (one per node without GPUs). The first node serves the rendezvous; neither ssh nor a hostfile is
# used.
#
# The job requeues itself after a time limit, a preemption, a lost node or a crash, and training resumes from the last
# checkpoint. The job is not requeued after CRASHES (default 3) crashes without a new checkpoint, or if train.py ends
# with an error message. `scancel` saves a checkpoint and ends the job.
#
# Elastic:   sbatch --no-kill --nodes=4 ... launch/slurm.sh --elastic 3 ...
# If one node is lost, training continues on the other three. A node whose processes were killed joins again
# (launch/elastic.py). If the first node or more than one node is lost, the job is requeued on four nodes.
#SBATCH --job-name=rwkv-music
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# The ranks save and stop three minutes before the time limit. On preemption they receive SIGTERM. In that case, the
# cluster's GraceTime and KillWait must leave enough time to write a checkpoint.
#SBATCH --signal=USR1@180
set -euo pipefail

CRASHES=${CRASHES:-3}
say() { echo "launch/slurm.sh: $*" >&2; }

if [[ ! -v SLURM_JOB_ID ]]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
  say "this is not a Slurm job: submit this file with sbatch."
  exit 2
fi
project=${RWKV_MUSIC:-$SLURM_SUBMIT_DIR}  # not from this file's path: sbatch runs a copy
if [[ ! -f $project/train.py ]]; then
  say "$project has no train.py: submit from the project folder or set RWKV_MUSIC to it."
  exit 1
fi
export PATH="$project/.venv/bin:$PATH"

config=(--deepspeed_config "$project/ds_configs/zero2.json")
run=
min_nodes=  # for an elastic run
previous=
for argument in "$@"; do
  [[ $argument == --deepspeed_config* ]] && config=()
  [[ $previous == --out ]] && run=$argument
  [[ $argument == --out=* ]] && run=${argument#--out=}
  [[ $previous == --elastic ]] && min_nodes=$argument
  [[ $argument == --elastic=* ]] && min_nodes=${argument#--elastic=}
  previous=$argument
done
[[ $min_nodes == 0 ]] && min_nodes=  # not elastic
if [[ -z $run ]]; then
  say "--out is missing; give the run folder."
  exit 2
fi

# This script runs on the first node of the job, which serves the rendezvous at its own address and a free port.
address=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
port=$((20000 + SLURM_JOB_ID % 20000))
while (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do port=$((port + 1)); done
export MASTER_ADDR=$address MASTER_PORT=$port NODES=$SLURM_NNODES

# One process per GPU, or one per node without GPUs; the processes of a node share its cores.
processes=${SLURM_GPUS_ON_NODE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((${SLURM_CPUS_ON_NODE:-1} + processes - 1) / processes))}

# 20 seconds before the time limit, kill hanging ranks, because Slurm does not requeue a job that it ends at the limit.
end_in_time() {
  [[ -z $ends ]] || return 0
  ends=$(SLURM_TIME_FORMAT=%s squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)  # not a number if the job has no limit
  [[ $ends =~ ^[0-9]+$ ]] && ((ends > $(date +%s) + 20)) || return 0
  {
    trap '' USR1  # Slurm sends a warning to every process of the step; a second one would end this wait
    timeout "$((ends - $(date +%s) - 20))" tail -f --pid="$launcher" /dev/null  # until the launcher ends
    [[ $? == 124 ]] && echo "launch/slurm.sh: ranks hang, and the time limit is near: they are killed." >&2 &&
      kill -QUIT "$launcher"
  } &
}

# Start a node's launcher. srun returns the largest status of all nodes, so some statuses of launchers are renumbered.
# The status of a stop (75, or 143 if SIGTERM arrives before the launcher handles it) or of Ctrl-C (130) must be smaller
# than that of a crash on another node. The status of a user error (1, 2) must be larger than that of a crash, because
# the user error may have caused the crashes of other nodes.
node() {
  export NODE_RANK=$SLURM_NODEID
  launcher= ends=
  trap '[[ -z $launcher ]] && exit 3; kill -TERM "$launcher" 2>/dev/null' TERM
  trap '[[ -z $launcher ]] && exit 3; kill -USR1 "$launcher" 2>/dev/null; end_in_time' USR1
  trap : INT  # Slurm sends it to the launcher as well
  while :; do
    python "$@" & launcher=$!
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done  # the trap interrupts `wait`
    wait "$launcher"
    status=$?
    # If the launcher of an elastic run was killed, start it again, so that its node rejoins the run. The first node
    # cannot rejoin, because it serves the rendezvous.
    [[ $status == 137 && $1 == */elastic.py && $NODE_RANK != 0 && -z $ends ]] || break
  done
  case $status in
    75 | 143) exit 3 ;;
    130) exit 4 ;;
    1 | 2) exit $((200 + status)) ;;
    *) exit "$status" ;;
  esac
}

# NCCL selects the network itself; to override it, set NCCL_SOCKET_IFNAME and NCCL_IB_HCA before sbatch.
# When a rank dies, its node's launcher exits (launch/node.py). Ten seconds later, srun ends the other nodes.
# train.py's --hang_minutes detects a rank that hangs.
#
# `started_from` is the most recently written checkpoint. The checkpoint of the highest step may be older and damaged.
started_from=$(ls -t "$run/checkpoints" 2>/dev/null | sed -n '/^step_/{p;q}' || true)
launcher=("$project/launch/node.py" "$processes")
ending=(--wait=10)
if [[ -n $min_nodes ]]; then
  launcher=("$project/launch/elastic.py" "$min_nodes" "$processes")
  ending=(--wait=0 --no-kill)
fi
status=0
srun --kill-on-bad-exit=0 "${ending[@]}" bash -c "$(declare -f node end_in_time); node \"\$@\"" - \
  "${launcher[@]}" "$project/train.py" "${config[@]}" "$@" || status=$?
case $status in
  3) status=75 ;;
  4) status=130 ;;
    1) status=70 ;;  # srun itself failed
  201 | 202) status=$((status - 200)) ;;
esac

requeue() {
  # Do nothing if Slurm itself is ending this job, to requeue or to cancel it.
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

case $status in
  0) ;;
  75) say "stopped by a signal; requeued." && requeue ;;
  1 | 2 | 130) ;;  # an error that train.py reported, wrong usage, Ctrl-C
  *)
    # Crashes are counted per checkpoint. After a new checkpoint the count starts at one again. The run folder may not
    # exist yet: with a short time limit, Slurm's warning can kill train.py before it creates the folder.
    mkdir -p "$run"
    from=${started_from:-the beginning}
    echo "$from" >>"$run/.crashes"
    count=$(grep -cxF "$from" "$run/.crashes")
    if ((count < CRASHES)); then
      say "crash $count (status $status) after a start from $from; requeued (limit: $CRASHES crashes)." && requeue
    else
      say "crash $count (status $status) after a start from $from; not requeued. The cause is in the log above."
    fi
    ;;
esac
exit "$status"
