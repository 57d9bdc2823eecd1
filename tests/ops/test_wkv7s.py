"""Tests of the CPU backend of WKV7s against the naive float64 reference, and of the operator's interface."""

import pytest
import torch

from rwkv_music.ops.wkv7s import wkv7s
from tests.ops.reference import wkv7s_inputs, wkv7s_reference

LENGTHS = (1, 15, 16, 17, 64, 1000)
NAMES = ("y", "final_state", "dr", "dw", "dk", "dv", "da", "db", "dstate")


def relative_errors(inputs, state, cu_seqlens=None) -> dict[str, float]:
    """Return the relative errors of the outputs and of all gradients for random gradients of the outputs.

    The naive reference is slow and heads are independent, so for large inputs it checks only the first, middle and last
    head, and the float64 backend checks all heads.
    """
    B, T, H, _ = inputs[0].shape
    arguments = [*inputs, *(() if state is None else (state,))]
    generator = torch.Generator().manual_seed(1)
    outputs = wkv7s(*inputs, state=state, cu_seqlens=cu_seqlens)
    grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]

    def run(operator, heads: slice, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """Return the outputs and gradients on some heads."""
        leaves = [
            select(x, heads, i == 6).detach().to(dtype or x.dtype).requires_grad_() for i, x in enumerate(arguments)
        ]
        results = operator(*leaves[:6], state=leaves[6] if state is not None else None, cu_seqlens=cu_seqlens)
        given = [select(x, heads, i == 1).to(y.dtype) for i, (x, y) in enumerate(zip(grads, results, strict=True))]
        return [*results, *torch.autograd.grad(results, leaves, given)]

    def select(x: torch.Tensor, heads: slice, is_state: bool) -> torch.Tensor:
        return x[:, heads] if is_state else x[:, :, heads]

    actual = run(wkv7s, slice(None))
    for name, x in zip(NAMES, actual, strict=False):
        assert torch.isfinite(x).all(), f"{name} has a value that is not finite"
    large = B * T * H > 4096
    some = slice(0, None, max(1, (H - 1) // 2)) if large else slice(None)
    errors: dict[str, float] = {}
    references = [(some, run(wkv7s_reference, some))]
    if large and H > 1:
        references.append((slice(None), run(wkv7s, slice(None), torch.float64)))
    for heads, reference in references:
        # A gradient that is exactly zero (of w at the first token of a zero state) is compared with the largest one.
        scale = max(x.double().norm() for x in reference)
        for name, x, expected in zip(NAMES, actual, reference, strict=False):
            norm = expected.double().norm()
            difference = select(x, heads, name in ("final_state", "dstate")).double() - expected
            errors[name] = max(errors.get(name, 0.0), (difference.norm() / (norm if norm > 0 else scale)).item())
    return errors


def assert_close(errors: dict[str, float], bound: float) -> None:
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("heads", (1, 12))
@pytest.mark.parametrize("with_state", (False, True))
def test_fp32_equals_reference(T, heads, with_state):
    inputs = wkv7s_inputs(1 if T > 100 else 2, T, heads, seed=T + heads)
    state = (
        torch.randn(inputs[0].shape[0], heads, 64, 64, generator=torch.Generator().manual_seed(0))
        if with_state
        else None
    )
    assert_close(relative_errors(inputs, state), 1e-5)


def test_fp32_with_many_heads_and_a_long_row():
    assert_close(relative_errors(wkv7s_inputs(1, 256, 64, seed=5), None), 1e-5)
    assert_close(relative_errors(wkv7s_inputs(1, 4096, 1, seed=6), None), 1e-5)


@pytest.mark.parametrize("w_range", ((-20.0, 20.0), (-20.0, -20.0), (20.0, 20.0), (-1.0, 1.0)))
@pytest.mark.parametrize("correlated", (False, True))
def test_fp32_with_extreme_decays_and_correlated_keys(w_range, correlated):
    inputs = wkv7s_inputs(2, 200, 3, seed=3, w_range=w_range, correlated=correlated)
    assert_close(relative_errors(inputs, torch.zeros(2, 3, 64, 64)), 1e-5)


@pytest.mark.parametrize(
    "bounds",
    ([0, 200], [0, 1, 2, 200], [0, 64, 128, 200], [0, 0, 65, 65, 200], [0, 130, 131, 200], [0, 31, 63, 96, 200]),
)
@pytest.mark.parametrize("with_state", (False, True))
def test_packed_documents_are_independent(bounds, with_state):
    inputs = wkv7s_inputs(1, 200, 3, seed=len(bounds))
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    state = torch.randn(len(bounds) - 1, 3, 64, 64) if with_state else None
    assert_close(relative_errors(inputs, state, cu_seqlens), 1e-5)


@pytest.mark.parametrize("N", (1, 5, 128))
def test_any_head_size(N):
    assert_close(relative_errors(wkv7s_inputs(2, 70, 2, N=N, seed=N), torch.randn(2, 2, N, N)), 1e-5)


def test_gradient_of_decay_with_large_state():
    inputs = wkv7s_inputs(1, 200, 2, seed=13)
    assert_close(relative_errors(inputs, 1e4 * torch.randn(1, 2, 64, 64)), 1e-5)


def test_float64_gradients_pass_gradcheck():
    inputs = wkv7s_inputs(1, 5, 1, N=4, seed=2, dtype=torch.float64)
    packed = torch.tensor([0, 2, 5], dtype=torch.int32)
    state = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    leaves = tuple(x.requires_grad_() for x in (*inputs, state))
    assert torch.autograd.gradcheck(lambda *x: wkv7s(*x[:6], state=x[6], cu_seqlens=packed), leaves)
    # Longer than a chunk, to check the chain between chunks too.
    inputs = tuple(x.requires_grad_() for x in wkv7s_inputs(1, 67, 1, N=2, seed=4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *x: wkv7s(*x), inputs)


def test_bf16_rounds_only_inputs_and_outputs():
    inputs = wkv7s_inputs(2, 100, 2, seed=8, dtype=torch.bfloat16)
    assert_close(relative_errors(inputs, torch.randn(2, 2, 64, 64)), 3e-3)


@pytest.mark.parametrize("used", ("y", "final_state"))
def test_gradients_of_one_output(used):
    inputs = [x.requires_grad_() for x in wkv7s_inputs(2, 70, 2, seed=12)]
    index = ("y", "final_state").index(used)
    actual = torch.autograd.grad(wkv7s(*inputs)[index].square().sum(), inputs)
    expected = torch.autograd.grad(wkv7s_reference(*inputs)[index].square().sum(), inputs, materialize_grads=True)
    scale = max(x.norm() for x in expected)
    assert all(
        (x - y).norm() < 1e-5 * (y.norm() if y.norm() > 0 else scale) for x, y in zip(actual, expected, strict=True)
    )


def test_state_continues_the_row():
    inputs = wkv7s_inputs(2, 150, 2, seed=9)
    y, final = wkv7s(*inputs)
    with torch.no_grad():
        state, parts = torch.zeros(2, 2, 64, 64), []
        for start, stop in ((0, 1), (1, 2), (2, 70), (70, 150)):
            part, state = wkv7s(*(x[:, start:stop] for x in inputs), state=state)
            parts.append(part)
    assert (torch.cat(parts, dim=1) - y).norm() < 1e-5 * y.norm()
    assert (state - final).norm() < 1e-5 * final.norm()


def test_same_input_gives_same_bits():
    inputs = [x.requires_grad_() for x in wkv7s_inputs(2, 130, 2, seed=10)]
    first, second = ([wkv7s(*inputs)[0]] for _ in range(2))
    first += torch.autograd.grad(first[0].sum(), inputs)
    second += torch.autograd.grad(second[0].sum(), inputs)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("with_state", (False, True))
def test_opcheck(with_state):
    inputs = [x.view(-1, 2, 64).requires_grad_() for x in wkv7s_inputs(2, 20, 2, seed=11)]
    state = torch.randn(2, 2, 64, 64, requires_grad=True) if with_state else None
    cu_seqlens = torch.tensor([0, 20, 40], dtype=torch.int32)
    torch.library.opcheck(torch.ops.rwkv_music.wkv7s_forward.default, (*inputs, state, cu_seqlens, 20, True))
    detached = [x.detach() for x in inputs]
    _, final, checkpoints = torch.ops.rwkv_music.wkv7s_forward(*detached, None, cu_seqlens, 20, True)
    grads = (torch.randn_like(detached[0]), torch.randn_like(final))
    torch.library.opcheck(torch.ops.rwkv_music.wkv7s_backward.default, (*detached, cu_seqlens, 20, checkpoints, *grads))


def test_nothing_is_saved_without_gradients():
    inputs = [x.view(-1, 2, 64) for x in wkv7s_inputs(1, 100, 2)]
    cu_seqlens = torch.tensor([0, 100], dtype=torch.int32)
    assert torch.ops.rwkv_music.wkv7s_forward(*inputs, None, cu_seqlens, 100, False)[2].numel() == 0


def test_checkpoints_are_smaller_than_inputs():
    inputs = [x.view(-1, 4, 64) for x in wkv7s_inputs(4, 512, 4)]
    cu_seqlens = torch.arange(0, 2049, 512, dtype=torch.int32)
    checkpoints = torch.ops.rwkv_music.wkv7s_forward(*inputs, None, cu_seqlens, 512, True)[2]
    assert 0 < checkpoints.nbytes < sum(x.nbytes for x in inputs)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: {"r": x["r"][:, :1]}, "one shape"),
        (lambda x: {"r": x["r"].double()}, "one dtype"),
        (lambda x: {name: x[name][:, :0] for name in "rwkvab"}, "one row and one token"),
        (lambda x: {"state": torch.zeros(1, 2, 64, 63)}, r"state must be .*63"),
        (lambda x: {"cu_seqlens": torch.tensor([0, 4], dtype=torch.int32)}, "from 0 to T = 5"),
        (lambda x: {"cu_seqlens": torch.tensor([0, 5])}, "int32 vector"),
        (lambda x: {name: x[name].int() for name in "rwkvab"}, "floating-point"),
    ],
)
def test_invalid_arguments_raise(change, message):
    arguments = dict(zip("rwkvab", wkv7s_inputs(1, 5, 2), strict=True))
    with pytest.raises(ValueError, match=message):
        wkv7s(**{**arguments, **change(arguments)})


def test_cu_seqlens_with_two_rows_raises():
    with pytest.raises(ValueError, match="one row.* B is 2"):
        wkv7s(*wkv7s_inputs(2, 5, 2), cu_seqlens=torch.tensor([0, 5], dtype=torch.int32))
