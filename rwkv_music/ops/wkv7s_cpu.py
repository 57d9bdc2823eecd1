"""WKV7s on a CPU: the chunked form in matrix products, forward and backward, in fp32 or fp64.

`forward` and `backward` are what the operators of `wkv7s.py` run on a CPU, over packed inputs [M, H, N].

Notable choices:
- Within a chunk P_t, the product of the decays up to t, stays far inside fp32's range, so that the products
  (P_t r_t) . (k_s / P_s) factorise without cancellation and everything but the state's own chain is parallel.
- A chunk's scores and what was solved from them are kept for backward beside its state: products are dear here.
- The chain is short steps on small matrices, so the slices it reads are cut before it, all at once.

Source: the delta rule's WY representation (arXiv 2406.06484). Derivation in `_chunk_forward`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_DECAY_SCALE = -math.exp(-0.5)  # log d = LOG_DECAY_SCALE * sigmoid(w)
CHECKPOINT_EVERY = 32  # tokens between two saved states: a chunk, here and on CUDA


def forward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor,
    slots: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """r..b [M, H, N], state [D, H, N, N] or None -> y [M, H, N], final state, what is kept [slots, H, ...].

    With no slots nothing is kept.
    """
    M, H, N = r.shape
    documents = cu_seqlens.numel() - 1
    inputs = (r, w, k, v, a, b)
    compute = torch.float64 if r.dtype == torch.float64 else torch.float32
    initial = r.new_zeros(documents, H, N, N, dtype=compute) if state is None else state.clone()
    buffer = initial.new_empty(slots, H, Kept.numbers(CHECKPOINT_EVERY, N))
    if not slots and M == documents and bool((cu_seqlens.diff() == 1).all()):
        y, final = _step(*(x.to(compute) for x in inputs), initial)
        return y.to(r.dtype), final, buffer
    plan = _plan_chunks(cu_seqlens, H)
    used = plan.chunks * Kept.numbers(plan.length, N)
    buffer.view(-1)[used:] = 0  # room left over; else its bits are by chance
    y, final = _chunk_forward(plan, inputs, initial, buffer if slots else initial.new_empty(used))
    return plan.join(y, r), final, buffer


def backward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    cu_seqlens: Tensor,
    kept: Tensor,
    grad_y: Tensor,
    grad_final_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r..b [M, H, N] in their dtype and of the initial state [D, H, N, N], from what `forward` kept."""
    plan = _plan_chunks(cu_seqlens, r.shape[1])
    *grads, grad_state = _chunk_backward(plan, (r, w, k, v, a, b), kept, grad_y, grad_final_state)
    dr, dw, dk, dv, da, db = (plan.join(x, r) for x in grads)
    return dr, dw, dk, dv, da, db, grad_state


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
    steps: list[int]  # how many chunks each step of the chain has; step j serves the first of by_length

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
        steps=(served * H).tolist(),
    )


def _step(r, w, k, v, a, b, S):
    """One token a document: the recurrence as it is written. r..b [D, H, N], S [D, H, N, N]."""
    removed = S @ a.unsqueeze(-1)
    S = S * torch.exp(LOG_DECAY_SCALE * torch.sigmoid(w)).unsqueeze(-2)
    S = S + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (S @ r.unsqueeze(-1)).squeeze(-1), S


@dataclass
class Kept:
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
    def carve(cls, buffer: Tensor, plan: _ChunkPlan, N: int) -> "Kept":
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
    kept = Kept.carve(buffer, plan, N)
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
    chain = (part.split(plan.steps) for part in (states, U, U.mT, W, from_v, b, x.P_chunk))
    for S_0, U_, U_T, W_, from_v_, b_, P_chunk in zip(*chain, strict=True):
        live = S[: len(S_0)]
        S_0.copy_(live)
        U_.baddbmm_(W_, live.mT)
        live.add_(from_v_).baddbmm_(U_T, b_).mul_(P_chunk)
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
    kept = Kept.carve(buffer, plan, N)
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
    chain = (reversed(part.split(plan.steps)) for part in (G, G.mT, x.P_chunk, dZ, dZ.mT, W, d_states, a))
    for G_, G_T, P_chunk, dZ_, dZ_T, W_, dS_0, a_ in zip(*chain, strict=True):
        live = dS[: len(G_)]
        torch.mul(live, P_chunk, out=G_)
        dZ_.baddbmm_(W_, G_T)
        dS_0.add_(G_).baddbmm_(dZ_T, a_)
        live.copy_(dS_0)
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
