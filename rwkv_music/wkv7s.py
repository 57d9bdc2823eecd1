"""WKV7s: the recurrence of RWKV v7 "Goose" and v8 "Heron", with carried state and all gradients.

For each head, with d_t = exp(-exp(-0.5) * sigmoid(w_t)) in (0.545, 1):

    S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t

The one public function is `wkv7s`. Behind it stand two custom operators, `rwkv_music::wkv7s_forward` and
`rwkv_music::wkv7s_backward`, registered with torch.library (fake kernels and autograd included) with two backends:

- CUDA: our kernels in `rwkv_music/cuda/`, compiled on first use; bf16 in and out, products of bf16 summed in fp32, and
  the state in fp32. Outside of torch.compile `wkv7s` calls them with autograd of their own (`bindings.cpp`): a custom
  operator in Python costs the host as much as a small model's kernels take.
- CPU: the chunked form below, in matrix products; any float dtype, fp32 (or fp64) inside.

Notable choices:
- Both operators see one packed layout, [tokens, H, N] with `cu_seqlens`; a plain batch is B documents of T tokens.
- Each backend keeps the state at the head of every chunk for backward. On CUDA, where memory is dear, the rest is
  recomputed; on the CPU, where products are, a chunk's scores and what was solved from them are kept as well.
- Within a chunk P_t, the product of the decays up to t, stays far inside fp32's range, so that the products
  (P_t r_t) . (k_s / P_s) factorise without cancellation and everything but the state's own chain is parallel.

Source: "RWKV-7 Goose with Expressive Dynamic State Evolution" (arXiv 2503.14456) and BlinkDL's RWKV-LM; the chunked
form follows from the delta rule's WY representation (arXiv 2406.06484). Derivation in `_chunk_forward`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LOG_DECAY_SCALE = -math.exp(-0.5)  # log d = LOG_DECAY_SCALE * sigmoid(w)
CHECKPOINT_EVERY = 32  # tokens between two saved states: a chunk, on either device


def wkv7s(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the WKV7s recurrence over T tokens, from `state`, and return what it puts out and where it ends.

    Args:
        r, w, k, v, a, b: [B, T, H, N], one dtype and device, T >= 1. On CUDA bfloat16 with N of 64 or 128; on the CPU
            also float32 and float64, any N. `w` is the raw decay, before the sigmoid; in the model a is -kk and b is
            kk * gate.
        state: [B, H, N, N] (value axis, key axis), float32 (float64 with float64 inputs); None starts from zero.
        cu_seqlens: int32 [D+1], rising from 0 to T. Packs D documents in one row (B must be 1); each starts from its
            own state and knows nothing of its neighbours. `state` and the final state are then [D, H, N, N]. Its
            values are checked on the CPU only: reading them back from a GPU would stall it.
        max_length: with `cu_seqlens`, a bound on the documents' lengths, if the caller knows a closer one than T: the
            kernels then share the work out better. A document longer than it is not computed rightly.

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
    if r.is_cuda and (r.dtype != torch.bfloat16 or N not in (64, 128)):
        raise ValueError(
            f"wkv7s on CUDA takes bfloat16 and a head size of 64 or 128, but got {r.dtype} and {N}; "
            "use .bfloat16() or the CPU."
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
    max_length = min(max_length or T, T)
    if r.is_cuda and save and type(r) is not FakeTensor and not torch.compiler.is_compiling():
        from rwkv_music.cuda import build

        return build.load().wkv7s(*inputs, state, cu_seqlens, max_length)
    packed = (x.reshape(B * T, H, N) for x in inputs)
    y, final_state, _ = torch.ops.rwkv_music.wkv7s_forward(*packed, state, cu_seqlens, max_length, save)
    return y.view(B, T, H, N), final_state


def checkpoint_slots(tokens: int, documents: int) -> int:
    """How many states the forward keeps for the backward: enough for any split of `tokens` into `documents`.

    It depends on shapes alone, so that nothing has to be read back from the device.
    """
    return tokens // CHECKPOINT_EVERY + documents


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

    No document is longer than `max_length`. The checkpoints [slots, H, ...] (no slot unless `save`) belong to the
    backend that made them: [N, N] states on CUDA, the numbers of `_Kept` on the CPU.
    """
    M, H, N = r.shape
    documents = cu_seqlens.numel() - 1
    inputs = (r, w, k, v, a, b)
    compute = torch.float64 if r.dtype == torch.float64 else torch.float32
    initial = r.new_zeros(documents, H, N, N, dtype=compute) if state is None else state.clone()
    kept_shape = (H, _Kept.numbers(CHECKPOINT_EVERY, N))
    if not save and M == documents and bool((cu_seqlens.diff() == 1).all()):
        y, final = _step(*(x.to(compute) for x in inputs), initial)
        return y.to(r.dtype), final, initial.new_empty(0, *kept_shape)
    plan = _plan_chunks(cu_seqlens, H)
    buffer = initial.new_empty(checkpoint_slots(M, documents), *kept_shape)
    buffer.view(-1)[plan.chunks * _Kept.numbers(plan.length, N) :] = 0  # room left over; else its bits are by chance
    y, final = _chunk_forward(plan, inputs, initial, buffer)
    return plan.join(y, r), final, buffer if save else initial.new_empty(0, *kept_shape)


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
    plan = _plan_chunks(cu_seqlens, r.shape[1])
    *grads, grad_state = _chunk_backward(plan, (r, w, k, v, a, b), checkpoints, grad_y, grad_final_state)
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
    if grad_final_state is not None:
        grad_final_state = grad_final_state.contiguous()
    return build.load().wkv7s_backward(*inputs, max_length, checkpoints, grad_y.contiguous(), grad_final_state)


@wkv7s_forward.register_fake
def _(r, w, k, v, a, b, state, cu_seqlens, max_length, save):
    M, H, N = r.shape
    documents = cu_seqlens.shape[0] - 1
    state_dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    slots = checkpoint_slots(M, documents) if save else 0
    final_state = r.new_empty(documents, H, N, N, dtype=state_dtype)
    if r.is_cuda:
        checkpoints = r.new_empty(slots, H, N, N, dtype=torch.bfloat16)
    else:
        checkpoints = r.new_empty(slots, H, _Kept.numbers(CHECKPOINT_EVERY, N), dtype=state_dtype)
    return r.new_empty(M, H, N), final_state, checkpoints


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
    """How packed documents fall into chunks of L places, none across a document's end; each head has its own chunks.

    Chunks are ordered by their place in the document first: chunk 0 of every document, then chunk 1 of those that have
    one, and so on, longest document first. So each step of the state's chain is one slice, whatever the lengths are.
    A row is one head's vector of one token: row token * H + head of [M * H, N].
    """

    chunks: int  # of all heads: H times those of one head; the heads of a document's chunk lie side by side
    length: int  # L
    row_of_place: Tensor  # int64 [chunks * L]; row 0 at the padding places
    padding: Tensor  # int64: the places that hold no token
    place_of_row: Tensor  # int64 [M * H]
    by_length: Tensor  # int64 [D]: documents, longest first
    steps: list[slice]  # the chunks of each step of the chain; step j serves the first of by_length

    def split(self, x: Tensor, dtype: torch.dtype, padding: float = 0.0) -> Tensor:
        """[M, H, N] to [chunks, L, N] in `dtype`, with `padding` at the places that hold no token."""
        x = x.reshape(-1, x.shape[-1]).index_select(0, self.row_of_place).to(dtype)
        if self.padding.numel():
            x.index_fill_(0, self.padding, padding)
        return x.view(self.chunks, self.length, -1)

    def join(self, x: Tensor, like: Tensor) -> Tensor:
        """The inverse of `split`: [chunks, L, N] to [M, H, N] in the dtype of `like`."""
        return x.reshape(-1, x.shape[-1]).to(like.dtype).index_select(0, self.place_of_row).view(like.shape)


def _plan_chunks(cu_seqlens: Tensor, H: int) -> _ChunkPlan:
    bounds = cu_seqlens.long()
    lengths = bounds.diff()
    by_length = torch.argsort(lengths, descending=True, stable=True)
    L = max(1, min(CHECKPOINT_EVERY, int(lengths.max())))
    starts, lengths = bounds[:-1][by_length], lengths[by_length]
    chunk_counts = (lengths + L - 1) // L  # falling
    served = (chunk_counts > torch.arange(int(chunk_counts[0])).unsqueeze(1)).sum(1)  # documents, by step
    ends = served.cumsum(0)
    step = torch.arange(len(served)).repeat_interleave(served)  # of each chunk
    document = torch.arange(len(step)) - (ends - served)[step]  # its place in by_length

    token = (step * L).unsqueeze(1) + torch.arange(L)  # in the document
    held = (token < lengths[document].unsqueeze(1)).unsqueeze(1).expand(-1, H, -1).flatten()
    row = ((token + starts[document].unsqueeze(1)).unsqueeze(1) * H + torch.arange(H).unsqueeze(1)).flatten()
    places = held.nonzero().squeeze(1)
    return _ChunkPlan(
        chunks=len(step) * H,
        length=L,
        row_of_place=row * held,
        padding=held.logical_not().nonzero().squeeze(1),
        place_of_row=torch.empty_like(places).index_copy_(0, row[places], places),
        by_length=by_length,
        steps=[slice(int(end - count) * H, int(end) * H) for end, count in zip(ends, served, strict=True)],
    )


def _step(r, w, k, v, a, b, S):
    """One token a document: the recurrence as it is written. r..b [D, H, N], S [D, H, N, N]."""
    removed = S @ a.unsqueeze(-1)
    S = S * torch.exp(LOG_DECAY_SCALE * torch.sigmoid(w)).unsqueeze(-2)
    S = S + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (S @ r.unsqueeze(-1)).squeeze(-1), S


@dataclass
class _Kept:
    """What a chunk's forward keeps for its backward, each [chunks, ...] and contiguous, in one buffer."""

    states: Tensor  # [chunks, N, N]: S_0, the state before the chunk
    U: Tensor  # [chunks, L, N]
    scores: Tensor  # [chunks, 2L, 2L]
    inverse: Tensor  # [chunks, L, L]: (I - ab)^-1

    @staticmethod
    def numbers(L: int, N: int) -> int:
        """How many numbers a chunk keeps; 1,408 bytes a token in fp32 at L = 32 and N = 64; the inputs are 1,536."""
        return N * N + L * N + 5 * L * L

    @classmethod
    def carve(cls, buffer: Tensor, plan: _ChunkPlan, N: int) -> "_Kept":
        """Views into `buffer`, which has room for at least `plan.chunks` times `numbers(plan.length, N)`."""
        L = plan.length
        shapes = ((N, N), (L, N), (2 * L, 2 * L), (L, L))
        sizes = [plan.chunks * rows * columns for rows, columns in shapes]
        parts = buffer.view(-1)[: sum(sizes)].split(sizes)
        return cls(*(part.view(plan.chunks, *shape) for part, shape in zip(parts, shapes, strict=True)))


@dataclass
class _Scaled:
    """A chunk's inputs with the decays multiplied into them, in pairs: see `_chunk_forward`."""

    P: Tensor  # [chunks, L, N]: product of the decays up to and with t
    P_before: Tensor  # up to t - 1
    P_inverse: Tensor
    queries: Tensor  # [chunks, 2L, N]: P_{t-1} a_t, then P_t r_t
    keys: Tensor  # [chunks, 2L, N]: b_s / P_s, then k_s / P_s

    @classmethod
    def scale(
        cls, plan: _ChunkPlan, dtype: torch.dtype, r: Tensor, w: Tensor, k: Tensor, a: Tensor, b: Tensor
    ) -> "_Scaled":
        r, k, a, b = (plan.split(x, dtype) for x in (r, k, a, b))
        log_decay = plan.split(w, dtype, padding=-math.inf).sigmoid_().mul_(LOG_DECAY_SCALE)  # padding decays by 1
        P = log_decay.cumsum(1).exp_()
        P_before = torch.nn.functional.pad(P[:, :-1], (0, 0, 1, 0), value=1.0)
        P_inverse = P.reciprocal()
        L = plan.length
        queries, keys = P.new_empty(2, plan.chunks, 2 * L, P.shape[-1])
        torch.mul(a, P_before, out=queries[:, :L])
        torch.mul(r, P, out=queries[:, L:])
        torch.mul(b, P_inverse, out=keys[:, :L])
        torch.mul(k, P_inverse, out=keys[:, L:])
        return cls(P, P_before, P_inverse, queries, keys)

    @property
    def P_chunk(self) -> Tensor:
        """Product of the decays of the whole chunk [chunks, 1, N]."""
        return self.P[:, -1:]


def _causal(L: int, dtype: torch.dtype) -> Tensor:
    """The scores' mask [2L, 2L]: a_t sees what was written before t, r_t what was written up to and with t."""
    ones = torch.ones(L, L, dtype=dtype)
    return torch.cat([ones.tril(-1), ones.tril()]).repeat(1, 2)


def _unit_inverse(A: Tensor) -> Tensor:
    """(I - A)^-1 of strictly lower triangular A [chunks, L, L].

    By halves, and (I + A)(I + A^2)(I + A^4) at the bottom: a few products of all chunks, where torch's triangular solve
    goes from matrix to matrix. Halves keep the powers low: those of a large A grow far beyond the inverse.
    """
    L = A.shape[-1]
    if L <= 8:
        eye = torch.eye(L, dtype=A.dtype)
        inverse, power = A + eye, A
        for _ in range((L - 1).bit_length() - 1):
            power = power @ power
            inverse = torch.baddbmm(inverse, power, inverse)
        return inverse
    first, last = slice(0, L // 2), slice(L // 2, L)
    upper, lower = _unit_inverse(A[:, first, first]), _unit_inverse(A[:, last, last])
    inverse = torch.zeros_like(A)
    inverse[:, first, first] = upper
    inverse[:, last, last] = lower
    inverse[:, last, first] = lower @ (A[:, last, first] @ upper)
    return inverse


def _chunk_forward(
    plan: _ChunkPlan, inputs: Sequence[Tensor], initial: Tensor, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """y [chunks, L, N] and final state [D, H, N, N] of inputs r..b [M, H, N]; `buffer` takes what is kept.

    With u_t = S_{t-1} a_t the state inside a chunk is S_t = (S_0 + sum_{s<=t} u_s b_s^T + v_s k_s^T) diag(P_t), the b
    and k divided by P_s. Put into u_t and y_t this is attention with a state: rows stacked over the chunk, a and r
    multiplied by their P, queries = [a; r], keys = [b; k], values = [U; V] and scores = queries keys^T, masked,

        [U; Y] = queries S_0^T + scores values            S_L = (S_0 + values^T keys) diag(P_L)

    U stands on both sides. Solved for it, with ab and ak the quarters of the scores that belong to a,

        U = (I - ab)^-1 (a S_0^T + ak V) = W S_0^T + U_0

    Only U and S_L wait for the chunk before; all else runs over all chunks at once.
    """
    r, w, k, v, a, b = inputs
    N, L, dtype = r.shape[-1], plan.length, initial.dtype
    kept = _Kept.carve(buffer, plan, N)
    states, U, scores = kept.states, kept.U, kept.scores
    x = _Scaled.scale(plan, dtype, r, w, k, a, b)
    V = plan.split(v, dtype)
    torch.bmm(x.queries, x.keys.mT, out=scores).mul_(_causal(L, dtype))
    ab, ak = scores[:, :L].split(L, dim=-1)
    kept.inverse.copy_(_unit_inverse(ab))
    W = kept.inverse @ x.queries[:, :L]
    torch.bmm(kept.inverse, ak @ V, out=U)
    b, k = x.keys.split(L, dim=1)
    from_v = V.mT @ k
    S = initial[plan.by_length].flatten(0, 1)
    for step in plan.steps:
        live = S[: step.stop - step.start]
        states[step] = live
        U[step].baddbmm_(W[step], live.mT)
        live.add_(from_v[step]).baddbmm_(U[step].mT, b[step]).mul_(x.P_chunk[step])
    final = torch.empty_like(initial).index_copy_(0, plan.by_length, S.view_as(initial))
    y = torch.bmm(x.queries[:, L:], states.mT).baddbmm_(scores[:, L:], torch.cat([U, V], dim=1))
    return y, final


def _chunk_backward(
    plan: _ChunkPlan, inputs: Sequence[Tensor], buffer: Tensor, grad_y: Tensor, grad_final_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, w, k, v, a, b [chunks, L, N] and of the initial state [D, H, N, N]; grad_y [M, H, N].

    `_chunk_forward` in reverse. Z = a S_0^T + ak V is what the triangle is solved for, so that dZ = (I - ab)^-T dU; G
    is the gradient of the bracket S_0 + values^T keys, and dU = rb^T dY + b G^T. The gradient of the state goes from a
    chunk's end to its beginning as dS_0 = G + dY^T r + dZ^T a with G = dS_L diag(P_L).
    """
    r, w, k, v, a, b = inputs
    N, L, dtype = r.shape[-1], plan.length, buffer.dtype
    kept = _Kept.carve(buffer, plan, N)
    states, scores = kept.states, kept.scores
    x = _Scaled.scale(plan, dtype, r, w, k, a, b)
    dY = plan.split(grad_y, dtype)
    a, r = x.queries.split(L, dim=1)
    b, k = x.keys.split(L, dim=1)
    dZ = kept.inverse.mT @ (scores[:, L:, :L].mT @ dY)
    W = kept.inverse.mT @ b  # what G contributes to dZ
    d_states = dY.mT @ r
    G = torch.empty_like(d_states)
    dS = grad_final_state.to(dtype)[plan.by_length].flatten(0, 1)
    for step in reversed(plan.steps):
        live = dS[: step.stop - step.start]
        torch.mul(live, x.P_chunk[step], out=G[step])
        dZ[step].baddbmm_(W[step], G[step].mT)
        d_states[step].add_(G[step]).baddbmm_(dZ[step].mT, a[step])
        live.copy_(d_states[step])
    grad_state = torch.empty_like(grad_final_state, dtype=dtype).index_copy_(
        0, plan.by_length, dS.view_as(grad_final_state)
    )

    values = torch.cat([kept.U, plan.split(v, dtype)], dim=1)
    d_out = torch.cat([dZ, dY], dim=1)
    d_scores = torch.bmm(d_out, values.mT).mul_(_causal(L, dtype))
    d_queries = torch.bmm(d_out, states).baddbmm_(d_scores, x.keys)
    d_keys = torch.bmm(values, G).baddbmm_(d_scores.mT, x.queries)
    dv = torch.bmm(k, G.mT).baddbmm_(scores[:, :, L:].mT, d_out)

    # The gradient of log d_t is what the state is worth as it decays at t: on each key axis, the state times its
    # gradient. That is what S_0 was worth, and what keys before t have brought in (k dk), less what queries before t
    # have taken out (r dr), and a_t too, which reads before the decay. So one sum from the chunk's start gives it.
    # What is not needed again is written over, here and below: fresh memory costs more than these products.
    a_da, r_dr = x.queries.mul_(d_queries).split(L, dim=1)
    b_db, k_dk = x.keys.mul_(d_keys).split(L, dim=1)
    at_t = r_dr.sub_(b_db).sub_(k_dk)
    worth = d_states.mul_(states).sum(1, keepdim=True)
    of_log_decay = a_da.add_(at_t).cumsum(1).neg_().add_(at_t).add_(worth)
    w = plan.split(w, dtype)
    slope = torch.sigmoid(w).mul_(LOG_DECAY_SCALE)  # of log d by w
    slope.mul_(w.neg_().sigmoid_())  # not 1 - sigmoid(w), which is 0 in fp32 from w = 17 on
    return (
        torch.mul(d_queries[:, L:], x.P, out=x.P),
        of_log_decay.mul_(slope),
        d_keys[:, L:] * x.P_inverse,
        dv,
        torch.mul(d_queries[:, :L], x.P_before, out=x.P_before),
        torch.mul(d_keys[:, :L], x.P_inverse, out=x.P_inverse),
        grad_state,
    )
