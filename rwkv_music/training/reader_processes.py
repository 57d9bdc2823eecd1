"""Processes that read a rank's training rows, if reading a row executes a lot of Python code.

In a thread, this code would hold Python's global lock. The main thread could then not launch kernels, and the GPU would
be idle. The processes divide the rows of a step. They save time but do not change the rows. `read` returns None, and
the rank reads the same rows itself, in three cases: before all processes are ready, after one has failed, and if a row
cannot be read. In the last case the rank then raises the error.

A process ends when its pipe closes, which also happens if the rank is killed. The processes block the signals that stop
a run, because the rank still needs rows for its last steps.
"""

import multiprocessing
import signal
import sys
from contextlib import suppress
from itertools import chain, islice, pairwise
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import torch

from rwkv_music.config import DataConfig
from rwkv_music.data.dataset import Batch
from rwkv_music.data.mixture import Mixture
from rwkv_music.system import available_cores, ranks_of_this_host
from rwkv_music.training.signals import StopSignals

CORES_OF_RANK = 3  # cores for the main thread, autograd, and the threads that copy and save
MAX_PROCESSES = 4  # per rank
READY = "ready"  # message of a process that has opened its dataset

# "spawn", because a process that is forked from one that uses CUDA can deadlock.
processes = multiprocessing.get_context("spawn")


def useful_processes(dataset: Mixture, device: torch.device) -> int:
    """Return how many processes should read a rank's rows: 0 if they would save no time, or if no cores are free."""
    if device.type != "cuda" or not dataset.is_slow:
        return 0
    return max(0, min(available_cores() // ranks_of_this_host() - CORES_OF_RANK, MAX_PROCESSES))


class Reader:
    """One reader process, and the rank's end of the pipe to it."""

    def __init__(self, config: DataConfig) -> None:
        self.connection, self._child_end = processes.Pipe()
        self.process = processes.Process(target=_serve, args=(self._child_end, config), daemon=True)

    def start(self) -> None:
        self.process.start()
        self._child_end.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class ReaderProcesses:
    """A context in which processes read rows of `dataset`, the training rows that `config` describes."""

    def __init__(self, dataset: Mixture, config: DataConfig, n_processes: int) -> None:
        self._dataset = dataset
        self._readers = [Reader(config) for _ in range(n_processes)]
        self._is_ready = self._has_failed = False

    def __enter__(self) -> "ReaderProcesses":
        # Starting the first process would start the resource tracker, and that would unblock signals. Start it now.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *StopSignals.LATER))  # processes inherit it
        try:
            for reader in self._readers:
                reader.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.stop()

    def read(self, parts: list[range]) -> list[Batch] | None:
        """Return a batch for each range of sample numbers; None if the processes are not ready or cannot read them."""
        if self._has_failed:
            return None
        try:
            if not self._is_ready:
                if not all(reader.connection.poll() for reader in self._readers):
                    return None
                self._is_ready = all(reader.connection.recv() == READY for reader in self._readers)
            samples = list(chain.from_iterable(parts))
            ends = [len(samples) * i // len(self._readers) for i in range(len(self._readers) + 1)]
            for reader, (start, stop) in zip(self._readers, pairwise(ends), strict=True):
                reader.connection.send(samples[start:stop])
            answers = [reader.connection.recv() for reader in self._readers]
        except (EOFError, OSError):
            self._has_failed = True
            print(
                "train.py: a process that reads rows has ended, so its rank reads the rows in a thread, which can take "
                "longer.",
                file=sys.stderr,
            )
            return None
        if None in answers:
            return None
        rows = chain.from_iterable(answers)
        return [self._dataset.batch_of(list(islice(rows, len(part)))) for part in parts]


def _serve(connection: Connection, config: DataConfig) -> None:
    torch.set_num_threads(1)
    dataset = Mixture(config)
    with suppress(EOFError, OSError):  # the rank ended
        connection.send(READY)
        while True:
            samples = connection.recv()
            try:
                answer = [dataset.row(sample) for sample in samples]
            except Exception:  # the rank raises the same error when it reads these rows
                answer = None
            connection.send(answer)
