"""How well a model predicts a split, beside what counting alone reaches, and what its completions are like."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import Batch, MusicDataset, read_dataset_json
from rwkv_music.data.ngrams import ngram_nats_per_token
from rwkv_music.data.pieces import Pieces
from rwkv_music.data.streams import DocumentStreams, document_states
from rwkv_music.errors import UserError
from rwkv_music.generation.completion import check_counts, complete
from rwkv_music.generation.sampling import PLAIN, Sampling
from rwkv_music.midi.edit import cut_before
from rwkv_music.midi.measures import Measures, measure
from rwkv_music.midi.time import bar_ticks
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.ops.cross_entropy import CHUNK_LOGITS
from rwkv_music.tokenizers.codec import Codec

LONGEST_NGRAM = 5
PARTS = 10  # of a piece, in the figures by position


@torch.no_grad()
def summed_loss(
    model: RWKV,
    dataset: MusicDataset,
    batch_size: int,
    device: torch.device | str,
    max_rows: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> torch.Tensor:
    """This rank's share of a split's loss: float64 [2], the sum of the nats and how many targets they are of.

    Sums over ranks and divides nothing, so that every target weighs the same however the rows are shared out. With
    `max_rows` only the first rows of the split count (rounded up to whole batches). Every rank runs the same number of
    batches.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    rows = 0
    for batch in dataset.validation_batches(batch_size, rank, world_size):
        count = batch.n_targets
        batch = batch.to(device)
        loss = model(**batch.arguments(), reduction="sum")
        total += torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
        rows += batch_size * world_size
        if max_rows and rows >= max_rows:
            break
    return total


@torch.no_grad()
def summed_loss_of_streams(
    model: RWKV, streams: DocumentStreams, own: range, device: torch.device | str, max_rows: int = 0
) -> torch.Tensor:
    """This rank's share of a split's loss, states carried: float64 [2], the sum of the nats, and of how many targets.

    Every piece is read from its beginning to its end, so that neither the windows nor the streams matter. With `max_rows`
    only the first rows of the split count (rounded up to whole windows). Every rank runs as many batches.

    Args:
        own: the streams of this rank.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    state = model.init_state(len(own))
    windows = min(streams.windows_per_pass, -(-max_rows // streams.n_streams) or streams.windows_per_pass)
    for window in range(windows):
        batch = streams.batch(window, own.start, own.stop)
        count = batch.n_targets
        batch = batch.to(device)
        loss, after = model(**batch.arguments(), state=document_states(state, batch), reduction="sum")
        state = after.rows(batch.edges.last)
        total += torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
    return total


@torch.no_grad()
def nats_of_targets(model: RWKV, batch: Batch, state: State | None = None) -> tuple[np.ndarray, State | None]:
    """The nats of each target that counts, in the order of `batch.positions`: float64 [P]; and the new state.

    `state` is that of each document before the batch; without it they begin from nothing, and there is no new one.
    """
    batch = batch.to(model.device)
    features, state = model.features(batch.input_ids, state, batch.cu_seqlens, batch.max_length)
    features, targets = features.flatten(0, 1)[batch.positions], batch.targets.flatten()[batch.positions]
    rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    nats = [
        F.cross_entropy(model.head(x).float(), wanted, reduction="none").double()
        for x, wanted in zip(features.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(nats).cpu().numpy() if nats else np.empty(0), state


@dataclass(frozen=True)
class Evaluation:
    """A split's figures. `nats_per_token` is over every token that has a predecessor in its own piece.

    `by_position` is the same over each tenth of the pieces, from their beginnings to their ends; NaN where none is so
    long.
    """

    split: str
    targets: int
    nats_per_token: float
    bits_per_note: float
    by_position: tuple[float, ...]
    ngram_nats_per_token: float  # of the best n, from 2 to LONGEST_NGRAM
    ngram: int  # that n
    bigram_nats_per_token: float
    unigram_nats_per_token: float


def evaluate(
    model: RWKV, codec: Codec, data: str | os.PathLike, ctx_len: int, batch_size: int, tbptt: bool = False
) -> list[Evaluation]:
    """The model on each split of a dataset, beside n-gram, bigram and unigram models fitted on its training split.

    Pieces are read in windows of `ctx_len` tokens, each from an empty state, or with `carry` from that of the window
    before. Bits a note are all the nats of the split
    over its notes. Raises UserError if the dataset has another tokenizer than the model.
    """
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size} rows: choose 1 or more.")
    splits, rows = read_dataset_json(data)["splits"], []
    train = BinIdx(Path(data) / "train")
    for split, counts in splits.items():
        if not counts["pieces"]:
            continue
        dataset = MusicDataset(data, split, ctx_len, fingerprint=codec.fingerprint)
        pieces = BinIdx(Path(data) / split)
        if tbptt:
            nats, targets = _nats_by_part_of_lanes(model, DocumentStreams(dataset, min(batch_size, len(pieces))), split)
        else:
            nats, targets = _nats_by_part(model, dataset, pieces.offsets, batch_size, split)
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


def _nats_by_part(
    model: RWKV, dataset: MusicDataset, offsets: np.ndarray, batch_size: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, targets) of each tenth of the pieces, float64 and int64 [PARTS]."""
    nats, targets = np.zeros(PARTS), np.zeros(PARTS, np.int64)
    batches = -(-dataset.n_windows // batch_size)
    for i, batch in enumerate(tqdm(dataset.validation_batches(batch_size), split, batches, disable=None)):
        if not batch.n_targets:
            continue
        # Rows are windows of the stream of all documents, so a target's place there is its place here, and one more.
        place = i * batch.input_ids.numel() + batch.positions.numpy() + 1
        document = np.searchsorted(offsets, place, side="right") - 1
        length = offsets[document + 1] - offsets[document]
        part = (place - offsets[document]) * PARTS // length
        nats += np.bincount(part, nats_of_targets(model, batch)[0], PARTS)
        targets += np.bincount(part, minlength=PARTS)
    return nats, targets


def _nats_by_part_of_lanes(model: RWKV, streams: DocumentStreams, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The same with every piece read from its beginning to its end."""
    figures = np.zeros((2, PARTS))
    state = model.init_state(streams.n_streams)
    unfinished: dict[int, np.ndarray] = {}  # by stream: the nats of its last piece up to now

    def finish(piece: np.ndarray) -> None:
        part = np.arange(1, len(piece) + 1) * PARTS // (len(piece) + 1)  # its first token is no target
        figures[0] += np.bincount(part, piece, PARTS)
        figures[1] += np.bincount(part, minlength=PARTS)

    for window in tqdm(range(streams.windows_per_pass), split, disable=None):
        batch = streams.batch(window)
        found, after = nats_of_targets(model, batch, document_states(state, batch.to(model.device)))
        state = after.rows(batch.edges.last)
        starts = batch.cu_seqlens.numpy()
        pieces = np.split(found, np.searchsorted(batch.positions.numpy(), starts[1:-1]))
        going_on = set(batch.edges.documents.tolist())
        for document, piece in enumerate(pieces):
            stream = int(starts[document]) // batch.input_ids.shape[1]
            before = unfinished.pop(stream, np.empty(0))
            if document in going_on:
                piece = np.concatenate([before, piece])
            else:
                finish(before)
            unfinished[stream] = piece
    for piece in unfinished.values():
        finish(piece)
    return figures[0], figures[1].astype(np.int64)


def as_table(rows: Sequence[Evaluation]) -> str:
    """The figures as people read them."""
    header = ("split", "tokens", "nats/token", "bits/note", "n-gram", "bigram", "unigram")
    lines = ["{:<6}{:>12}{:>12}{:>11}{:>11}{:>9}{:>9}   (nats/token)".format(*header)]
    for r in rows:
        ngram = f"{r.ngram}: {r.ngram_nats_per_token:.4f}"
        lines.append(
            f"{r.split:<6}{r.targets:>12,}{r.nats_per_token:>12.4f}{r.bits_per_note:>11.3f}{ngram:>11}"
            f"{r.bigram_nats_per_token:>9.4f}{r.unigram_nats_per_token:>9.4f}"
        )
    lines += ["", f"nats/token by place in the piece, from its first tenth to its last, {PARTS} of them:"]
    lines += [f"{r.split:<6}" + "".join(f"{value:>8.3f}" for value in r.by_position) for r in rows]
    return "\n".join(lines)


def sample_measures(
    model: RWKV,
    codec: Codec,
    data: str | os.PathLike,
    samples: int,
    *,
    context_bars: int = 4,
    bars: int = 8,
    sampling: Sampling = PLAIN,
) -> tuple[list[Measures], list[Measures]]:
    """What `samples` completions are like, and the bars of the real pieces in their places: (real, completed).

    Each is a held-out piece (of the training split where none is held out) from its first `context_bars` bars; the
    measures are of the `bars` bars after them alone. Pieces are taken in order, more than once if there are too few.

    Raises UserError where no piece is long enough.
    """
    check_counts(context_bars, bars, samples, "--samples")
    split = "val" if read_dataset_json(data)["splits"]["val"]["pieces"] else "train"
    prompts = [piece for piece in Pieces(data, split, codec) if len(piece.bar_starts) >= context_bars + bars]
    if not prompts:
        raise UserError(
            f"No piece in the {split} split of {data} has {context_bars + bars} bars: "
            "choose fewer --context-bars or --bars."
        )
    real, completed = [], []
    for i, piece in enumerate(tqdm(prompts[:samples], "completing", disable=None)):
        whole = codec.first_bars(piece, context_bars + bars)
        decoded = codec.decode(whole.ids, whole.bar_lines)
        real.append(measure(cut_before(decoded, int(bar_ticks(decoded, context_bars)[-1]))))
        count = len(range(i, samples, len(prompts)))
        made = complete(model, codec, piece, context_bars=context_bars, bars=bars, count=count, sampling=sampling)
        completed += [measure(completion.midi_alone()) for completion in made]
    return real, completed
