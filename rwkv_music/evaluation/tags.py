"""The loss of a model on tagged pieces, with the true tag and with others. It shows whether the model uses the tags."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rwkv_music.data.dataset import make_batch
from rwkv_music.data.pieces import Pieces
from rwkv_music.evaluation.losses import held_out_split, nats_of_targets
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.tags import UNKNOWN


@dataclass
class TagLoss:
    """The losses on all pieces with a known tag in one column, with the true tag and with other tags in the input."""

    column: str
    pieces: int = 0
    tokens: int = 0  # number of tokens of these pieces that are predicted: those after BOS and the tags
    right: float = 0.0  # nats per token with the true value
    other: float = 0.0  # with another value of the column, drawn at random for each piece
    unknown: float = 0.0  # with the value UNKNOWN
    preferred: float = 0.0  # share of the pieces whose loss is lower with the true value than for `other`


def tag_losses(
    model: torch.nn.Module, codec: Multitrack, data: str | os.PathLike, longest: int = 1024, seed: int = 0
) -> list[TagLoss]:
    """Return the losses on the validation split, or on the training split if the validation split is empty.

    The first `longest` tokens of each piece are read, with the piece's own tags in all other columns. A column is left
    out if it has fewer than two values, or if its value is unknown for every piece.
    """
    pieces = Pieces(data, held_out_split(data), codec)
    generator = np.random.default_rng(seed)
    found: list[TagLoss] = []
    for place, (column, values) in enumerate(codec.tags.items(), start=1):
        if len(values) < 2:
            continue
        loss, nats = TagLoss(column), []
        for piece, value in _pieces_with(pieces, codec, place, column, longest):
            other = values[(values.index(value) + int(generator.integers(1, len(values)))) % len(values)]
            versions = [codec.with_tags(piece, {column: name}) for name in (value, other, UNKNOWN)]
            nats.append(_nats(model, versions, len(codec.tags)))
            loss.pieces += 1
            loss.tokens += len(piece) - 1 - len(codec.tags)
        if nats:
            loss.right, loss.other, loss.unknown = (np.sum(nats, axis=0) / loss.tokens).tolist()
            loss.preferred = float(np.mean([right < other for right, other, _ in nats]))
            found.append(loss)
    return found


def _pieces_with(
    pieces: Pieces, codec: Multitrack, place: int, column: str, longest: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the first `longest` tokens of each piece whose tag is known, and the value of the tag.

    The tag is the token at index `place`.
    """
    for piece in progress_bar(pieces, f"tag {column}", len(pieces)):
        value = codec.vocabulary[piece.ids[place]].partition("=")[2]
        if value != UNKNOWN:
            yield piece.ids[:longest], value


def _nats(model: torch.nn.Module, versions: list[np.ndarray], n_tags: int) -> list[float]:
    """Return the loss in nats of each version of a piece, over the tokens after BOS and the tags."""
    length = len(versions[0]) - 1
    ids = np.concatenate([version[:-1] for version in versions]).astype(np.int64)
    targets = np.concatenate([version[1:] for version in versions]).astype(np.int64)
    batch = make_batch(ids[None], targets[None], [np.arange(len(versions)) * length])
    return nats_of_targets(model, batch)[0].reshape(len(versions), length)[:, n_tags:].sum(1).tolist()


def as_table(losses: list[TagLoss]) -> str:
    """Format losses as a text table."""
    lines = [
        f"{'nats/token by tag':<20}{'pieces':>7}{'true tag':>10}{'other tag':>11}{'unknown':>9}{'true < other':>14}"
    ]
    lines += [
        f"{x.column:<20}{x.pieces:>7,}{x.right:>10.4f}{x.other:>11.4f}{x.unknown:>9.4f}{x.preferred:>14.0%}"
        for x in losses
    ]
    return "\n".join(lines)
