"""Six standard measures of symbolic music, to compare generated pieces with real ones.

    pitch-class entropy   bits, 0 to 3.58: how evenly the twelve pitch classes are used
    scale consistency     0 to 1: the largest fraction of notes in one major or natural minor scale
    groove consistency    0 to 1: how similar the onset patterns of consecutive bars are
    note density          notes per second
    polyphony             mean number of notes that sound at once, ignoring silence
    pitch range           semitones from the lowest note to the highest

Drums count only for groove consistency and note density. A measure is NaN if the piece has too few notes for it.

Source: the definitions of MusPy (Dong et al. 2020, arXiv 2008.01951) for all but density; pitch-class entropy and
grooving similarity are from Wu and Yang, "The Jazz Transformer on the Front Line" (2020, arXiv 2008.01307).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import mido
import numpy as np

from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import BarGrid

STEPS_PER_BAR = 48  # resolution of onset patterns: represents sixteenths and triplets in 4/4
MAJOR = (0, 2, 4, 5, 7, 9, 11)  # the relative natural minor scale has the same pitch classes


@dataclass(frozen=True)
class Measures:
    """The measures of one piece, described in the module docstring."""

    pitch_class_entropy: float
    scale_consistency: float
    groove_consistency: float
    note_density: float
    polyphony: float
    pitch_range: float


def measure(midi: mido.MidiFile) -> Measures:
    """Compute the measures of a piece. Note density counts the whole length of the file."""
    notes = read_notes(midi)
    pitched = notes.program != DRUMS
    pitch = notes.pitch[pitched]
    bars = BarGrid.from_midi(midi)
    lines = bars.lines(int(bars.bar(notes.start_tick[-1])) + 1 if len(notes) else 0)
    return Measures(
        pitch_class_entropy=pitch_class_entropy(pitch),
        scale_consistency=scale_consistency(pitch),
        groove_consistency=groove_consistency(notes.start_tick, lines),
        note_density=len(notes) / midi.length if midi.length > 0 else float("nan"),
        polyphony=polyphony(notes.start[pitched], notes.end[pitched]),
        pitch_range=float(np.ptp(pitch)) if len(pitch) else float("nan"),
    )


def mean_and_deviation(pieces: Sequence[Measures]) -> tuple[Measures, Measures]:
    """Return the mean and standard deviation of each measure, ignoring NaN; NaN if no piece has the measure."""
    table = np.array([astuple(piece) for piece in pieces], float)
    known = ~np.isnan(table)
    n = np.where(known.any(0), known.sum(0), np.nan)
    mean = np.where(known, table, 0).sum(0) / n
    deviation = np.sqrt(np.where(known, (table - mean) ** 2, 0).sum(0) / n)
    return Measures(*mean.tolist()), Measures(*deviation.tolist())


def compared(names: Sequence[str], groups: Sequence[Sequence[Measures]]) -> str:
    """Return a table of mean and standard deviation, with a row per measure and a column per group of pieces."""
    columns = [mean_and_deviation(group) for group in groups]
    lines = [f"{'':<21}" + "".join(f"{name:>18}" for name in names)]
    for field in fields(Measures):
        cells = (f"{getattr(mean, field.name):.2f} +- {getattr(spread, field.name):.2f}" for mean, spread in columns)
        lines.append(f"{field.name.replace('_', ' '):<21}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def pitch_class_entropy(pitch: np.ndarray) -> float:
    """Return -sum p log2 p over the pitch classes of `pitch`, int64 [n]."""
    if not len(pitch):
        return float("nan")
    p = np.bincount(pitch % 12, minlength=12) / len(pitch)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum() + 0.0)


def scale_consistency(pitch: np.ndarray) -> float:
    """Return the largest fraction of the notes `pitch`, int64 [n], that lie in one major or natural minor scale."""
    if not len(pitch):
        return float("nan")
    counts = np.bincount(pitch % 12, minlength=12)
    return float(max(counts[[(root + step) % 12 for step in MAJOR]].sum() for root in range(12)) / len(pitch))


def groove_consistency(onset_ticks: np.ndarray, line_ticks: np.ndarray) -> float:
    """Return 1 minus the mean Hamming distance per step between the onset patterns of consecutive bars.

    `onset_ticks` is int64 [n]; `line_ticks` int64 [bars + 1] holds the start of each bar and the end of the last one.
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
    """Return the mean number of notes that sound at once while any does, from their start and end times [n]."""
    if not len(start):
        return float("nan")
    times = np.concatenate([start, end])
    changes = np.concatenate([np.ones_like(start), -np.ones_like(end)])
    order = np.lexsort((changes, times))
    sounding = np.cumsum(changes[order])[:-1]
    duration = np.diff(times[order])
    total = duration[sounding > 0].sum()
    return float((sounding * duration).sum() / total) if total > 0 else float("nan")
