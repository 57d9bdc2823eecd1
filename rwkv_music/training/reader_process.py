"""A process that reads the training rows of a rank, for rows that take much Python code to make.

A thread that ran this code would hold Python's lock while the main thread waits for it to launch the next kernel, so
the GPU would idle. The process only saves time. While it imports torch, and after it has failed, `read` returns None
and the rank reads the same rows itself. This also applies to rows that the process cannot read, so their error is
raised as without the process.

The process ends when its pipe closes, which also happens if the rank is killed. It blocks the signals that stop a run,
because the rank still needs rows for its last steps.
"""

import multiprocessing
import signal
import sys
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import torch

from rwkv_music.config import DataConfig
from rwkv_music.data.dataset import Batch, MusicDataset
from rwkv_music.system import available_cores, ranks_of_this_host
from rwkv_music.training.signals import StopSignals

CORES_PER_RANK = 4  # the minimum: the main thread, autograd, the process, and the threads that copy and save
READY = "ready"  # message of a process that has opened its dataset

# "spawn" because a fork of a process that uses CUDA can deadlock.
processes = multiprocessing.get_context("spawn")


def is_useful(dataset: MusicDataset, device: torch.device) -> bool:
    """Return whether a GPU would wait for rows that take much Python code, and each rank of this host has the cores."""
    is_slow = list(dataset.tasks) != ["pretrain"] or dataset.augmenter is not None
    return device.type == "cuda" and is_slow and available_cores() >= CORES_PER_RANK * ranks_of_this_host()


class ReaderProcess:
    """A context in which a process reads rows of the training split that `config` describes, without streams."""

    def __init__(self, config: DataConfig):
        self._connection, self._child_end = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(self._child_end, config), daemon=True)
        self._is_ready = self._has_failed = False

    def __enter__(self) -> "ReaderProcess":
        resource_tracker.ensure_running()  # its start, which is part of the first process's start, unblocks signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *StopSignals.LATER))  # the process inherits it
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._child_end.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def read(self, parts: list[range]) -> list[Batch] | None:
        """Return the batches of the sample numbers `parts`; None if the process is not ready or cannot read them."""
        if self._has_failed:
            return None
        try:
            if not self._is_ready:
                if not self._connection.poll():
                    return None
                self._is_ready = self._connection.recv() == READY
            self._connection.send(parts)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._has_failed = True
            print(
                "train.py: the process that reads rows has ended, so its rank reads them in a thread, which can take "
                "longer.",
                file=sys.stderr,
            )
            return None
        return answer and [Batch(*map(torch.from_numpy, arrays), max_length) for *arrays, max_length in answer]


def _serve(connection: Connection, config: DataConfig) -> None:
    torch.set_num_threads(1)
    dataset = MusicDataset.of(config, "train")
    with suppress(EOFError, OSError):  # the rank ended
        connection.send(READY)
        while True:
            parts = connection.recv()
            try:
                batches = [dataset.batch(part.start, part.stop) for part in parts]
                answer = [(*(x.numpy() for x in _tensors(batch)), batch.max_length) for batch in batches]
            except Exception:  # the rank meets the same error when it reads these rows
                answer = None
            connection.send(answer)


def _tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.input_ids, batch.targets, batch.cu_seqlens, batch.positions
