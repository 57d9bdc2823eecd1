"""WKV7s: the recurrence of RWKV v7 "Goose" and v8 "Heron", with carried state and all gradients.

For each head, with d_t = exp(-exp(-0.5) * sigmoid(w_t)) in (0.545, 1):

    S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t

The one public function is `wkv7s`. Behind it stand two custom operators, `rwkv_music::wkv7s_forward` and
`rwkv_music::wkv7s_backward`, registered with torch.library (fake kernels and autograd included) with two backends:

- CUDA: our kernels in `rwkv_music/cuda/`, compiled on first use; bf16 in and out, products of bf16 summed in fp32, and
  the state in fp32.
- CPU: the chunked form below, in matrix products; any float dtype, fp32 (or fp64) inside.

Notable choices:
- Both operators see one packed layout, [tokens, H, N] with `cu_seqlens`; a plain batch is B documents of T tokens.
- Each backend keeps the state at the head of every chunk and recomputes the rest in backward.
- Within a chunk P_t, the product of the decays up to t, stays far inside fp32's range, so that the products
  (P_t r_t) . (k_s / P_s) factorise without cancellation and everything but the state's own chain is parallel.

Source: "RWKV-7 Goose with Expressive Dynamic State Evolution" (arXiv 2503.14456) and BlinkDL's RWKV-LM; the chunked
form follows from the delta rule's WY representation (arXiv 2406.06484). Derivation in `_chunk_forward`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_DECAY_SCALE = -math.exp(-0.5)  # log d = LOG_DECAY_SCALE * sigmoid(w)
CHECKPOINT_EVERY = {"cpu": 64, "cuda": 32}  # tokens between two saved states, by device type


def wkv7s(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the WKV7s recurrence over T tokens, from `state`, and return what it puts out and where it ends.

    Args:
        r, w, k, v, a, b: [B, T, H, N], one dtype and device, T >= 1. On CUDA bfloat16 with N = 64; on the CPU also
            float32 and float64, any N. `w` is the raw decay, before the sigmoid; in the model a is -kk and b is kk *
            gate.
        state: [B, H, N, N] (value axis, key axis), float32 (float64 with float64 inputs); None starts from zero.
        cu_seqlens: int32 [D+1], rising from 0 to T. Packs D documents in one row (B must be 1); each starts from its
            own state and knows nothing of its neighbours. `state` and the final state are then [D, H, N, N]. Its
            values are
            checked on the CPU only: reading them back from a GPU would stall it.

    Returns:
        y [B, T, H, N] in the inputs' dtype, and the final state, shaped and typed as `state`.

    Gradients reach all seven inputs, and `state` from the final state's gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, in one sentence.
        UserError: on CUDA, when the kernels cannot be built; the sentence says what is missing.
    """
    if r.dim() != 4 or any(x.shape != r.shape for x in (w, k, v, a, b)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (r, w, k, v, a, b))
        raise ValueError(f"wkv7s takes r, w, k, v, a, b of one shape [B, T, H, N], but got {shapes}.")
    if any(x.dtype != r.dtype or x.device != r.device for x in (w, k, v, a, b)):
        raise ValueError("wkv7s takes r, w, k, v, a, b of one dtype on one device; convert them first.")
    B, T, H, N = r.shape
    if T < 1 or B < 1:
        raise ValueError(f"wkv7s needs at least one row and one token, but r is {tuple(r.shape)}.")
    if r.is_cuda and (r.dtype != torch.bfloat16 or N != 64):
        raise ValueError(
            f"wkv7s on CUDA takes bfloat16 and head size 64, but got {r.dtype} and {N}; use .bfloat16() or the CPU."
        )
    if not r.dtype.is_floating_point:
        raise ValueError(f"wkv7s takes floating-point inputs, but got {r.dtype}.")
    state_dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    if cu_seqlens is None:
        documents = B
        cu_seqlens = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=r.device)
    else:
        documents = cu_seqlens.numel() - 1
        if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.device != r.device or documents < 1:
            raise ValueError("cu_seqlens must be an int32 vector [D+1] on the device of the inputs.")
        if B != 1:
            raise ValueError(
                f"cu_seqlens packs documents in one row, but B is {B}; reshape the inputs to [1, B * T, H, N]."
            )
        if not cu_seqlens.is_cuda and not cu_seqlens.is_meta:
            bounds = cu_seqlens.tolist()
            if bounds[0] != 0 or bounds[-1] != T or any(x > y for x, y in zip(bounds[:-1], bounds[1:], strict=True)):
                raise ValueError(f"cu_seqlens must rise from 0 to T = {T}, but it is {bounds}.")
    if state is not None and (
        state.shape != (documents, H, N, N) or state.dtype != state_dtype or state.device != r.device
    ):
        raise ValueError(
            f"state must be {state_dtype} {(documents, H, N, N)} on {r.device}, "
            f"but it is {state.dtype} {tuple(state.shape)} on {state.device}."
        )
    inputs = (r, w, k, v, a, b)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *(() if state is None else (state,))))
    packed = (x.reshape(B * T, H, N) for x in inputs)
    y, final_state, _ = torch.ops.rwkv_music.wkv7s_forward(*packed, state, cu_seqlens, T, save)
    return y.view(B, T, H, N), final_state


def checkpoint_slots(tokens: int, documents: int, device_type: str) -> int:
    """How many states the forward keeps for the backward: enough for any split of `tokens` into `documents`.

    It depends on shapes alone, so that nothing has to be read back from the device.
    """
    return tokens // CHECKPOINT_EVERY[device_type] + documents


# ---------------------------------------------------------------------------------------------------------------------
# The operators: one schema, two backends, a fake each, autograd between them.


@torch.library.custom_op("rwkv_music::wkv7s_forward", mutates_args=(), device_types="cpu")
def wkv7s_forward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor,
    max_length: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed forward: r..b [M, H, N], state [D, H, N, N] or None, cu_seqlens int32 [D+1] -> y, final, checkpoints.

    No document is longer than `max_length`. The checkpoints [slots, H, N, N] (no slot unless `save`) belong to the
    backend that made them.
    """
    _, H, N = r.shape
    documents = cu_seqlens.numel() - 1
    compute = torch.float64 if r.dtype == torch.float64 else torch.float32
    initial = r.new_zeros(documents, H, N, N, dtype=compute) if state is None else state.clone()
    slots = checkpoint_slots(r.shape[0], documents, "cpu") if save else 0
    checkpoints = r.new_zeros(slots, H, N, N, dtype=compute)
    if not save and r.shape[0] == documents and bool((cu_seqlens.diff() == 1).all()):
        y, final = _step(*(x.to(compute) for x in (r, w, k, v, a, b)), initial)
        return y.to(r.dtype), final, checkpoints
    plan = _plan_chunks(cu_seqlens, CHECKPOINT_EVERY["cpu"])
    y, final = _chunk_forward(plan, plan.split_inputs((r, w, k, v, a, b), compute), initial, checkpoints)
    return plan.join(y, r), final, checkpoints


@torch.library.custom_op("rwkv_music::wkv7s_backward", mutates_args=(), device_types="cpu")
def wkv7s_backward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_final_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Packed backward: gradients of r..b [M, H, N] in their dtype, and of the initial state [D, H, N, N]."""
    plan = _plan_chunks(cu_seqlens, CHECKPOINT_EVERY["cpu"])
    compute = checkpoints.dtype
    inputs = plan.split_inputs((r, w, k, v, a, b), compute)
    *grads, grad_state = _chunk_backward(plan, inputs, checkpoints, plan.split(grad_y, compute), grad_final_state)
    dr, dw, dk, dv, da, db = (plan.join(x, r) for x in grads)
    return dr, dw, dk, dv, da, db, grad_state


@wkv7s_forward.register_kernel("cuda")
def _(r, w, k, v, a, b, state, cu_seqlens, max_length, save):
    from rwkv_music.cuda import build

    r, w, k, v, a, b = (x.contiguous() for x in (r, w, k, v, a, b))
    state = None if state is None else state.contiguous()
    return build.load().wkv7s_forward(r, w, k, v, a, b, state, cu_seqlens.contiguous(), max_length, save)


@wkv7s_backward.register_kernel("cuda")
def _(r, w, k, v, a, b, cu_seqlens, max_length, checkpoints, grad_y, grad_final_state):
    from rwkv_music.cuda import build

    inputs = (x.contiguous() for x in (r, w, k, v, a, b, cu_seqlens))
    grads = (grad_y.contiguous(), grad_final_state.contiguous())
    return build.load().wkv7s_backward(*inputs, max_length, checkpoints, *grads)


@wkv7s_forward.register_fake
def _(r, w, k, v, a, b, state, cu_seqlens, max_length, save):
    M, H, N = r.shape
    documents = cu_seqlens.shape[0] - 1
    state_dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    slots = checkpoint_slots(M, documents, r.device.type) if save else 0
    final_state = r.new_empty(documents, H, N, N, dtype=state_dtype)
    checkpoint_dtype = torch.bfloat16 if r.is_cuda else state_dtype
    return r.new_empty(M, H, N), final_state, r.new_empty(slots, H, N, N, dtype=checkpoint_dtype)


@wkv7s_backward.register_fake
def _(r, w, k, v, a, b, cu_seqlens, max_length, checkpoints, grad_y, grad_final_state):
    return (*(r.new_empty(r.shape) for _ in range(6)), torch.empty_like(grad_final_state))


def _setup_context(ctx, inputs, output):
    r, w, k, v, a, b, state, cu_seqlens, max_length, save = inputs
    y, _, checkpoints = output
    ctx.has_state = state is not None
    ctx.max_length = max_length
    ctx.set_materialize_grads(
        False
    )  # else autograd makes zeros as large as the checkpoints, which nothing differentiates
    if save:
        ctx.save_for_backward(r, w, k, v, a, b, cu_seqlens, checkpoints)


def _backward(ctx, grad_y, grad_final_state, _grad_checkpoints):
    *inputs, checkpoints = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(inputs[0])
    if grad_final_state is None:
        _, H, N = inputs[0].shape
        state_dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        grad_final_state = inputs[0].new_zeros(inputs[-1].numel() - 1, H, N, N, dtype=state_dtype)
    *grads, grad_state = torch.ops.rwkv_music.wkv7s_backward(
        *inputs, ctx.max_length, checkpoints, grad_y, grad_final_state
    )
    return (*grads, grad_state if ctx.has_state else None, None, None, None)


wkv7s_forward.register_autograd(_backward, setup_context=_setup_context)


# ---------------------------------------------------------------------------------------------------------------------
# The CPU backend.


@dataclass
class _ChunkPlan:
    """How packed documents fall into chunks of L tokens, none across a document's end.

    Chunks are ordered by their place in the document first: chunk 0 of every document, then chunk 1 of those that have
    one, and so on, longest document first. So each step of the state's chain is one slice, whatever the lengths are.
    """

    tokens: Tensor  # int64 [chunks, L]: the token at each place; the padding places point one past the last token
    padding: int  # how many places are padding
    by_length: Tensor  # int64 [D]: documents, longest first
    steps: list[slice]  # the chunks of each step of the chain; step j serves the first of by_length

    def split(self, x: Tensor, dtype: torch.dtype, padding: float = 0.0) -> Tensor:
        """[M, H, N] to contiguous [chunks, H, L, N] in `dtype`, with `padding` at the places that hold no token."""
        if self.padding:
            x = torch.cat([x, x.new_full((1, *x.shape[1:]), padding)])
        chunks, L = self.tokens.shape
        picked = x.index_select(0, self.tokens.view(-1)).view(chunks, L, *x.shape[1:])
        return picked.transpose(1, 2).to(dtype).contiguous()

    def split_inputs(self, inputs: Iterable[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """`split` r, w, k, v, a, b so that a padding place leaves the state as it is: w = -inf is a decay of 1."""
        return [self.split(x, dtype, -math.inf if i == 1 else 0.0) for i, x in enumerate(inputs)]

    def join(self, x: Tensor, like: Tensor) -> Tensor:
        """The inverse of `split`: [chunks, H, L, N] to [M, H, N] in the dtype of `like`."""
        out = like.new_empty(like.shape[0] + 1, *like.shape[1:])
        rows = x.transpose(1, 2).to(like.dtype).reshape(-1, *like.shape[1:])
        return out.index_copy_(0, self.tokens.view(-1), rows)[:-1]


def _plan_chunks(cu_seqlens: Tensor, longest_chunk: int) -> _ChunkPlan:
    bounds = cu_seqlens.long()
    lengths = bounds.diff()
    by_length = torch.argsort(lengths, descending=True, stable=True)
    L = max(1, min(longest_chunk, int(lengths.max())))
    starts, lengths = bounds[:-1][by_length], lengths[by_length]
    chunk_counts = (lengths + L - 1) // L  # falling
    steps, tokens, begin = [], [], 0
    offsets = torch.arange(L)
    for j in range(int(chunk_counts[0])):
        served = int((chunk_counts > j).sum())
        place = j * L + offsets
        inside = place < lengths[:served, None]
        tokens.append(torch.where(inside, starts[:served, None] + place, bounds[-1]))
        steps.append(slice(begin, begin + served))
        begin += served
    index = torch.cat(tokens)
    return _ChunkPlan(index, int((index == bounds[-1]).sum()), by_length, steps)


def _step(r, w, k, v, a, b, S):
    """One token a document: the recurrence as it is written. r..b [D, H, N], S [D, H, N, N]."""
    removed = S @ a.unsqueeze(-1)
    S = S * torch.exp(LOG_DECAY_SCALE * torch.sigmoid(w)).unsqueeze(-2)
    S = S + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (S @ r.unsqueeze(-1)).squeeze(-1), S


@dataclass
class _Inside:
    """What a chunk computes without knowing its state; [chunks, H, L, N] or [chunks, H, L, L] unless said otherwise."""

    log_decay_slope: Tensor  # d log d / d w
    P: Tensor  # product of the decays up to and with t
    P_before: Tensor  # up to t - 1
    P_inverse: Tensor
    P_chunk: Tensor  # of the whole chunk [chunks, H, 1, N]
    r: Tensor  # P_t r_t
    a: Tensor  # P_{t-1} a_t
    k: Tensor  # k_s / P_s
    b: Tensor  # b_s / P_s
    ab: Tensor  # scores a_t . b_s for s < t
    ak: Tensor
    rb: Tensor  # scores r_t . b_s for s <= t
    rk: Tensor
    W: Tensor  # (I - ab)^-1 a: what the state contributes to U
    U0: Tensor  # (I - ab)^-1 ak V: what the values contribute to U
    R: Tensor  # r + rb W: what the state contributes to y
    F: Tensor  # [chunks, H, N, N]: a chunk takes its state S to S F + E


def _inside_chunks(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> _Inside:
    log_decay = LOG_DECAY_SCALE * torch.sigmoid(w)
    log_P = log_decay.cumsum(dim=-2)
    P, P_before, P_inverse = log_P.exp(), (log_P - log_decay).exp(), log_P.neg().exp()
    r, a, k, b = r * P, a * P_before, k * P_inverse, b * P_inverse
    ab = (a @ b.mT).tril_(-1)
    ak = (a @ k.mT).tril_(-1)
    rb = (r @ b.mT).tril_()
    rk = (r @ k.mT).tril_()
    N = r.shape[-1]
    solved = torch.linalg.solve_triangular(-ab, torch.cat([a, ak @ v], dim=-1), upper=False, unitriangular=True)
    W, U0 = solved[..., :N], solved[..., N:]
    P_chunk = P[..., -1:, :]
    slope = log_decay * torch.sigmoid(-w)  # not 1 - sigmoid(w), which is 0 in fp32 from w = 17 on
    F = (W.mT @ b + torch.eye(N, dtype=r.dtype)) * P_chunk
    return _Inside(slope, P, P_before, P_inverse, P_chunk, r, a, k, b, ab, ak, rb, rk, W, U0, r + rb @ W, F)


def _chunk_forward(
    plan: _ChunkPlan, inputs: list[Tensor], initial: Tensor, checkpoints: Tensor
) -> tuple[Tensor, Tensor]:
    """y [chunks, H, L, N] and final state [D, H, N, N]; `checkpoints`, if they have room, take every chunk's S_0.

    With u_t = S_{t-1} a_t the state inside a chunk is S_t = (S_0 + sum_{s<=t} u_s b_s^T + v_s k_s^T) diag(P_t), the b
    and k divided by P_s. Put into u_t this gives, rows stacked over the chunk (a and r multiplied by their P):

        (I - ab) U = a S_0^T + ak V        so  U = W S_0^T + U0
        Y = r S_0^T + rb U + rk V              = R S_0^T + rb U0 + rk V
        S_L = (S_0 + U^T b + V^T k) diag(P_L)  = S_0 F + E

    All but the chain S_L = S_0 F + E runs over all chunks at once.
    """
    c = _inside_chunks(*inputs)
    v = inputs[3]
    E = (c.U0.mT @ c.b + v.mT @ c.k) * c.P_chunk
    states = checkpoints[: len(E)] if checkpoints.numel() else torch.empty_like(E)
    S = initial[plan.by_length]
    for step in plan.steps:
        live = S[: step.stop - step.start]
        states[step] = live
        live.copy_(torch.baddbmm(E[step].flatten(0, 1), live.flatten(0, 1), c.F[step].flatten(0, 1)).view_as(live))
    final = torch.empty_like(S).index_copy_(0, plan.by_length, S)
    y = c.R @ states.mT + c.rb @ c.U0 + c.rk @ v
    return y, final


def _chunk_backward(
    plan: _ChunkPlan, inputs: list[Tensor], checkpoints: Tensor, dy: Tensor, grad_final_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, w, k, v, a, b [chunks, H, L, N] and of the initial state [D, H, N, N].

    `_chunk_forward` line by line in reverse. The state's own chain is G_0 = G_L F^T + dY^T R, G the gradient of the
    state.
    """
    c = _inside_chunks(*inputs)
    v = inputs[3]
    states = checkpoints[: len(v)]
    from_y = dy.mT @ c.R
    G_after = torch.empty_like(from_y)
    G = grad_final_state.to(v.dtype)[plan.by_length]
    for step in reversed(plan.steps):
        live = G[: step.stop - step.start]
        G_after[step] = live
        chained = torch.baddbmm(from_y[step].flatten(0, 1), live.flatten(0, 1), c.F[step].flatten(0, 1).mT)
        live.copy_(chained.view_as(live))
    grad_state = torch.empty_like(G).index_copy_(0, plan.by_length, G)

    G = G_after * c.P_chunk  # of the bracket in S_L = (S_0 + U^T b + V^T k) diag(P_L)
    U = c.W @ states.mT + c.U0
    dU = c.rb.mT @ dy + c.b @ G.mT
    dZ = torch.linalg.solve_triangular(-c.ab.mT, dU, upper=True, unitriangular=True)  # of Z = a S_0^T + ak V
    dv = c.rk.mT @ dy + c.ak.mT @ dZ + c.k @ G.mT
    d_ab, d_ak = (dZ @ U.mT).tril_(-1), (dZ @ v.mT).tril_(-1)
    d_rb, d_rk = (dy @ U.mT).tril_(), (dy @ v.mT).tril_()
    UG, vG = U @ G, v @ G
    da = dZ @ states + d_ab @ c.b + d_ak @ c.k
    dr = dy @ states + d_rb @ c.b + d_rk @ c.k
    db = d_ab.mT @ c.a + d_rb.mT @ c.r + UG
    dk = d_ak.mT @ c.a + d_rk.mT @ c.r + vG

    # log P_t appears in r, b, k at t, in a at t + 1, and at the chunk's end in the bracket's decay; each of them is the
    # sum of the log decays up to there, so a decay gathers all that comes after it.
    a_da = c.a * da
    of_log_P = c.r * dr + a_da - c.b * db - c.k * dk
    of_end = (states * G).sum(-2, keepdim=True) + (c.b * UG + c.k * vG).sum(-2, keepdim=True)
    of_log_decay = of_log_P.flip(-2).cumsum(-2).flip(-2) - a_da + of_end
    return (
        dr * c.P,
        of_log_decay * c.log_decay_slope,
        dk * c.P_inverse,
        dv,
        da * c.P_before,
        db * c.P_inverse,
        grad_state,
    )
