"""Start the ranks of a run on this host and wait for them.

    python launch/node.py RANKS train.py ARGUMENTS...

RANKS is the number of ranks on this host. These environment variables are read: NODES (default 1) is the number of
hosts, NODE_RANK (default 0) is the number of this host, and MASTER_ADDR and MASTER_PORT are the rendezvous address.

The launcher forwards SIGINT, SIGTERM and SIGUSR1 to the ranks, which save a checkpoint and stop. SIGHUP, which a
closing terminal sends, is forwarded as SIGTERM. After a second SIGINT, ranks that have not ended within 5 seconds are
killed. SIGQUIT kills all ranks at once. When a rank fails, the others have 8 seconds to print the step that they have
reached and to exit. Then they are killed. If the launcher is killed, launch/guard.py ends its ranks.

There are four reasons not to use torchrun (torch 2.13) here. It replaces the exit status of every rank with 1. It kills
ranks 30 seconds after another rank has failed, even with another --shutdown-timeout. After a second signal, it no
longer waits for the ranks. If it is killed, its ranks continue to run.

Exit status:
  0      all ranks have finished
  75     the ranks were stopped by SIGTERM or SIGHUP, or by SIGUSR1 during training
  130    the ranks were stopped by Ctrl-C
  other  the status of the rank that failed first
With status 75 or 130, the ranks have saved a checkpoint if training had begun, except after a second Ctrl-C. The same
command resumes the run.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package need not be installed
from guard import GRACE_SECONDS

from rwkv_music.training.signals import EXIT_RESUMABLE, INTERRUPTED, SAME_SECONDS

USER_ERRORS = (1, 2)
SUCCESS = (0, EXIT_RESUMABLE, INTERRUPTED)
KILL_SECONDS = 5  # from a second SIGINT to SIGKILL
FORWARDED = {number: number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
FORWARDED |= {signal.SIGHUP: signal.SIGTERM, signal.SIGQUIT: signal.SIGKILL}
CAUSES = {
    signal.SIGKILL: "; unless someone sent it, the host probably ran out of memory (see dmesg)",
    signal.SIGUSR1: " before training began: the time limit is too short",
}


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or not arguments[0].isdecimal():
        print(__doc__.strip())
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    count, nodes, node = int(arguments[0]), int(os.environ.get("NODES", "1")), int(os.environ.get("NODE_RANK", "0"))
    ranks = Ranks()
    ranks.start(arguments[1:], count, first_rank=node * count, world_size=nodes * count)
    return ranks.wait()


class Ranks:
    """The processes of this host's ranks. As soon as this object exists, signals to the launcher are forwarded to them.

    Ranks that have not been started yet receive the signals after their start. A signal that arrives after all ranks
    have ended does not change the exit status.
    """

    def __init__(self) -> None:
        self.received: list[int] = []  # the signals received so far, each as the signal that FORWARDED maps it to
        self._processes: list[subprocess.Popen] = []
        self._starting = self._interruptible = False
        self._interrupted_at: float | None = None  # time of the first SIGINT
        self._kill_at: float | None = None
        self._guard: subprocess.Popen | None = None
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # nohup ignores SIGHUP
                signal.signal(number, self._handle)

    def start(self, arguments: list[str], ranks: int, first_rank: int, world_size: int, **environment: str) -> None:
        """Start the ranks, each as a Python process with `arguments` and additional `environment` variables."""
        self._starting = True
        self._processes = []
        if self._guard is None or self._guard.poll() is not None:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("guard.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        for local_rank in range(ranks):
            place = {"RANK": first_rank + local_rank, "LOCAL_RANK": local_rank}
            sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": ranks}
            own = {name: str(value) for name, value in {**place, **sizes, **environment}.items()}
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-u", *arguments],
                    env={**os.environ, **own},
                    start_new_session=True,  # so that Ctrl-C in a terminal reaches the ranks only through the launcher
                )
            )
            # The guard gets the list after each start, because the launcher may be killed before all have started.
            print(*(process.pid for process in self._processes), file=self._guard.stdin, flush=True)
        self._starting = False
        for number in self.received:  # signals that arrived while the ranks were started
            self.send(number)

    def send(self, number: int) -> None:
        """Send a signal to every rank."""
        for process in self._processes:
            process.send_signal(number)

    def wait(self, poll: Callable[[], None] = lambda: None) -> int:
        """Wait for all ranks, and return the exit status. If a rank fails, the others are killed after a grace period.

        A rank that was killed by signal n has status 128 + n. The exception is SIGTERM, which counts as a stop, because
        it kills a rank only before training begins. `poll` is called about ten times a second while all ranks are
        running.
        """
        failed_at, status = None, 0
        while True:
            codes = [process.poll() for process in self._processes]
            statuses = [_status(code) for code in codes]
            failures = [
                status
                for code, status in zip(codes, statuses, strict=True)
                if code == -signal.SIGTERM or status not in (None, *SUCCESS)
            ]
            if failures and failed_at is None:
                failed_at = time.monotonic()
                # User errors come first and stops second, because they may have caused the failures of other ranks.
                status = min(failures, key=lambda status: (status not in USER_ERRORS, status != EXIT_RESUMABLE, status))
                if self._kill_at is None and signal.SIGKILL not in self.received:
                    _report_killed(codes)
            if None not in statuses:
                return INTERRUPTED if self._kill_at is not None else status or max(statuses)
            now = time.monotonic()
            if (failed_at is not None and now > failed_at + GRACE_SECONDS) or (self._kill_at and now > self._kill_at):
                self.send(signal.SIGKILL)
            if set(statuses) == {None}:
                poll()
            time.sleep(0.1)

    def _handle(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is None:
                self._interrupted_at = now
            elif self._kill_at is None and now > self._interrupted_at + SAME_SECONDS:
                self._kill_at = now + KILL_SECONDS
        number = FORWARDED[number]
        self.received.append(number)
        if self._interruptible:
            self._leave()
        if not self._starting:
            self.send(number)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context for waiting for something other than the ranks. A signal that arrives in it ends the launcher."""
        self._interruptible = True
        if self.received:
            self._leave()
        try:
            yield
        finally:
            self._interruptible = False

    def _leave(self) -> NoReturn:
        sys.exit(INTERRUPTED if self.received[-1] == signal.SIGINT else EXIT_RESUMABLE)


def _status(code: int | None) -> int | None:
    """Return the exit status of a rank for the return code of its process. None means that it is still running."""
    if code == -signal.SIGTERM:
        return EXIT_RESUMABLE
    return code if code is None or code >= 0 else 128 - code


def _report_killed(codes: list[int | None]) -> None:
    """Print a line about each rank that was killed by a signal, because it cannot do so itself."""
    for local_rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
            cause = " before training began" if code == -signal.SIGTERM else CAUSES.get(-code, "")
            text = f"launch/node.py: local rank {local_rank} was killed by {name}{cause}."
            print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
