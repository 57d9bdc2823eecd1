"""Tests of the WKV7s kernels against the float64 reference: outputs, final state, and gradients of all seven inputs.

Uninitialized memory is NaN while the operator runs, so an element that no kernel writes fails the test. Heads are
independent and the naive reference is slow, so it checks only the first, middle and last head.

    pytest tests/gpu/test_wkv7s.py --portable     the same tests with the kernels as PTX for compute capability 8.0
    compute-sanitizer --tool memcheck --kernel-name kns=wkv7s --error-exitcode 1 \
        python -m pytest tests/gpu/test_wkv7s.py --small     small shapes only, under memcheck or racecheck
"""

import subprocess
import sys

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.cuda import build
from rwkv_music.ops.wkv7s import wkv7s
from tests.ops.reference import wkv7s_inputs, wkv7s_reference

NAMES = ("y", "final_state", "dr", "dw", "dk", "dv", "da", "db", "dstate")
RANDOM, EXTREME = 5e-3, 8e-3  # bounds on ||out - reference|| / ||reference||


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    out, reference = out.double(), reference.double()
    scale = reference.norm().item()
    return (out - reference).norm().item() / (scale if scale > 0 else 1.0)


def run(operator, inputs, state, cu_seqlens, dy, dfinal_state) -> list[torch.Tensor]:
    """Return the tensors of NAMES computed by `operator`, without dstate if there is no state."""
    leaves = [x.detach().requires_grad_() for x in (*inputs, *(() if state is None else (state,)))]
    y, final_state = operator(*leaves[:6], leaves[6] if state is not None else None, cu_seqlens)
    grads = torch.autograd.grad([y, final_state], leaves, [dy.to(y.dtype), dfinal_state.to(final_state.dtype)])
    return [y.detach(), final_state.detach(), *grads]


def run_poisoned(*args, operator=wkv7s) -> list[torch.Tensor]:
    """Run the operator with NaN in all uninitialized memory."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return run(operator, *args)
    finally:
        torch.use_deterministic_algorithms(False)


def make(
    B: int, T: int, H: int, N: int = 64, *, seed: int, with_state: bool, cu_seqlens: list[int] | None = None, **inputs
):
    """Return arguments of `run`: inputs, state, cu_seqlens, dy, dfinal_state."""
    r_to_b = wkv7s_inputs(B, T, H, N, seed=seed, dtype=torch.bfloat16, device="cuda", **inputs)
    documents = B if cu_seqlens is None else len(cu_seqlens) - 1
    generator = torch.Generator("cuda").manual_seed(seed)
    state = torch.randn(documents, H, N, N, device="cuda", generator=generator) if with_state else None
    dy = torch.randn(B, T, H, N, device="cuda", generator=generator).bfloat16()
    dfinal_state = torch.randn(documents, H, N, N, device="cuda", generator=generator)
    bounds = None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=torch.int32, device="cuda")
    return r_to_b, state, bounds, dy, dfinal_state


def on_the_cpu(r, w, k, v, a, b, state, cu_seqlens):
    """Run the CPU backend; in float64 it is the reference for documents too long for the naive reference."""
    to_cpu = (None if x is None else x.cpu() for x in (r, w, k, v, a, b, state, cu_seqlens))
    return tuple(x.to(r.device) for x in wkv7s(*to_cpu))


def check(arguments, bound: float, *operators, reference=wkv7s_reference) -> None:
    """Compare each of the operators (default `wkv7s`) with the reference in float64."""
    inputs, state, cu_seqlens, dy, dfinal_state = arguments
    outputs = [run_poisoned(*arguments, operator=operator) for operator in operators or (wkv7s,)]
    H = dy.shape[2]
    heads = sorted({0, H // 2, H - 1})
    states = [None if x is None else x[:, heads] for x in (state, dfinal_state)]
    tokens = [x[:, :, heads] for x in (*inputs, dy)]
    if states[0] is not None:
        states[0] = states[0].double()
    references = run(reference, [x.double() for x in tokens[:6]], states[0], cu_seqlens, tokens[6], states[1])
    for out in outputs:
        errors = {}
        for name, x, expected in zip(NAMES, out, references, strict=False):
            assert not x.isnan().any(), f"{name} has NaN"
            is_state = name in ("final_state", "dstate")
            errors[name] = relative_error(x[:, heads] if is_state else x[:, :, heads], expected)
        assert max(errors.values()) < bound, errors


class WithSegments(torch.autograd.Function):
    """The CUDA operator with a given segment length."""

    @staticmethod
    def forward(ctx, r, w, k, v, a, b, state, cu_seqlens, segment_tokens):
        packed = [x.flatten(0, 1) for x in (r, w, k, v, a, b)]
        ops, T = build.load(), len(packed[0])
        y, final_state, checkpoints = ops.wkv7s_forward(*packed, state, cu_seqlens, T, True, segment_tokens)
        ctx.save_for_backward(*packed, cu_seqlens, checkpoints)
        ctx.segment_tokens, ctx.has_state = segment_tokens, state is not None
        return y.view_as(r), final_state

    @staticmethod
    def backward(ctx, dy, dfinal_state):
        *inputs, checkpoints = ctx.saved_tensors
        grads = (checkpoints, dy.flatten(0, 1), dfinal_state)
        *tokens, dstate = build.load().wkv7s_backward(*inputs, len(inputs[0]), *grads, ctx.segment_tokens)
        return *(x.view_as(dy) for x in tokens), dstate if ctx.has_state else None, None, None


def documents(T: int) -> list[int]:
    """Return boundaries of documents of many lengths in T tokens, with empty ones at both ends and inside."""
    bounds = [0, 0]
    for length in (1, 15, 0, 16, 17, 64, 200, 33, 0, 1000):
        bounds.append(min(T, bounds[-1] + length))
    return [*bounds, T, T]


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("H", [1, 12, 64])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 64, 1000, 4096])
def test_plain(T, H, with_state):
    check(make(2 if T < 1000 else 1, T, H, seed=T + H, with_state=with_state), RANDOM)


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("H", [1, 12, 64])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 64, 1000, 4096])
def test_packed(T, H, with_state):
    check(make(1, T, H, seed=T + H + 1, with_state=with_state, cu_seqlens=documents(T)), RANDOM)


@pytest.mark.parametrize("T", [17, 64, 1000])
@pytest.mark.parametrize(
    "w_range", [(-20, -20), (-20, -19), (-10, -3), (-1, 1), (19, 20), (20, 20), (-20, 20)], ids=str
)
@pytest.mark.parametrize("correlated", [False, True], ids=["spread", "correlated"])
def test_extremes_of_decay_and_correlated_keys(T, w_range, correlated):
    check(make(1, T, 2, seed=T, with_state=True, w_range=w_range, correlated=correlated), EXTREME)


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("T", [64, 65, 300, 1000])
@pytest.mark.parametrize("segment_tokens", [0, 64, 128])
def test_segments(segment_tokens, T, packed, with_state):
    def operator(r, w, k, v, a, b, state, cu_seqlens):
        return WithSegments.apply(r, w, k, v, a, b, state, cu_seqlens, segment_tokens)

    bounds = documents(T) if packed else [0, T]
    check(make(1, T, 3, seed=T, with_state=with_state, cu_seqlens=bounds), RANDOM, operator)


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("T", [1, 16, 33, 100, 1000])
def test_head_size_128(T, packed, with_state):
    bounds = documents(T) if packed else None
    check(make(1, T, 3, 128, seed=T, with_state=with_state, cu_seqlens=bounds), RANDOM)


@pytest.mark.parametrize("T", [16, 100])
def test_head_size_128_without_gradients(T):
    inputs, state, _, _, _ = make(2, T, 3, 128, seed=T, with_state=True)
    with torch.no_grad():
        y, final_state = wkv7s(*inputs, state)
        expected, expected_final = wkv7s_reference(*inputs, state)
    assert relative_error(y, expected) < RANDOM
    assert relative_error(final_state, expected_final) < RANDOM


@pytest.mark.parametrize("w_range", [(-20, -20), (-10, -3), (20, 20)], ids=str)
def test_head_size_128_with_correlated_keys(w_range):
    check(make(1, 300, 2, 128, seed=9, with_state=True, w_range=w_range, correlated=True), EXTREME)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("hard", [False, True], ids=["random", "hard"])
@pytest.mark.parametrize("T", [65536])
def test_very_long_documents(T, hard, packed):
    """Run with segments, which the operator chooses for so few heads, and without."""
    inputs = dict(w_range=(-10, -3), correlated=True) if hard else {}
    bounds = [0, 30000, 30001, 30031, T] if packed else [0, T]
    arguments = make(1, T, 2, seed=10, with_state=True, cu_seqlens=bounds, **inputs)

    def whole(*args):
        return WithSegments.apply(*args, 0)

    check(arguments, EXTREME if hard else RANDOM, wkv7s, whole, reference=on_the_cpu)


@pytest.mark.parametrize("N", [64, 128])
def test_same_input_same_bits(N):
    arguments = make(2, 333, 12, N, seed=5, with_state=True)
    for first, second in zip(run_poisoned(*arguments), run_poisoned(*arguments), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("T, N", [(10, 64), (100, 64), (5000, 64), (100, 128)])
def test_unused_final_state_and_custom_operator(T, N):
    inputs, state, _, dy, _ = make(1, T, 3, N, seed=5, with_state=True)
    no_gradient = torch.zeros_like(state)

    def without(*leaves):
        y, final_state = wkv7s(*leaves)
        return y, final_state.detach().requires_grad_() + 0 * y.sum()  # its gradient does not reach wkv7s

    def registered(*leaves):
        cu_seqlens = torch.tensor([0, T], dtype=torch.int32, device="cuda")
        packed = [x.flatten(0, 1) for x in leaves[:6]]
        y, final_state, _ = torch.ops.rwkv_music.wkv7s_forward(*packed, leaves[6], cu_seqlens, T, True)
        return y.unflatten(0, (1, T)), final_state

    expected = run(wkv7s, inputs, state, None, dy, no_gradient)
    for operator in (without, registered):
        for x, reference in zip(run(operator, inputs, state, None, dy, no_gradient), expected, strict=True):
            assert torch.equal(x, reference)


def test_gradients_of_gradients_raise():
    inputs, *_ = make(1, 20, 1, seed=4, with_state=False)
    leaves = [x.requires_grad_() for x in inputs]
    with pytest.raises(RuntimeError, match="gradients of gradients"):
        torch.autograd.grad(wkv7s(*leaves)[0].square().sum(), leaves[0], create_graph=True)


def test_packed_documents_equal_separate_ones():
    lengths = [40, 17, 100]
    bounds = [0, 40, 57, 157]
    inputs, state, _, dy, dfinal_state = arguments = make(1, 157, 3, seed=6, with_state=True, cu_seqlens=bounds)
    packed = run_poisoned(*arguments)
    for i, (begin, length) in enumerate(zip(bounds, lengths, strict=False)):
        tokens = slice(begin, begin + length)
        alone = run_poisoned(
            [x[:, tokens] for x in inputs], state[i : i + 1], None, dy[:, tokens], dfinal_state[i : i + 1]
        )
        for name, x, expected in zip(NAMES, packed, alone, strict=True):
            part = x[i : i + 1] if name in ("final_state", "dstate") else x[:, tokens]
            assert torch.equal(part, expected), name


def test_state_continues_the_row():
    inputs, state, _, _, _ = make(1, 200, 2, seed=7, with_state=True)
    with torch.no_grad():
        y, final_state = wkv7s(*inputs, state)
        first, middle = wkv7s(*(x[:, :77] for x in inputs), state)
        second, last = wkv7s(*(x[:, 77:] for x in inputs), middle)
    assert relative_error(torch.cat([first, second], dim=1), y) < RANDOM
    assert relative_error(last, final_state) < RANDOM


def test_non_contiguous_inputs():
    arguments = make(2, 50, 3, seed=8, with_state=True)
    inputs, *others = arguments
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    for x, expected in zip(run_poisoned(strided, *others), run_poisoned(inputs, *others), strict=True):
        assert torch.equal(x, expected)


def test_other_head_sizes_raise():
    inputs, *_ = make(1, 3, 2, 32, seed=11, with_state=False)
    with pytest.raises(ValueError, match="64 or 128.* 32"):
        wkv7s(*inputs)


def test_portable_build(request):
    """Test the kernels as PTX for 8.0, which newer GPUs can run, in a process that has not loaded the native build."""
    if request.config.getoption("--portable", False) or request.config.getoption("--small", False):
        pytest.skip("--portable and --small test one library only")
    tests = "extremes and correlated and 64 or test_segments and 300 and packed or head_size_128 and 100 or same_bits"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--portable", __file__, "-k", tests]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout[-5000:]
