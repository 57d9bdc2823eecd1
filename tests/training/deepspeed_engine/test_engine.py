"""The engine: what ZeRO-3 gathers, what DeepSpeed compiles, and its own code paths beside the fast ones."""

import json
import os
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.ops.op_builder.quantizer import QuantizerBuilder

from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine import engine, zero_shards
from rwkv_music.training.deepspeed_engine.engine import wait_for_compilations
from rwkv_music.training.deepspeed_engine.fast import upstream
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams
from rwkv_music.training.loop import Loop
from tests.training.conftest import train


def test_architectures_are_rewritten_for_deepspeeds_op_builder(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;12.0f+PTX")
    monkeypatch.setattr(engine, "raise_on_any_rank", lambda what, act: None)
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
def test_zero3_gathers_one_tensor_per_block_if_the_others_are_small_in_total(preset, channel_mix, given, gathered):
    with torch.device("meta"):
        model = RWKV(ModelConfig(**PRESETS[preset], vocab_size=20_096, channel_mix=channel_mix))
    flat = Zero3FlatParams(model, model.parameter_groups(0.1))
    threshold = engine._zero3_section(model, flat, given, at_once=False)["stage3_param_persistence_threshold"]
    assert sum(p.numel() > threshold for p in model.blocks[1].parameters()) == gathered


@pytest.mark.parametrize("at_once, one", [(True, "Blocks"), (False, "Block")])
def test_zero3_gathers_one_block_or_all_at_once(at_once, one):
    with torch.device("meta"):
        model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20))
    engine._zero3_section(model, Zero3FlatParams(model, model.parameter_groups(0.1)), {}, at_once)
    assert {type(module).__name__ for module in deepspeed.utils.get_z3_leaf_modules(model)} == {one}


LINE = [
    "--n_layer",
    2,
    "--n_embd",
    64,
    "--ctx_len",
    64,
    "--batch_size",
    4,
    "--steps",
    4,
    "--log_every",
    1,
    "--val_every",
    0,
]


def fp32_file(folder: Path, stage: int) -> Path:
    """A DeepSpeed file without bf16, in which both code paths give the same numbers."""
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return path


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_both_code_paths_learn_the_same_and_resume_each_others_checkpoints(stage, bach_data, tmp_path):
    line = ["--data", bach_data, *LINE, "--adam_eps", 1e-8]
    file = fp32_file(tmp_path, stage)
    curves = {}
    for first, then in (("auto", "auto"), ("off", "off"), ("auto", "off"), ("off", "auto")):
        out = tmp_path / f"{first}_{then}"
        run = train(out, *line, "--fast", first, "--stop_after", 2, config=file)
        assert ("DeepSpeed's own code paths, because --fast is off" in run.output) is (first == "off")
        curves[first, then] = train(out, "--fast", then, config=file).curve()
    for curve in curves.values():
        assert curve == pytest.approx(curves["off", "off"], rel=1e-5)
    assert len(curve) == 4


def test_a_changed_deepspeed_trains_on_its_own_code_paths(bach_data, tmp_path, monkeypatch):
    file = fp32_file(tmp_path, 2)
    expected = train(tmp_path / "off", "--data", bach_data, *LINE, "--fast", "off", config=file).curve()
    [name, *_] = upstream.PATCHES[0].functions
    monkeypatch.setitem(upstream.PATCHES[0].functions, name, "0" * 16)
    run = train(tmp_path / "changed", "--data", bach_data, *LINE, config=file)
    [said] = [line for line in run.output.splitlines() if "own code paths" in line]
    assert "DeepSpeedZeroOptimizer.step of DeepSpeed" in said
    assert run.curve() == expected
    monkeypatch.setattr(deepspeed, "__version__", "0.99.0")
    assert "0.99.0 is not the tested version" in upstream.mismatch()


def test_every_recorded_function_is_the_installed_one():
    assert upstream.mismatch() is None
    assert sum(len(patch.functions) for patch in upstream.PATCHES) >= 20
    assert upstream.source_hash("deepspeed.runtime.utils:no_such_function") is None


def test_a_nan_gradient_skips_a_step_on_deepspeeds_own_path(bach_data, tmp_path, monkeypatch):
    """The count of skipped steps is DeepSpeed's there."""
    step = Loop.step

    def with_a_nan(loop, batches, lr, unreadable):
        hook = None
        if loop.progress.step == 2:
            parameter = next(p for p in loop.engine.module.parameters() if p.requires_grad)
            hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
        try:
            return step(loop, batches, lr, unreadable)
        finally:
            if hook:
                hook.remove()

    monkeypatch.setattr(Loop, "step", with_a_nan)
    run = train(tmp_path / "run", "--data", bach_data, *LINE, "--fast", "off")
    assert run.curve("train/skipped_steps") == [0, 0, 1, 1]


def test_another_partition_layout_is_refused(bach_data, tmp_path, monkeypatch):
    monkeypatch.setattr(zero_shards, "safe_get_local_fp32_param", lambda parameter: torch.zeros(3))
    run = train(tmp_path / "run", "--data", bach_data, *LINE, config=fp32_file(tmp_path, 3), check=False)
    assert run.status == 1 and "lays out its ZeRO partitions differently" in run.output
    monkeypatch.setattr(zero_shards, "STAGE_1_2_ATTRIBUTES", (*zero_shards.STAGE_1_2_ATTRIBUTES, "renamed"))
    run = train(tmp_path / "run", "--data", bach_data, *LINE, config=fp32_file(tmp_path, 2), check=False)
    assert run.status == 1 and "lays out its ZeRO partitions differently" in run.output
