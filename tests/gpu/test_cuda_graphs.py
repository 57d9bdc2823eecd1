"""A training step that is replayed against the same step launched kernel by kernel."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.config import IGNORE_INDEX, ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine.fast.cuda_graphs import BlockGraphs, LossGraphs
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams

B, T, VOCABULARY = 3, 96, 50


def make_model(channel_mix: str = "x080") -> RWKV:
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=2, n_embd=128, vocab_size=VOCABULARY, channel_mix=channel_mix)).cuda().bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():  # at the start some are zero, and others learn nothing then
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture
def packed() -> FlatParams:
    model = make_model()
    return FlatParams(model, model.parameter_groups(0.1))


def batch(seed: int, cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose documents begin at `cuts` as well, where no target counts."""
    torch.manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (2, B, T))
    bounds = sorted({0, T, 2 * T, B * T, *cuts})
    targets = tokens[1]
    targets.view(-1)[[place - 1 for place in bounds[1:]]] = IGNORE_INDEX
    return tokens[0].cuda(), targets.cuda(), torch.tensor(bounds, dtype=torch.int32, device="cuda")


def gradients(module: FlatParams | RWKV, batches: list, scale: float) -> list[torch.Tensor]:
    """Accumulated over the batches, and each one's loss before them."""
    module.zero_grad()
    losses = []
    for input_ids, targets, cu_seqlens in batches:
        positions = (targets.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        loss = module(
            input_ids=input_ids, targets=targets, cu_seqlens=cu_seqlens, positions=positions,
            max_length=int(cu_seqlens.diff().max()), reduction="sum",
        )  # fmt: skip
        (loss * scale).backward()
        losses.append(loss.detach())
    return [*losses, *(parameter.grad.clone() for parameter in module.parameters())]


@pytest.mark.parametrize("accumulates", (False, True))
def test_replayed_steps_equal_launched_ones(packed, accumulates):
    # The second has more documents and is recorded anew; the others fit the first's recording, filled up.
    batches = [batch(1, [40, 41, 200]), batch(2, [10, 20, 30, 100, 110, 150]), batch(3, [50, 120]), batch(4, [7, 8])]
    groups = [batches] if accumulates else [[one] for one in batches]
    graphs = LossGraphs(packed, accumulates)
    for scale in (1.0, 0.25):
        for group in groups:
            packed.replayed_loss = None
            expected = gradients(packed, group, scale)
            packed.replayed_loss = graphs.loss
            for a, b in zip(gradients(packed, group, scale), expected, strict=True):
                assert (a.float() - b.float()).norm() < 5e-3 * b.float().norm()
    assert len(graphs._recordings) == 2


def test_a_replay_follows_the_weights(packed):
    graphs = LossGraphs(packed, False)
    packed.replayed_loss = graphs.loss
    one = batch(1, [])
    before = gradients(packed, [one], 1.0)[0]
    with torch.no_grad():
        for flat in packed.flat:
            flat *= 1.1
    after = gradients(packed, [one], 1.0)[0]
    packed.replayed_loss = None
    expected = gradients(packed, [one], 1.0)[0]
    assert len(graphs._recordings) == 1
    assert abs(after - expected) < 1e-3 * expected < abs(before - expected)


def test_nothing_is_recorded_without_gradients(packed):
    graphs = LossGraphs(packed, False)
    packed.replayed_loss = graphs.loss
    input_ids, targets, cu_seqlens = batch(1, [])
    with torch.no_grad():
        packed(input_ids=input_ids, targets=targets, cu_seqlens=cu_seqlens)
    assert not graphs._recordings


@pytest.mark.parametrize("recompute", ("none", "selective", "block"))
@pytest.mark.parametrize("channel_mix", ("x070", "x080"))
def test_replayed_blocks_equal_launched_ones_wherever_their_weights_lie(channel_mix, recompute):
    """As ZeRO-3 gathers them: elsewhere in each step, and lost between."""
    model = make_model(channel_mix)
    model.zero3_flat_params = Zero3FlatParams(model, model.parameter_groups(0.1))
    model.recompute = recompute
    launched, graphs = model.blocks.forward, BlockGraphs(model, T)
    for number, one in enumerate([batch(1, [40, 41, 200]), batch(2, [10, 20, 30, 100, 110, 150]), batch(3, [50, 120])]):
        for parameter in model.blocks.parameters():
            old = parameter.data
            parameter.data = old * (1 + 0.1 * number)
            old.fill_(float("nan"))
        seen = []
        for model.blocks.forward in (launched, graphs.forward):
            seen.append(gradients(model, [one], 0.25))
        for a, b in zip(*seen, strict=True):
            assert (a.float() - b.float()).norm() < 5e-3 * b.float().norm()
        with torch.no_grad():  # validation reads the parameters again, and nothing of before
            for parameter in model.blocks.parameters():
                parameter *= 1.1
            played = model(one[0])
            model.zero3_flat_params.read_from(None)
            model.blocks.forward = launched
            assert torch.equal(played, model(one[0]))
    assert len(graphs._recordings) == 2
