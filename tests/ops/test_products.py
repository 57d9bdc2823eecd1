"""The products that replace PyTorch's bf16 products on a CPU without AVX-512."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import products

CONFIG = ModelConfig(vocab_size=40, n_layer=2, n_embd=64, head_size=32, dim_ffn=96)
ULP = 2.0**-8  # of bf16, relative, rounded to nearest


@pytest.fixture
def slow_bf16(monkeypatch):
    monkeypatch.setattr(products, "CPU_HAS_FAST_BF16", False)


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).requires_grad_()


def check(product, exact):
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.double(), exact, rtol=ULP, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 50, 70), (50, 70), (70,)])
def test_products_and_their_gradients_are_rounded_once(slow_bf16, shape):
    a, b, weight = random(*shape), random(70, 30), random(30, 70)
    for product, factor, exact in (
        (products.matmul(a, b), b, lambda a, b: a @ b),
        (products.linear(a, weight), weight, lambda a, b: a @ b.T),
    ):
        a_exact, b_exact = (x.detach().double().requires_grad_() for x in (a, factor))
        expected = exact(a_exact, b_exact)
        check(product, expected)
        grad = random(*product.shape).detach()
        for got, want in zip(
            torch.autograd.grad(product, (a, factor), grad),
            torch.autograd.grad(expected, (a_exact, b_exact), grad.double()),
            strict=True,
        ):
            check(got, want)


def test_out_receives_the_product(slow_bf16):
    a, b, out = random(5, 7).detach(), random(7, 3).detach(), torch.empty(5, 3, dtype=torch.bfloat16)
    assert products.matmul(a, b, out=out) is out
    check(out, a.double() @ b.double())


def test_autograd_saves_the_bf16_factors_themselves(slow_bf16):
    saved = []
    a, weight = random(5, 7), random(3, 7)
    with saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        products.linear(a, weight)
    assert [x.data_ptr() for x in saved] == [a.data_ptr(), weight.data_ptr()]


def test_a_frozen_factor_gets_no_gradient(slow_bf16):
    a, b = random(5, 7), random(7, 3)
    products.matmul(a.detach(), b).sum().backward()
    products.matmul(a, b.detach()).sum().backward()
    assert a.grad is not None and b.grad is not None
    assert not products.matmul(a.detach(), b.detach()).requires_grad


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (False, torch.float64)])
def test_other_products_are_those_of_pytorch(monkeypatch, fast, dtype):
    monkeypatch.setattr(products, "CPU_HAS_FAST_BF16", fast)
    a, b, weight = random(5, 7, dtype=dtype), random(7, 3, dtype=dtype), random(3, 7, dtype=dtype)
    assert torch.equal(products.matmul(a, b), a @ b)
    assert torch.equal(products.linear(a, weight), nn.functional.linear(a, weight))


def test_every_product_of_the_model_is_one_of_these(slow_bf16):
    """A training step and a forward pass contain no product of bf16 factors."""
    model = RWKV(CONFIG).bfloat16()
    ids = torch.randint(0, 40, (2, 33), generator=torch.Generator().manual_seed(0))
    with _ProductDtypes() as seen:
        model(ids[:, :-1], targets=ids[:, 1:]).backward()
        model(ids[:, :-1])
    assert torch.float32 in seen.dtypes
    assert torch.bfloat16 not in seen.dtypes


class _ProductDtypes(TorchDispatchMode):
    """Records the dtypes of matrix products."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))
