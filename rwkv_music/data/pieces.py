"""The pieces of a dataset split as prompts: tokens and bar positions.

`midi-llm` tokens do not state the length of a bar, so a dataset stores the first token of each bar. The time of that
token is the time of the bar line to within one wait.
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
    """One split of a dataset folder as a lazily read sequence of pieces, one per document."""

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
        # Bars without tokens are spaced evenly between their neighbors.
        start_ms = np.interp(np.arange(len(starts) + 1), first, clock[tokens])
        # The tokens end with the last note, which can be before the end of the last bar.
        previous_bar_ms = start_ms[-2] - start_ms[-3] if len(starts) > 1 else 0.0
        start_ms[-1] = max(start_ms[-1], start_ms[-2] + previous_bar_ms, start_ms[-2] + WAIT_MS)
        return BarLines(start_ms, np.tile(DEFAULT_SIGNATURE, (len(starts), 1)))
