"""Tests of the head's summed loss against the logits and torch's cross_entropy."""

import pytest
import torch
from torch.nn import functional as F

from rwkv_music.ops import cross_entropy, fused
from rwkv_music.ops.cross_entropy import Head


@pytest.mark.parametrize("chunk", [7, 50, 10**6])
def test_equals_cross_entropy(monkeypatch, chunk):
    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", chunk * 30)
    module = Head(16, 30).double()
    x = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(30, (50,))
    loss = module(x, targets)
    expected = F.cross_entropy(module(x), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    inputs = (x, module.weight)
    for a, b in zip(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    torch.manual_seed(0)
    module = Head(4, 6).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2, 1])
    assert torch.autograd.gradcheck(lambda x: module(x, targets), (x,))


def test_no_targets_give_zero_loss_and_gradients():
    module = Head(4, 6)
    x = torch.randn(0, 4, requires_grad=True)
    loss = module(x, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and not module.weight.grad.any()


def test_frozen_head_records_no_graph():
    module = Head(4, 6).requires_grad_(False)
    loss = module(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))
    assert loss.grad_fn is None and loss.item() > 0


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_computed_without_gradient_tracking(without_gradients):
    """Neither the product for the gradient of x nor the one for that of the weight runs."""
    module, x = Head(4, 6), torch.randn(5, 4, requires_grad=True)
    targets = torch.tensor([0, 5, -100, 2, 1])
    with torch.profiler.profile() as profile, without_gradients():
        loss = module(x, targets)
    assert [event.count for event in profile.key_averages() if event.key == "aten::mm"] == [1]
    assert loss == module(x, targets)


@pytest.mark.parametrize("target", [-1, 6, -101])
def test_target_outside_the_vocabulary(target):
    with pytest.raises(ValueError, match=f"targets holds {target}, .* 0 to 5, or -100"):
        Head(4, 6)(torch.randn(2, 4), torch.tensor([0, target]))
    with pytest.raises(RuntimeError, match=f"index {target} is out of bounds"):
        fused.cross_entropy_(torch.randn(2, 6), torch.tensor([0, target]))
