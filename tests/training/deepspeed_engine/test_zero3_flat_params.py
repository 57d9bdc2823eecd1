"""Flat parameters in each block compute what the model's own do, gathered and let go of as ZeRO-3 does."""

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine.fast.flat_params import unflatten
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams


def models(channel_mix: str = "x080") -> tuple[RWKV, RWKV, Zero3FlatParams]:
    """The same one twice, and what the second one's blocks have got."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = RWKV(ModelConfig(n_layer=3, n_embd=64, vocab_size=20, channel_mix=channel_mix))
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn_like(p)
        made.append(model)
    return *made, Zero3FlatParams(made[1], made[1].parameter_groups(0.1))


class Gathered:
    """Each block's flat parameters, there in its forward pass and in its backward pass and lost between them."""

    def __init__(self, model: RWKV) -> None:
        self._whole = {p: p.detach().clone() for block in model.blocks for p in block.parameters(recurse=False)}
        for block in model.blocks:
            block.register_forward_pre_hook(lambda block, _: self._gather(block))
            block.register_forward_hook(lambda block, *_: self._let_go(block))
            block.register_full_backward_pre_hook(lambda block, _: self._gather(block))
            block.register_full_backward_hook(lambda block, *_: self._let_go(block))

    def _gather(self, block: torch.nn.Module) -> None:
        for p in block.parameters(recurse=False):
            p.data = self._whole[p].clone()

    def _let_go(self, block: torch.nn.Module) -> None:
        for p in block.parameters(recurse=False):
            p.data.fill_(float("nan"))  # whoever still has it would show it
            p.data = torch.empty(0)


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
@pytest.mark.parametrize("channel_mix", ["x070", "x080"])
def test_loss_and_gradients_are_the_models(channel_mix, recompute):
    plain, taken, flat = models(channel_mix)
    assert len(list(taken.parameters())) == 4 + 3 * 3
    Gathered(taken)
    tokens = torch.randint(20, (2, 33))
    losses = []
    for net in (plain, taken):
        net.recompute = recompute
        losses.append(net(tokens[:, :-1], targets=tokens[:, 1:]))
        losses[-1].backward()
    assert torch.equal(*losses)
    gradients = {name: p.grad for name, p in taken.named_parameters()}
    gradients |= unflatten({name: gradients.pop(name) for name in flat.layout}, flat.layout)
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], grad) for name, grad in expected.items())


def test_the_gradient_is_there_when_that_of_the_input_is():
    """ZeRO-3 takes a block's gradients then."""
    _, taken, _ = models()
    missing = []

    def look(block: torch.nn.Module, *_: object) -> None:
        missing.extend(name for name, p in block.named_parameters() if p.grad is None)

    for block in taken.blocks:
        block.register_full_backward_hook(look)
    tokens = torch.randint(20, (2, 33))
    taken(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    assert not missing


def test_reads_other_tensors_while_it_is_told_to():
    plain, taken, flat = models()
    tokens = torch.randint(20, (2, 33))
    expected = plain(tokens[:, :-1], targets=tokens[:, 1:])
    expected.backward()
    own = list(taken.blocks.parameters())
    others = [p.detach().clone().requires_grad_() for p in own]
    with torch.no_grad():
        for p in own:
            p *= 0.5
    halved = taken(tokens)
    flat.read_from(others)
    loss = taken(tokens[:, :-1], targets=tokens[:, 1:])
    loss.backward()
    assert torch.equal(loss, expected)
    assert not any(p.grad is not None for p in own)
    names = [name for name, _ in taken.named_parameters() if name in flat.layout]
    gradients = unflatten({name: p.grad for name, p in zip(names, others, strict=True)}, flat.layout)
    assert all(torch.equal(grad, plain.get_parameter(name).grad) for name, grad in gradients.items())
    flat.read_from(None)
    assert torch.equal(taken(tokens), halved) and not torch.equal(plain(tokens), halved)


def test_plays_without_gradients():
    plain, taken, _ = models()
    Gathered(taken)
    tokens = torch.randint(20, (2, 33))
    with torch.no_grad():
        assert torch.equal(plain(tokens), taken(tokens))
        state = taken.init_state(2)
        out, state = taken(tokens[:, :20], state=state)
        assert torch.equal(taken(tokens[:, 20:], state=state)[0], plain(tokens[:, 20:], state=state)[0])


def test_groups_are_the_models():
    plain, taken, flat = models()
    for ours, theirs in zip(flat.groups, plain.parameter_groups(0.1), strict=True):
        assert {**ours, "params": None} == {**theirs, "params": None}
        assert sum(p.numel() for p in ours["params"]) == sum(p.numel() for p in theirs["params"])
    assert {p for group in flat.groups for p in group["params"]} == set(taken.parameters())


def test_made_on_the_meta_device_and_initialized_through_views():
    plain = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=20))
    torch.manual_seed(1)
    plain.init_weights()
    with torch.device("meta"):
        taken = RWKV(plain.config)
    flat = Zero3FlatParams(taken, taken.parameter_groups(0.1))
    torch.manual_seed(1)
    for part in taken.parts():
        part.to_empty(device="cpu")
        if part in list(taken.blocks):
            with flat.viewed(part):
                taken.init_part(part)
        else:
            taken.init_part(part)
    weights = dict(taken.named_parameters())
    weights |= unflatten({name: weights.pop(name) for name in flat.layout}, flat.layout)
    assert all(torch.equal(weights[name], p) for name, p in plain.named_parameters())
