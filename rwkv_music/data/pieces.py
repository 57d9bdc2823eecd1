"""The pieces of a dataset split, with their tokens and bar positions, for use as prompts.

A dataset stores the index of each bar's first token, because the tokens of some codecs do not mark bars.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rwkv_music.data.binidx import BinIdx, idx_path
from rwkv_music.tokenizers.codec import Codec, Piece


class Pieces(Sequence[Piece]):
    """One split of a dataset folder as a lazily read sequence of pieces, one per document."""

    def __init__(self, folder: str | os.PathLike, split: str, codec: Codec):
        prefix = Path(folder) / split
        self._codec = codec
        self._tokens = BinIdx(prefix)
        self._bars = BinIdx(f"{prefix}.bars") if idx_path(f"{prefix}.bars").is_file() else None

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, i: int) -> Piece:
        ids = np.array(self._tokens[i])
        if self._bars is None:
            return Piece(ids, self._codec.bar_starts(ids))
        starts = np.cumsum(self._bars[i], dtype=np.int64)
        return Piece(ids, starts, self._codec.bar_lines(ids, starts))
