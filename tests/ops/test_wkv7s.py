"""The CPU backend of WKV7s against the float64 step-by-step reference, and the operator's contract."""

import pytest
import torch

from rwkv_music.ops.wkv7s import wkv7s
from tests.ops.reference import wkv7s_inputs, wkv7s_reference

LENGTHS = (1, 15, 16, 17, 64, 1000)
NAMES = ("y", "final_state", "dr", "dw", "dk", "dv", "da", "db", "dstate")


def relative_errors(inputs, state, cu_seqlens=None) -> dict[str, float]:
    """Relative error of the outputs and of all gradients under a random cotangent."""
    leaves = [x.detach().requires_grad_() for x in (*inputs, *(() if state is None else (state,)))]
    carried = leaves[6] if state is not None else None
    y, final = wkv7s(*leaves[:6], state=carried, cu_seqlens=cu_seqlens)
    y_ref, final_ref = wkv7s_reference(*leaves[:6], state=carried, cu_seqlens=cu_seqlens)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    dfinal = torch.randn(final.shape, generator=generator, dtype=torch.float64).to(final.dtype)
    got = (y, final, *torch.autograd.grad((y, final), leaves, (dy, dfinal)))
    want = (y_ref, final_ref, *torch.autograd.grad((y_ref, final_ref), leaves, (dy.double(), dfinal.double())))
    for name, x in zip(NAMES, got, strict=False):
        assert torch.isfinite(x).all(), f"{name} has a value that is not finite"
    # A gradient that is exactly zero (of w at the first token of an empty state) is measured against the largest one.
    scale = max(x.double().norm() for x in want)
    errors = {}
    for name, x, expected in zip(NAMES, got, want, strict=False):
        norm = expected.double().norm()
        errors[name] = ((x.double() - expected).norm() / (norm if norm > 0 else scale)).item()
    return errors


def assert_close(errors: dict[str, float], bound: float) -> None:
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("heads", (1, 12))
@pytest.mark.parametrize("with_state", (False, True))
def test_fp32_equals_the_reference(T, heads, with_state):
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
def test_fp32_at_the_extremes_of_decay_and_with_correlated_keys(w_range, correlated):
    inputs = wkv7s_inputs(2, 200, 3, seed=3, w_range=w_range, correlated=correlated)
    assert_close(relative_errors(inputs, torch.zeros(2, 3, 64, 64)), 1e-5)


@pytest.mark.parametrize(
    "bounds",
    ([0, 200], [0, 1, 2, 200], [0, 64, 128, 200], [0, 0, 65, 65, 200], [0, 130, 131, 200], [0, 31, 63, 96, 200]),
)
@pytest.mark.parametrize("with_state", (False, True))
def test_packed_documents_do_not_see_each_other(bounds, with_state):
    inputs = wkv7s_inputs(1, 200, 3, seed=len(bounds))
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    state = torch.randn(len(bounds) - 1, 3, 64, 64) if with_state else None
    assert_close(relative_errors(inputs, state, cu_seqlens), 1e-5)


@pytest.mark.parametrize("N", (1, 5, 128))
def test_any_head_size(N):
    assert_close(relative_errors(wkv7s_inputs(2, 70, 2, N=N, seed=N), torch.randn(2, 2, N, N)), 1e-5)


def test_the_gradient_of_the_decay_holds_with_a_state_far_larger_than_what_is_written():
    inputs = wkv7s_inputs(1, 200, 2, seed=13)
    assert_close(relative_errors(inputs, 1e4 * torch.randn(1, 2, 64, 64)), 1e-5)


def test_float64_gradients_pass_gradcheck():
    inputs = wkv7s_inputs(1, 5, 1, N=4, seed=2, dtype=torch.float64)
    packed = torch.tensor([0, 2, 5], dtype=torch.int32)
    state = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    leaves = tuple(x.requires_grad_() for x in (*inputs, state))
    assert torch.autograd.gradcheck(lambda *x: wkv7s(*x[:6], state=x[6], cu_seqlens=packed), leaves)
    # Longer than a chunk, so that the chain between chunks is checked too.
    inputs = tuple(x.requires_grad_() for x in wkv7s_inputs(1, 67, 1, N=2, seed=4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *x: wkv7s(*x), inputs)


def test_bf16_rounds_its_inputs_and_outputs_only():
    inputs = wkv7s_inputs(2, 100, 2, seed=8, dtype=torch.bfloat16)
    assert_close(relative_errors(inputs, torch.randn(2, 2, 64, 64)), 3e-3)


@pytest.mark.parametrize("used", ("y", "final_state"))
def test_gradients_of_one_output_alone(used):
    inputs = [x.requires_grad_() for x in wkv7s_inputs(2, 70, 2, seed=12)]
    index = ("y", "final_state").index(used)
    got = torch.autograd.grad(wkv7s(*inputs)[index].square().sum(), inputs)
    want = torch.autograd.grad(wkv7s_reference(*inputs)[index].square().sum(), inputs, materialize_grads=True)
    scale = max(x.norm() for x in want)
    assert all((x - y).norm() < 1e-5 * (y.norm() if y.norm() > 0 else scale) for x, y in zip(got, want, strict=True))


def test_a_carried_state_continues_the_row():
    inputs = wkv7s_inputs(2, 150, 2, seed=9)
    y, final = wkv7s(*inputs)
    with torch.no_grad():
        state, parts = torch.zeros(2, 2, 64, 64), []
        for start, stop in ((0, 1), (1, 2), (2, 70), (70, 150)):
            part, state = wkv7s(*(x[:, start:stop] for x in inputs), state=state)
            parts.append(part)
    assert (torch.cat(parts, dim=1) - y).norm() < 1e-5 * y.norm()
    assert (state - final).norm() < 1e-5 * final.norm()


def test_the_same_input_gives_the_same_bits():
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


def test_less_is_kept_for_backward_than_the_inputs_hold():
    inputs = [x.view(-1, 4, 64) for x in wkv7s_inputs(4, 512, 4)]
    cu_seqlens = torch.arange(0, 2049, 512, dtype=torch.int32)
    kept = torch.ops.rwkv_music.wkv7s_forward(*inputs, None, cu_seqlens, 512, True)[2]
    assert 0 < kept.nbytes < sum(x.nbytes for x in inputs)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: {"r": x["r"][:, :1]}, "of one shape"),
        (lambda x: {"r": x["r"].double()}, "of one dtype"),
        (lambda x: {name: x[name][:, :0] for name in "rwkvab"}, "at least one row and one token"),
        (lambda x: {"state": torch.zeros(1, 2, 64, 63)}, "state must be"),
        (lambda x: {"cu_seqlens": torch.tensor([0, 4], dtype=torch.int32)}, "rise from 0 to T = 5"),
        (lambda x: {"cu_seqlens": torch.tensor([0, 5])}, "int32 vector"),
        (lambda x: {name: x[name].int() for name in "rwkvab"}, "floating-point"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(change, message):
    arguments = dict(zip("rwkvab", wkv7s_inputs(1, 5, 2), strict=True))
    with pytest.raises(ValueError, match=message):
        wkv7s(**{**arguments, **change(arguments)})


def test_two_rows_cannot_be_packed_again():
    with pytest.raises(ValueError, match="packs documents in one row"):
        wkv7s(*wkv7s_inputs(2, 5, 2), cu_seqlens=torch.tensor([0, 5], dtype=torch.int32))
