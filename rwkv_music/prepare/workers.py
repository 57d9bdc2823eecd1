"""A process pool for work that may hang or crash: every item gets an answer, in the order of the items.

Files from the wild crash and hang libraries written in C++. `concurrent.futures` fails the whole pool when one process
dies, and cannot stop a task that hangs. Here each process works on one item at a time and has its own pipe. When it
dies or exceeds the time limit, the answer to that item is a `Failure`, and a new process replaces it.

Items are taken from an iterator as needed. At most `ITEMS_AHEAD` items per process are started before the oldest answer
is taken, so memory depends neither on the number of items nor on how slow one of them is.
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
from rwkv_music.system import available_cores, limit_memory

ITEMS_AHEAD = 64
SETUP_LIMIT_S = 300.0
READY = ("ready",)  # message of a process that finished its set-up
NO_ANSWER = object()

# "spawn" because a fork of a process that runs torch's threads can deadlock.
processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Failure:
    """The answer to an item that could not be processed, with a short reason."""

    reason: str


def map_in_order(
    setup: Callable[..., Callable[[Any], Any]],  # called in every process; returns the function that processes one item
    setup_args: tuple,  # arguments of `setup`
    items: Iterable,  # consumed lazily
    workers: int | None = None,  # maximum number of processes; the number of available cores if None
    limit_s: float = 60.0,  # time limit for one item
    memory_limit_bytes: int | None = None,  # of each process's address space; an item that needs more is a Failure
) -> Iterator[Any]:
    """Yield the answer to each of `items` in order: the result of the work, or a `Failure`.

    `setup`, its arguments, items and answers are pickled. Raises UserError if `workers` is not positive, and
    RuntimeError if a process died during its set-up.
    """
    if workers is not None and workers < 1:
        raise UserError(f"The number of workers is {workers}: choose at least 1.")
    n_workers = workers or available_cores()
    start = partial(_Worker, setup, setup_args, memory_limit_bytes)
    pool: list[_Worker] = []
    numbered = enumerate(items)
    all_started = False
    answers: dict[int, Any] = {}
    n_started = n_taken = 0
    with selectors.DefaultSelector() as selector:
        try:
            while True:
                while n_taken in answers:
                    yield answers.pop(n_taken)
                    n_taken += 1
                idle = [worker for worker in pool if worker.number is None]
                while n_started - n_taken < ITEMS_AHEAD * n_workers and (idle or len(pool) < n_workers):
                    next_item = None if all_started else next(numbered, None)
                    if next_item is None:
                        all_started = True
                        break
                    if not idle:
                        idle.append(start())
                        pool.append(idle[0])
                        selector.register(idle[0].connection, selectors.EVENT_READ, idle[0])
                    idle.pop().begin(*next_item, limit_s)
                    n_started += 1
                busy = [worker for worker in pool if worker.number is not None]
                if not busy:
                    return
                ready = selector.select(timeout=min(worker.time_left() for worker in busy))
                overdue = [worker for worker in busy if worker.time_left() == 0]
                for worker in {*(key.data for key, _ in ready), *overdue}:
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
    """One process, its pipe, and the number of the item it works on (None when idle)."""

    def __init__(self, setup: Callable, setup_args: tuple, memory_limit_bytes: int | None):
        self.connection, child_end = processes.Pipe()
        self.process = processes.Process(
            target=_serve, args=(child_end, setup, setup_args, memory_limit_bytes), daemon=True
        )
        self.process.start()
        child_end.close()
        self.number: int | None = None
        self.alive = True
        self._ready = False
        self._deadline = 0.0

    def begin(self, number: int, item: Any, limit_s: float) -> None:
        self.number = number
        self._deadline = time.monotonic() + (limit_s if self._ready else SETUP_LIMIT_S)
        with suppress(OSError):  # `listen` detects a dead process
            self.connection.send(item)

    def time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def listen(self, limit_s: float) -> Any:
        """Return the answer to the current item, or NO_ANSWER. Clear `alive` if the process died or timed out."""
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if message != READY:
                    return message[1]
                self._ready = True
                self._deadline = time.monotonic() + limit_s
        except (EOFError, OSError) as error:
            if not self._ready:
                raise RuntimeError("a worker process died during its set-up; see its error above") from error
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
    # An interrupt reaches the whole process group. The parent handles it and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    if memory_limit_bytes is not None:
        limit_memory(memory_limit_bytes)
    work = setup(*setup_args)
    gc.freeze()  # exclude the objects of the set-up from every later collection
    connection.send(READY)
    with suppress(EOFError, OSError):  # the parent exited
        while True:
            item = connection.recv()
            try:
                answer = work(item)
            except MemoryError:
                answer = Failure("takes too much memory")
            except Exception as error:
                answer = Failure(f"failed with {type(error).__name__}: {error}")
            connection.send(("answer", answer))
