"""Runs of train.py: in this process, in forked processes, or as a user starts them.

One rank trains in this process and several in processes forked from a server: that saves the seconds in which a new one
imports torch and DeepSpeed. The launchers, signals and crashes are tested with commands as a user types them.
"""

import contextlib
import functools
import gc
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed as dist

import train as train_py
from rwkv_music.training import setup as setup_module
from rwkv_music.training.process_group import ENVIRONMENT, init_process_group
from tests.training.rank_process import run_ranks

PROJECT = Path(__file__).parents[2]
SMALL = "--n_layer 2 --n_embd 64 --ctx_len 128 --batch_size 4 --steps 20 --log_every 1 --val_every 10".split()
# Cheaper steps, for tests of what does not depend on their size.
TINY = [*SMALL, "--n_layer", "1", "--ctx_len", "32", "--batch_size", "2"]


@dataclass
class Run:
    """A finished command: its run folder, its exit status and its output."""

    folder: Path
    status: int
    output: str

    def curve(self, tag: str = "train/loss") -> list[float]:
        return [event.value for event in EventAccumulator(str(self.folder)).Reload().Scalars(tag)]

    def text(self, tag: str) -> str:
        """Return the last text of a tag on TensorBoard's page TEXT."""
        [content] = (
            EventAccumulator(str(self.folder)).Reload().Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val
        )
        return content.decode()

    @property
    def last_checkpoint(self) -> Path:
        return max((self.folder / "checkpoints").glob("step_*"))


def command(
    folder: Path,
    *arguments: object,
    ranks: int = 1,
    config: str | Path = "zero2.json",
    program: Sequence[object] = (PROJECT / "train.py",),
) -> list[str]:
    """The command line of `train.py` or one like it, alone or under DeepSpeed's launcher."""
    start = ["-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    line = [sys.executable, *(start if ranks > 1 else []), *map(str, program), "--out", str(folder)]
    return [*line, "--deepspeed_config", str(PROJECT / "ds_configs" / config), *map(str, arguments)]


def on_two_ranks(line: list[str]) -> list[str]:
    """That command line (without a launcher) by launch/node.py."""
    return [sys.executable, str(PROJECT / "launch" / "node.py"), "2", *line[1:]]


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}
    return {**inherited, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


@functools.cache
def process_group() -> dist.Store:
    """The process group of this process, made once: DeepSpeed keeps references to the first one."""
    return init_process_group("gloo", 60)


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """A context in which this process is a run's only rank. What a run changes in the process is restored after it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    threads = torch.get_num_threads()
    gc.freeze()  # the objects of modules that have been imported since the last run
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(setup_module, "init_process_group", lambda *_: dist.HashStore()),
        mock.patch.object(dist, "destroy_process_group", lambda: None),
        mock.patch.object(gc, "freeze", lambda: None),
        # DeepSpeed's zero.Init replaces it and does not restore it.
        mock.patch.object(torch.nn.functional, "linear", torch.nn.functional.linear),
    ):
        process_group()
        os.environ.update({**ENVIRONMENT, **os.environ})
        torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does in a process of its own
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            gc.collect()


def train(
    folder: Path,
    *arguments: object,
    check: bool = True,
    ranks: int = 1,
    config: str | Path = "zero2.json",
    program: Sequence[object] = (),
) -> Run:
    """`train.py`, run to its end: on one rank in this process, else in forked processes without a launcher.

    Args:
        program: a script like train.py and its first arguments, run in a process of its own.
    """
    if ranks == 1 and not program:
        line = ["--out", folder, "--deepspeed_config", PROJECT / "ds_configs" / config, *arguments]
        wait_for_the_next_event_file(folder)
        output = io.StringIO()
        with one_rank(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = train_py.main(list(map(str, line)))
        run = Run(folder, status, output.getvalue())
    else:
        line = command(folder, *arguments, config=config, program=program or (PROJECT / "train.py",))
        log = folder.with_name(f"{folder.name}.log")
        status = run_ranks(line[1:], ranks, environment(), log, seconds=300)
        run = Run(folder, status, log.read_text())
    assert not check or run.status == 0, run.output[-4000:]
    return run


def wait_for_the_next_event_file(folder: Path) -> None:
    """Wait until the second in which this process wrote an event file to `folder` is over.

    TensorBoard reads the files of one second in the order of their names. The name of the tenth file of a process comes
    before that of the ninth, so that a resumed run would seem to come before the run that it resumes.
    """
    written = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    while written and int(time.time()) <= max(written):
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def one_process(bach_data, tmp_path_factory) -> Run:
    """20 steps under ZeRO-2 in one process, two rows at once, with a sampled completion."""
    folder = tmp_path_factory.mktemp("one_process") / "run"
    return train(folder, "--data", bach_data, *SMALL, "--micro_batch_size", 2, "--sample_every", 20, "--sample_bars", 1)
