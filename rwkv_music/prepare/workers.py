"""Work spread over processes that may hang or die: every item gets an answer, in the order of the items.

`concurrent.futures` gives up the whole pool when one process dies, and cannot stop a task that hangs. Files found in
the wild do both to libraries written in C++, so here each process serves one item at a time over a pipe of its own:
when it dies or takes too long, that item is answered with a `Failure` and a new process takes its place. Items are
taken from an iterator as they are needed, and at most `ITEMS_AHEAD` a process are begun before the oldest answer is
taken: memory depends neither on how many there are nor on how slow one of them is.
"""

import gc
import multiprocessing
import selectors
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from rwkv_music.errors import UserError
from rwkv_music.system import available_cores

ITEMS_AHEAD = 64
SETUP_LIMIT_S = 300.0
READY = ("ready",)  # what a process says when it is set up
NO_ANSWER = object()

# A fresh interpreter for each process: a fork of one that already runs torch's threads may deadlock.
processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Failure:
    """The answer to an item that has none: why, in a short phrase."""

    reason: str


def map_in_order(
    setup: Callable[..., Callable[[Any], Any]],
    setup_args: tuple,
    items: Iterable,
    workers: int | None = None,
    limit_s: float = 60.0,
    memory_limit_bytes: int | None = None,
) -> Iterator[Any]:
    """Yield the answer to each of `items`, in their order: what the work returned, or a `Failure`.

    Args:
        setup: called in every process as `setup(*setup_args)`, gives the function that does the work on one item.
            Function, arguments, items and answers are pickled.
        workers: how many processes at most; when None, one for each core that this process may use.
        limit_s: the longest that one item may take, in seconds.
        memory_limit_bytes: the address space of a process, where the system can limit it: work that asks for more
            meets a MemoryError instead of taking the machine's.

    Raises:
        UserError: `workers` is not positive.
        RuntimeError: a process ended while it was being set up, so the work cannot be done at all.
    """
    if workers is not None and workers < 1:
        raise UserError(f"The number of workers is {workers}: choose at least 1.")
    n_workers = workers or available_cores()
    start = partial(_Worker, setup, setup_args, memory_limit_bytes)
    pool: list[_Worker] = []
    waiting = enumerate(items)
    all_begun = False
    answers: dict[int, Any] = {}
    n_begun = n_taken = 0
    with selectors.DefaultSelector() as selector:
        try:
            while True:
                while n_taken in answers:
                    yield answers.pop(n_taken)
                    n_taken += 1
                idle = [worker for worker in pool if worker.number is None]
                while n_begun - n_taken < ITEMS_AHEAD * n_workers and (idle or len(pool) < n_workers):
                    upcoming = None if all_begun else next(waiting, None)
                    if upcoming is None:
                        all_begun = True
                        break
                    if not idle:
                        idle.append(start())
                        pool.append(idle[0])
                        selector.register(idle[0].connection, selectors.EVENT_READ, idle[0])
                    idle.pop().begin(*upcoming, limit_s)
                    n_begun += 1
                busy = [worker for worker in pool if worker.number is not None]
                if not busy:
                    return
                spoken = selector.select(timeout=min(worker.time_left() for worker in busy))
                silent_too_long = [worker for worker in busy if worker.time_left() == 0]
                for worker in {*(key.data for key, _ in spoken), *silent_too_long}:
                    answer = worker.listen(limit_s)
                    if answer is NO_ANSWER:
                        continue
                    answers[worker.number] = answer
                    worker.number = None
                    if not worker.alive:
                        selector.unregister(worker.connection)
                        worker.stop()
                        pool.remove(worker)
        finally:
            for worker in pool:
                worker.stop()


class _Worker:
    """One process, the pipe to it, and the number of the item it is busy with (None when idle)."""

    def __init__(self, setup: Callable, setup_args: tuple, memory_limit_bytes: int | None):
        self.connection, theirs = processes.Pipe()
        self.process = processes.Process(
            target=_serve, args=(theirs, setup, setup_args, memory_limit_bytes), daemon=True
        )
        self.process.start()
        theirs.close()
        self.number: int | None = None
        self.alive = True
        self._ready = False
        self._deadline = 0.0

    def begin(self, number: int, item: Any, limit_s: float) -> None:
        self.number = number
        self._deadline = time.monotonic() + (limit_s if self._ready else SETUP_LIMIT_S)
        with suppress(OSError):  # a process that has died is noticed when it is listened to
            self.connection.send(item)

    def time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def listen(self, limit_s: float) -> Any:
        """The answer to the item under way, NO_ANSWER while there is none. A lost process is no longer `alive`."""
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if message != READY:
                    return message[1]
                self._ready = True
                self._deadline = time.monotonic() + limit_s
        except (EOFError, OSError) as error:
            if not self._ready:
                raise RuntimeError("a worker process ended during its set-up; its own message is above") from error
            self.alive = False
            return Failure("crashed the reader")
        if self.time_left() == 0:
            self.alive = False
            return Failure(f"took longer than {limit_s:g} s")
        return NO_ANSWER

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, setup: Callable, setup_args: tuple, memory_limit_bytes: int | None) -> None:
    # An interrupt reaches the whole group; the parent alone answers it, and stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    if memory_limit_bytes is not None:
        with suppress(ImportError, ValueError, OSError):  # elsewhere than on Unix there is no such limit
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    work = setup(*setup_args)
    gc.freeze()  # what the set-up made is there to stay: the collector need not look through it over and over
    connection.send(READY)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            item = connection.recv()
            try:
                answer = work(item)
            except MemoryError:
                answer = Failure("takes too much memory")
            except Exception as error:
                answer = Failure(f"failed with {type(error).__name__}: {error}")
            connection.send(("answer", answer))
