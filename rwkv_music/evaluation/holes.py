"""The loss of a model on the true notes of holes, with more or less context. It shows how much the model uses context.

A hole is a cell (one part in one bar) that the model has to predict. Several documents are made from each held-out
piece. Their holes are in the same bars, but they give the model different context:

    bars        The holes are all parts of the bars. The model reads the bars on both sides, only the bars before the
                holes, or no other bars.
    a part      The holes are one part of the bars. The model reads the other parts and the bars on both sides.
    inner parts The holes are all parts except the first and the last one, in pieces with at least three parts. The
                model reads the bars before the holes, with or without these two outer parts.

Source: the comparison of sides follows Donahue et al., "Enabling Language Models to Fill in the Blanks" (2020).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.dataset import make_batch
from rwkv_music.data.pieces import Pieces
from rwkv_music.evaluation.losses import NoteLoss, held_out_split, nats_of_targets
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.multitrack_cells import Excerpt, Hole, read_excerpt, with_holes, written_out

BATCH_TOKENS = 1 << 15
BOTH_SIDES, LEFT_SIDE, NO_CONTEXT = "bars, both sides", "bars, left side only", "bars, no context"
INNER_GIVEN, INNER_ALONE = "inner parts, outer parts given", "inner parts without the outer parts"


@dataclass
class HoleLoss(NoteLoss):
    """The loss on the contents of holes in one kind of document."""

    holes: int = 0  # the number of documents, that is, of sets of holes in consecutive bars


# (name, tokens int64 [n], bool [n]: which of the tokens are the contents of holes)
Document = tuple[str, np.ndarray, np.ndarray]


def hole_losses(
    model: torch.nn.Module,
    codec: Multitrack,
    data: str | os.PathLike,
    context_bars: int = 4,
    hole_bars: int = 4,
    per_piece: int = 1,
    indices: Sequence[int] | None = None,
) -> list[HoleLoss]:
    """Return the losses on the validation split, or on the training split if the validation split is empty.

    The holes are in `hole_bars` consecutive bars that have `context_bars` bars on both sides. In each piece, at most
    `per_piece` such ranges of bars are used, evenly spaced. `indices` are the indices of the pieces to use; None means
    all. The result is empty if all these pieces are too short.
    """
    split = held_out_split(data)
    pieces = Pieces(data, split, codec)
    losses: dict[str, HoleLoss] = {}
    waiting: list[Document] = []

    def measure() -> None:
        if not waiting:
            return
        ids = np.concatenate([tokens[:-1] for _, tokens, _ in waiting])
        targets = np.concatenate([np.where(own, tokens, IGNORE_INDEX)[1:] for _, tokens, own in waiting])
        starts = np.cumsum([0] + [len(tokens) - 1 for _, tokens, _ in waiting])
        batch = make_batch(ids[None], targets[None], [starts[:-1]])
        nats = np.zeros(len(ids))
        nats[batch.positions.numpy()] = nats_of_targets(model, batch)[0]
        for (name, tokens, own), value in zip(waiting, np.add.reduceat(nats, starts[:-1]), strict=True):
            loss = losses.setdefault(name, HoleLoss(name))
            loss.holes += 1
            loss.notes += codec.count_notes(tokens[own])
            loss.tokens += int(own.sum())
            loss.nats += float(value)
        waiting.clear()

    indices = range(len(pieces)) if indices is None else indices
    for i in progress_bar(indices, "holes", len(indices)):
        piece = pieces[i]
        excerpt = read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids))
        n_places = len(excerpt.cells) - 2 * context_bars - hole_bars + 1
        if n_places < 1:
            continue
        firsts = np.unique(np.linspace(0, n_places - 1, min(per_piece, n_places)).round().astype(int))
        for first in firsts.tolist():
            for document in _documents(codec, excerpt, first, context_bars, hole_bars):
                waiting.append(document)
                if sum(len(tokens) for _, tokens, _ in waiting) > BATCH_TOKENS:
                    measure()
    measure()
    return [losses[name] for name in sorted(losses)]


def _documents(codec: Multitrack, piece: Excerpt, first: int, context_bars: int, hole_bars: int) -> Iterator[Document]:
    """Yield the documents with holes in one range of `hole_bars` bars.

    The context starts at bar `first`, and the holes start `context_bars` bars later.
    """
    begin = first + context_bars
    end = begin + hole_bars
    both = piece.bars(first, end + context_bars)
    parts = both.parts
    own = range(context_bars, context_bars + hole_bars)  # bars of the holes in `both`

    def document(name: str, excerpt: Excerpt, bars: range, numbers: list[int]) -> Document:
        holes: list[Hole] = [(bar, number) for bar in bars for number in numbers]
        return name, *written_out(*with_holes(codec.rules, excerpt, holes))

    yield document(BOTH_SIDES, both, own, parts)
    yield document(LEFT_SIDE, piece.bars(first, end), own, parts)
    yield document(NO_CONTEXT, piece.bars(begin, end), range(hole_bars), parts)
    if len(parts) > 1:
        for number in parts:
            yield document(f"part {number}, both sides and the other parts", both, own, [number])
    if len(parts) > 2:
        inner = parts[1:-1]
        left = piece.bars(first, end)
        yield document(INNER_GIVEN, left, own, inner)
        cells = [{number: cell for number, cell in bar.items() if number in inner} for bar in left.cells]
        yield document(INNER_ALONE, replace(left, cells=cells), own, inner)


def as_table(losses: list[HoleLoss]) -> str:
    """Format losses as a text table. Return a sentence if there are none."""
    if not losses:
        return "true music in holes: no piece is long enough"
    lines = [f"{'true music in holes':<42}{'holes':>7}{'notes':>9}{'nats/token':>12}{'bits/note':>11}"]
    lines += [
        f"{x.name:<42}{x.holes:>7,}{x.notes:>9,}{x.nats_per_token:>12.4f}{x.bits_per_note:>11.3f}" for x in losses
    ]
    return "\n".join(lines)
