"""The loss of a model on a dataset split, in total and by part, and the losses of n-gram models.

Validation during training uses `summed_loss` and `summed_loss_of_streams`. The command `evaluate` uses all other
functions.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import Batch, MusicDataset, read_dataset_json
from rwkv_music.data.ngrams import ngram_nats_per_token
from rwkv_music.data.streams import DocumentStreams, document_states, final_states, sum_over_ranks
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.ops.cross_entropy import CHUNK_LOGITS
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Codec

LONGEST_NGRAM = 5
Through = Callable[[Iterator[Batch]], Iterator[Batch]]  # wraps an iterator; see `summed_loss`
PART_ROWS = 16  # maximum number of rows for parts in the result of `part_losses`
POSITION_BINS = 10  # number of equal parts of a piece in `Evaluation.by_position`


# ---- loss ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def summed_loss(
    model: RWKV,
    dataset: MusicDataset,
    batch_size: int,
    device: torch.device | str,
    max_rows: int = 0,
    rank: int = 0,
    world_size: int = 1,
    through: Through = iter,
) -> torch.Tensor:
    """Return this rank's share of a split's loss, float64 [2]: the sum in nats and the number of targets.

    The caller sums both numbers over the ranks and then divides them. Every target therefore has the same weight on any
    number of ranks. Every rank runs the same number of batches. Only the first `max_rows` rows are used, rounded up to
    whole batches. If `max_rows` is 0, all rows are used. `through` wraps the iterator over the batches, and can raise
    an exception to end the evaluation.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    batches = dataset.validation_batches(batch_size, rank, world_size)
    for batch in through(islice(batches, -(-max_rows // (batch_size * world_size)) or None)):
        count = batch.n_targets
        batch = batch.to(device)
        loss = model(**batch.arguments(), reduction="sum")
        total += torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
    return total


@torch.no_grad()
def summed_loss_of_streams(
    model: RWKV,
    streams: DocumentStreams,
    own: range,
    device: torch.device | str,
    max_rows: int = 0,
    through: Through = iter,
) -> torch.Tensor:
    """Return the same two numbers as `summed_loss`, but let the state pass from window to window of each piece.

    If `max_rows` is 0, the result therefore depends neither on the length of the windows nor on the number of streams.
    Otherwise, `max_rows` is rounded up to whole windows of all streams. `own` contains the numbers of this rank's
    streams.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    state = model.init_state(len(own))
    windows = min(streams.windows_per_pass, -(-max_rows // streams.n_streams) or streams.windows_per_pass)
    for batch in through(streams.batch(window, own.start, own.stop) for window in range(windows)):
        count = batch.n_targets
        batch = batch.to(device)
        loss, after = model(**batch.arguments(), state=document_states(state, batch), reduction="sum")
        state = sum_over_ranks(final_states(after, batch, len(own)), batch)
        total += torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
    return total


@torch.no_grad()
def nats_of_targets(model: RWKV, batch: Batch, state: State | None = None) -> tuple[np.ndarray, State | None]:
    """Return the loss in nats at each of `batch.positions`, float64 [P], and the new state of each document.

    `state` is the state of each document before the batch. If it is None, each document starts from the initial state,
    and the returned state is None.
    """
    batch = batch.to(model.device)
    features, state = model.features(batch.input_ids, state, batch.cu_seqlens, batch.max_length)
    features, targets = features.flatten(0, 1)[batch.positions], batch.targets.flatten()[batch.positions]
    rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    nats = [
        F.cross_entropy(model.head(x).float(), target, reduction="none").double()
        for x, target in zip(features.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(nats).cpu().numpy() if nats else np.empty(0), state


@dataclass
class NoteLoss:
    """The loss on a set of tokens, and the number of notes that they represent."""

    name: str
    notes: int = 0
    tokens: int = 0
    nats: float = 0.0

    @property
    def bits_per_note(self) -> float:
        return self.nats / math.log(2) / self.notes if self.notes else math.nan

    @property
    def nats_per_note(self) -> float:
        return self.nats / self.notes if self.notes else math.nan

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens if self.tokens else math.nan


# ---- comparison with baselines ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Results on one split."""

    split: str  # "train" or "val"
    targets: int  # number of predicted tokens: all except the first token of each piece
    nats_per_token: float
    bits_per_note: float  # total loss in bits divided by the number of notes
    by_position: tuple[float, ...]  # mean loss in nats in each tenth of the pieces; NaN for a tenth without targets
    ngram_nats_per_token: float  # loss of the best n-gram model, n from 2 to LONGEST_NGRAM
    ngram: int  # the order n of the best n-gram model
    bigram_nats_per_token: float
    unigram_nats_per_token: float


def evaluate(
    model: RWKV, codec: Codec, data: str | os.PathLike, ctx_len: int, batch_size: int, tbptt: bool = False
) -> list[Evaluation]:
    """Evaluate the model, and n-gram models fitted on the training split, on each split of the dataset folder `data`.

    With `tbptt`, the state passes from window to window, as in training with --tbptt. Otherwise, every window of
    `ctx_len` tokens starts from the initial state. Raises UserError if the dataset was prepared with another tokenizer,
    or if `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}: choose 1 or more.")
    splits, rows = read_dataset_json(data)["splits"], []
    train = BinIdx(Path(data) / "train")
    for split, counts in splits.items():
        if not counts["pieces"]:
            continue
        dataset = MusicDataset(data, split, ctx_len, fingerprint=codec.fingerprint, vary=False)
        pieces = BinIdx(Path(data) / split)
        if tbptt:
            nats, targets = _nats_by_position_of_streams(
                model, DocumentStreams(dataset, min(batch_size, len(pieces))), split
            )
        else:
            nats, targets = _nats_by_position(model, dataset, pieces.offsets, batch_size, split)
        baselines = (train, pieces, codec.vocab_size)
        unigram, bigram = ngram_nats_per_token(*baselines, order=2, most_tokens=train.n_tokens)
        ngrams = ngram_nats_per_token(*baselines, order=LONGEST_NGRAM)[1:]
        rows.append(
            Evaluation(
                split=split,
                targets=int(targets.sum()),
                nats_per_token=float(nats.sum() / targets.sum()),
                bits_per_note=float(nats.sum() / math.log(2) / max(counts["notes"], 1)),
                by_position=tuple(
                    n / t if t else math.nan for n, t in zip(nats.tolist(), targets.tolist(), strict=True)
                ),
                ngram_nats_per_token=min(ngrams),
                ngram=2 + ngrams.index(min(ngrams)),
                bigram_nats_per_token=bigram,
                unigram_nats_per_token=unigram,
            )
        )
    return rows


def _nats_by_position(
    model: RWKV, dataset: MusicDataset, offsets: np.ndarray, batch_size: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return total loss in nats and number of targets in each tenth of the pieces, float64 and int64 [10]."""
    nats, targets = np.zeros(POSITION_BINS), np.zeros(POSITION_BINS, np.int64)
    for place, found in _nats_by_place(model, dataset, batch_size, split):
        document = np.searchsorted(offsets, place, side="right") - 1
        length = offsets[document + 1] - offsets[document]
        part = (place - offsets[document]) * POSITION_BINS // length
        nats += np.bincount(part, found, POSITION_BINS)
        targets += np.bincount(part, minlength=POSITION_BINS)
    return nats, targets


def _nats_by_place(
    model: RWKV, dataset: MusicDataset, batch_size: int, description: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of targets in the tokens of a split, int64 [P], and their losses in nats, float64 [P]."""
    batch_size = min(batch_size, dataset.n_samples)  # in a larger batch, the other rows would be padding
    batches = -(-dataset.n_samples // batch_size)
    for i, batch in enumerate(progress_bar(dataset.validation_batches(batch_size), description, batches)):
        if batch.n_targets:
            # Rows are consecutive windows of all documents. The target at a position is the next token.
            yield i * batch.input_ids.numel() + batch.positions.numpy() + 1, nats_of_targets(model, batch)[0]


def _nats_by_position_of_streams(model: RWKV, streams: DocumentStreams, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as `_nats_by_position`, but read every piece from beginning to end."""
    totals = np.zeros((2, POSITION_BINS))  # nats, targets
    state = model.init_state(streams.n_streams)
    unfinished: dict[int, np.ndarray] = {}  # stream -> losses of its current piece so far

    def finish(piece: np.ndarray) -> None:
        part = np.arange(1, len(piece) + 1) * POSITION_BINS // (len(piece) + 1)  # the first token is not a target
        totals[0] += np.bincount(part, piece, POSITION_BINS)
        totals[1] += np.bincount(part, minlength=POSITION_BINS)

    for window in progress_bar(range(streams.windows_per_pass), split):
        batch = streams.batch(window)
        found, after = nats_of_targets(model, batch, document_states(state, batch.to(model.device)))
        state = after.rows(batch.edges.last)
        starts = batch.cu_seqlens.numpy()
        pieces = np.split(found, np.searchsorted(batch.positions.numpy(), starts[1:-1]))
        continuing = set(batch.edges.documents.tolist())
        for document, piece in enumerate(pieces):
            stream = int(starts[document]) // batch.input_ids.shape[1]
            before = unfinished.pop(stream, np.empty(0))
            if document in continuing:
                piece = np.concatenate([before, piece])
            else:
                finish(before)
            unfinished[stream] = piece
    for piece in unfinished.values():
        finish(piece)
    return totals[0], totals[1].astype(np.int64)


def as_table(rows: Sequence[Evaluation]) -> str:
    """Format evaluations as text tables."""
    header = ("split", "tokens", "nats/token", "bits/note", "n-gram", "bigram", "unigram")
    lines = ["{:<6}{:>12}{:>12}{:>11}{:>11}{:>9}{:>9}   (nats/token)".format(*header)]
    for r in rows:
        ngram = f"{r.ngram}: {r.ngram_nats_per_token:.4f}"
        lines.append(
            f"{r.split:<6}{r.targets:>12,}{r.nats_per_token:>12.4f}{r.bits_per_note:>11.3f}{ngram:>11}"
            f"{r.bigram_nats_per_token:>9.4f}{r.unigram_nats_per_token:>9.4f}"
        )
    lines += ["", f"nats/token by position in the piece, first to last of {POSITION_BINS} equal parts:"]
    lines += [f"{r.split:<6}" + "".join(f"{value:>8.3f}" for value in r.by_position) for r in rows]
    return "\n".join(lines)


# ---- parts -----------------------------------------------------------------------------------------------------------


def part_losses(
    model: RWKV, codec: Codec, data: str | os.PathLike, ctx_len: int, batch_size: int
) -> tuple[str, list[NoteLoss]]:
    """Return the name of the evaluated split, and the loss of next-token prediction for each part number.

    The split is "val", or "train" if the validation split is empty. The tokens of a part are those of its cells. If
    there are more than `PART_ROWS` parts, the parts from number `PART_ROWS` on share one row. The last row is for the
    tokens that belong to no part: tags, bar lines, time signatures, tempos and the end. Every window of `ctx_len`
    tokens starts from the initial state.
    """
    split = held_out_split(data)
    dataset = MusicDataset(data, split, ctx_len, fingerprint=codec.fingerprint)
    pieces, vocabulary = BinIdx(Path(data) / split), codec.token_properties
    part_of = np.concatenate([_parts_of_tokens(pieces[i], codec) for i in range(len(pieces))])
    size = int(vocabulary.part.max()) + 1
    notes = np.bincount(part_of, vocabulary.is_onset[pieces.tokens(0, pieces.n_tokens)], size)
    nats, targets = np.zeros(size), np.zeros(size, np.int64)
    for place, found in _nats_by_place(model, dataset, batch_size, "parts"):
        nats += np.bincount(part_of[place], found, size)
        targets += np.bincount(part_of[place], minlength=size)

    def row(name: str, parts: list[int]) -> NoteLoss:
        return NoteLoss(name, int(notes[parts].sum()), int(targets[parts].sum()), float(nats[parts].sum()))

    parts = (np.flatnonzero(targets[1:]) + 1).tolist()
    last = [number for number in parts if number >= PART_ROWS]
    single = [number for number in parts if number < PART_ROWS] if len(last) > 1 else parts
    rows = [row(f"part {number}", [number]) for number in single]
    if len(last) > 1:
        rows.append(row(f"parts {last[0]} to {last[-1]}", last))
    return split, [*rows, row("bar lines, tempos, ends", [0])]


def _parts_of_tokens(ids: np.ndarray, codec: Codec) -> np.ndarray:
    """Return the part number of the cell that contains each token, uint8 [n]; 0 for tokens outside of cells."""
    vocabulary = codec.token_properties
    number = np.where(vocabulary.part[ids] > 0, vocabulary.part[ids], 0)
    ends_cell = (number > 0) | (vocabulary.kinds[ids] == "Bar") | (ids == codec.eos_id)
    return number[np.maximum.accumulate(np.where(ends_cell, np.arange(len(ids)), 0))].astype(np.uint8)


def held_out_split(data: str | os.PathLike) -> str:
    """Return "val", or "train" if the validation split of a dataset folder is empty."""
    return "val" if read_dataset_json(data)["splits"]["val"]["pieces"] else "train"


def parts_as_table(split: str, losses: Sequence[NoteLoss]) -> str:
    """Format the losses of parts as a text table."""
    lines = [f"{f'{split}, next-token prediction':<28}{'notes':>9}{'nats/token':>12}{'nats/note':>11}{'bits/note':>11}"]
    for x in losses:
        per_note = f"{x.nats_per_note:>11.3f}{x.bits_per_note:>11.3f}" if x.notes else f"{'-':>11}{'-':>11}"
        lines.append(f"{x.name:<28}{x.notes:>9,}{x.nats_per_token:>12.4f}{per_note}")
    return "\n".join(lines)
