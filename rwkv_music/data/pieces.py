"""The pieces of a dataset's split as prompts: their tokens, and where their bars are.

The tokens of `midi-llm` do not say how long a bar lasts, and a dataset keeps where each bar begins among them. How late
that is on the tokens' clock is close to where the bar line was: to within a wait.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rwkv_music.data.binidx import BinIdx, idx_path
from rwkv_music.midi.time import DEFAULT_SIGNATURE
from rwkv_music.tokenizers.codec import BarLines, Codec, Piece
from rwkv_music.tokenizers.midi_llm_bars import WAIT_MS
from rwkv_music.tokenizers.vocabulary import read_vocabulary


class Pieces(Sequence[Piece]):
    """One split of a dataset folder, a piece a document, read when it is asked for."""

    def __init__(self, folder: str | os.PathLike, split: str, codec: Codec):
        prefix = Path(folder) / split
        self._codec = codec
        self._tokens = BinIdx(prefix)
        self._bars = BinIdx(f"{prefix}.bars") if idx_path(f"{prefix}.bars").is_file() else None
        self._wait = np.maximum(read_vocabulary(codec).wait, 0)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, i: int) -> Piece:
        ids = np.array(self._tokens[i])
        if self._bars is None:
            return Piece(ids, self._codec.bar_starts(ids))
        starts = np.cumsum(self._bars[i], dtype=np.int64)
        return Piece(ids, starts, self._lines(ids, starts) if self._wait.any() else None)

    def _lines(self, ids: np.ndarray, starts: np.ndarray) -> BarLines:
        clock = np.append(0, np.cumsum(self._wait[ids])) * WAIT_MS
        tokens, first = np.unique(np.append(starts, len(ids)), return_index=True)
        # Bars in which no token begins lie evenly between those around them.
        start_ms = np.interp(np.arange(len(starts) + 1), first, clock[tokens])
        last = start_ms[-2] - start_ms[-3] if len(starts) > 1 else 0.0  # its end is that of the last note, not its own
        start_ms[-1] = max(start_ms[-1], start_ms[-2] + last, start_ms[-2] + WAIT_MS)
        return BarLines(start_ms, np.tile(DEFAULT_SIGNATURE, (len(starts), 1)))
