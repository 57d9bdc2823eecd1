"""Which runs' steps are recorded as CUDA graphs; tests/gpu replays them."""

import pytest
import torch

from rwkv_music.config import PRESETS, DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine.engine import may_gather_at_once
from rwkv_music.training.deepspeed_engine.fast.cuda_graphs import host_bound, recordable

ZERO2, OFFLOAD = {"stage": 2}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}
SMALL = {"preset": "0.1b", "data": {}, "zero": ZERO2, "device": "cuda", "one_host": True}


@pytest.mark.parametrize(
    "change, recorded",
    [
        ({}, True),
        ({"zero": {"stage": 1}}, True),
        ({"preset": "1.5b"}, False),
        ({"zero": {"stage": 3}}, True),
        ({"zero": {"stage": 3}, "tune": "lora"}, False),
        ({"zero": {"stage": 3, "stage3_max_live_parameters": 10**6}}, False),
        ({"zero": OFFLOAD}, False),
        ({"device": "cpu"}, False),
        ({"one_host": False}, False),
        ({"data": {"task": "completion"}}, False),
        ({"data": {"tbptt": 2}}, False),
    ],
)
def test_small_models_on_the_gpus_of_one_host(change, recorded):
    asked = {**SMALL, **change}
    model = ModelConfig(**PRESETS[asked["preset"]], vocab_size=20096)
    train = TrainConfig(micro_batch_size=16, tune=asked.get("tune", "all"))
    config = RunConfig(model, DataConfig("data", 1024, **asked["data"]), train)
    with torch.device("meta"):
        net = RWKV(model)
    bound = host_bound(config, torch.device(asked["device"]), asked["one_host"], net.matrix_parameters())
    at_once = may_gather_at_once(asked["zero"], sum(p.numel() for p in net.parameters()))
    assert (bound and recordable(config, asked["zero"], at_once)) is recorded
