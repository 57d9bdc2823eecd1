"""Muon for the blocks' matrices and AdamW for all other parameters, on ZeRO's flat partitions.

Muon updates a matrix in the direction of the orthogonal matrix that is nearest to its Nesterov momentum. A
Newton-Schulz iteration approximates this orthogonal matrix. It requires the whole matrix, but a rank holds only a
shard. Each matrix is therefore orthogonalized on one rank, the owner of the matrix. The other ranks send the owner
their pieces of the momentum and receive their pieces of the result.

Notable choices:
- The owner is the rank that holds the largest piece of the matrix. Under ZeRO-1 and 2, only a matrix at the edge of a
  shard is divided among ranks, so little is sent. Under ZeRO-3, most matrices are divided equally. The owner of such a
  matrix is the rank with the least work so far.
- The ranks work in rounds, which limits the memory. In a round, each rank orthogonalizes a batch of its own matrices of
  one shape. Pieces are sent in the dtype of the Newton-Schulz iteration, which is that of the model's weights.
- The momentum is sharded like AdamW's moments, and there is no second moment. Master weight and momentum take 8 bytes
  per parameter; AdamW takes 12.
- The host never waits for the device: the flag that skips a step with a non-finite gradient is a tensor on the device.
- On a GPU, one kernel computes the momentum and another one updates the weights, each in one pass over memory.

Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024, kellerjordan.github.io); the
factor 0.2 sqrt(max(rows, columns)) from J. Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.cuda import build
from rwkv_music.training.deepspeed_engine.zero_shards import MUON_MOMENTS, ZeroShards

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that one iteration applies to the singular values
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # root mean square of an update divided by the learning rate, about the same as AdamW's
BATCH_ELEMENTS = 2**26  # maximum number of elements in a batch of matrices; a larger matrix is a batch by itself
EPSILON = 1e-7  # added to the norm of a matrix, which may be zero


@dataclass(frozen=True)
class Piece:
    """Consecutive elements, on one rank, of a matrix that is orthogonalized in a round.

    Attributes:
        name: the matrix.
        row: index of the matrix in the owner's batch.
        start: first element, counted in the flattened matrix.
        length: number of elements.
    """

    name: str
    row: int
    start: int
    length: int


@dataclass
class Round:
    """This rank's part of a round.

    Attributes:
        shape: shape of this rank's batch: matrices, rows, columns.
        incoming: incoming[r] lists rank r's pieces of the matrices that this rank owns.
        outgoing: outgoing[r] lists this rank's pieces of the matrices that rank r owns.
        exchanges: whether any rank needs a piece from another rank in this round; the same on all ranks.
    """

    shape: tuple[int, int, int]
    incoming: list[list[Piece]] = field(default_factory=list)
    outgoing: list[list[Piece]] = field(default_factory=list)
    exchanges: bool = False


class Muon(torch.optim.AdamW):
    """AdamW, except that Muon updates the groups whose entry "muon" is True.

    Args:
        groups: optimizer groups from `RWKV.parameter_groups`.
        dtype: dtype of the Newton-Schulz iteration.
        options: other arguments of `torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self._dtype = dtype
        self._shards: ZeroShards | None = None
        self._rounds: dict[int, list[Round]] = {}

    def start(self, shards: ZeroShards) -> None:
        """Set the shards that this optimizer updates, and divide the matrices among the ranks. Collective."""
        self._shards = shards
        own = [
            (piece.partition, piece.name, piece.shape, piece.start, piece.length)
            for piece in shards.slices
            if shards.groups[piece.partition]["muon"]
        ]
        of_ranks: list[list[tuple]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_ranks, own)
        for partition, group in enumerate(shards.groups):
            if group["muon"]:
                shapes, held = {}, {}
                for rank, pieces in enumerate(of_ranks):
                    for of_partition, name, shape, start, length in pieces:
                        if of_partition == partition:
                            shapes[name] = shape
                            held.setdefault(name, {})[rank] = (start, length)
                self._rounds[partition] = plan_rounds(shapes, held, dist.get_rank(), len(of_ranks))

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Update all partitions that have gradients. Collective."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step(closure)
        self.param_groups = groups
        given = {id(p) for group in groups if group["muon"] for p in group["params"] if p.grad is not None}
        for partition, master in enumerate(self._shards.masters):
            if id(master) in given:
                state = self._shards.optimizer_state(partition)
                state["step"] += 1
                one, zero = torch.ones_like(state["step"]), torch.zeros_like(state["step"])
                self.update(partition, [master.grad], None, one, zero)

    @torch.no_grad()
    def update(
        self, partition: int, gradients: list[Tensor], weights: Tensor | None, divisor: Tensor, bad: Tensor
    ) -> None:
        """Update the master weights of a partition, and write them, rounded, to `weights`. Collective.

        Args:
            partition: index into `ZeroShards.masters` of a partition that Muon updates.
            gradients: float tensors. Concatenated, they have the partition's layout. They are overwritten.
            weights: the model's weights in the partition's layout; None if the caller rounds the master weights.
            divisor: fp32 scalar by which the gradients are divided first.
            bad: fp32 scalar, 0 or 1; if it is 1, the step is skipped.
        """
        shards, group = self._shards, self._shards.groups[partition]
        [momentum] = (shards.optimizer_state(partition)[name] for name in MUON_MOMENTS)
        starts = list(accumulate((gradient.numel() for gradient in gradients), initial=0))
        for start, gradient in zip(starts, gradients, strict=False):
            momentum_(momentum[start : start + gradient.numel()], gradient.view(-1), divisor, bad)
        slices = {piece.name: piece for piece in shards.slices if piece.partition == partition}
        moved = {}
        for name, piece in slices.items():
            number = bisect_right(starts, piece.offset) - 1
            first = piece.offset - starts[number]
            moved[name] = gradients[number].view(-1)[first : first + piece.length]
        lr = group["lr"]
        for work in self._rounds[partition]:
            for name, orthogonal in self._orthogonalized(work, moved):
                piece = slices[name]
                here = slice(piece.offset, piece.offset + piece.length)
                step_(
                    shards.masters[partition].data[here],
                    orthogonal,
                    None if weights is None else weights.data[here],
                    kept=1 - lr * group["weight_decay"],
                    rate=lr * UPDATE_RMS * math.sqrt(max(piece.shape)),
                    bad=bad,
                )

    def _orthogonalized(self, work: Round, moved: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Orthogonalize the matrices of a round. Yield the names and values [n] of this rank's pieces of the results.

        Args:
            work: this rank's part of the round.
            moved: this rank's pieces of the matrices, by name.
        """
        rank, count = dist.get_rank(), work.shape[0]
        matrices = torch.empty(
            count, work.shape[1] * work.shape[2], dtype=self._dtype, device=self._shards.masters[0].device
        )
        sent = [n_elements(pieces) if other != rank else 0 for other, pieces in enumerate(work.outgoing)]
        received = [n_elements(pieces) if other != rank else 0 for other, pieces in enumerate(work.incoming)]
        theirs = [piece for other, pieces in enumerate(work.incoming) if other != rank for piece in pieces]
        elsewhere = [piece for other, pieces in enumerate(work.outgoing) if other != rank for piece in pieces]
        for piece in work.incoming[rank]:
            matrices[piece.row, piece.start : piece.start + piece.length] = moved[piece.name]
        if work.exchanges:
            values = self._exchange([moved[piece.name] for piece in elsewhere], sent, received)
            for piece, piece_values in zip(theirs, values.split([piece.length for piece in theirs]), strict=True):
                matrices[piece.row, piece.start : piece.start + piece.length] = piece_values
        if count:
            matrices = orthogonalize(matrices.view(work.shape)).reshape(count, -1)
        for piece in work.incoming[rank]:
            yield piece.name, matrices[piece.row, piece.start : piece.start + piece.length]
        if work.exchanges:
            back = [matrices[piece.row, piece.start : piece.start + piece.length] for piece in theirs]
            values = self._exchange(back, received, sent)
            for piece, piece_values in zip(elsewhere, values.split([piece.length for piece in elsewhere]), strict=True):
                yield piece.name, piece_values

    def _exchange(self, tensors: list[Tensor], sent: list[int], received: list[int]) -> Tensor:
        """Send `tensors`, which are ordered by receiver, and return what this rank receives, ordered by sender.

        Args:
            sent, received: number of elements to and from each rank.
        """
        like = {"dtype": self._dtype, "device": self._shards.masters[0].device}
        out = torch.cat([x.to(self._dtype) for x in tensors]) if tensors else torch.empty(0, **like)
        values = torch.empty(sum(received), **like)
        dist.all_to_all_single(values, out, received, sent)
        return values


def n_elements(pieces: list[Piece]) -> int:
    """Return the number of elements of `pieces`."""
    return sum(piece.length for piece in pieces)


def plan_rounds(
    shapes: dict[str, tuple[int, int]], held: dict[str, dict[int, tuple[int, int]]], rank: int, ranks: int
) -> list[Round]:
    """Divide the matrices of a partition among the ranks, and each rank's matrices among rounds.

    Args:
        shapes: the matrices by name.
        held: for each matrix, the first element and the number of elements that each rank holds.
        rank: the rank whose part is returned.
        ranks: number of ranks.
    """
    work = [0] * ranks
    owned: list[list[str]] = [[] for _ in range(ranks)]
    for name in sorted(shapes, key=lambda name: (shapes[name], name)):  # matrices of one shape are consecutive
        most = max(length for _, length in held[name].values())
        owner = min((other for other, (_, length) in held[name].items() if length == most), key=lambda r: (work[r], r))
        work[owner] += math.prod(shapes[name]) * min(shapes[name])
        owned[owner].append(name)
    batches = [list(_batches(names, shapes)) for names in owned]
    rounds = []
    for number in range(max(map(len, batches), default=0)):
        of_ranks = [of_rank[number] if number < len(of_rank) else [] for of_rank in batches]
        mine = of_ranks[rank]
        this = Round((len(mine), *(shapes[mine[0]] if mine else (0, 0))))
        for other in range(ranks):
            this.incoming.append(_pieces(mine, held, other))
            this.outgoing.append(_pieces(of_ranks[other], held, rank))
        this.exchanges = any(held[name].keys() != {owner} for owner, names in enumerate(of_ranks) for name in names)
        rounds.append(this)
    return rounds


def _batches(names: list[str], shapes: dict[str, tuple[int, int]]) -> Iterator[list[str]]:
    """Divide names, ordered by shape, into batches of one shape with at most BATCH_ELEMENTS elements each."""
    for shape, group in groupby(names, key=shapes.__getitem__):
        alike, most = list(group), max(1, BATCH_ELEMENTS // math.prod(shape))
        yield from (alike[first : first + most] for first in range(0, len(alike), most))


def _pieces(names: list[str], held: dict[str, dict[int, tuple[int, int]]], rank: int) -> list[Piece]:
    """Return the pieces of a batch of matrices that `rank` holds."""
    return [Piece(name, row, *held[name][rank]) for row, name in enumerate(names) if rank in held[name]]


def momentum_(momentum: Tensor, gradient: Tensor, divisor: Tensor, bad: Tensor) -> None:
    """Update the momentum with the gradient, in place, and replace the gradient by Nesterov's momentum.

    Args:
        momentum: fp32 [n].
        gradient: [n], any float dtype on the CPU, bf16 or fp32 on a GPU.
        divisor: fp32 scalar by which the gradient is divided first.
        bad: fp32 scalar; if it is not 0, the gradient counts as 0 and the momentum does not change.
    """
    if momentum.is_cuda:
        build.load().muon_momentum_(momentum, gradient, MOMENTUM, divisor, bad)
        return
    skip = bad.bool()
    new = gradient.float().div(divisor).masked_fill_(skip, 0)
    momentum.mul_(torch.where(skip, 1, MOMENTUM)).add_(new)
    gradient.copy_(new.add_(momentum, alpha=MOMENTUM))


def step_(masters: Tensor, direction: Tensor, weights: Tensor | None, *, kept: float, rate: float, bad: Tensor) -> None:
    """Multiply the master weights by `kept` and subtract `rate` times the direction. Write them, rounded, to `weights`.

    Args:
        masters: fp32 [n].
        direction: [n], any float dtype; on a GPU, bf16 is faster.
        weights: [n], the model's weights, overwritten by the rounded master weights; may be None.
        bad: fp32 scalar, 0 or 1; if it is 1, the masters do not change.
    """
    if direction.is_cuda and direction.dtype == torch.bfloat16 and (weights is None or weights.dtype == torch.bfloat16):
        build.load().muon_step_(masters, direction, weights, kept, rate, bad)
        return
    taken = 1 - bad
    masters.mul_(1 - (1 - kept) * taken).sub_(direction.float().mul_(rate * taken))
    if weights is not None:
        weights.copy_(masters)


def orthogonalize(x: Tensor) -> Tensor:
    """Return the matrices x [b, m, n] with their singular values moved to between about 0.7 and 1.2, in x's dtype.

    Singular values below about a thousandth of a matrix's norm stay below 0.7. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT  # so that the Gram matrix has the size of the shorter side
    wide = wide / (torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True, dtype=torch.float32) + EPSILON).to(
        x.dtype
    )
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)  # cheaper than adding `a * wide` to the product
        wide = polynomial @ wide
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT
