"""Tests of the fused operators in plain PyTorch, in float64.

The forwards are compared with formulas token by token and head by head, the backwards with finite differences.
tests/gpu/test_fused.py compares the kernels with plain PyTorch.
"""

import itertools

import pytest
import torch
from torch.nn import functional as F

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.ops import fused

M, C, V = 9, 128, 5
BOUNDS = [0, 0, 4, 4, 5, 9, 9]  # documents of 0, 4, 0, 1, 4 and 0 tokens


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def many(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    return [normal(*shape, seed=100 * seed + i) for i in range(count)]


def close(x: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(x, expected.to(x.dtype), rtol=1e-10, atol=1e-12)


def check_gradients(function, backward, inputs) -> None:
    """Compare the gradients with finite differences along random directions.

    Args:
        function: computes the outputs from `inputs`.
        backward: computes the gradients of `inputs` from those of the outputs; None for inputs that are None.
    """
    outputs = function(*inputs)
    cotangents = [normal(*x.shape, seed=7 + i) for i, x in enumerate(outputs)]
    grads = backward(*cotangents)
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        if x is None:
            assert grad is None
            continue
        assert grad.shape == x.shape and grad.dtype == x.dtype
        direction, step = normal(*x.shape, seed=50 + i), 1e-6
        after, before = (function(*inputs[:i], x + s * direction, *inputs[i + 1 :]) for s in (step, -step))
        slope = sum(((a - b) * c).sum() for a, b, c in zip(after, before, cotangents, strict=True)) / (2 * step)
        assert torch.isclose((grad * direction).sum(), slope, rtol=1e-5, atol=1e-5), i


def test_document_starts_with_empty_documents():
    first = fused.document_starts(torch.tensor(BOUNDS, dtype=torch.int32), M)
    assert first.dtype == torch.int32
    assert first.tolist() == [1, -1, -1, -1, 3, 4, -1, -1, -1]


@pytest.mark.parametrize("with_previous", (False, True))
@pytest.mark.parametrize("n", (1, 6))
def test_norm_mix_document_by_document(n, with_previous):
    x, weight, bias, mixes = normal(M, C), normal(C, seed=1), normal(C, seed=2), normal(n, C, seed=3)
    previous = normal(len(BOUNDS) - 1, C, seed=4) if with_previous else None
    first = fused.document_starts(torch.tensor(BOUNDS, dtype=torch.int32), M)
    mixed, mean_rstd = fused.norm_mix(x, weight, bias, mixes, first, previous)
    assert mixed.shape == (n, M, C)
    h = F.layer_norm(x, (C,), weight, bias)
    for document, (begin, end) in enumerate(itertools.pairwise(BOUNDS)):
        s = previous[document] if with_previous else torch.zeros(C, dtype=torch.float64)
        for t in range(begin, end):
            assert close(mixed[:, t], h[t] + (s - h[t]) * mixes)
            s = h[t]
    assert close(mean_rstd, torch.stack([x.mean(1), (x.var(1, unbiased=False) + 1e-5).rsqrt()], dim=1))


@pytest.mark.parametrize("with_previous", (False, True))
def test_norm_mix_backward(with_previous):
    first = fused.document_starts(torch.tensor(BOUNDS, dtype=torch.int32), M)
    inputs = [normal(M, C), normal(C, seed=1), normal(C, seed=2), normal(6, C, seed=3)]
    inputs.append(normal(len(BOUNDS) - 1, C, seed=4) if with_previous else None)
    x, weight, bias, mixes, previous = inputs
    mean_rstd = fused.norm_mix(x, weight, bias, mixes, first, previous)[1]

    def forward(x, weight, bias, mixes, previous):
        return [fused.norm_mix(x, weight, bias, mixes, first, previous)[0]]

    def backward(dmixed, dresidual=None):
        return fused.norm_mix_backward(dmixed, x, mean_rstd, weight, bias, mixes, first, previous, dresidual)

    check_gradients(forward, backward, inputs)
    dmixed, dresidual = normal(6, M, C, seed=9), normal(M, C, seed=10)
    assert close(backward(dmixed, dresidual).x, backward(dmixed).x + dresidual)


def gates_inputs(layer: int) -> list[torch.Tensor | None]:
    """k, v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a."""
    inputs = [*many(6, M, C), *many(5, C, seed=1)]
    if layer == 0:
        inputs[2] = inputs[5] = inputs[8] = None
    return inputs


def test_gates_head_by_head():
    k, v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a = inputs = gates_inputs(1)
    out = fused.gates(*inputs)
    assert close(out.w, w0 + w_low)
    for t, head in itertools.product(range(M), range(C // 64)):
        head_slice = slice(64 * head, 64 * head + 64)
        a = 1 / (1 + torch.exp(-(a0 + a_low[t])[head_slice]))
        share = 1 / (1 + torch.exp(-(v0 + v_low[t])[head_slice]))
        kk = (k[t] * k_k)[head_slice]
        kk = kk / kk.square().sum().sqrt()
        assert close(out.k[t, head_slice], k[t, head_slice] * (1 - k_a[head_slice] + a * k_a[head_slice]))
        assert close(out.v[t, head_slice], (1 - share) * v[t, head_slice] + share * v_first[t, head_slice])
        assert close(out.removal[t, head_slice], -kk)
        assert close(out.replacement[t, head_slice], kk * a)


@pytest.mark.parametrize("layer", (0, 1))
def test_gates_backward(layer):
    inputs = gates_inputs(layer)
    k, v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a = inputs

    def backward(*dout, more=(None, None)):
        grads = fused.gates_backward(fused.Gates(*dout), *more, k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
        return [*grads[:3], dout[0], *grads[3:]]  # the gradient of w_low is that of w

    check_gradients(fused.gates, backward, inputs)
    dout, (dk_more, dv_more) = many(5, M, C, seed=3), many(2, M, C, seed=4)
    summed = backward(dout[0], dout[1] + dk_more, dout[2] + dv_more, *dout[3:])
    for x, expected in zip(backward(*dout, more=(dk_more, dv_more)), summed, strict=True):
        assert x is expected is None or close(x, expected)


def test_gates_of_zero_key_are_finite():
    inputs = gates_inputs(1)
    inputs[0][0] = 0
    k, v, v_first, _, a_low, v_low, _, a0, v0, k_k, k_a = inputs
    out = fused.gates(*inputs)
    dout = fused.Gates(*many(5, M, C))
    grads = fused.gates_backward(dout, None, None, k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
    assert all(x.isfinite().all() for x in (*out, *grads))


def test_norm_bonus_gate_head_by_head():
    y, r, k, v, g = many(5, M, C)
    r_k, weight, bias = many(3, C, seed=1)
    out = fused.norm_bonus_gate(y, r, k, v, g, r_k, weight, bias)
    for t, head in itertools.product(range(M), range(C // 64)):
        head_slice = slice(64 * head, 64 * head + 64)
        centred = y[t, head_slice] - y[t, head_slice].mean()
        norm = centred / (centred.square().mean() + 64e-5).sqrt() * weight[head_slice] + bias[head_slice]
        bonus = (r[t, head_slice] * k[t, head_slice] * r_k[head_slice]).sum() * v[t, head_slice]
        assert close(out[t, head_slice], (norm + bonus) * g[t, head_slice])


def test_norm_bonus_gate_backward():
    inputs = [*many(5, M, C), *many(3, C, seed=1)]
    check_gradients(
        lambda *inputs: [fused.norm_bonus_gate(*inputs)],
        lambda dout: fused.norm_bonus_gate_backward(dout, *inputs)[:-1],
        inputs,
    )
    grads = fused.norm_bonus_gate_backward(normal(M, C, seed=9), *inputs)
    assert torch.equal(grads.out, fused.norm_bonus_gate(*inputs))


def test_relu_squared():
    k, dout = many(2, M, C)
    out, dk = fused.relu_squared_backward(dout, k)
    assert close(out, torch.where(k > 0, k * k, 0)) and close(fused.relu_squared(k), out)
    assert close(dk, torch.where(k > 0, 2 * k * dout, 0))


def test_embed_order_is_stable():
    order = fused.embed_order(torch.tensor([3, 1, 3, 0, 1, 3]), V)
    assert order.ids.tolist() == [0, 1, 1, 3, 3, 3]
    assert order.positions.tolist() == [3, 1, 4, 0, 2, 5]


def test_embed_gate_and_backward():
    ids = torch.tensor([3, 1, 3, 0, 1, 3, 3, 3, 0])
    order = fused.embed_order(ids, V)
    x, out, dx = many(3, M, C)
    enn = normal(V, C, seed=5)
    result = fused.embed_gate(x, out, enn, ids)
    dout, denn = fused.embed_gate_backward(dx, out, enn, order)
    expected = torch.zeros(V, C, dtype=torch.float64)
    for t, token in enumerate(ids.tolist()):
        assert close(result[t], x[t] + out[t] * enn[token])
        assert close(dout[t], dx[t] * enn[token])
        expected[token] += dx[t] * out[t]
    assert close(denn, expected) and not denn[[2, 4]].any()


def test_embedding_grad_sums_in_fp32():
    ids = torch.zeros(4096, dtype=torch.int64)
    dx = normal(4096, C, dtype=torch.bfloat16) + 1
    grad = fused.embedding_grad(dx, fused.embed_order(ids, 2))
    assert grad.dtype == torch.bfloat16 and not grad[1].any()
    assert ((grad[0].double() - dx.double().sum(0)).abs() < 4096 * 2**-8).all()


@pytest.mark.parametrize("scale", (0.25, torch.tensor(0.25)))
def test_cross_entropy_overwrites_logits_with_gradient(scale):
    logits = 5 * normal(M, 37)
    targets = torch.tensor([0, 36, 5, IGNORE_INDEX, 7, 7, 7, IGNORE_INDEX, 1])
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="none", ignore_index=IGNORE_INDEX)
    (gradient,) = torch.autograd.grad(expected.sum() * 0.25, leaf)
    nats = fused.cross_entropy_(logits, targets, scale)
    assert close(nats, expected.detach()) and close(logits, gradient)


def test_dtypes_of_bf16_inputs():
    x, dmixed = normal(M, C, dtype=torch.bfloat16), normal(1, M, C, dtype=torch.bfloat16)
    weight, bias, mixes = (normal(*shape, dtype=torch.bfloat16) for shape in ((C,), (C,), (1, C)))
    first = fused.document_starts(torch.tensor([0, M], dtype=torch.int32), M)
    mixed, mean_rstd = fused.norm_mix(x, weight, bias, mixes, first)
    assert mixed.dtype == torch.bfloat16 and mean_rstd.dtype == torch.float32
    grads = fused.norm_mix_backward(dmixed, x, mean_rstd, weight, bias, mixes, first)
    assert [None if g is None else g.dtype for g in grads] == 4 * [torch.bfloat16] + [None]
    assert fused.cross_entropy_(x, torch.zeros(M, dtype=torch.int64)).dtype == torch.float32
