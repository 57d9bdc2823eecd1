"""The command line and the DeepSpeed file brought together."""

import json
import os
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from deepspeed.ops.op_builder.quantizer import QuantizerBuilder
from deepspeed.runtime.zero import partition_parameters

from rwkv_music.config import PRESETS, ModelConfig, TrainConfig
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine import engine
from rwkv_music.training.deepspeed_engine.engine import divided, make_plan, read_deepspeed_file, wait_for_compilations
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams
from tests.training.conftest import PROJECT

STAGE = {"zero_optimization": {"stage": 2}}


def plan(file: dict, world_size: int = 1, **given):
    return make_plan(TrainConfig(**given), set(given), {**STAGE, **file}, "ds.json", world_size)


def test_rows_are_shared_among_ranks_and_accumulated():
    made = plan({}, world_size=4, batch_size=64, micro_batch_size=4)
    assert (made.accumulation, made.train.micro_batch_size) == (4, 4)
    assert made.deepspeed["train_batch_size"] == 64
    assert made.deepspeed["train_micro_batch_size_per_gpu"] == 4
    assert made.deepspeed["gradient_accumulation_steps"] == 4
    assert made.deepspeed["zero_optimization"] == STAGE["zero_optimization"]
    assert plan({}, world_size=4, batch_size=64).train.micro_batch_size == 16


def test_what_only_the_file_says_holds():
    file = {"train_batch_size": 24, "gradient_accumulation_steps": 3, "gradient_clipping": 0.25}
    made = plan(file, world_size=2)
    assert (made.train.batch_size, made.train.micro_batch_size, made.train.grad_clip) == (24, 4, 0.25)
    assert made.accumulation == 3 and made.deepspeed["gradient_clipping"] == 0.25


def test_auto_and_agreement_are_no_contradiction():
    file = {"train_batch_size": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": 2.0}
    assert plan(file, batch_size=8, grad_clip=2.0).train.batch_size == 8


@pytest.mark.parametrize(
    "file, given, says",
    [
        ({"train_batch_size": 8}, {"batch_size": 4}, "--batch_size is 4"),
        ({"train_micro_batch_size_per_gpu": 2}, {"micro_batch_size": 4}, "--micro_batch_size is 4"),
        ({"gradient_accumulation_steps": 3}, {"batch_size": 4}, "choose a multiple of 3"),
        ({"gradient_accumulation_steps": 3}, {"batch_size": 4, "micro_batch_size": 2}, "needs 2"),
    ],
)
def test_contradictions_are_told(file, given, says):
    with pytest.raises(UserError, match=says):
        plan(file, **given)


@pytest.mark.parametrize("path", sorted((PROJECT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_files_that_we_ship_are_plain_deepspeed_files(path):
    file = read_deepspeed_file(path)
    assert file == json.loads(path.read_text())
    assert make_plan(TrainConfig(batch_size=8), {"batch_size"}, file, path, 4).train.micro_batch_size == 2


@pytest.mark.parametrize("world_size, given, shares, rows", [(7, {}, 1, 37), (7, {"micro_batch_size": 8}, 5, 8)])
def test_an_elastic_runs_rows_need_not_divide(world_size, given, shares, rows):
    made = plan({}, world_size=world_size, batch_size=256, elastic=1, **given)
    assert made.accumulation == made.deepspeed["gradient_accumulation_steps"] == shares
    assert made.deepspeed["train_micro_batch_size_per_gpu"] == rows <= made.train.micro_batch_size
    assert made.train.batch_size == 256
    with pytest.raises(UserError, match="gives 7 ranks not a row each"):
        plan({}, world_size=7, batch_size=6, elastic=1)


@pytest.mark.parametrize("world_size, rows", [(8, 4), (40, 4), (96, 2), (7, 0)])
def test_on_other_ranks_no_more_rows_are_taken_at_once(world_size, rows):
    assert divided(960, world_size, most=4) == rows


def test_deepspeed_can_read_for_what_it_is_to_compile(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;12.0f+PTX")
    monkeypatch.setattr(engine, "together", lambda what, act: None)
    wait_for_compilations({"stage": 3})
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0 9.0a;12.0f+PTX"
    builder = QuantizerBuilder()
    builder.jit_mode = True
    with pytest.raises(ValueError, match="0a"):
        builder.compute_capability_args()
    wait_for_compilations({"stage": 3, "zero_quantized_weights": True})
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0 9.0;12.0+PTX"
    builder.compute_capability_args()


@pytest.mark.parametrize(
    "preset, channel_mix, given, gathered",
    [
        ("0.1b", "x070", {}, 1),
        ("1.5b", "x070", {}, 1),
        ("7b", "x070", {}, 2),  # too much to have on every rank; the vector of the fast group is below DeepSpeed's own
        ("1.5b", "x080", {}, 2),  # as DeepEmbed's tables are with them
        ("0.1b", "x070", {"stage3_param_persistence_threshold": 0}, 3),
    ],
)
def test_zero3_gathers_one_tensor_a_block_where_the_others_are_small_in_all(preset, channel_mix, given, gathered):
    with torch.device("meta"):
        model = RWKV(ModelConfig(**PRESETS[preset], vocab_size=20_096, channel_mix=channel_mix))
    flat = Zero3FlatParams(model, model.parameter_groups(0.1))
    threshold = engine._gathered(model, flat, given, at_once=False)["stage3_param_persistence_threshold"]
    assert sum(p.numel() > threshold for p in model.blocks[1].parameters()) == gathered


@pytest.mark.parametrize("at_once, one", [(True, "Blocks"), (False, "Block")])
def test_zero3_gathers_one_block_or_all_at_once(at_once, one):
    with torch.device("meta"):
        model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20))
    engine._gathered(model, Zero3FlatParams(model, model.parameter_groups(0.1)), {}, at_once)
    assert {type(module).__name__ for module in deepspeed.utils.get_z3_leaf_modules(model)} == {one}


@pytest.mark.parametrize(
    "zero, parameters, may",
    [
        ({"stage": 3}, 121_238_784, True),
        ({"stage": 3}, 1_344_428_032, False),
        ({"stage": 2}, 121_238_784, False),
        ({"stage": 3, "stage3_max_live_parameters": 1e8}, 121_238_784, False),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, 121_238_784, False),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, 121_238_784, False),
        ({"stage": 3, "zero_quantized_weights": True}, 121_238_784, False),
    ],
)
def test_only_a_small_model_whose_memory_is_not_spared_is_gathered_at_once(zero, parameters, may):
    assert engine.may_gather_at_once(zero, parameters) is may


def test_a_single_ranks_weights_are_at_hand_once_for_each_gathering(monkeypatch):
    """What has been let go of since is not said to be there again, when another that was asked for with it is used."""
    status = partition_parameters.ZeroParamStatus
    monkeypatch.setattr(engine, "_deepspeeds_no_gather", lambda parameters: SimpleNamespace(asked_for=list(parameters)))
    both = [SimpleNamespace(ds_status=status.INFLIGHT) for _ in range(2)]
    handle = engine._at_hand(iter(both))
    assert handle.asked_for == both and both[0].ds_status == status.INFLIGHT
    handle.wait(handle_dependency=False)
    assert [one.ds_status for one in both] == [status.AVAILABLE] * 2
    both[0].ds_status = status.NOT_AVAILABLE
    handle.wait(handle_dependency=False)
    assert [one.ds_status for one in both] == [status.NOT_AVAILABLE, status.AVAILABLE]
