"""Bar lines for tokens that know only time: from a file's ticks to the tokens' clock, and back to a file's ticks."""

from math import ceil

import numpy as np

from rwkv_music.midi.time import DEFAULT_SIGNATURE, DEFAULT_TEMPO, MAX_TEMPO, TempoMap
from rwkv_music.tokenizers.codec import BarLines

WAIT_MS = 8  # the unit of the tokens' clock
WAITS = 125  # of them, in one token at most
LONGEST_WAIT_MS = WAITS * WAIT_MS
LONGEST_WAITS = 10  # of the longest waits, between two keys
SLACK = 0.05  # waits by which a line may miss the end of one, since ticks are whole
TICKS_PER_QUARTER = 9600  # 0.05 ms at 120 beats a minute
STEADY_BAR_MS = 4 * DEFAULT_TEMPO / 1000  # of the default signature, 4/4


class Moments:
    """The moments of a piece, each one a row of keys after its waits."""

    def __init__(self) -> None:
        self.first_ticks: list[int] = []  # of its keys, before they were rounded to one moment
        self.last_ticks: list[int] = []
        self.waits_at: list[int] = []  # the index of its first token
        self.keys_at: list[int] = []  # the index of its first key
        self.clocks: list[int] = []  # in waits of 8 ms

    def begin(self, tick: int, waits_at: int, waits: list[int]) -> None:
        self.first_ticks.append(tick)
        self.waits_at.append(waits_at)
        self.keys_at.append(waits_at + len(waits))
        self.clocks.append(self.clocks[-1] + sum(waits) if self.clocks else 0)


def place_bars(lines: np.ndarray, moments: Moments, tempo_map: TempoMap) -> tuple[np.ndarray, np.ndarray]:
    """Bar lines among tokens: (the index of each bar's first token, [bars], each line's time, [bars + 1]).

    A line falls between two moments as far on the tokens' clock as it does in the file, where time is neither rounded
    nor cut short. The bars before the first moment are dropped, so there may be fewer than of `lines`.

    Args:
        lines: int64 [n + 1], the ticks of bar lines, the first at 0 and all but the last one before the last key.
    """
    first_ticks, last_ticks = np.array(moments.first_ticks), np.array(moments.last_ticks)
    clocks, waits_at, keys_at = np.array(moments.clocks), np.array(moments.waits_at), np.array(moments.keys_at)
    lines = lines[np.searchsorted(lines[:-1], first_ticks[0], side="right") - 1 :]
    line_ms = tempo_map.ms(lines)
    inner = lines[1:-1]
    after = np.searchsorted(last_ticks, inner)  # the first moment with a key at the line or after it
    before = np.maximum(after - 1, 0)
    gap_start, gap_end = tempo_map.ms(last_ticks[before]), tempo_map.ms(first_ticks[after])
    passed = (line_ms[1:-1] - gap_start) / np.maximum(gap_end - gap_start, 1e-9)
    inside = first_ticks[after] <= inner
    clock = np.where(inside, clocks[after], clocks[before] + passed * (clocks[after] - clocks[before]))
    waits = np.ceil((clock - clocks[before] - SLACK) / WAITS).astype(np.int64)
    starts = np.where(inside, keys_at[after], np.minimum(waits_at[after] + waits, keys_at[after]))
    start_ms = np.concatenate([[line_ms[0] - tempo_map.ms(first_ticks[:1])[0]], clock * WAIT_MS, [0.0]])
    start_ms[-1] = start_ms[-2] + (line_ms[-1] - line_ms[-2])
    return np.concatenate([[1], starts]).astype(np.int64), start_ms


def tick_map(bar_lines: BarLines | None, end_ms: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bars in milliseconds and in ticks, up to `end_ms`: (line_ms, line_ticks [n + 1], tempos [n], signatures [n, 2]).

    Tempos are in whole microseconds a quarter note. Bars that no tempo can make so short or so long give way to the
    steady ones that are used where none are known.
    """
    if bar_lines is not None:
        start_ms, signatures = bar_lines.start_ms, bar_lines.signatures
        last_ms = start_ms[-1] - start_ms[-2]
        quarters = 4 * signatures[:, 0] / signatures[:, 1]
        tempos = np.diff(start_ms) * 1000 / quarters
        if (tempos < 1).any() or (tempos > MAX_TEMPO).any():
            bar_lines = None
    if bar_lines is None:
        start_ms, signatures, last_ms = np.array([0.0, STEADY_BAR_MS]), np.array([DEFAULT_SIGNATURE]), STEADY_BAR_MS
    more = max(0, ceil((end_ms - start_ms[-1]) / last_ms))
    line_ms = np.concatenate([start_ms, start_ms[-1] + last_ms * np.arange(1, more + 1)])
    signatures = np.concatenate([signatures, np.repeat(signatures[-1:], more, axis=0)])
    ticks = TICKS_PER_QUARTER * 4 * signatures[:, 0] // signatures[:, 1]
    tempos = np.rint(np.diff(line_ms) * 1000 * TICKS_PER_QUARTER / ticks).astype(np.int64)
    return line_ms, np.concatenate([[0], np.cumsum(ticks)]), tempos, signatures
