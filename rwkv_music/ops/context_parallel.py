"""Context parallelism: the ranks of a process group hold consecutive parts of one sequence of tokens.

Two operations of the model depend on earlier tokens: the token shift on the previous token, and the recurrence on its
state. This module computes both, and their gradients, across the edges between the ranks. The result is exact.

A part maps the state S before it to the state S T + E after it. T and E do not depend on S, so all ranks can compute
them at once. The ranks exchange them with one all-gather, whose size does not depend on the number of tokens. Then each
rank computes the state before its part, from which it runs the recurrence. In the backward pass, a part maps the
gradient G of the state after it to the gradient G T^T + E' of the state before it, and the ranks exchange only E'.

Notable choices:
- The operators of `wkv7s` compute T, E and E'. T is the final state for the identity as the initial state and values of
  zero. E is the final state for an initial state of zero. E' is the final state of the same recurrence run backwards in
  time; see `_gradient_before`.
- No token depends on another document's tokens, and `ContextPart` records which documents continue on which rank. A
  rank therefore computes E only if its last document continues on the next rank, and T only if this document also fills
  its part and began on an earlier rank. With two ranks no T is needed, and none is sent.
- If no document continues onto a rank from the previous one, the rank runs the recurrence before the exchange and
  sends the final state as E. In the backward pass, a rank from which no document continues onto the next one runs the
  backward pass before the exchange and sends the gradient of the initial state as E'. Such ranks compute no separate E
  or E'. The first rank needs no E' and the last rank no E, because no document continues beyond them. These two ranks
  therefore do no extra work.
- `wkv7s_over_ranks` takes the state before a document on the rank where the document begins, and returns the state
  after it on the rank where it ends. With TBPTT, a document that ends with the window can continue in the next one. The
  returned state is then passed to the rank that holds the start of the next window.
- A rank waits for an exchange only when it needs the result. The first rank in the forward pass, and the last rank in
  the backward pass, can therefore run ahead of the others by as much time as one recurrence takes. If every rank
  waited for each exchange, this time would be lost in every layer.
- Every rank of a group calls the same collectives with tensors of the same sizes, whatever its tokens are. A rank that
  could not read its rows and computes on padding therefore cannot block the others.

Shapes: M tokens and D documents of this rank, H heads, N head size, C width, R ranks of the group.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from rwkv_music.ops import wkv7s  # noqa: F401  registers the operators

NO_DECAY = -1e4  # a raw decay whose sigmoid is 0, so that the decay is 1


class ContextPart(NamedTuple):
    """One rank's place among the parts of a sequence of tokens, one part per rank of a process group."""

    group: dist.ProcessGroup
    continues: tuple[bool, ...]  # [R]: whether a rank's first document began on an earlier rank
    spans: tuple[bool, ...]  # [R]: whether a document that began earlier fills a rank's part and continues on the next
    first_length: int  # tokens of this rank's first document
    last_length: int  # tokens of this rank's last document

    @staticmethod
    def of(cu_seqlens: Sequence[int], group: dist.ProcessGroup) -> tuple[list[int], "ContextPart"]:
        """Return the bounds of this rank's documents, as indices into the tokens of all ranks, and its `ContextPart`.

        `cu_seqlens` rises from 0 to the number of tokens of all ranks, which must be at least the number of ranks. The
        tokens are divided evenly.
        """
        parts = cut(cu_seqlens, group.size())
        starts, own = set(cu_seqlens), parts[group.rank()]
        continues = tuple(bounds[0] not in starts for bounds in parts)
        continue_on_next = (*continues[1:], False)
        one_document = (len(bounds) == 2 for bounds in parts)
        spans = tuple(all(flags) for flags in zip(continues, continue_on_next, one_document, strict=True))
        return own, ContextPart(group, continues, spans, own[1] - own[0], own[-1] - own[-2])

    @property
    def rank(self) -> int:
        return self.group.rank()

    @property
    def continues_on_next_rank(self) -> bool:
        """Whether this rank's last document continues on the next rank."""
        return any(self.continues[self.rank + 1 : self.rank + 2])

    def from_previous(self, last: Tensor, documents: int, shift: Tensor | None = None) -> Tensor:
        """Return the token before each of this rank's documents, [D, C]. Collective.

        Args:
            last: [1, C], this rank's last token.
            documents: D.
            shift: [D, C], the token before each document that begins here; None for zeros.
        """
        exchange = Exchange(self.group, last)
        previous = last.new_zeros(documents, last.shape[1]) if shift is None else shift.clone()
        if self.continues[self.rank]:
            previous[:1] = exchange.result()[self.rank - 1]
        return previous

    def from_next(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient of `from_previous`. Collective.

        `grad`, [D, C], is the gradient of its result. Return the gradients of its arguments: `last`, [1, C], and
        `shift`, [D, C].
        """
        exchange = Exchange(self.group, grad[:1])
        grad_shift = F.pad(grad[1:], (0, 0, 1, 0)) if self.continues[self.rank] else grad
        grad_last = exchange.result()[self.rank + 1] if self.continues_on_next_rank else torch.zeros_like(grad[:1])
        return grad_last, grad_shift

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of x over the ranks. Collective."""
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total


class Exchange:
    """The tensors of all ranks of a group, which arrive while the caller continues. The constructor is collective."""

    _unfinished: ClassVar[list["Exchange"]] = []  # kept until they finish, so that their tensors are not freed

    def __init__(self, group: dist.ProcessGroup, x: Tensor) -> None:
        self._own = x.clone(memory_format=torch.contiguous_format)  # not a view that would keep all tokens in memory
        self._all = x.new_empty(group.size(), *x.shape)
        self._work = dist.all_gather(list(self._all.unbind(0)), self._own, group=group, async_op=True)
        Exchange._unfinished = [one for one in self._unfinished if not one._work.is_completed()] + [self]

    def result(self) -> Tensor:
        """Wait for the tensors of all ranks, and return them, [R, *x.shape]."""
        self._work.wait()
        return self._all


def exchanged_bytes(ranks: int, width: int, head_size: int, item_size: int) -> int:
    """Return the bytes that a rank receives per layer in forward and backward, which do not depend on its tokens.

    For each of the two token shifts, it receives from every other rank the last token of that rank and a gradient of
    the same size. It also receives E, E' and, with more than two ranks, T from every other rank. `item_size` is the
    number of bytes of a value of the model, at most 4. E, E' and T are float32. If activation checkpointing repeats the
    forward pass of a block, the rank receives the data of that pass twice. The states that TBPTT passes between windows
    are not included.
    """
    tokens = 2 * 2 * width * item_size
    states = (2 if ranks == 2 else 3) * width * head_size * 4
    return (ranks - 1) * (tokens + states)


def cut(cu_seqlens: Sequence[int], ranks: int) -> list[list[int]]:
    """Divide the tokens evenly among `ranks`. Return the bounds of each part and of the documents inside it."""
    edges = [cu_seqlens[-1] * i // ranks for i in range(ranks + 1)]
    return [[start, *(x for x in cu_seqlens if start < x < stop), stop] for start, stop in pairwise(edges)]


def previous_tokens(last: Tensor, context: ContextPart, documents: int, shift: Tensor | None) -> Tensor:
    """Return the result of `ContextPart.from_previous`, with gradients for `last` and `shift`. Collective."""
    return _PreviousTokens.apply(last, context, documents, shift)


class _PreviousTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, last: Tensor, context: ContextPart, documents: int, shift: Tensor | None) -> Tensor:
        ctx.context, ctx.has_shift = context, shift is not None
        return context.from_previous(last, documents, shift)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        grad_last, grad_shift = ctx.context.from_next(grad)
        return grad_last, None, None, grad_shift if ctx.has_shift else None


def wkv7s_over_ranks(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    context: ContextPart,
    cu_seqlens: Tensor,
    max_length: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `wkv7s` over this rank's part of the tokens. Collective, also in backward.

    The gradients of r, w, k, v, a, b and state include the contributions of the results on all ranks.

    Args:
        r, w, k, v, a, b: [1, M, H, N].
        cu_seqlens, max_length: of this rank's documents, as for `wkv7s`.
        state: [D, H, N, N], the state before each document that begins here; None for zeros. The value of a document
            that began on an earlier rank is not used.

    Returns the outputs [1, M, H, N], and the state after each document that ends here, [D, H, N, N]. The value of a
    document that continues on the next rank must not be used.
    """
    save = torch.is_grad_enabled()
    return _WKV7sOverRanks.apply(context, cu_seqlens, max_length, save, state, r, w, k, v, a, b)


class _WKV7sOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, context, cu_seqlens, max_length, save, state, *inputs):
        packed = [x.flatten(0, 1) for x in inputs]

        def forward(before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ops.rwkv_music.wkv7s_forward(*packed, before, cu_seqlens, max_length, save)

        (y, final, checkpoints), exchange = forward_over_ranks(context, packed, cu_seqlens.numel() - 1, state, forward)
        if save:
            ctx.context, ctx.exchange, ctx.max_length, ctx.has_state = context, exchange, max_length, state is not None
            ctx.save_for_backward(*packed, cu_seqlens, checkpoints)
        return y.view_as(inputs[0]), final

    @staticmethod
    def backward(ctx, grad_y, grad_final):
        *packed, cu_seqlens, checkpoints = ctx.saved_tensors
        grad_y = grad_y.flatten(0, 1)

        def backward(after: Tensor) -> tuple[Tensor, ...]:
            return torch.ops.rwkv_music.wkv7s_backward(*packed, cu_seqlens, ctx.max_length, checkpoints, grad_y, after)

        *grads, grad_state = backward_over_ranks(ctx.context, packed, grad_y, grad_final, ctx.exchange, backward)
        grad_state = grad_state if ctx.has_state else None
        return (None, None, None, None, grad_state, *(grad.unsqueeze(0) for grad in grads))


def forward_over_ranks(
    context: ContextPart,
    inputs: Sequence[Tensor],
    documents: int,
    state: Tensor | None,
    forward: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[tuple[Tensor, Tensor, Tensor], Exchange | None]:
    """Run the recurrence over this rank's part of the tokens. Collective.

    Args:
        inputs: r, w, k, v, a, b, [M, H, N].
        documents: D.
        state: as in `wkv7s_over_ranks`.
        forward: calls the operator `wkv7s_forward` with these inputs and the given state before each document.

    Returns what `forward` returns, and the exchange that `backward_over_ranks` needs: E and T of all ranks,
    [R, 2, H, N, N], in the dtype of the state; None if the backward pass needs no T.
    """
    r, v = inputs[0], inputs[3]
    before = _zeros(r, documents) if state is None else state.clone()
    mapped = _zeros(r, 1 if len(context.continues) == 2 else 2)  # E and T
    last = [x[-context.last_length :] for x in inputs]
    outputs = None
    if not context.continues[context.rank]:
        outputs = forward(before)
        mapped[0] = outputs[1][-1]  # not needed if no document continues on the next rank
    elif context.spans[context.rank]:
        identity = torch.eye(r.shape[-1], dtype=mapped.dtype, device=r.device).expand_as(mapped[:1]).contiguous()
        mapped[0] = _final_state(*last)
        mapped[1] = _final_state(*last[:3], torch.zeros_like(v), *last[4:], state=identity)
    elif context.continues_on_next_rank:
        mapped[0] = _final_state(*last, state=before[-1:])
    exchange = Exchange(context.group, mapped)
    if outputs is None:
        gathered = exchange.result()
        S = None
        for rank in range(context.rank):  # S becomes the state after `rank`
            if context.spans[rank]:
                S = torch.baddbmm(gathered[rank, 0], S, gathered[rank, 1])
            else:  # S is not used if no document continues on the next rank
                S = gathered[rank, 0]
        before[0] = S
        outputs = forward(before)
    return outputs, exchange if any(context.spans[context.rank + 1 :]) else None


def backward_over_ranks(
    context: ContextPart,
    inputs: Sequence[Tensor],
    grad_y: Tensor,
    grad_final: Tensor,
    exchange: Exchange | None,
    backward: Callable[[Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Return the gradients of r, w, k, v, a, b, and of the argument `state` of `forward_over_ranks`. Collective.

    Args:
        inputs: as in `forward_over_ranks`.
        exchange: the exchange that `forward_over_ranks` returned.
        grad_y: [M, H, N], the gradient of the outputs.
        grad_final: [D, H, N, N], the gradient of the state after each document that ends here. The value of a document
            that continues on the next rank is not used.
        backward: calls the operator `wkv7s_backward` with these inputs, `grad_y` and the given gradient of the state
            after each document, [D, H, N, N].
    """
    r, w, _, _, a, b = inputs
    after, before = grad_final.clone(memory_format=torch.contiguous_format), _zeros(r, 1)[0]
    gradients = None
    if not context.continues_on_next_rank:
        gradients = backward(after)
        before = gradients[-1][0]  # not needed if the first document begins here
    elif context.continues[context.rank]:
        ended = None if context.spans[context.rank] else after[:1]
        before = _gradient_before(*(x[: context.first_length] for x in (r, w, a, b, grad_y)), after=ended)
    received = Exchange(context.group, before)
    if gradients is None:
        gathered = received.result()
        G = None
        for rank in reversed(range(context.rank + 1, len(context.continues))):  # G becomes the gradient before `rank`
            if context.spans[rank]:
                G = torch.baddbmm(gathered[rank], G, exchange.result()[rank, 1].mT)
            else:  # G is not used if the first document of `rank` begins there
                G = gathered[rank]
        after[-1] = G
        gradients = backward(after)
    if context.continues[context.rank]:
        gradients[-1][0] = 0  # the state before this document is not an argument
    return gradients


def _final_state(*inputs: Tensor, state: Tensor | None = None) -> Tensor:
    """Return the state after one document, [H, N, N].

    `inputs` are its r, w, k, v, a, b, [M, H, N], and `state`, [1, H, N, N], is the state before it; None for zero.
    """
    tokens = len(inputs[0])
    cu_seqlens = torch.arange(0, tokens + 1, tokens, dtype=torch.int32, device=inputs[0].device)
    return torch.ops.rwkv_music.wkv7s_forward(*inputs, state, cu_seqlens, tokens, False)[1][0]


def _gradient_before(r: Tensor, w: Tensor, a: Tensor, b: Tensor, grad_y: Tensor, after: Tensor | None) -> Tensor:
    """Return the gradient [H, N, N] of the state before one document.

    `after` [1, H, N, N] is the gradient of the state after it; None for zero.

    Let H_t be the gradient of S_t. Then H_t = dy_t r_t^T + H_{t+1} diag(d_{t+1}) + (H_{t+1} b_{t+1}) a_{t+1}^T. This is
    the recurrence of `wkv7s`, backwards in time, with the roles of a and b exchanged, and with dy and r as values and
    keys. In each step, the decay, a and b belong to the token after that of dy and r, so the recurrence has M + 1
    steps. The first step has a decay of 1 and zeros for a and b, and the last step adds zero.
    """
    tokens = torch.arange(len(r) - 1, -1, -1, device=r.device)
    decayed, added = torch.cat([tokens[:1], tokens]), torch.cat([tokens, tokens[-1:]])
    w, a, b = (x.index_select(0, decayed) for x in (w, a, b))
    keys, values = (x.index_select(0, added) for x in (r, grad_y))
    w[0], a[0], b[0], values[-1] = NO_DECAY, 0, 0, 0
    return _final_state(keys, w, keys, values, b, a, state=after)


def _zeros(r: Tensor, states: int) -> Tensor:
    """Return `states` zero states [states, H, N, N] of the recurrence for r [M, H, N]."""
    _, H, N = r.shape
    return r.new_zeros(states, H, N, N, dtype=torch.float64 if r.dtype == torch.float64 else torch.float32)
