"""The memory that a step will take, by estimate, against what was measured on a GPU."""

import json
import math
import subprocess
import sys

import pytest
import torch

from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.model_v8 import State
from rwkv_music.training.deepspeed_engine.engine import may_gather_at_once
from rwkv_music.training.memory import ROOM, Carried, MemoryEstimate, activation_values, estimate, least_recompute
from tests.training.conftest import PROJECT, environment

RESULTS = PROJECT / "benchmarks" / "results"
ROWS = {}
for card in ("h100", "h200"):
    for name, row in json.loads((RESULTS / f"step_{card}.json").read_text())["rows"].items():
        ROWS[f"{name}, {card}"] = row
for row in json.loads((RESULTS / "scaling.json").read_text())["rows"]:
    ROWS[f"{row['preset']} {row['file']} {row['scaling']} on {row['gpus']}, {row['recompute']}"] = row


@pytest.mark.parametrize("name", ROWS)
def test_within_a_tenth_of_the_measured_peak(name):
    row = ROWS[name]
    size = {"n_layer": row["model"]["layers"], "n_embd": row["model"]["width"]}
    assert size in PRESETS.values()
    model = ModelConfig(**size, vocab_size=row["vocabulary"], channel_mix=row["model"]["channel_mix"])
    file = json.loads((PROJECT / "ds_configs" / row["deepspeed_config"]).read_text())["zero_optimization"]
    rows, ctx_len = row["batch"]
    at_once = may_gather_at_once(file, row["parameters"])  # such a small model is host-bound in all of these rows
    told = estimate(
        model,
        row["parameters"],
        row["parameters"],
        zero_stage=file["stage"],
        ranks=row["ranks"],
        tokens=rows * ctx_len // row["ranks"],
        recompute=row["recompute"],
        bucket=int(file["reduce_bucket_size"]),
        offload=False,
        at_once=at_once,
        recorded=at_once,
    )
    assert told.peak / 2**30 == pytest.approx(row["peak_gib"], rel=0.1)
    assert told.peak / 2**30 > ROOM * row["peak_gib"]  # what is said to fit does


def test_recomputing_keeps_less():
    model = ModelConfig(n_layer=12, n_embd=768, vocab_size=1000)
    kept = [activation_values(model, recompute) for recompute in ("none", "selective", "block")]
    assert kept == sorted(kept, reverse=True) and kept[2] < kept[0] / 5


def test_the_states_between_windows_are_counted():
    model = ModelConfig(n_layer=12, n_embd=768, vocab_size=1000)
    state = sum(x.nbytes for x in State.empty(model, 1, torch.bfloat16, "meta"))
    options = {"zero_stage": 2, "ranks": 1, "tokens": 4096, "recompute": "none", "bucket": 10**8, "offload": True}

    def told(carried: Carried | None):
        return estimate(model, 10**8, 10**8, **options, carried=carried)

    without, one = told(None), told(Carried(streams=8, rows=4, documents=6.5, windows=1))
    assert one.states - without.states == 8 * state
    assert one.activations == without.activations and one.working > without.working + 6.5 * state
    five = told(Carried(streams=8, rows=4, documents=6.5, windows=5))
    assert five.states == one.states and five.peak - one.peak == 4 * 4 * state


SIZES = {"none": MemoryEstimate(50, 40, 10), "selective": MemoryEstimate(50, 10, 10), "block": MemoryEstimate(50, 1, 9)}


@pytest.mark.parametrize(
    "asked, there, chosen",
    [
        ("auto", math.inf, "none"),
        ("auto", 107, "none"),
        ("auto", 106, "selective"),
        ("auto", 70, "block"),
        ("auto", 10, "block"),
        ("none", 10, "none"),
        ("block", math.inf, "block"),
    ],
)
def test_no_more_is_recomputed_than_must_be(asked, there, chosen):
    assert least_recompute(asked, SIZES.__getitem__, there) == (chosen, SIZES[chosen])


# Runs in a process of its own: it has a process group.
SET_UP = """
import dataclasses, json, sys
from rwkv_music.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.training.signals import leave
from rwkv_music.training.loop import Trainer

data, out, file = sys.argv[1:]
config = RunConfig(
    ModelConfig(n_layer=2, n_embd=64), DataConfig(data=data, ctx_len=32, tbptt=2),
    TrainConfig(out=out, batch_size=4, micro_batch_size=2, steps=1, sample_every=0),
)
trainer = Trainer(config, file, {"batch_size", "micro_batch_size"})
held = sum(x.nbytes for x in trainer.stream_states.tensors().values())
left = sum(p.numel() for p in trainer.engine.module.parameters())
assert trainer.recompute == trainer.engine.module.recompute == "none"  # nobody knows how much a CPU has
print(json.dumps([dataclasses.asdict(trainer.memory), trainer.parameters, left,
                  trainer.config.model.vocab_size, held]))
leave(0)
"""


def test_a_run_under_zero3_that_carries_states(bach_data, tmp_path):
    """What the trainer asks with is what there is: parameters that no rank holds, and the states of its four streams."""
    file = json.loads((PROJECT / "ds_configs" / "zero3.json").read_text())
    file["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(file))
    command = [sys.executable, "-c", SET_UP, str(bach_data), str(tmp_path / "run"), str(tmp_path / "zero3.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    told, parameters, left, vocab_size, held = json.loads(done.stdout.splitlines()[-1])
    assert left < parameters / 10
    model = ModelConfig(n_layer=2, n_embd=64, vocab_size=vocab_size)
    options = {"zero_stage": 3, "ranks": 1, "tokens": 64, "recompute": "none", "bucket": 5 * 10**8}
    without = estimate(model, parameters, parameters, **options, offload=False)
    assert told["states"] - without.states == held
    assert told["working"] > without.working and told["activations"] == without.activations
