"""Which runs' steps are recorded as CUDA graphs; tests/gpu replays them."""

import pytest
import torch

from rwkv_music.config import PRESETS, DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.deepspeed_engine.fast.paths import choose_paths

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
        ({"data": {"task": "completion"}}, True),
        ({"data": {"tbptt": 2}}, False),
    ],
)
def test_small_models_on_the_gpus_of_one_host(change, recorded):
    case = {**SMALL, **change}
    model = ModelConfig(**PRESETS[case["preset"]], vocab_size=20096)
    train = TrainConfig(micro_batch_size=16, tune=case.get("tune", "all"))
    config = RunConfig(model, DataConfig("data", 1024, **case["data"]), train)
    with torch.device("meta"):
        net = RWKV(model)
    plan = BatchPlan(train, {"zero_optimization": case["zero"]}, 1, 1)
    parameters = sum(p.numel() for p in net.parameters())
    device = torch.device(case["device"])
    chosen = choose_paths(config, plan, device, case["one_host"], net.matrix_parameters(), parameters)
    assert chosen.replays is recorded
