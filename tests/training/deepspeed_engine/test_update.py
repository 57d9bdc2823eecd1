"""The update on the device against DeepSpeed's own, and from a gradient that is not finite."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV
from tests.training.conftest import PROJECT

# Runs in a process of its own: it has a process group.
PROGRAM = """
import json, sys, torch
from deepspeed.runtime.zero import partition_parameters
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine import engine as engine_module
from rwkv_music.training.deepspeed_engine.engine import device_of_rank, make_engine, make_plan
from rwkv_music.training.deepspeed_engine.zero_shards import weights_from_masters
from rwkv_music.training.process_group import meet
from rwkv_music.training.signals import leave

ours, stage, bad_step, bf16, at_once, more = json.loads(sys.argv[1])
if not ours:
    engine_module.UpdateOnDevice = lambda engine: None
meet(collective_minutes=10)
device = device_of_rank()
torch.manual_seed(0)
model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20))
file = {"bf16": {"enabled": bf16}, "zero_optimization": {"stage": stage, **more}}
plan = make_plan(TrainConfig(batch_size=4, grad_clip=0.3), set(), file, "ds.json", 1)
engine = make_engine(model, plan, device, overlaps=False, at_once=at_once)
weights_from_masters(engine)  # as every run begins
tokens = torch.randint(20, (4, 33))
rows = []
for step in range(6):
    before = [p.detach().clone() for p in engine.module.parameters()]  # under ZeRO-3 of those that are on every rank
    loss = engine(tokens[:, :-1], targets=tokens[:, 1:])
    engine.backward(loss * (float("nan") if step == bad_step else 1.0))
    engine.step()
    changed = any(not torch.equal(a, b) for a, b in zip(before, engine.module.parameters()))
    rows.append([loss.item(), float(engine.get_global_grad_norm()), changed])
ahead = None
if stage == 3:
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    ahead = coordinator._PartitionedParameterCoordinator__max_ongoing_fetch_events
skipped = int(engine.update_on_device.skipped) if ours else None
at_hand = partition_parameters._no_gather_coalesced is engine_module._at_hand
print(json.dumps({"rows": rows, "skipped": skipped, "tensors_ahead": ahead, "at_hand": at_hand}))
leave(0)
"""


def run(ours: bool, stage: int = 2, bad_step: int = -1, bf16: bool = True, at_once: bool = False, **more: int) -> dict:
    """`more`: keys of the DeepSpeed file's section "zero_optimization"."""
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(PROGRAM),
        json.dumps([ours, stage, bad_step, bf16, at_once, more]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


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


@pytest.mark.parametrize("at_once", (False, True))
def test_the_host_may_be_two_gatherings_ahead(at_once):
    """Of all blocks' tensors, where they are gathered at once; DeepSpeed's own limit is two tensors."""
    with torch.device("meta"):
        tensors = len(list(RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20)).blocks.parameters()))
    made = run(True, 3, at_once=at_once, stage3_param_persistence_threshold=0)
    assert made["tensors_ahead"] == (2 * tensors if at_once else 2)
    assert made["at_hand"]  # of a single rank
