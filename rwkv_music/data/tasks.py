"""What a model is asked about a piece: the two ways in which a split becomes rows of tokens and targets.

`Stream` is plain next-token prediction. All documents form one stream, cut into windows of T tokens at stride T: in a
pass every token that has a predecessor in its own document is a target exactly once.

`Completions` is what `generate` asks: N bars are given, M bars are to follow, and the loss counts on those alone. The
windows slide by one bar through every piece. Notable choices:
- A window in the middle of a piece begins as a piece does: with BOS, and with the tempo and the program in force where
  its tokens do not name them; silence before its first key is left out. So it looks like what a prompt becomes.
- The last target is the token after the last bar, so that ending a bar is learnt too.
- Where a window has more tokens than a row, its context loses whole bars from its beginning; a completion that is too
  long even without them is cut at its end.
- A piece of more than N but fewer than N + M bars is one window with a shorter completion; one of N or fewer is none.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.augment import Augmenter
from rwkv_music.data.binidx import BinIdx, idx_path
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.vocabulary import NONE, read_vocabulary


@dataclass(frozen=True)
class Row:
    """Tokens of one window: input_ids and targets int64 [n]; `starts`, where documents begin in them, 0 first."""

    input_ids: np.ndarray
    targets: np.ndarray
    starts: np.ndarray


def next_token_row(tokens: np.ndarray, begun: np.ndarray, ctx_len: int) -> Row:
    """A row of the next tokens of a window.

    Args:
        tokens: int64 [n]: of the window and the one after it, or up to the last of all.
        begun: where documents begin in them after the first token, rising.
    """
    targets = tokens[1:].copy()
    targets[begun - 1] = IGNORE_INDEX
    input_ids = tokens[:ctx_len]
    if len(targets) < len(input_ids):  # the last token of all predicts nothing
        targets = np.append(targets, IGNORE_INDEX)
    return Row(input_ids, targets, np.concatenate([[0], begun[begun < len(input_ids)]]))


class Stream:
    """Windows of T tokens over all documents, the last one perhaps shorter.

    Attributes:
        n_windows: of a pass.
        n_targets: of a pass.
    """

    def __init__(self, tokens: BinIdx, ctx_len: int, augmenter: Augmenter | None = None):
        self._tokens, self._ctx_len, self._augmenter = tokens, ctx_len, augmenter
        self.n_windows = -(-(tokens.n_tokens - 1) // ctx_len)
        self.n_targets = tokens.n_tokens - len(tokens)

    def row(self, window: int, sample: int) -> Row:
        """Window number `window`, varied as sample number `sample` is."""
        start = window * self._ctx_len
        stop = min(start + self._ctx_len + 1, self._tokens.n_tokens)  # the target after the last token too
        tokens = self._tokens.tokens(start, stop).astype(np.int64)
        offsets = self._tokens.offsets
        first, last = np.searchsorted(offsets, [start + 1, stop])
        begun = offsets[first:last] - start  # documents that begin after the first token
        if self._augmenter is not None:
            document = int(np.searchsorted(offsets, start, side="right")) - 1
            before = self._tokens.tokens(int(offsets[document]), start)
            programs = [self._augmenter.program_after(before)] + [NONE] * len(begun)
            tokens = np.concatenate(self._augmenter.vary(np.split(tokens, begun), programs, sample))
        return next_token_row(tokens, begun, self._ctx_len)


class Completions:
    """Windows of `context_bars` and `completion_bars` bars, by document and first bar.

    What is held grows with the documents and not with the windows.

    Attributes:
        n_windows: of a pass.

    Raises:
        UserError: the dataset does not say where bars begin, or no piece has more bars than the context.
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
        prefix = Path(folder) / f"{split}.bars"
        if not idx_path(prefix).is_file():
            raise UserError(
                f"{folder} does not say where its bars begin (no {prefix.name}.idx): prepare the data again, "
                "or train with --task pretrain."
            )
        self._bars = BinIdx(prefix)
        if len(self._bars) != len(tokens):
            raise UserError(f"{prefix}.idx belongs to other tokens than {split}.idx: prepare the data again.")
        self._tokens, self._codec, self._ctx_len, self._augmenter = tokens, codec, ctx_len, augmenter
        self._context_bars, self._completion_bars = context_bars, completion_bars
        vocabulary = read_vocabulary(codec)
        self._is_onset = vocabulary.is_onset
        self._is = {kind: vocabulary.kinds == kind for kind in ("Position", "Tempo", "Program")}
        self._knows_time = bool((vocabulary.kinds == "Wait").any())
        n_bars = np.diff(self._bars.offsets)
        slides = np.maximum(n_bars - context_bars - completion_bars + 1, n_bars > context_bars)
        self._first_window = np.concatenate([[0], np.cumsum(slides)])
        self.n_windows = int(self._first_window[-1])
        if not self.n_windows:
            raise UserError(
                f"No piece in the {split} split of {folder} has more than {context_bars} bars: "
                "choose fewer --context_bars, or prepare it from longer pieces."
            )

    def row(self, window: int, sample: int) -> Row:
        """Window number `window`, varied as sample number `sample` is."""
        document = int(np.searchsorted(self._first_window, window, side="right")) - 1
        ids = self._tokens[document].astype(np.int64)
        starts = np.append(np.cumsum(self._bars[document], dtype=np.int64), len(ids))
        bar = window - int(self._first_window[document])
        split = min(bar + self._context_bars, len(starts) - 2)
        stop = min(split + self._completion_bars, len(starts) - 1)
        end = min(int(starts[stop]) + 1, len(ids))
        while True:
            opening = self._opening(ids, int(starts[bar]), int(starts[split]))
            room = self._ctx_len + 1 - len(opening) - (end - int(starts[split]))
            if room >= 0 or bar == split:
                break
            bar += 1
        tokens = np.concatenate([opening, ids[starts[split] : end]])[: self._ctx_len + 1]
        if self._augmenter is not None:
            [tokens] = self._augmenter.vary([tokens], [NONE], sample)
        targets = tokens[1:].copy()
        targets[: max(len(opening) - 1, 0)] = IGNORE_INDEX
        return Row(tokens[:-1], targets, np.zeros(1, np.int64))

    def _opening(self, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The context ids[start:stop] as the beginning of a piece."""
        before, context = ids[:start], ids[start:stop]
        if not self._is_onset[before].any():
            return ids[:stop]
        if self._knows_time:
            onsets = np.flatnonzero(self._is_onset[context])
            context = context[onsets[0] if len(onsets) else len(context) :]
        places = np.flatnonzero(self._is["Position"][context])
        if len(places):
            at = int(places[0]) + 1
            for kind in ("Tempo", "Program"):
                if at < len(context) and self._is[kind][context[at]]:
                    at += 1
                    continue
                in_force = before[self._is[kind][before]][-1:]
                context = np.concatenate([context[:at], in_force, context[at:]])
                at += len(in_force)
        return np.concatenate([[self._codec.bos_id], context])
