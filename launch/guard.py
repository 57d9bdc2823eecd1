"""End the ranks of a launcher that was killed. launch/node.py and launch/elastic.py start this script as a process.

Standard input is a pipe from the launcher. Each line has the process IDs of the launcher's current ranks. When the
launcher ends, the pipe closes. Ranks that are still running then receive SIGTERM, save a checkpoint and stop. After a
grace period they are killed, because a rank that hangs cannot stop.

DeepSpeed's and torch's launchers do not start such a process. With these launchers, a thread in each rank watches the
launcher (`stop_without_launcher` in training/signals.py). The thread could not replace this process, because the thread
starts later, when train.py runs, and cannot end a rank that hangs.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package need not be installed
from rwkv_music.system import start_time

GRACE_SECONDS = 8


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # because this process must outlive the launcher
    ranks: dict[int, int | None] = {}
    for line in sys.stdin:
        ranks = {int(pid): start_time(int(pid)) for pid in line.split()}
    kill_at = time.monotonic() + GRACE_SECONDS
    number = signal.SIGTERM
    while running := [pid for pid, started in ranks.items() if started and start_time(pid) == started]:
        if number is not None:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        number = signal.SIGKILL if time.monotonic() > kill_at else None
        time.sleep(0.1)


if __name__ == "__main__":
    main()
