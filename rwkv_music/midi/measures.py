"""What a piece is like, in six figures: the standard measures of symbolic music, for samples beside real music.

    pitch-class entropy   bits, 0 to 3.58: how evenly the twelve pitch classes are used
    scale consistency     0 to 1: the share of notes in the major or minor scale that holds most of them
    groove consistency    0 to 1: how alike the onset patterns of neighbouring bars are
    note density          notes a second
    polyphony             pitches that sound at once, on average while any does
    pitch range           semitones from the lowest note to the highest

Drums have no pitch and count for groove and density alone. A measure that a piece has too few notes for is NaN.

Source: the definitions of MusPy (Dong et al. 2020, arXiv 2008.01951) for all but density; pitch-class entropy and
grooving similarity are from Wu and Yang, "The Jazz Transformer on the Front Line" (2020, arXiv 2008.01307).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import mido
import numpy as np

from rwkv_music.midi.piano_roll import Notes, bar_ticks, read_notes

STEPS_PER_BAR = 48  # of the onset patterns: sixteenths and triplets of 4/4
MAJOR = (0, 2, 4, 5, 7, 9, 11)  # and, from its sixth degree, natural minor: the same seven pitch classes


@dataclass(frozen=True)
class Measures:
    """See the module."""

    pitch_class_entropy: float
    scale_consistency: float
    groove_consistency: float
    note_density: float
    polyphony: float
    pitch_range: float


def measure(midi: mido.MidiFile) -> Measures:
    """The measures of a piece, as long as its file is."""
    notes = read_notes(midi)
    melodic = np.array([name != "drums" for name in notes.voice_names], bool)
    pitched = melodic[notes.voice] if len(notes) else np.zeros(0, bool)
    pitch = notes.pitch[pitched]
    return Measures(
        pitch_class_entropy=pitch_class_entropy(pitch),
        scale_consistency=scale_consistency(pitch),
        groove_consistency=groove_consistency(notes.start_tick, _lines(midi, notes)),
        note_density=len(notes) / midi.length if midi.length > 0 else float("nan"),
        polyphony=polyphony(notes.start[pitched], notes.end[pitched]),
        pitch_range=float(np.ptp(pitch)) if len(pitch) else float("nan"),
    )


def mean_and_deviation(pieces: Sequence[Measures]) -> tuple[Measures, Measures]:
    """Over pieces, those without a measure left out of it; NaN where all are."""
    table = np.array([astuple(piece) for piece in pieces], float)
    known = ~np.isnan(table)
    n = np.where(known.any(0), known.sum(0), np.nan)
    mean = np.where(known, table, 0).sum(0) / n
    deviation = np.sqrt(np.where(known, (table - mean) ** 2, 0).sum(0) / n)
    return Measures(*mean.tolist()), Measures(*deviation.tolist())


def compared(names: Sequence[str], groups: Sequence[Sequence[Measures]]) -> str:
    """Mean and deviation of each group of pieces, as a table: a line a measure, a column a group."""
    columns = [mean_and_deviation(group) for group in groups]
    lines = [f"{'':<21}" + "".join(f"{name:>18}" for name in names)]
    for field in fields(Measures):
        cells = (f"{getattr(mean, field.name):.2f} +- {getattr(spread, field.name):.2f}" for mean, spread in columns)
        lines.append(f"{field.name.replace('_', ' '):<21}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def pitch_class_entropy(pitch: np.ndarray) -> float:
    """-sum p log2 p over the pitch classes of int64 [n]."""
    if not len(pitch):
        return float("nan")
    p = np.bincount(pitch % 12, minlength=12) / len(pitch)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum() + 0.0)


def scale_consistency(pitch: np.ndarray) -> float:
    """The largest share of the notes int64 [n] that one major or natural minor scale holds."""
    if not len(pitch):
        return float("nan")
    counts = np.bincount(pitch % 12, minlength=12)
    return float(max(counts[[(root + step) % 12 for step in MAJOR]].sum() for root in range(12)) / len(pitch))


def groove_consistency(onset_ticks: np.ndarray, line_ticks: np.ndarray) -> float:
    """1 less the mean Hamming distance, a step, of neighbouring bars' onset patterns.

    Args:
        onset_ticks: int64 [n].
        line_ticks: int64 [bars + 1], where bars begin and the last one ends.
    """
    n_bars = len(line_ticks) - 1
    if n_bars < 2:
        return float("nan")
    bar = np.searchsorted(line_ticks, onset_ticks, side="right") - 1
    inside = (bar >= 0) & (bar < n_bars)
    bar, onset_ticks = bar[inside], onset_ticks[inside]
    step = (onset_ticks - line_ticks[bar]) * STEPS_PER_BAR // np.diff(line_ticks)[bar]
    patterns = np.zeros((n_bars, STEPS_PER_BAR), bool)
    patterns[bar, step] = True
    return float(1 - (patterns[1:] != patterns[:-1]).mean())


def polyphony(start: np.ndarray, end: np.ndarray) -> float:
    """How many of the notes [n], from start to end, sound at once, averaged over the time in which any does."""
    if not len(start):
        return float("nan")
    times = np.concatenate([start, end])
    changes = np.concatenate([np.ones_like(start), -np.ones_like(end)])
    order = np.lexsort((changes, times))
    sounding = np.cumsum(changes[order])[:-1]
    lasting = np.diff(times[order])
    heard = lasting[sounding > 0].sum()
    return float((sounding * lasting).sum() / heard) if heard > 0 else float("nan")


def _lines(midi: mido.MidiFile, notes: Notes) -> np.ndarray:
    """Bar lines up to the end of the bar in which the last note begins."""
    if not len(notes):
        return np.zeros(1, np.int64)
    n_bars = 64
    while (lines := bar_ticks(midi, n_bars))[-1] <= notes.start_tick[-1]:
        n_bars *= 2
    return lines[: np.searchsorted(lines, notes.start_tick[-1], side="right") + 1]
