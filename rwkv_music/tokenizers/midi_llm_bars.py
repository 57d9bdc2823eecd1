"""Bar lines of `midi-llm` tokens: conversion from ticks to the tokens' clock and back.

The clock of a token is the sum of the waits before it.
"""

from math import ceil

import numpy as np

from rwkv_music.midi.time import DEFAULT_SIGNATURE, DEFAULT_TEMPO, MAX_TEMPO, TempoMap
from rwkv_music.tokenizers.codec import BarLines

WAIT_MS = 8  # the unit of the tokens' clock
WAIT_LEVELS = 125  # the longest wait of one token, in units
MAX_WAIT_MS = WAIT_LEVELS * WAIT_MS
MAX_WAITS = 10  # the maximum number of consecutive longest waits
# A tolerance in units of 8 ms. Rounding to ticks can move a bar line slightly past the end of a wait. If it is at most
# this far past the end, it is treated as being at the end.
SLACK = 0.05
TICKS_PER_QUARTER = 9600  # of decoded files; a tick is 0.05 ms at 120 quarter notes per minute
DEFAULT_BAR_MS = 4 * DEFAULT_TEMPO / 1000  # a bar of the default time signature, 4/4


class Moments:
    """The moments of a piece. A moment consists of waits and the simultaneous note tokens that follow them.

    The first moment has no waits.
    """

    def __init__(self) -> None:
        self.first_ticks: list[int] = []  # the tick of the first note token in each moment
        self.last_ticks: list[int] = []  # the tick of the last note token; later if waits that round to 0 precede it
        self.waits_at: list[int] = []  # the index of the first token, a wait in all moments but the first
        self.notes_at: list[int] = []  # the index of the first note token
        self.clocks: list[int] = []  # the clock at the note tokens, in units of 8 ms

    def begin(self, tick: int, waits_at: int, waits: list[int]) -> None:
        self.first_ticks.append(tick)
        self.waits_at.append(waits_at)
        self.notes_at.append(waits_at + len(waits))
        self.clocks.append(self.clocks[-1] + sum(waits) if self.clocks else 0)


def place_bars(lines: np.ndarray, moments: Moments, tempo_map: TempoMap) -> tuple[np.ndarray, np.ndarray]:
    """Convert bar lines from ticks to token indices and to the tokens' clock.

    The tokens' clock rounds waits and cuts long silences. A bar line between two moments keeps its relative position:
    it divides the time between them in the same ratio in the file and on the clock.

    `lines`, int64 [n + 1], are the ticks of the bar lines. The first is 0, and only the last is after the last note-on.
    Return the index of each bar's first token, int64 [bars], and the time of each bar line in milliseconds, float64
    [bars + 1]. Bars that end before the first moment are dropped, so that bars <= n.
    """
    first_ticks, last_ticks = np.array(moments.first_ticks), np.array(moments.last_ticks)
    clocks, waits_at, notes_at = np.array(moments.clocks), np.array(moments.waits_at), np.array(moments.notes_at)
    lines = lines[np.searchsorted(lines[:-1], first_ticks[0], side="right") - 1 :]
    line_ms = tempo_map.ms(lines)
    inner = lines[1:-1]
    after = np.searchsorted(last_ticks, inner)  # the first moment that ends at or after the line
    before = np.maximum(after - 1, 0)
    gap_start, gap_end = tempo_map.ms(last_ticks[before]), tempo_map.ms(first_ticks[after])
    passed = (line_ms[1:-1] - gap_start) / np.maximum(gap_end - gap_start, 1e-9)
    inside = first_ticks[after] <= inner
    clock = np.where(inside, clocks[after], clocks[before] + passed * (clocks[after] - clocks[before]))
    waits = np.ceil((clock - clocks[before] - SLACK) / WAIT_LEVELS).astype(np.int64)
    starts = np.where(inside, notes_at[after], np.minimum(waits_at[after] + waits, notes_at[after]))
    start_ms = np.concatenate([[line_ms[0] - tempo_map.ms(first_ticks[:1])[0]], clock * WAIT_MS, [0.0]])
    start_ms[-1] = start_ms[-2] + (line_ms[-1] - line_ms[-2])
    return np.concatenate([[1], starts]).astype(np.int64), start_ms


def tick_map(bar_lines: BarLines | None, end_ms: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the n bars of a decoded file up to `end_ms`.

    Bars have the default length if `bar_lines` is None or has bars that no MIDI tempo can represent. Return the time of
    each bar line in milliseconds, float64 [n + 1], the tick of each bar line, int64 [n + 1], the tempo of each bar in
    microseconds per quarter note, int64 [n], and the time signature of each bar, int64 [n, 2].
    """
    if bar_lines is not None:
        start_ms, signatures = bar_lines.start_ms, bar_lines.signatures
        last_ms = start_ms[-1] - start_ms[-2]
        quarters = 4 * signatures[:, 0] / signatures[:, 1]
        tempos = np.diff(start_ms) * 1000 / quarters
        if (tempos < 1).any() or (tempos > MAX_TEMPO).any():
            bar_lines = None
    if bar_lines is None:
        start_ms, signatures, last_ms = np.array([0.0, DEFAULT_BAR_MS]), np.array([DEFAULT_SIGNATURE]), DEFAULT_BAR_MS
    more = max(0, ceil((end_ms - start_ms[-1]) / last_ms))
    line_ms = np.concatenate([start_ms, start_ms[-1] + last_ms * np.arange(1, more + 1)])
    signatures = np.concatenate([signatures, np.repeat(signatures[-1:], more, axis=0)])
    ticks = TICKS_PER_QUARTER * 4 * signatures[:, 0] // signatures[:, 1]
    tempos = np.rint(np.diff(line_ms) * 1000 * TICKS_PER_QUARTER / ticks).astype(np.int64)
    return line_ms, np.concatenate([[0], np.cumsum(ticks)]), tempos, signatures
