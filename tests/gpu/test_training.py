"""train.py on a GPU, on tokens made here so that the core packages are enough: every ZeRO stage, and resuming."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.files import file_sha256
from rwkv_music.tokenizers.midi_llm import MidiLlm
from tests.training.test_process_group import ADDED

PROJECT = Path(__file__).parents[2]
VOCABULARY = 100


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset of scales: each token is the one before plus the piece's own step."""
    folder = tmp_path_factory.mktemp("data")
    chance = random.Random(0)
    for split, pieces in (("train", 200), ("val", 10)):
        with BinIdxWriter(folder / split) as writer:
            for _ in range(pieces):
                start, step = chance.randrange(97), chance.randrange(1, 5)
                writer.add([1, *(3 + (start + i * step) % 97 for i in range(chance.randrange(50, 400))), 2])
    codec = MidiLlm(vocabulary=[f"Scale_{i}" for i in range(VOCABULARY)])
    codec.save(folder / "tokenizer.json")
    tokenizer = {"name": codec.name, "vocab_size": VOCABULARY, "pad_id": 0, "fingerprint": codec.fingerprint}
    splits = {"train": {"pieces": 200}, "val": {"pieces": 10}}
    facts = {"splits": splits, "sha256": {"tokenizer.json": file_sha256(folder / "tokenizer.json")}}
    (folder / "dataset.json").write_text(json.dumps({"tokenizer": tokenizer, **facts}))
    return folder


def command(data: Path, run: Path, stage: int, *more: str, program: Path = PROJECT / "train.py") -> list[str]:
    command = [sys.executable, str(program), "--data", str(data), "--out", str(run), "--log_every", "1"]
    command += [
        "--deepspeed_config",
        str(PROJECT / "ds_configs" / f"zero{stage}.json"),
        "--preset",
        "tiny",
        "--lr",
        "2e-3",
    ]
    command += ["--steps", "60", "--warmup_steps", "10", "--ctx_len", "256", "--batch_size", "16", "--val_every", "30"]
    return [*command, *more]


def train(data: Path, run: Path, stage: int, *more: str) -> list[float]:
    line = command(data, run, stage, *more)
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stdout[-3000:]
    return [event.value for event in EventAccumulator(str(run)).Reload().Scalars("train/loss")]


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_each_zero_stage_learns(stage, data, tmp_path):
    curve = train(data, tmp_path / "run", stage)
    assert len(curve) == 60 and all(loss == loss for loss in curve)
    assert curve[-1] < 0.5 * curve[0]


def test_resuming_goes_on_where_it_stopped(data, tmp_path):
    whole = train(data, tmp_path / "whole", 2)
    train(data, tmp_path / "parts", 2, "--stop_after", "30")
    parts = train(data, tmp_path / "parts", 2)
    assert max(abs(a - b) for a, b in zip(whole, parts, strict=True)) < 1e-3


# Three steps, and whether their host has waited for all that the GPU was asked to do.
WAITS = """
import sys
from torch.profiler import ProfilerActivity, profile
from rwkv_music.training.arguments import configure, parse
options = parse(sys.argv[1:])
config = configure(options)
from rwkv_music.training.loop import Loop
from rwkv_music.training.setup import setup
loop = Loop(setup(config, options.deepspeed_config, given=set(vars(options))))
def steps(numbers):
    for number in numbers:
        loop.step(loop.read_step(number * loop.context.rows_per_step)[0], 1e-3)
steps(range(30))  # until all are recorded
with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
    steps(range(30, 33))
names = [event.key for event in seen.key_averages()]
print("waits", "cudaStreamSynchronize" in names, "launches", "cudaGraphLaunch" in names)
loop.close()
"""


@pytest.mark.parametrize("stage", (2, 3))
def test_no_step_waits_for_all_that_the_gpu_has_to_do(stage, data, tmp_path):
    (tmp_path / "waits.py").write_text(f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n{WAITS}")
    line = command(data, tmp_path / "run", stage, program=tmp_path / "waits.py")
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT)
    assert done.returncode == 0 and "waits False launches True" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("stage", (2, 3))
def test_nothing_is_added_to_the_environment_beside_nccls_threads(stage, data, tmp_path):
    (tmp_path / "alone.py").write_text(f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n{ADDED}")
    line = command(data, tmp_path / "run", stage, "--steps", "3", program=tmp_path / "alone.py")
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT)
    assert done.stdout.splitlines()[-1] == "added []", done.stdout[-3000:]
