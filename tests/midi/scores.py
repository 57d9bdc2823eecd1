"""Helpers that build the scores of tests."""

from collections.abc import Iterable

import numpy as np

from rwkv_music.midi.score import NOTE, Score, in_order

Row = tuple[float, float, int] | tuple[float, float, int, int]


def notes_of(rows: Iterable[Row], drums: bool = False) -> np.ndarray:
    """Return NOTE [n] of (start, length, pitch) or (start, length, pitch, part) each, in quarter notes."""
    rows = [(start, start + length, pitch, *part, *[0] * (not part), drums) for start, length, pitch, *part in rows]
    return in_order(np.array(rows, NOTE))


def score_of(rows: Iterable[Row], n_bars: int, drums: bool = False) -> Score:
    """Return a score with bars of four quarter notes."""
    return Score(notes_of(rows, drums), np.arange(n_bars + 1) * 4.0)
