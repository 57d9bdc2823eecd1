"""Being asked to stop: signals become wishes that the training loop reads between two steps.

SIGTERM (a job that is preempted, a machine that goes down) and SIGUSR1 (Slurm's --signal, before a time limit) mean:
save and go on later. Ctrl-C means: save, and that is all for now. A second Ctrl-C ends at once.

And leaving, with a status that tells a launcher what to do.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

GO_ON_LATER = 75  # exit status, EX_TEMPFAIL: stopped with a checkpoint, the same command goes on
CRASHED = 70  # exit status, EX_SOFTWARE: something that a start anew may mend, such as the loss of another rank
INTERRUPTED = 130  # exit status after Ctrl-C
SAME_SECONDS = 0.5  # what comes so soon after a Ctrl-C is the same one, from a launcher that passes it on


class Stopped(Exception):
    """A run that was asked to stop and did, in order; the message says where it stands.

    Attributes:
        status: the exit status that tells a launcher whether to go on by itself.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StopSignals:
    """Within this context the signals do no more than set `go_on_later` and `interrupted`.

    After it those that mean to go on later do nothing: the run is at its end and about to leave.
    """

    LATER = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, says: bool = False) -> None:
        self._says = says
        self.go_on_later = False
        self.interrupted = False

    def __enter__(self) -> "StopSignals":
        for number in self.LATER:
            signal.signal(number, self._note)
        self._on_interrupt_before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.LATER:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGINT, self._on_interrupt_before)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted and time.monotonic() > self._interrupted_at + SAME_SECONDS:
                raise KeyboardInterrupt
            if self._says and not self.interrupted:
                text = "\ntrain.py: stops after the step under way, with a checkpoint; Ctrl-C again ends it at once.\n"
                os.write(sys.stderr.fileno(), text.encode())  # a handler may come in the middle of a print
            self.interrupted, self._interrupted_at = True, time.monotonic()
        else:
            self.go_on_later = True


def leave(status: int) -> NoReturn:
    """End the process with `status`, its output flushed, without taking the interpreter apart.

    gloo's and DeepSpeed's threads live as long as DeepSpeed holds its process groups, which is to the end. One that
    lets go of a collective's tensor while the interpreter is being taken apart is refused its lock, and the whole
    process is aborted (SIGABRT, "terminate called without an active exception"): a run that had finished, or had said
    what was wrong, would end as a crash.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(status)
