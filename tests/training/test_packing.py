"""Flat parameters compute what the model's own do, and unpack to them."""

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training import packing
from rwkv_music.training.packing import Packed, unpack


def model() -> RWKV:
    torch.manual_seed(0)
    made = RWKV(ModelConfig(n_layer=3, n_embd=64, vocab_size=20))
    with torch.no_grad():
        for p in made.parameters():
            p += 0.02 * torch.randn_like(p)
    return made


def packed(monkeypatch, large_enough: int) -> tuple[RWKV, Packed]:
    monkeypatch.setattr(packing, "LARGE_ENOUGH", large_enough)
    taken = model()
    return model(), Packed(taken, taken.parameter_groups(0.1))


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_loss_and_gradients_are_the_models(monkeypatch, recompute):
    plain, flat = packed(monkeypatch, 40_000)
    flat.model.recompute = recompute
    assert 3 < len(flat.flat) < 12
    tokens = torch.randint(20, (2, 33))
    for net in (plain, flat):
        net(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    gradients = unpack({f"flat.{i}": p.grad for i, p in enumerate(flat.flat)}, flat.layout)
    for name, parameter in plain.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name


def test_unpacked_weights_are_views_of_the_flat_ones(monkeypatch):
    plain, flat = packed(monkeypatch, 10**9)
    weights = unpack(dict(flat.named_parameters()), flat.layout)
    assert weights.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(weights[name], parameter) for name, parameter in plain.named_parameters())
    with torch.no_grad():
        flat.flat[0].zero_()
        assert not flat.unpacked().blocks[0].ln1.weight.any()


def test_groups_do_not_mix(monkeypatch):
    plain, flat = packed(monkeypatch, 10**9)
    assert len(flat.flat) == 3 and [len(group["params"]) for group in flat.groups] == [1, 1, 1]
    for group, before in zip(flat.groups, plain.parameter_groups(0.1), strict=True):
        assert group["lr_scale"] == before["lr_scale"] and group["weight_decay"] == before["weight_decay"]
        assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in before["params"])


def test_a_remainder_joins_the_last(monkeypatch):
    _, flat = packed(monkeypatch, 100_000)
    assert all(p.numel() >= 100_000 for p in flat.groups[2]["params"])


def test_a_state_dict_is_the_models(monkeypatch):
    plain, flat = packed(monkeypatch, 40_000)
    state = flat.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in plain.state_dict().items())
    _, other = packed(monkeypatch, 40_000)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), flat.parameters(), strict=True))
