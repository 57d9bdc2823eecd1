"""Tests of the fused kernels: the error in bf16 against plain PyTorch in float64, compared with plain PyTorch in bf16.

A kernel rounds less often than plain PyTorch, so its error may be at most 1.5 times as large, for every output and
gradient. Uninitialized memory is NaN while a kernel runs, so an element that a kernel does not write fails the test.
"""

import subprocess
import sys

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.ops import fused
from rwkv_music.ops.cross_entropy import Head

DEVICE = "cuda"
SHAPES = [(1, 64), (7, 320), (300, 64), (3001, 768), (517, 2048), (130, 4096)]  # M, C
ROUNDING = 2e-3  # the relative error of an exact result rounded to bf16


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=DEVICE).bfloat16()


def many(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    return [normal(*shape, seed=100 * seed + i) for i in range(count)]


def documents(M: int) -> tuple[torch.Tensor, int]:
    """Return `first` for documents of many lengths, some empty, and the number of documents."""
    bounds = [0, 0]
    for length in (1, 2, 0, 5, 100, 1, 1000, 0, 3):
        bounds.append(min(M, bounds[-1] + length))
    bounds = torch.tensor([*bounds, M, M], dtype=torch.int32, device=DEVICE)
    return fused.document_starts(bounds, M), len(bounds) - 1


def tensors(result) -> list[torch.Tensor]:
    """Return the tensors of nested tuples."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [] if result is None else [x for part in result for x in tensors(part)]


def wide(x):
    """Convert all bf16 tensors in nested tuples to float64."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.dtype == torch.bfloat16 else x
    if isinstance(x, tuple):
        return type(x)(*map(wide, x)) if hasattr(x, "_fields") else tuple(map(wide, x))
    return x


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    scale = reference.norm().item()
    return (x.double() - reference).norm().item() / (scale if scale > 0 else 1.0)


def check(monkeypatch, op, *inputs) -> None:
    """Compare the kernel of `op` on these inputs with plain PyTorch, and with a second run of the kernel."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        out, again = tensors(op(*inputs)), tensors(op(*inputs))
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_uses_kernels", lambda x: False)
        plain, reference = tensors(op(*inputs)), tensors(op(*map(wide, inputs)))
    assert len(out) == len(plain) == len(reference)
    for i, (x, same, unfused, expected) in enumerate(zip(out, again, plain, reference, strict=True)):
        assert x.shape == expected.shape and x.dtype == unfused.dtype
        assert torch.equal(x, same), f"output {i} differs from run to run"
        error, plain_error = relative_error(x, expected), relative_error(unfused, expected)
        assert error <= max(1.5 * plain_error, ROUNDING), f"output {i}: {error}, plain PyTorch {plain_error}"


@pytest.mark.parametrize("with_previous", (False, True))
@pytest.mark.parametrize("n", (1, 6))
@pytest.mark.parametrize("M, C", SHAPES)
def test_norm_mix(M, C, n, with_previous, monkeypatch):
    first, D = documents(M)
    x = 3 * normal(M, C) + 1
    weight, bias = 1 + 0.1 * normal(C, seed=1), 0.1 * normal(C, seed=2)
    mixes, previous = normal(n, C, seed=3), normal(D, C, seed=4) if with_previous else None
    dmixed, dresidual = normal(n, M, C, seed=5), normal(M, C, seed=6) if with_previous else None
    check(monkeypatch, fused.norm_mix, x, weight, bias, mixes, first, previous)
    mean_rstd = fused.norm_mix(x, weight, bias, mixes, first, previous)[1]
    check(monkeypatch, fused.norm_mix_backward, dmixed, x, mean_rstd, weight, bias, mixes, first, previous, dresidual)


def test_norm_mix_of_large_values_and_an_outlier(monkeypatch):
    x = normal(64, 768) + 100
    x[:32, 0] = 2000
    weight, bias, mixes, dmixed = normal(768), normal(768, seed=1), normal(6, 768, seed=2), normal(6, 64, 768, seed=3)
    first = documents(64)[0]
    check(monkeypatch, fused.norm_mix, x, weight, bias, mixes, first)
    mean_rstd = fused.norm_mix(x, weight, bias, mixes, first)[1]
    check(monkeypatch, fused.norm_mix_backward, dmixed, x, mean_rstd, weight, bias, mixes, first)


@pytest.mark.parametrize("more", (False, True))
@pytest.mark.parametrize("layer", (0, 1))
@pytest.mark.parametrize("M, C", SHAPES)
def test_gates(M, C, layer, more, monkeypatch):
    k, v, v_first, w_low, a_low, v_low = many(6, M, C)
    w0, a0, v0, k_k, k_a = many(5, C, seed=1)
    k[0, :64] = 0
    if layer == 0:
        v_first = v_low = v0 = None
    check(monkeypatch, fused.gates, k, v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a)
    dout = fused.Gates(*many(5, M, C, seed=2))
    dk_more, dv_more = many(2, M, C, seed=3) if more else (None, None)
    inputs = (k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
    check(monkeypatch, fused.gates_backward, dout, dk_more, dv_more, *inputs)


@pytest.mark.parametrize("M, C", SHAPES)
def test_norm_bonus_gate(M, C, monkeypatch):
    y, r, k, v, g, dout = many(6, M, C)
    inputs = (3 * y + 1, r, k, v, g, *many(3, C, seed=1))
    check(monkeypatch, fused.norm_bonus_gate, *inputs)
    check(monkeypatch, fused.norm_bonus_gate_backward, dout, *inputs)


@pytest.mark.parametrize("M, C", SHAPES)
def test_relu_squared(M, C, monkeypatch):
    k, dout = many(2, M, 4 * C)
    check(monkeypatch, fused.relu_squared, k)
    check(monkeypatch, fused.relu_squared_backward, dout, k)


@pytest.mark.parametrize("V", (3, 500))
@pytest.mark.parametrize("M, C", [*SHAPES, (40_000, 64)])
def test_embed_gate_and_embedding(M, C, V, monkeypatch):
    x, out, dx = many(3, M, C)
    enn = normal(V, C, seed=1)
    ids = torch.randint(V, (M,), generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    ids[M // 4 : M // 2] = V - 1  # one token very often
    order = fused.embed_order(ids, V)
    check(monkeypatch, fused.embed_gate, x, out, enn, ids)
    check(monkeypatch, fused.embed_gate_backward, dx, out, enn, order)
    check(monkeypatch, fused.embedding_grad, dx, order)


@pytest.mark.parametrize("V", (3, 17, 2176, 4096, 20_096, 20_097, 65_536, 131_079))
@pytest.mark.parametrize("spread", (1, 30))
@pytest.mark.parametrize("scale", (0.5, torch.tensor(0.5)), ids=("number", "tensor"))
def test_cross_entropy(V, spread, scale, monkeypatch):
    logits = spread * normal(37, V)
    targets = torch.randint(V, (37,), generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    targets[0], targets[1], targets[2] = IGNORE_INDEX, 0, V - 1
    scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale

    def cross_entropy(logits, targets):
        gradient = logits.clone()
        return fused.cross_entropy_(gradient, targets, scale), gradient

    check(monkeypatch, cross_entropy, logits, targets)
    assert not cross_entropy(logits, targets)[0][0] and not cross_entropy(logits, targets)[1][0].any()


# In a process of its own: a failed assertion ends all work on the GPU.
OUTSIDE_THE_VOCABULARY = """
import sys, torch
from rwkv_music.ops.cross_entropy import Head

head = Head(64, 100).to("cuda", getattr(torch, sys.argv[2])).requires_grad_(False)
x = torch.ones(4, 64, device="cuda", dtype=head.weight.dtype)
print(head(x, torch.tensor([0, 99, -100, 5], device="cuda")).isfinite().item(), flush=True)
head(x, torch.tensor([0, 99, int(sys.argv[1]), 5], device="cuda")).item()
print("no error")
"""


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))  # the kernel, and torch's operators
@pytest.mark.parametrize("target", (-1, 100))
def test_target_outside_the_vocabulary_fails_an_assertion(target, dtype):
    command = [sys.executable, "-c", OUTSIDE_THE_VOCABULARY, str(target), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and done.stdout.split() == ["True"]
    assert "device-side assert" in done.stderr


def test_head_computes_no_gradient_without_gradient_tracking():
    """Validation holds a chunk's logits, but no gradient of the weight in float32 (here 64 MiB)."""
    head = Head(512, 2**15).to(DEVICE, torch.bfloat16)
    x, targets = normal(64, 512), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    with torch.no_grad():
        loss = head(x, targets)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        assert head(x, targets) == loss
    assert torch.cuda.max_memory_allocated() - before < 2 * 64 * 2**15 * 2
    torch.testing.assert_close(head(x, targets), loss)


def test_empty_inputs():
    assert fused.relu_squared(normal(0, 64)).shape == (0, 64)
    assert fused.cross_entropy_(normal(0, 100), torch.empty(0, dtype=torch.int64, device=DEVICE)).shape == (0,)


def test_errors_name_argument_and_requirement():
    y, r, k, v, g = many(5, 8, 128)
    r_k, weight, bias = many(3, 128)
    with pytest.raises(RuntimeError, match="norm_bonus_gate: v .*contiguous"):
        fused.norm_bonus_gate(y, r, k, v.T.contiguous().T, g, r_k, weight, bias)
    with pytest.raises(RuntimeError, match=r"norm_bonus_gate: r_k must be .*\[128\].*\[64\]"):
        fused.norm_bonus_gate(y, r, k, v, g, r_k[:64], weight, bias)
    with pytest.raises(RuntimeError, match="multiple of 64.* 96"):
        fused.embed_gate(*many(2, 8, 96), normal(5, 96), torch.zeros(8, dtype=torch.int64, device=DEVICE))
