"""WKV7s on a CPU: the chunked form in matrix products, forward and backward, in fp32 or fp64.

`forward` and `backward` are the CPU backend of the operators of `wkv7s.py`, over packed inputs [M, H, N].

Notable choices:
- Within a chunk, the product P_t of the decays up to t is well within the range of fp32. The dot product of P_t r_t and
  k_s / P_s can therefore be computed from these two scaled vectors. Only the chain of states, from chunk to chunk, is
  sequential. Everything else is computed for all chunks at once.
- The scores and the triangular solution of each chunk are saved for the backward pass, because recomputing products is
  slow on a CPU.
- The chain of states consists of short steps with small matrices. To save time in each step, all slices are taken
  before the first step.

Source: the delta rule's WY representation (arXiv 2406.06484). Derivation in `_chunk_forward`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_DECAY_SCALE = -math.exp(-0.5)  # log d = LOG_DECAY_SCALE * sigmoid(w)
CHECKPOINT_EVERY = 32  # length of a chunk, tokens between two saved states; the same in the CUDA kernels


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
    """Run the recurrence over packed documents: r..b [M, H, N], state [D, H, N, N] or None, cu_seqlens int32 [D+1].

    Return y [M, H, N], the final state [D, H, N, N], and a buffer with the tensors saved for the backward pass,
    [slots, H, ...] (see `Saved`). `slots` is from `wkv7s.checkpoint_slots`, or 0 to save nothing.
    """
    M, H, N = r.shape
    documents = cu_seqlens.numel() - 1
    inputs = (r, w, k, v, a, b)
    compute = torch.float64 if r.dtype == torch.float64 else torch.float32
    initial = r.new_zeros(documents, H, N, N, dtype=compute) if state is None else state.clone()
    buffer = initial.new_empty(slots, H, Saved.elements(CHECKPOINT_EVERY, N))
    if not slots and M == documents and bool((cu_seqlens.diff() == 1).all()):
        y, final = _step(*(x.to(compute) for x in inputs), initial)
        return y.to(r.dtype), final, buffer
    plan = _plan_chunks(cu_seqlens, H)
    used = plan.chunks * Saved.elements(plan.length, N)
    buffer.view(-1)[used:] = 0  # unused space; otherwise its bits would be arbitrary
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
    saved: Tensor,
    grad_y: Tensor,
    grad_final_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of r..b [M, H, N] in their dtype and of the initial state, from the buffer of `forward`."""
    plan = _plan_chunks(cu_seqlens, r.shape[1])
    *grads, grad_state = _chunk_backward(plan, (r, w, k, v, a, b), saved, grad_y, grad_final_state)
    dr, dw, dk, dv, da, db = (plan.join(x, r) for x in grads)
    return dr, dw, dk, dv, da, db, grad_state


@dataclass
class _ChunkPlan:
    """The division of packed documents into chunks of L places. No chunk crosses the end of a document.

    A place holds one token or, after the end of a document, padding. Each head has its own chunks. Chunks are ordered
    by their index in the document: chunk 0 of every document, then chunk 1 of every document that has one, and so on.
    Among chunks with the same index, those of longer documents come first. Each step of the chain of states can
    therefore process one slice, even if documents have different lengths. A row is the vector of one token and one
    head: row token * H + head of [M * H, N].
    """

    chunks: int  # number of chunks of all heads; the H heads of a document's chunk are adjacent
    length: int  # L
    row_of_place: Tensor  # int64 [chunks * L]; 0 at padding places
    padding: Tensor  # int64: the places without a token
    place_of_row: Tensor  # int64 [M * H]
    by_length: Tensor  # int64 [D]: indices of the documents, longest first
    steps: list[int]  # number of chunks in each step of the chain; a step processes the first documents of by_length

    def split(self, x: Tensor, dtype: torch.dtype, padding: float = 0.0) -> Tensor:
        """Convert [M, H, N] to [chunks, L, N] in `dtype`, with `padding` at places without a token."""
        x = x.reshape(-1, x.shape[-1]).index_select(0, self.row_of_place).to(dtype)
        if self.padding.numel():
            x.index_fill_(0, self.padding, padding)
        return x.view(self.chunks, self.length, -1)

    def join(self, x: Tensor, like: Tensor) -> Tensor:
        """Invert `split`: convert [chunks, L, N] to [M, H, N] in the dtype of `like`."""
        return x.reshape(-1, x.shape[-1]).to(like.dtype).index_select(0, self.place_of_row).view(like.shape)


def _plan_chunks(cu_seqlens: Tensor, H: int) -> _ChunkPlan:
    bounds = cu_seqlens.long()
    lengths = bounds.diff()
    by_length = torch.argsort(lengths, descending=True, stable=True)
    L = max(1, min(CHECKPOINT_EVERY, int(lengths.max())))
    starts, lengths = bounds[:-1][by_length], lengths[by_length]
    chunk_counts = (lengths + L - 1) // L  # descending
    served = (chunk_counts > torch.arange(int(chunk_counts[0])).unsqueeze(1)).sum(1)  # documents per step
    ends = served.cumsum(0)
    step = torch.arange(len(served)).repeat_interleave(served)  # of each chunk of one head
    document = torch.arange(len(step)) - (ends - served)[step]  # its index in by_length

    token = (step * L).unsqueeze(1) + torch.arange(L)  # within the document
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
    """Compute one token per document with the recurrence formula. r..b are [D, H, N], and S is [D, H, N, N]."""
    removed = S @ a.unsqueeze(-1)
    S = S * torch.exp(LOG_DECAY_SCALE * torch.sigmoid(w)).unsqueeze(-2)
    S = S + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (S @ r.unsqueeze(-1)).squeeze(-1), S


@dataclass
class Saved:
    """The tensors that the forward pass saves for the backward pass: contiguous views of one buffer."""

    states: Tensor  # [chunks, N, N]: S_0, the state before the chunk
    U: Tensor  # [chunks, L, N]
    scores: Tensor  # [chunks, 2L, 2L]
    inverse: Tensor  # [chunks, L, L]: (I - ab)^-1

    @staticmethod
    def elements(L: int, N: int) -> int:
        """Return the number of elements saved per chunk and head.

        With L = 32 and N = 64, these are 1,408 bytes per token in fp32. The inputs take 1,536.
        """
        return N * N + L * N + 5 * L * L

    @classmethod
    def views(cls, buffer: Tensor, plan: _ChunkPlan, N: int) -> "Saved":
        """Return views of `buffer`, which must have at least `plan.chunks * elements(plan.length, N)` elements."""
        L = plan.length
        shapes = ((N, N), (L, N), (2 * L, 2 * L), (L, L))
        sizes = [plan.chunks * rows * columns for rows, columns in shapes]
        parts = buffer.view(-1)[: sum(sizes)].split(sizes)
        return cls(*(part.view(plan.chunks, *shape) for part, shape in zip(parts, shapes, strict=True)))


@dataclass
class _Scaled:
    """The inputs of all chunks, multiplied or divided by products of decays (see `_chunk_forward`)."""

    P: Tensor  # [chunks, L, N]: product of the decays up to and including t
    P_before: Tensor  # [chunks, L, N]: product of the decays up to t - 1
    P_inverse: Tensor
    queries: Tensor  # [chunks, 2L, N]: P_{t-1} a_t, then P_t r_t
    keys: Tensor  # [chunks, 2L, N]: b_s / P_s, then k_s / P_s

    @classmethod
    def scale(
        cls, plan: _ChunkPlan, dtype: torch.dtype, r: Tensor, w: Tensor, k: Tensor, a: Tensor, b: Tensor
    ) -> "_Scaled":
        r, k, a, b = (plan.split(x, dtype) for x in (r, k, a, b))
        log_decay = plan.split(w, dtype, padding=-math.inf).sigmoid_().mul_(LOG_DECAY_SCALE)  # padding has decay 1
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
        """The product of all decays of each chunk, [chunks, 1, N]."""
        return self.P[:, -1:]


def _causal(L: int, dtype: torch.dtype) -> Tensor:
    """Return the mask of the scores [2L, 2L]: a_t reads what is written before t, r_t also what is written at t."""
    ones = torch.ones(L, L, dtype=dtype)
    return torch.cat([ones.tril(-1), ones.tril()]).repeat(1, 2)


def _unit_inverse(A: Tensor) -> Tensor:
    """Return (I - A)^-1 of strictly lower triangular A [chunks, L, L].

    A is divided recursively into halves. At size 8, the inverse is (I + A)(I + A^2)(I + A^4). This takes a few products
    over all chunks, whereas torch's triangular solve processes one matrix at a time. The formula is not applied to a
    larger A, because high powers of it could be far larger than the inverse.
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
    """Return y [chunks, L, N] and the final state [D, H, N, N] of r..b [M, H, N]; fill `buffer` for the backward.

    Let u_t = S_{t-1} a_t. With b_s and k_s divided by P_s, the state inside a chunk is

        S_t = (S_0 + sum_{s<=t} u_s b_s^T + v_s k_s^T) diag(P_t)

    Inserted into u_t and y_t, this is attention with a state. Let queries = [a; r], keys = [b; k] and values = [U; V],
    with rows stacked over the chunk, a_t multiplied by P_{t-1}, and r_t multiplied by P_t. Let scores be the masked
    queries keys^T. Then

        [U; Y] = queries S_0^T + scores values            S_L = (S_0 + values^T keys) diag(P_L)

    U is on both sides. Let ab and ak be the quarters of the scores that belong to a. The solution for U is

        U = (I - ab)^-1 (a S_0^T + ak V) = W S_0^T + U_0

    Only U, Y and S_L depend on the previous chunk. U and S_L are computed chunk by chunk, then Y for all chunks at
    once.
    """
    r, w, k, v, a, b = inputs
    N, L, dtype = r.shape[-1], plan.length, initial.dtype
    saved = Saved.views(buffer, plan, N)
    states, U, scores = saved.states, saved.U, saved.scores
    x = _Scaled.scale(plan, dtype, r, w, k, a, b)
    V = plan.split(v, dtype)
    torch.bmm(x.queries, x.keys.mT, out=scores).mul_(_causal(L, dtype))
    ab, ak = scores[:, :L].split(L, dim=-1)
    saved.inverse.copy_(_unit_inverse(ab))
    W = saved.inverse @ x.queries[:, :L]
    torch.bmm(saved.inverse, ak @ V, out=U)
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
    """Return the gradients of r, w, k, v, a, b [chunks, L, N] and of the initial state [D, H, N, N]; grad_y [M, H, N].

    This reverses `_chunk_forward`. Let Z = a S_0^T + ak V, the right-hand side of the triangular system. Its gradient
    is dZ = (I - ab)^-T dU. Let G = dS_L diag(P_L), the gradient of S_0 + values^T keys. Then dU = rb^T dY + b G^T,
    where rb is the quarter of the scores that belongs to r and b. The gradient of the state before the chunk is
    dS_0 = G + dY^T r + dZ^T a.
    """
    r, w, k, v, a, b = inputs
    N, L, dtype = r.shape[-1], plan.length, buffer.dtype
    saved = Saved.views(buffer, plan, N)
    states, scores = saved.states, saved.scores
    x = _Scaled.scale(plan, dtype, r, w, k, a, b)
    dY = plan.split(grad_y, dtype)
    a, r = x.queries.split(L, dim=1)
    b, k = x.keys.split(L, dim=1)
    dZ = saved.inverse.mT @ (scores[:, L:, :L].mT @ dY)
    W = saved.inverse.mT @ b  # the factor of G in dZ
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

    values = torch.cat([saved.U, plan.split(v, dtype)], dim=1)
    d_out = torch.cat([dZ, dY], dim=1)
    d_scores = torch.bmm(d_out, values.mT).mul_(_causal(L, dtype))
    d_queries = torch.bmm(d_out, states).baddbmm_(d_scores, x.keys)
    d_keys = torch.bmm(values, G).baddbmm_(d_scores.mT, x.queries)
    dv = torch.bmm(k, G.mT).baddbmm_(scores[:, :, L:].mT, d_out)

    # Let S be the state just before the decay at t, and dS its gradient. For a key channel, the gradient of log d_t is
    # the sum of S * dS over the column of that channel. It equals the same sum for S_0, plus the contributions k dk and
    # b db of the keys before t, minus the contributions r dr and a da of the queries before t. Here a_t counts as
    # before t, because it reads the state before the decay. A single cumulative sum from the start of the chunk
    # computes all of this. Tensors that are no longer needed are overwritten here and below, because allocating memory
    # would take longer than these products.
    a_da, r_dr = x.queries.mul_(d_queries).split(L, dim=1)
    b_db, k_dk = x.keys.mul_(d_keys).split(L, dim=1)
    at_t = r_dr.sub_(b_db).sub_(k_dk)
    initial = d_states.mul_(states).sum(1, keepdim=True)
    d_log_decay = a_da.add_(at_t).cumsum(1).neg_().add_(at_t).add_(initial)
    w = plan.split(w, dtype)
    slope = torch.sigmoid(w).mul_(LOG_DECAY_SCALE)  # d(log d) / dw
    slope.mul_(w.neg_().sigmoid_())  # not 1 - sigmoid(w), which is 0 in fp32 for w above 17
    return (
        torch.mul(d_queries[:, L:], x.P, out=x.P),
        d_log_decay.mul_(slope),
        d_keys[:, L:] * x.P_inverse,
        dv,
        torch.mul(d_queries[:, :L], x.P_before, out=x.P_before),
        torch.mul(d_keys[:, :L], x.P_inverse, out=x.P_inverse),
        grad_state,
    )
