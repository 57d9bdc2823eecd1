"""Signals to stop, and exit statuses.

Three signals stop a run that can be resumed later: SIGTERM (a preempted job, a machine that shuts down), SIGUSR1
(Slurm's --signal before a time limit) and SIGHUP (a terminal that closes). After one of these signals, the run saves a
checkpoint and exits with status EXIT_RESUMABLE. After Ctrl-C, it saves a checkpoint and exits with status INTERRUPTED.
The signal handler only sets a flag. The ranks exchange their flags at the start of each step, so a run stops after the
current step or the next one. If this is the last step of the run, the status is 0. A second Ctrl-C ends the run at
once.

If DeepSpeed's or torch's launcher started the ranks, a thread in each rank watches it. When the launcher ends before
its ranks, they stop as after SIGTERM. This is necessary because SIGTERM ends the `deepspeed` command but leaves its
ranks running. With the launchers of this project, launch/guard.py watches the launcher instead. It also kills ranks
that do not end in time.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rwkv_music.system import parent_pid, start_time

EXIT_RESUMABLE = 75  # exit status, EX_TEMPFAIL: stopped with a checkpoint; the same command resumes
CRASHED = 70  # exit status, EX_SOFTWARE: a failure that a restart may cure, such as the loss of another rank
INTERRUPTED = 130  # exit status after Ctrl-C
SAME_SECONDS = 0.5  # a SIGINT within this time after another one is the same Ctrl-C, forwarded by a launcher
DEEPSPEED_LAUNCH = "deepspeed.launcher.launch"  # the child of DeepSpeed's `deepspeed` command and parent of its ranks
LAUNCHERS = {"deepspeed", "ds", "deepspeed.launcher.runner", DEEPSPEED_LAUNCH, "torchrun", "torch.distributed.run"}
LAUNCHER_CHECK_SECONDS = 1.0


class Stopped(Exception):
    """A stop of the run before its last step. The message is a clause that states the reason."""

    def __init__(self, message: str, status: int, on_every_rank: bool = False) -> None:
        super().__init__(message)
        # The exit status, and whether every rank prints the message or only rank 0 does.
        self.status, self.on_every_rank = status, on_every_rank


class StopSignals:
    """A context in which signals only set `stop_later` or `interrupted`; only a second Ctrl-C raises KeyboardInterrupt.

    After the context, the signals in `LATER` are ignored, because the run has ended and is about to exit.
    """

    LATER = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self, announce: bool = False) -> None:
        self._announce = announce  # whether to print that the run will stop
        self.stop_later = False
        self.interrupted = False

    def __enter__(self) -> "StopSignals":
        for number in self.LATER:
            if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # nohup ignores SIGHUP
                signal.signal(number, self._note)
        self._previous_interrupt_handler = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.LATER:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGINT, self._previous_interrupt_handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.stop_later = True
            return
        if self.interrupted and time.monotonic() > self._interrupted_at + SAME_SECONDS:
            raise KeyboardInterrupt
        if self._announce and not self.interrupted:
            text = "\ntrain.py: the run saves a checkpoint within two steps and stops; a second Ctrl-C ends it now.\n"
            os.write(sys.stderr.fileno(), text.encode())  # not `print`, which this handler may have interrupted
        self.interrupted, self._interrupted_at = True, time.monotonic()


def stop_without_launcher() -> None:
    """Start a thread that sends SIGTERM to this process when one of the launchers above it has ended."""
    above = launchers()
    if above:
        watch = threading.Thread(target=_stop_after_launchers, args=(above,), name="launchers", daemon=True)
        watch.start()


def launchers() -> dict[int, int | None]:
    """Return the process IDs and start times of the launchers above this process, the nearest first.

    The start time of a launcher that has already ended is None.
    """
    found: dict[int, int | None] = {}
    pid, program = os.getppid(), _program(os.getppid())
    while program in LAUNCHERS:
        found[pid] = start_time(pid)
        pid, last = parent_pid(pid) or 1, program
        program = _program(pid)
        if last == DEEPSPEED_LAUNCH and pid == 1 and program not in LAUNCHERS:
            found[pid] = None  # the `deepspeed` command above it ended while this process started
    return found


def _program(pid: int) -> str:
    """Return the name of the script or module that a Python process runs; "" if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    names = (Path(os.fsdecode(word)).name for word in words[1:] if not word.startswith(b"-"))
    return next(names, "")


def _stop_after_launchers(above: dict[int, int | None]) -> None:
    while all(started is not None and start_time(pid) == started for pid, started in above.items()):
        time.sleep(LAUNCHER_CHECK_SECONDS)
    os.write(sys.stderr.fileno(), b"train.py: the launcher of this rank has ended, so the rank stops.\n")
    os.kill(os.getpid(), signal.SIGTERM)


def leave(status: int) -> NoReturn:
    """Flush the output and end the process with `status`, without finalizing the interpreter.

    DeepSpeed keeps its process groups, so the threads of gloo live until the process ends. If such a thread releases a
    tensor during finalization, it cannot take the interpreter's lock, and the process is aborted (SIGABRT, "terminate
    called without an active exception"). A finished run would then look like a crash.
    """
    logging.shutdown()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
            stream.flush()
    os._exit(status)
