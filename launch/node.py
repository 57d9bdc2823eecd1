"""Start the ranks of a run on this host and wait for them.

    python launch/node.py RANKS train.py ARGUMENTS...

On several hosts, NODE_RANK (default 0) numbers this host, NODES (default 1) counts them, and MASTER_ADDR and
MASTER_PORT name the rendezvous address. The launcher forwards SIGINT, SIGTERM and SIGUSR1 to the ranks, which save a
checkpoint and stop. When a rank fails, the others get 8 seconds to report where the run stands and are then killed.
When the launcher is killed, its ranks receive SIGTERM.

torchrun (torch 2.13) is not used here: it replaces every rank's exit status by 1, kills ranks 30 seconds after another
rank failed whatever --shutdown-timeout is, stops waiting at a second signal, and leaves its ranks running when killed.

Exit status: 0 all ranks finished; 75 stopped with a checkpoint, restart to resume; 130 the same after Ctrl-C; otherwise
the status of the rank that failed first.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package need not be installed
from rwkv_music.training.signals import EXIT_RESUMABLE, INTERRUPTED

SUCCESS = (0, EXIT_RESUMABLE, INTERRUPTED)
FAILURE_GRACE_SECONDS = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process receives when its parent dies
libc = ctypes.CDLL(None)


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or not arguments[0].isdecimal():
        print(__doc__.strip())
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    ranks, nodes, node = int(arguments[0]), int(os.environ.get("NODES", "1")), int(os.environ.get("NODE_RANK", "0"))
    processes: list[subprocess.Popen] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: forward(number, processes))
    processes += start(arguments[1:], ranks, first_rank=node * ranks, world_size=nodes * ranks)
    return wait(processes)


def forward(number: int, processes: Sequence[subprocess.Popen]) -> None:
    """Send a signal to every process."""
    for process in processes:
        process.send_signal(number)


def start(
    arguments: list[str], ranks: int, first_rank: int, world_size: int, **environment: str
) -> list[subprocess.Popen]:
    """Start this host's ranks: one Python interpreter each, with `arguments` and the added `environment` variables."""
    processes = []
    threads = {}  # a single rank has the whole host; torch's default fits
    if ranks > 1 and "OMP_NUM_THREADS" not in os.environ:  # more threads than cores spin against each other
        threads = {"OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // ranks)}
    for local_rank in range(ranks):
        place = {"RANK": first_rank + local_rank, "LOCAL_RANK": local_rank}
        sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": ranks}
        own = {name: str(value) for name, value in {**place, **sizes, **threads, **environment}.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-u", *arguments],
                env={**os.environ, **own},
                start_new_session=True,  # a terminal's Ctrl-C reaches the ranks once, through the launcher
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        )
    return processes


def wait(processes: list[subprocess.Popen], poll: Callable[[], None] = lambda: None) -> int:
    """Wait for all ranks, kill those that outlive a failed one by the grace period, and return the exit status.

    `poll` is called about ten times a second while all ranks run. A rank killed by signal n has status 128 + n.
    """
    failed_at, status = None, 0
    while True:
        codes = [process.poll() for process in processes]
        statuses = [code if code is None or code >= 0 else 128 - code for code in codes]
        failures = [code for code in statuses if code not in (None, *SUCCESS)]
        if failures and failed_at is None:
            failed_at, status = time.monotonic(), min(failures)  # a user error (1) takes precedence over its effects
            for local_rank, code in enumerate(codes):
                if code is not None and code < 0:  # the rank could not report this itself
                    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
                    hint = "; if not sent by hand, the host ran out of memory (see dmesg)" if name == "SIGKILL" else ""
                    text = f"launch/node.py: local rank {local_rank} was killed by {name}{hint}."
                    print(text, file=sys.stderr, flush=True)
        if None not in statuses:
            return status or max(statuses)
        if failed_at is not None and time.monotonic() > failed_at + FAILURE_GRACE_SECONDS:
            forward(signal.SIGKILL, processes)
        if set(statuses) == {None}:
            poll()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
