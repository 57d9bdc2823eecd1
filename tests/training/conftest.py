"""Runs of train.py as a user starts them, made once a session and read by several tests."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).parents[2]
SMALL = "--n_layer 2 --n_embd 64 --ctx_len 128 --batch_size 4 --steps 20 --log_every 1 --val_every 10".split()


@dataclass
class Run:
    """A finished command: its run folder, its exit status and what it said."""

    folder: Path
    status: int
    output: str

    def curve(self, tag: str = "train/loss") -> list[float]:
        return [event.value for event in EventAccumulator(str(self.folder)).Reload().Scalars(tag)]

    @property
    def last_checkpoint(self) -> Path:
        return max((self.folder / "checkpoints").glob("step_*"))


def command(
    folder: Path,
    *arguments: object,
    ranks: int = 1,
    config: str | Path = "zero2.json",
    program: Path = PROJECT / "train.py",
) -> list[str]:
    """The command line of `train.py` or one like it, alone or under DeepSpeed's launcher."""
    start = ["-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    line = [sys.executable, *(start if ranks > 1 else []), str(program), "--out", str(folder)]
    return [*line, "--deepspeed_config", str(PROJECT / "ds_configs" / config), *map(str, arguments)]


def on_two_ranks(line: list[str]) -> list[str]:
    """That command line (without a launcher) by launch/node.py."""
    return [sys.executable, str(PROJECT / "launch" / "node.py"), "2", *line[1:]]


def environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}
    return {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def train(folder: Path, *arguments: object, check: bool = True, **start: object) -> Run:
    """`train.py`, run to its end."""
    done = subprocess.run(
        command(folder, *arguments, **start),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return Run(folder, done.returncode, done.stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def one_process(bach_data, tmp_path_factory) -> Run:
    """20 steps under ZeRO-2 in one process, two rows at once, with a sampled completion."""
    folder = tmp_path_factory.mktemp("one_process") / "run"
    return train(folder, "--data", bach_data, *SMALL, "--micro_batch_size", 2, "--sample_every", 20, "--sample_bars", 1)
