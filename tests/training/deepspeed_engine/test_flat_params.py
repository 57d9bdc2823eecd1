"""Flat parameters compute what the model's own do, and unpack to them."""

from functools import partial

import pytest
import torch

from rwkv_music.checkpoint.tuning import freeze
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine.fast import flat_params
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams, _block, unflatten


def model() -> RWKV:
    torch.manual_seed(0)
    made = RWKV(ModelConfig(n_layer=3, n_embd=64, vocab_size=20))
    with torch.no_grad():
        for p in made.parameters():
            p += 0.02 * torch.randn_like(p)
    return made


def packed(monkeypatch, large_enough: int, overlaps: bool = False, tune: str = "all") -> tuple[RWKV, FlatParams]:
    monkeypatch.setattr(flat_params, "MIN_ELEMENTS", large_enough)
    plain, taken = model(), model()
    for one in (plain, taken):
        freeze(one, TrainConfig(tune=tune))
    return plain, FlatParams(taken, taken.parameter_groups(0.1), overlaps)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("tune", ["all", "time,enn"])
@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_loss_and_gradients_are_the_models(monkeypatch, recompute, tune, overlaps):
    plain, flat = packed(monkeypatch, 20_000, overlaps, tune)
    flat.model.recompute = recompute
    assert 3 < len(flat.flat) < 20
    tokens = torch.randint(20, (2, 33))
    for net in (plain, flat):
        net(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    gradients = unflatten({f"flat.{i}": p.grad for i, p in enumerate(flat.flat)}, flat.layout)
    trained = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert trained.keys() == gradients.keys()
    assert all(torch.equal(gradients[name], grad) for name, grad in trained.items())


def test_windows_of_one_backward_pass(monkeypatch):
    """Several forward passes before it, as where states are carried; and one without gradients in between."""
    plain, flat = packed(monkeypatch, 40_000, overlaps=True)
    tokens = torch.randint(20, (2, 49))
    for net in (plain, flat):
        losses = [net(part[:, :-1], targets=part[:, 1:]) for part in tokens.split(25, dim=1)]
        with torch.no_grad():
            net(tokens)
        sum(losses).backward()
    gradients = unflatten({f"flat.{i}": p.grad for i, p in enumerate(flat.flat)}, flat.layout)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_gradients_come_as_the_backward_pass_gets_to_them(monkeypatch, recompute):
    _, flat = packed(monkeypatch, 40_000, overlaps=True)
    flat.model.recompute = recompute
    came = []

    def note(number: int, _block, inputs) -> None:
        inputs[0].register_hook(lambda _: came.append(f"block {number}"))

    for number, block in enumerate(flat.model.blocks):
        block.register_forward_pre_hook(partial(note, number))
    for name, parameter in flat.named_parameters():
        parameter.register_hook(lambda _, name=name: came.append(name))
    tokens = torch.randint(20, (2, 33))
    flat(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    assert set(came) == {*flat.layout, "block 0", "block 1", "block 2"}
    first = {name: min(_block(member, 3) for member, _ in members) for name, members in flat.layout.items()}
    assert set(first.values()) == {0, 1, 2}
    for name, block in first.items():
        assert block == 0 or came.index(name) < came.index(f"block {block - 1}")


def test_unpacked_weights_are_views_of_the_flat_ones(monkeypatch):
    plain, flat = packed(monkeypatch, 10**9)
    weights = unflatten(dict(flat.named_parameters()), flat.layout)
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
