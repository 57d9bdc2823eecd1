"""Training tasks: rows of tokens and targets for next-token prediction and completion (for infill, see infill.py).

`NextTokenRows` is next-token prediction. All documents are concatenated and divided into windows of T tokens. In a
pass, every token that has a predecessor in its document is a target exactly once.

`CompletionRows` is the task of `generate`: N bars are the context, and the M bars that follow are the targets. One
window starts at each bar that has enough bars after it. Notable choices:
- A window has the form of a prompt of `generate`. It starts with BOS and the tags of the piece, and sets the tempo and
  the programs that are in force where it starts. With some codecs, the silence before the first note is left out.
- The last target is the token after the last bar, so that the model also learns to end a bar.
- If a window has more tokens than a row, the first bars of its context are left out. A completion that is too long
  even without context is cut at its end.
- A piece of more than N but fewer than N + M bars is one window with a shorter completion. A piece of at most N bars
  has no window.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.augment import Augmenter
from rwkv_music.data.binidx import BinIdx, idx_path
from rwkv_music.errors import UserError, plural
from rwkv_music.tokenizers.codec import Codec


@dataclass(frozen=True)
class Row:
    """The input tokens and the targets of one window, or of several windows one after another."""

    input_ids: np.ndarray  # int64 [n]
    targets: np.ndarray  # int64 [n]
    starts: np.ndarray  # int64, the indices at which documents start, ascending from 0


def joined(rows: list[Row]) -> Row:
    """Return one row, the concatenation of `rows`."""
    offsets = np.cumsum([0] + [len(row.input_ids) for row in rows[:-1]])
    return Row(
        np.concatenate([row.input_ids for row in rows]),
        np.concatenate([row.targets for row in rows]),
        np.concatenate([offset + row.starts for offset, row in zip(offsets, rows, strict=True)]),
    )


def next_token_row(tokens: np.ndarray, new_starts: np.ndarray, ctx_len: int) -> Row:
    """Return a row for next-token prediction.

    `tokens`, int64 [n], are the tokens of the window and the next token, if there is one. `new_starts`, int64, are the
    indices at which documents start, ascending, without index 0.
    """
    targets = tokens[1:].copy()
    targets[new_starts - 1] = IGNORE_INDEX
    input_ids = tokens[:ctx_len]
    if len(targets) < len(input_ids):  # the last token of the split has no target
        targets = np.append(targets, IGNORE_INDEX)
    return Row(input_ids, targets, np.concatenate([[0], new_starts[new_starts < len(input_ids)]]))


class NextTokenRows:
    """All documents, one after another, divided into windows of `ctx_len` tokens. The last window can be shorter."""

    def __init__(self, tokens: BinIdx, ctx_len: int, augmenter: Augmenter | None = None):
        self._tokens, self._ctx_len, self._augmenter = tokens, ctx_len, augmenter
        self.n_windows = -(-(tokens.n_tokens - 1) // ctx_len)  # in a pass
        self.validation_step = 1
        self.n_targets = tokens.n_tokens - len(tokens)  # in a pass

    def row(self, window: int, sample: int) -> Row:
        """Return window number `window`, augmented for sample number `sample`."""
        start = window * self._ctx_len
        stop = min(start + self._ctx_len + 1, self._tokens.n_tokens)  # one more token: the last target
        tokens = self._tokens.tokens(start, stop).astype(np.int64)
        offsets = self._tokens.offsets
        first, last = np.searchsorted(offsets, [start + 1, stop])
        new_starts = offsets[first:last] - start
        if self._augmenter is not None:
            document = int(np.searchsorted(offsets, start, side="right")) - 1
            before = self._tokens.tokens(int(offsets[document]), start)
            tokens = np.concatenate(self._augmenter.vary(np.split(tokens, new_starts), sample, before))
        return next_token_row(tokens, new_starts, self._ctx_len)


def open_bars(folder: str | os.PathLike, split: str, tokens: BinIdx) -> BinIdx:
    """Open the bar positions of a split.

    The cumulative sums of a document's values are the indices of the first token of each bar. Raises UserError if the
    dataset has no bar positions.
    """
    prefix = Path(folder) / f"{split}.bars"
    if not idx_path(prefix).is_file():
        raise UserError(
            f"{folder} has no bar positions (no {prefix.name}.idx): prepare the data again, or train with "
            "--task pretrain."
        )
    bars = BinIdx(prefix)
    if len(bars) != len(tokens):
        raise UserError(f"{prefix}.idx does not match {split}.idx: prepare the data again.")
    return bars


class CompletionRows:
    """Windows of `context_bars` bars of context and `completion_bars` bars of targets, ordered by document and bar.

    Memory grows with the number of documents, not with the number of windows. Raises UserError if the dataset has no
    bar positions, or if no piece has more bars than the context.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        tokens: BinIdx,
        codec: Codec,
        ctx_len: int,
        context_bars: int,
        completion_bars: int,
        augmenter: Augmenter | None = None,
    ):
        self._bars = open_bars(folder, split, tokens)
        self._tokens, self._codec, self._ctx_len, self._augmenter = tokens, codec, ctx_len, augmenter
        self._context_bars, self._completion_bars = context_bars, completion_bars
        self.validation_step = completion_bars  # validate on every n-th window, so that most bars are predicted once
        n_bars = np.diff(self._bars.offsets)
        slides = np.maximum(n_bars - context_bars - completion_bars + 1, n_bars > context_bars)
        self._first_window = np.concatenate([[0], np.cumsum(slides)])
        self.n_windows = int(self._first_window[-1])  # in a pass
        if not self.n_windows:
            raise UserError(
                f"No piece in the {split} split of {folder} has more than {plural(context_bars, 'bar')}: "
                "choose fewer --context_bars, or prepare longer pieces."
            )

    def row(self, window: int, sample: int, room: int | None = None) -> Row | None:
        """Return window number `window`, augmented for sample number `sample`.

        If `room` is given, return None if the window has more than `room` tokens.
        """
        document = int(np.searchsorted(self._first_window, window, side="right")) - 1
        ids = self._tokens[document].astype(np.int64)
        starts = np.append(np.cumsum(self._bars[document], dtype=np.int64), len(ids))
        bar = window - int(self._first_window[document])
        split = min(bar + self._context_bars, len(starts) - 2)
        stop = min(split + self._completion_bars, len(starts) - 1)
        end = min(int(starts[stop]) + 1, len(ids))
        while True:
            opening, rest = self._codec.excerpt(ids, *starts[[bar, split, stop]].tolist())
            tokens = np.concatenate([opening, rest, ids[starts[stop] : end]])
            if len(tokens) <= self._ctx_len + 1 or bar == split:
                break
            bar += 1
        if room is not None and len(tokens) > room + 1:
            return None
        tokens = tokens[: self._ctx_len + 1]
        if self._augmenter is not None:
            [tokens] = self._augmenter.vary([tokens], sample)
        targets = tokens[1:].copy()
        targets[: max(len(opening) - 1, 0)] = IGNORE_INDEX
        return Row(tokens[:-1], targets, np.zeros(1, np.int64))
