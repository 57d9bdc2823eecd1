"""Musical time: tempo maps (ticks to seconds) and bar grids (ticks to bars).

If the tempo or the time signature changes several times at one tick, the last change counts.
"""

from collections.abc import Iterable

import mido
import numpy as np

from rwkv_music.midi.events import TEMPO, TIME_SIGNATURE, Event, TimedMessage, timed_messages

# The tempo and time signature of a file that sets none (Standard MIDI Files 1.0).
DEFAULT_TEMPO = 500_000  # microseconds per quarter note
DEFAULT_SIGNATURE = (4, 4)
MAX_TEMPO = (1 << 24) - 1  # the slowest tempo that a MIDI file can store, in microseconds per quarter note
FINEST_BEAT = 64  # the largest valid denominator of a time signature


class TempoMap:
    """A conversion from ticks to time.

    `changes` are the tempo changes, (tick, microseconds per quarter note), in any order. The attributes `ticks`, int64
    [changes + 1], and `tempos`, float64 [changes + 1], contain the changes ordered by tick. Their first elements are 0
    and DEFAULT_TEMPO, for the time before the first change.
    """

    def __init__(self, changes: Iterable[tuple[int, float]], ticks_per_quarter: int):
        changes = sorted(changes, key=lambda change: change[0])
        self.ticks = np.array([0, *(tick for tick, _ in changes)], np.int64)
        self.tempos = np.array([DEFAULT_TEMPO, *(tempo for _, tempo in changes)], np.float64)
        self._ticks_per_quarter = ticks_per_quarter

    @classmethod
    def from_midi(cls, midi: mido.MidiFile) -> "TempoMap":
        return cls(((t, m.tempo) for t, m in _messages(midi, "set_tempo")), midi.ticks_per_beat)

    @classmethod
    def from_events(cls, events: list[Event], ticks_per_quarter: int) -> "TempoMap":
        return cls(((tick, a) for tick, kind, _, a, *_ in events if kind == TEMPO), ticks_per_quarter)

    def seconds(self, ticks: np.ndarray) -> np.ndarray:
        """Return the time of each tick [n] in seconds, float64 [n]."""
        return self._elapsed(ticks, 1e6)

    def ms(self, ticks: np.ndarray) -> np.ndarray:
        """Return the time of each tick [n] in milliseconds, float64 [n]."""
        return self._elapsed(ticks, 1e3)

    def durations(self, start: int, end: int) -> np.ndarray:
        """Return how long each tempo lasts between ticks `start` and `end`, in microseconds: float64 [changes + 1]."""
        lengths = np.diff(np.clip(np.append(self.ticks, end), start, end))
        return lengths * self.tempos / self._ticks_per_quarter

    def _elapsed(self, ticks: np.ndarray, us_per_unit: float) -> np.ndarray:
        # Seconds and milliseconds are both computed from ticks: a conversion between them would change the last bits.
        units_per_tick = self.tempos / (us_per_unit * self._ticks_per_quarter)
        elapsed = np.concatenate([[0.0], np.cumsum(np.diff(self.ticks) * units_per_tick[:-1])])
        segment = np.searchsorted(self.ticks, ticks, side="right") - 1
        return elapsed[segment] + (ticks - self.ticks[segment]) * units_per_tick[segment]


class BarGrid:
    """The bars of a piece, numbered from 0. The last time signature continues indefinitely.

    The changes of the time signature are (tick, numerator, denominator), in any order. A change starts a new bar, even
    inside a bar. Time signatures with numerator 0, or with beats shorter than a sixty-fourth note, are ignored.
    """

    def __init__(self, changes: Iterable[tuple[int, int, int]], ticks_per_quarter: int):
        changes = sorted(changes, key=lambda change: change[0])
        signatures = {0: DEFAULT_SIGNATURE} | {tick: (n, d) for tick, n, d in changes if n > 0 and d <= FINEST_BEAT}
        self._ticks = np.array(list(signatures), np.int64)
        self._signatures = np.array(list(signatures.values()), np.int64)
        self._lengths = np.maximum(1, ticks_per_quarter * 4 * self._signatures[:, 0] // self._signatures[:, 1])
        n_bars = -(-np.diff(self._ticks) // self._lengths[:-1])  # the number of bars in each time signature, rounded up
        self._first_bar = np.concatenate([[0], np.cumsum(n_bars)])

    @property
    def changes(self) -> list[tuple[int, int, int]]:
        """The time signatures, (tick, numerator, denominator) each. The first one is at tick 0."""
        return [
            (tick, *signature) for tick, signature in zip(self._ticks.tolist(), self._signatures.tolist(), strict=True)
        ]

    def main_signature(self, start: int, end: int) -> tuple[int, int]:
        """Return the time signature, (numerator, denominator), that lasts longest between ticks `start` and `end`."""
        lengths = np.diff(np.clip(np.append(self._ticks, end), start, end))
        kinds, which = np.unique(self._signatures, axis=0, return_inverse=True)
        numerator, denominator = kinds[np.bincount(which.ravel(), lengths).argmax()].tolist()
        return numerator, denominator

    @classmethod
    def from_midi(cls, midi: mido.MidiFile) -> "BarGrid":
        changes = ((t, m.numerator, m.denominator) for t, m in _messages(midi, "time_signature"))
        return cls(changes, midi.ticks_per_beat)

    @classmethod
    def from_events(cls, events: list[Event], ticks_per_quarter: int) -> "BarGrid":
        return cls(((tick, a, b) for tick, kind, _, a, b, *_ in events if kind == TIME_SIGNATURE), ticks_per_quarter)

    def bar(self, ticks: np.ndarray | int) -> np.ndarray:
        """Return the bar that contains each tick, int64 of the same shape."""
        segment = np.searchsorted(self._ticks, ticks, side="right") - 1
        return self._first_bar[segment] + (ticks - self._ticks[segment]) // self._lengths[segment]

    @property
    def has_upbeat(self) -> bool:
        """Whether the first bar is shorter than the second one. Musicians then number the bars from 0, not from 1."""
        first, second = np.diff(self.lines(2))
        return bool(first < second)

    def lines(self, n_bars: int, first_bar: int = 0) -> np.ndarray:
        """Return the ticks at which bars `first_bar` to `first_bar + n_bars` start, int64 [n_bars + 1]."""
        bars = np.arange(first_bar, first_bar + n_bars + 1)
        segment = np.searchsorted(self._first_bar, bars, side="right") - 1
        return self._ticks[segment] + (bars - self._first_bar[segment]) * self._lengths[segment]

    def signatures(self, n_bars: int, first_bar: int = 0) -> np.ndarray:
        """Return (numerator, denominator) of `n_bars` bars from `first_bar` on, int64 [n_bars, 2]."""
        bars = np.arange(first_bar, first_bar + n_bars)
        return self._signatures[np.searchsorted(self._first_bar, bars, side="right") - 1]


def first_bar_number(grid: BarGrid) -> int:
    """Return the number that musicians give the first bar: 0 for an upbeat, otherwise 1.

    An upbeat is a first bar that is shorter than the second one. A full first bar that begins with rests is bar 1.
    """
    return 0 if grid.has_upbeat else 1


def bar_ticks(midi: mido.MidiFile, n_bars: int) -> np.ndarray:
    """Return the ticks at which bars 0 to `n_bars` of a file start, int64 [n_bars + 1]."""
    return BarGrid.from_midi(midi).lines(n_bars)


def time_messages(lines: np.ndarray, tempos: np.ndarray, signatures: np.ndarray) -> list[TimedMessage]:
    """Return tempo and time signature messages, one at each bar in which the value changes.

    Args:
        lines: int64 [bars], the tick at which each bar starts.
        tempos: int64 [bars], in microseconds per quarter note.
        signatures: int64 [bars, 2], (numerator, denominator).
    """
    messages = []
    last_tempo = last_signature = None
    for tick, tempo, signature in zip(lines.tolist(), tempos.tolist(), signatures.tolist(), strict=True):
        if signature != last_signature:
            numerator, denominator = last_signature = signature
            message = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
            messages.append((tick, message))
        if tempo != last_tempo:
            last_tempo = tempo
            messages.append((tick, mido.MetaMessage("set_tempo", tempo=tempo)))
    return messages


def _messages(midi: mido.MidiFile, kind: str) -> list[TimedMessage]:
    """Return the messages of one type in all tracks."""
    return [timed for track in midi.tracks for timed in timed_messages(track) if timed[1].type == kind]
