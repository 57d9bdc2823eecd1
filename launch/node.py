"""Start this machine's ranks of a run and stay with them to their end.

    python launch/node.py RANKS train.py ARGUMENTS...

The machine's place among several comes from NODE_RANK (0) and NODES (1), the meeting point from MASTER_ADDR and
MASTER_PORT. A signal goes on to the ranks, which save and stop. When a rank ends badly, the others have a few seconds
to notice by themselves and say where the run stands.

The ranks do not outlive it: when it is killed they save and stop too.

Exit status: 0 all finished; 75 they stopped, to go on later; 130 Ctrl-C; else that of the rank that ended badly first.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

IN_ORDER = (0, 75, 130)  # statuses of ranks that ended as they should (rwkv_music/training/signals.py)
PATIENCE_SECONDS = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # Linux: prctl's number for the signal that a process gets when the one that started it ends
libc = ctypes.CDLL(None)


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or not arguments[0].isdecimal():
        print(__doc__.strip())
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    ranks, nodes, node = int(arguments[0]), int(os.environ.get("NODES", "1")), int(os.environ.get("NODE_RANK", "0"))
    processes: list[subprocess.Popen] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: pass_on(number, processes))
    processes += start(arguments[1:], ranks, first_rank=node * ranks, world_size=nodes * ranks)
    return attend(processes)


def pass_on(number: int, processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(number)


def start(
    arguments: list[str], ranks: int, first_rank: int, world_size: int, **environment: str
) -> list[subprocess.Popen]:
    """This machine's ranks: Python with `arguments`, and `environment` beside what says which rank each is."""
    processes = []
    threads = {}  # one rank has all of the machine, which torch knows best
    if ranks > 1 and "OMP_NUM_THREADS" not in os.environ:  # threads that wait for a core of another rank's spin
        threads = {"OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // ranks)}
    for local_rank in range(ranks):
        place = {"RANK": first_rank + local_rank, "LOCAL_RANK": local_rank}
        sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": ranks}
        own = {name: str(value) for name, value in {**place, **sizes, **threads, **environment}.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-u", *arguments],
                env={**os.environ, **own},
                start_new_session=True,  # a terminal's Ctrl-C then comes once, through here
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        )
    return processes


def attend(processes: list[subprocess.Popen], meanwhile: Callable[[], None] = lambda: None) -> int:
    """Wait until all have ended; end them when one has ended badly and the others do not.

    Args:
        meanwhile: called again and again while all go on.
    """
    failed_at, status = None, 0
    while True:
        codes = [process.poll() for process in processes]
        ended = [code if code is None or code >= 0 else 128 - code for code in codes]  # 128 + n: killed by signal n
        bad = [code for code in ended if code not in (None, *IN_ORDER)]
        if bad and failed_at is None:
            failed_at, status = time.monotonic(), min(bad)  # a sentence (1) counts for more than what it led to
            for local_rank, code in enumerate(codes):
                if code is not None and code < 0:  # it could not say so itself
                    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
                    why = ", as Linux does when memory runs out (see dmesg)" if name == "SIGKILL" else ""
                    said = f"launch/node.py: local rank {local_rank} was ended by {name}{why}."
                    print(said, file=sys.stderr, flush=True)
        if None not in ended:
            return status or max(ended)
        if failed_at is not None and time.monotonic() > failed_at + PATIENCE_SECONDS:
            for process in processes:
                process.kill()
        if set(ended) == {None}:
            meanwhile()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
