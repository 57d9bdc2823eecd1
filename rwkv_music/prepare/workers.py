"""A process pool for work that may hang or crash: every item gets an answer, in the order of the items.

Some real files make libraries written in C++ crash or hang. If a process dies, `concurrent.futures` fails the whole
pool, and it cannot stop a task that hangs. Here each process works on one item at a time and has its own pipe. A
process that dies or exceeds a limit is replaced by a new one.

The answers must not depend on other programs on the computer. The time limit is therefore a limit of CPU time, because
wall-clock time grows when other programs run. But other programs can still have an effect. If they fill the memory, the
kernel can kill a process. If they use the same caches, the same work can take about twice the CPU time. If the process
of an item dies or exceeds a limit, the item is therefore tried once more, alone and with twice the CPU time. If this
fails too, the answer is a `Failure`. A limit of wall-clock time ends only a process that waits, that is, a process that
uses less than LEAST_SHARE of a core. A process that gets little CPU time on a busy computer continues.

Items are taken from an iterator as needed. At any time, there are at most `ITEMS_AHEAD` items per process that have
been started and whose answers the caller has not taken. Memory therefore depends neither on the number of items nor on
the time that one of them takes.
"""

import gc
import multiprocessing
import selectors
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from rwkv_music.errors import UserError
from rwkv_music.system import available_cores, cpu_seconds, limit_cpu_time, limit_memory

ITEMS_AHEAD = 64
MOST_WORKERS = 1024
SETUP_LIMIT_S = 300.0
NEW_OBJECTS = 50_000  # new objects between two garbage collections; one file creates more than Python's default of 700
# `threshold1` and `threshold2` of gc.set_threshold: older objects are collected after this many collections of younger
# ones. The objects of a score refer to each other, so only garbage collection frees them. With Python's values, 10 and
# 10, the objects of hundreds of scores would accumulate.
OLDER_OBJECTS = (4, 1)
LEAST_SHARE = 1e-3  # of a core; a process that uses less counts as waiting
SECOND_TRY = 2.0  # CPU time of the second try, relative to the first one
READY = ("ready",)  # message of a process that has finished its set-up
NO_ANSWER = object()

# "spawn", because a process that is forked while torch's threads run can deadlock.
processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Failure:
    """The answer to an item that could not be processed, with a short reason."""

    reason: str


@dataclass(frozen=True)
class _Try:
    """An item, its number, and whether this is its second try."""

    number: int
    item: Any
    is_second: bool = False


@dataclass(frozen=True)
class _Lost:
    """The loss of a process that died or exceeded a limit: the reason, and whether this happened during its set-up."""

    reason: str
    in_setup: bool


def check_workers(workers: int | None) -> None:
    """Raise UserError if a number of worker processes is out of range."""
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers is {workers}: choose a number from 1 to {MOST_WORKERS:,}.")


def map_in_order(
    setup: Callable[..., Callable[[Any], Any]],  # called in every process; returns a function that processes an item
    setup_args: tuple,  # arguments of `setup`
    items: Iterable,  # consumed lazily
    workers: int | None = None,  # maximum number of processes; the number of available cores if None
    limit_s: float | Callable[[Any], float] = 60.0,  # limit of CPU time for an item, or a function that returns it
    memory_limit_bytes: int | None = None,  # limit of each process's address space; an item that exceeds it fails
    hang_s: float = 300.0,  # wall-clock time after which a process that waits, without using CPU time, is ended
) -> Iterator[Any]:
    """Yield the answer to each of `items`, in order: the result of the work, or a `Failure`.

    `setup`, its arguments, items and answers are pickled. Raises UserError if `workers` is out of range or if the
    set-up of a process fails. A set-up in which the process is killed or hangs is first tried again in a new process.
    """
    check_workers(workers)
    n_workers = workers or available_cores()
    start = partial(_Worker, setup, setup_args, memory_limit_bytes)
    pool: list[_Worker] = []
    numbered = (_Try(number, item) for number, item in enumerate(items))
    all_started = False
    again: deque[_Try] = deque()  # second tries to make
    answers: dict[int, Any] = {}
    n_started = n_taken = 0
    with selectors.DefaultSelector() as selector:
        try:
            while True:
                while n_taken in answers:
                    yield answers.pop(n_taken)
                    n_taken += 1
                busy = [worker for worker in pool if worker.current]
                idle = [worker for worker in pool if not worker.current]
                alone = bool(again) or any(worker.current.is_second for worker in busy)
                while not busy if alone else n_started - n_taken < ITEMS_AHEAD * n_workers and len(busy) < n_workers:
                    if again:
                        following = again.popleft()
                    elif not all_started and (following := next(numbered, None)):
                        n_started += 1
                    else:
                        all_started = True
                        break
                    if not idle:
                        idle.append(start())
                        pool.append(idle[0])
                        selector.register(idle[0].connection, selectors.EVENT_READ, idle[0])
                    worker = idle.pop()
                    limit = limit_s(following.item) if callable(limit_s) else limit_s
                    worker.begin(following, limit * (SECOND_TRY if following.is_second else 1), hang_s)
                    busy.append(worker)
                if not busy:
                    return
                ready = selector.select(timeout=min(worker.time_left() for worker in busy))
                overdue = [worker for worker in busy if worker.time_left() == 0]
                for worker in {*(key.data for key, _ in ready), *overdue}:
                    answer = worker.listen()
                    if answer is NO_ANSWER:
                        continue
                    tried, worker.current = worker.current, None
                    if isinstance(answer, _Lost):
                        selector.unregister(worker.connection)
                        worker.stop()
                        pool.remove(worker)
                        if tried and not tried.is_second:
                            again.append(_Try(tried.number, tried.item, is_second=True))
                            continue
                        if answer.in_setup:
                            raise UserError(_setup_error(answer.reason))
                        answer = Failure(answer.reason)
                    if tried:  # None if the process died between two items
                        answers[tried.number] = answer
        finally:
            for worker in pool:
                worker.stop()


def _setup_error(what: str) -> str:
    return (
        f"A worker process {what} during its set-up: check the error above, if there is one, free some memory or use "
        "fewer --workers, and try again."
    )


class _Worker:
    """One process, its pipe, and the item that it works on (`current`; None if it is idle)."""

    def __init__(self, setup: Callable, setup_args: tuple, memory_limit_bytes: int | None):
        self.connection, child_end = processes.Pipe()
        self.process = processes.Process(
            target=_serve, args=(child_end, setup, setup_args, memory_limit_bytes), daemon=True
        )
        self.process.start()
        child_end.close()
        self.current: _Try | None = None
        self._ready = False
        self._deadline = self._used_s = 0.0

    def begin(self, current: _Try, limit_s: float, hang_s: float) -> None:
        self.current, self._limit_s, self._hang_s = current, limit_s, hang_s
        self._set_deadline()
        with suppress(OSError):  # `listen` detects a dead process
            self.connection.send((current.item, limit_s))

    def _set_deadline(self) -> None:
        self._used_s = cpu_seconds(self.process.pid) or 0.0
        self._deadline = time.monotonic() + self._wait_s

    @property
    def _wait_s(self) -> float:
        return self._hang_s if self._ready else SETUP_LIMIT_S

    def _waits(self) -> bool:
        """Return whether the process has used hardly any CPU time since the deadline was set."""
        return (cpu_seconds(self.process.pid) or 0.0) - self._used_s < LEAST_SHARE * self._wait_s

    def time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def listen(self) -> Any:
        """Return the answer to the current item, or NO_ANSWER if there is none yet.

        Return a `_Lost` if the process died or exceeded a limit. Raises UserError if the set-up raised an exception.
        """
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if message != READY:
                    return message[1]
                self._ready = True
                self._set_deadline()
        except (EOFError, OSError) as error:
            self.process.join(1.0)  # the pipe closes shortly before the process ends
            status = self.process.exitcode
            if self._ready:
                slow = hasattr(signal, "SIGPROF") and status == -signal.SIGPROF
                reason = f"took longer than {self._limit_s:g} s of CPU time" if slow else "crashed its worker process"
                return _Lost(reason, in_setup=False)
            if status is not None and status >= 0:
                raise UserError(_setup_error(f"ended with status {status}")) from error
            return _Lost(f"was ended by signal {-status}" if status else "closed its pipe", in_setup=True)
        if self.time_left() == 0:
            if self._waits():
                return _Lost(f"hung for {self._wait_s:g} s", in_setup=not self._ready)
            self._set_deadline()
        return NO_ANSWER

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, setup: Callable, setup_args: tuple, memory_limit_bytes: int | None) -> None:
    # Ctrl-C sends SIGINT to the whole process group. The parent handles it and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    if memory_limit_bytes is not None:
        limit_memory(memory_limit_bytes)
    work = setup(*setup_args)
    gc.freeze()  # exclude the objects of the set-up from every later collection
    gc.set_threshold(NEW_OBJECTS, *OLDER_OBJECTS)
    connection.send(READY)
    with suppress(EOFError, OSError):  # the parent has ended
        while True:
            item, limit_s = connection.recv()
            limit_cpu_time(limit_s)
            try:
                answer = work(item)
            except MemoryError:
                answer = Failure("takes too much memory")
            except Exception as error:
                answer = Failure(f"failed with {type(error).__name__}: {error}")
            limit_cpu_time(0)
            connection.send(("answer", answer))
