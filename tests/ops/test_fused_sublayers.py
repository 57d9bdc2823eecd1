"""Tests of the fused sublayers and their hand-written backwards against the plain PyTorch model under autograd."""

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.ops import fused_sublayers


def random_model(channel_mix: str) -> RWKV:
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=3, n_embd=128, vocab_size=40, channel_mix=channel_mix)).double()
    with torch.no_grad():
        for p in model.parameters():  # with zero weights many gradients would be zero
            p += 0.05 * torch.randn_like(p)
    return model


def loss_and_gradients(model: RWKV, **arguments: object) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model.loss(**arguments)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("channel_mix", ["x080", "x070"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_equals_plain_model(monkeypatch, channel_mix, packed, recompute):
    plain = random_model(channel_mix)
    tokens = torch.randint(40, (2, 71))
    arguments = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}
    if packed:
        arguments["cu_seqlens"] = torch.tensor([0, 3, 4, 70, 103, 140], dtype=torch.int32)
        arguments["max_length"] = 66
    expected_loss, expected = loss_and_gradients(plain, **arguments)
    monkeypatch.setattr(fused_sublayers, "supports", lambda x, head_size: True)
    plain.recompute = recompute
    loss, gradients = loss_and_gradients(plain, **arguments)
    assert abs(loss - expected_loss) < 1e-10
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-8, f"{name}: {difference:.1e}"
    with torch.no_grad():
        assert abs(plain.loss(**arguments).item() - expected_loss) < 1e-10


@pytest.mark.parametrize("channel_mix", ["x080", "x070"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_state_and_its_gradients(monkeypatch, channel_mix, packed, recompute):
    """Compare the loss, the new state, and gradients of both with respect to the weights and the initial state."""
    net = random_model(channel_mix)
    tokens = torch.randint(40, (2, 71))
    arguments = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}
    if packed:
        arguments["cu_seqlens"] = torch.tensor([0, 3, 4, 70, 103, 140], dtype=torch.int32)
        arguments["max_length"] = 66
    start = net.init_state(5 if packed else 2)
    start = State(*(torch.randn_like(x).requires_grad_() for x in start))
    weights = [torch.randn_like(x) for x in start]

    def run() -> list[torch.Tensor]:
        net.zero_grad()
        loss, state = net(**arguments, state=start)
        total = loss + 0.01 * sum((x * weight).sum() for x, weight in zip(state, weights, strict=True))
        return [loss.detach(), *(x.detach() for x in state), *torch.autograd.grad(total, [*start, *net.parameters()])]

    expected = run()
    monkeypatch.setattr(fused_sublayers, "supports", lambda x, head_size: True)
    net.recompute = recompute
    names = ["loss", *(f"new {n}" for n in State._fields), *State._fields, *(n for n, _ in net.named_parameters())]
    for name, actual, reference in zip(names, run(), expected, strict=True):
        difference = (actual - reference).norm() / reference.norm()
        assert reference.norm() > 0 and difference < 1e-8, f"{name}: {difference:.1e}"


def test_no_state_is_returned_without_state(monkeypatch):
    outputs = []
    forward = fused_sublayers.time_mixing
    monkeypatch.setattr(fused_sublayers, "supports", lambda x, head_size: True)
    monkeypatch.setattr(fused_sublayers, "time_mixing", lambda *inputs: outputs.append(forward(*inputs)) or outputs[-1])
    net, tokens = random_model("x070"), torch.randint(40, (2, 20))
    net.loss(tokens, tokens)
    assert all(shift is None and wkv is None for _, _, shift, wkv in outputs)


def test_saved_memory(monkeypatch):
    """Count saved values per token, layer and channel; the module docstring states about 13."""
    monkeypatch.setattr(fused_sublayers, "supports", lambda x, head_size: True)
    net = random_model("x070")
    tokens = torch.randint(40, (1, 512))
    saved: dict[int, int] = {}

    def save(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        net.loss(tokens, tokens)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    values = sum(size for pointer, size in saved.items() if pointer not in weights) / 8
    per_token_and_layer = values / (512 * 3 * 128)
    # With C = 128 the low-rank hidden values are relatively wide, and the CPU operator saves a state every 64 tokens.
    assert per_token_and_layer < 22
