"""The memory that a step will take, by estimate, against what was measured on a GPU."""

import json

import pytest
import torch

from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.memory import activation_values, estimate
from rwkv_music.training.packing import Packed
from tests.training.conftest import PROJECT

ROWS = json.loads((PROJECT / "benchmarks" / "results" / "step.json").read_text())["rows"]


@pytest.mark.parametrize("name", ROWS)
def test_within_a_tenth_of_the_measured_peak(name):
    row = ROWS[name]
    size = {"n_layer": row["model"]["layers"], "n_embd": row["model"]["width"]}
    assert size in PRESETS.values()
    model = ModelConfig(**size, vocab_size=row["vocabulary"], channel_mix=row["model"]["channel_mix"])
    with torch.device("meta"):
        net = RWKV(model)
        packed = Packed(net, net.parameter_groups(0.1))
    file = json.loads((PROJECT / "ds_configs" / row["deepspeed_config"]).read_text())["zero_optimization"]
    rows, ctx_len = row["batch"]
    told = estimate(
        model,
        row["parameters"],
        row["parameters"],
        zero_stage=file["stage"],
        ranks=row["ranks"],
        tokens=rows * ctx_len,
        recompute=row["recompute"],
        bucket=int(file["reduce_bucket_size"]),
        largest_tensor=max(p.numel() for p in packed.parameters()),
        offload=False,
    )
    assert told.peak / 2**30 == pytest.approx(row["peak_gib"], rel=0.1)


def test_recomputing_keeps_less():
    model = ModelConfig(n_layer=12, n_embd=768, vocab_size=1000)
    kept = [activation_values(model, recompute) for recompute in ("none", "selective", "block")]
    assert kept == sorted(kept, reverse=True) and kept[2] < kept[0] / 5
