"""The update on the device against DeepSpeed's own, and with a gradient that is not finite."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from deepspeed.runtime.zero import partition_parameters

from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.batch_plan import plan_batches
from rwkv_music.training.deepspeed_engine import engine as engine_module
from rwkv_music.training.deepspeed_engine.engine import FastPaths, make_engine, select_device
from rwkv_music.training.deepspeed_engine.fast import gather
from rwkv_music.training.deepspeed_engine.fast.update import UpdateOnDevice
from tests.training.conftest import one_rank


def run(
    ours: bool, stage: int = 2, bad_step: int = -1, bf16: bool = True, at_once: bool = False, **more: int
) -> dict[str, list | int | None | bool]:
    """Six steps of a small model.

    Args:
        ours: whether the update is `UpdateOnDevice`; the flat parameters are used either way.
        bad_step: the step whose gradient is NaN.
        more: keys of the DeepSpeed file's section "zero_optimization".
    """
    update = engine_module.UpdateOnDevice if ours else lambda engine: None
    with one_rank(), mock.patch.object(engine_module, "UpdateOnDevice", update):
        device = select_device()
        torch.manual_seed(0)
        model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20))
        zero = {"stage": stage, "reduce_bucket_size": 100_000, **more}  # by default, each engine keeps 1 GB reserved
        file = {"bf16": {"enabled": bf16}, "zero_optimization": zero}
        plan = plan_batches(TrainConfig(batch_size=4, grad_clip=0.3), set(), file, "ds.json", 1)
        engine = make_engine(model, plan, device, FastPaths(True, False, gathers_at_once=at_once), ctx_len=32)
        engine.shards.update_weights()  # as every run starts
        tokens = torch.randint(20, (4, 33))
        rows = []
        for step in range(6):
            before = [p.detach().clone() for p in engine.module.parameters()]  # under ZeRO-3 those on every rank
            loss = engine(input_ids=tokens[:, :-1], targets=tokens[:, 1:])
            engine.backward(loss * (float("nan") if step == bad_step else 1.0))
            engine.step()
            changed = any(not torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
            rows.append([loss.item(), engine.grad_norm(), changed])
        ahead = None
        if stage == 3:
            coordinator = engine._engine.optimizer.parameter_offload.get_param_coordinator()
            ahead = coordinator._PartitionedParameterCoordinator__max_ongoing_fetch_events
        no_waiting = partition_parameters._no_gather_coalesced is gather._no_gather
        skipped = int(engine.skipped_steps())
    return {"rows": rows, "skipped": skipped, "tensors_ahead": ahead, "no_waiting": no_waiting}


@pytest.mark.parametrize(
    "stage, more", [(1, {}), (2, {}), (3, {}), (3, {"at_once": True}), (3, {"sub_group_size": 20_000})]
)
def test_equal_to_deepspeeds_own(stage, more):
    # Without bf16, whose rounding makes of the last bit of a norm another course within a few steps.
    ours, theirs = (run(whose, stage, bf16=False, **more) for whose in (True, False))
    assert ours["rows"][0][1] > 0.3  # so that it is clipped
    for a, b in zip(ours["rows"], theirs["rows"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert ours["rows"][0] == pytest.approx(theirs["rows"][0], rel=1e-6)
    assert ours["skipped"] == 0


@pytest.mark.parametrize("stage", (2, 3))
def test_a_gradient_that_is_not_finite_changes_nothing(stage):
    made = run(True, stage, bad_step=2)
    assert [changed for _, _, changed in made["rows"]] == [True, True, False, True, True, True]
    assert made["skipped"] == 1
    assert made["rows"][3][0] == made["rows"][2][0]  # the loss is that of the same weights


def test_an_optimizer_that_it_does_not_compute_is_rejected():
    weight = torch.nn.Parameter(torch.zeros(1))
    zero = SimpleNamespace(optimizer=torch.optim.SGD([weight], lr=0.1))
    with pytest.raises(TypeError, match="SGD"):
        UpdateOnDevice(SimpleNamespace(optimizer=zero))


@pytest.mark.parametrize("at_once", (False, True))
def test_the_host_may_be_two_gatherings_ahead(at_once):
    """Of all blocks' tensors, where they are gathered at once; DeepSpeed's own limit is two tensors."""
    with torch.device("meta"):
        tensors = len(list(RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20)).blocks.parameters()))
    made = run(True, 3, at_once=at_once, stage3_param_persistence_threshold=0)
    assert made["tensors_ahead"] == (2 * tensors if at_once else 2)
    assert made["no_waiting"]  # on a single rank
