"""Six standard measures of symbolic music, to compare generated pieces with real ones.

    pitch-class entropy   how evenly the twelve pitch classes are used, 0 to 3.58 bits
    scale consistency     the largest fraction of notes in one major or natural minor scale, 0 to 1
    groove consistency    how similar the onset patterns of consecutive bars are, 0 to 1
    note density          notes per second
    polyphony             mean number of notes that sound at once; silence is left out, and time is in quarter notes
    pitch range           semitones from the lowest note to the highest

Drums count only for groove consistency and note density. A measure is NaN if the piece has too few notes for it.

Sources: all definitions except that of density are those of MusPy (Dong et al. 2020, arXiv 2008.01951). Unlike in
MusPy, each note of a unison counts for polyphony. Pitch-class entropy and groove consistency are originally from Wu and
Yang, "The Jazz Transformer on the Front Line" (2020, arXiv 2008.01307).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TypeVar

import mido
import numpy as np

from rwkv_music.midi.score import ROUNDING, read_score

STEPS_PER_BAR = 48  # resolution of onset patterns, enough for sixteenths and triplets in 4/4
M = TypeVar("M")  # Measures or FillMeasures
MAJOR = (0, 2, 4, 5, 7, 9, 11)  # the relative natural minor scale has the same pitch classes
MAJOR_KEYS = ("C", "D♭", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")
MINOR_KEYS = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "G♯", "A", "B♭", "B")


def _key_profiles() -> np.ndarray:
    """Return how well each pitch class fits the twelve major and the twelve minor keys, float64 [24, 12].

    Each row has mean 0 and norm 1, so the products of the rows and a vector of counts rank the keys by correlation.
    """
    major = [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]
    minor = [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]
    rows = np.stack([np.roll(profile, key) for profile in (major, minor) for key in range(12)])
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


KEY_PROFILES = _key_profiles()


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
    """Compute the measures of a piece. Note density is the number of notes divided by the length of the whole file."""
    score = read_score(midi)
    notes = score.notes[~score.notes["drums"]]
    pitch = notes["pitch"]
    return Measures(
        pitch_class_entropy=pitch_class_entropy(pitch),
        scale_consistency=scale_consistency(pitch),
        groove_consistency=groove_consistency(score.notes["start"], score.lines),
        note_density=len(score.notes) / midi.length if midi.length > 0 else float("nan"),
        polyphony=polyphony(notes["start"], notes["end"]),
        pitch_range=float(np.ptp(pitch)) if len(pitch) else float("nan"),
    )


def mean_and_deviation(pieces: Sequence[M]) -> tuple[M, M]:
    """Return the mean and standard deviation of each measure, ignoring NaN; NaN if no piece has the measure.

    `pieces` is not empty. Its elements are all Measures, or all of another dataclass of floats such as FillMeasures.
    """
    table = np.array([astuple(piece) for piece in pieces], float)
    known = ~np.isnan(table)
    n = np.where(known.any(0), known.sum(0), np.nan)
    mean = np.where(known, table, 0).sum(0) / n
    deviation = np.sqrt(np.where(known, (table - mean) ** 2, 0).sum(0) / n)
    kind = type(pieces[0])
    return kind(*mean.tolist()), kind(*deviation.tolist())


def compared(names: Sequence[str], groups: Sequence[Sequence[M]]) -> str:
    """Return a table of mean and standard deviation, with a row per measure and a column per group of pieces."""
    columns = [mean_and_deviation(group) for group in groups]
    lines = [f"{'':<21}" + "".join(f"{name:>18}" for name in names)]
    for field in fields(groups[0][0]):
        cells = (f"{getattr(mean, field.name):.2f} +- {getattr(spread, field.name):.2f}" for mean, spread in columns)
        lines.append(f"{field.name.replace('_', ' '):<21}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def pitch_class_entropy(pitch: np.ndarray) -> float:
    """Return the entropy in bits, -sum p log2 p, of the pitch classes of the notes `pitch`, int64 [n]."""
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


def likely_key(counts: np.ndarray) -> str | None:
    """Return the key, such as "A minor", whose profile correlates best with the counts of pitch classes, [12].

    Return None if all counts are equal. Sources: the key profiles of Krumhansl and Kessler (1982), and the algorithm of
    Krumhansl and Schmuckler (Krumhansl, "Cognitive Foundations of Musical Pitch", 1990).
    """
    counts = counts - counts.mean()
    if not counts.any():
        return None
    best = int((KEY_PROFILES @ counts).argmax())
    return f"{MAJOR_KEYS[best]} major" if best < 12 else f"{MINOR_KEYS[best - 12]} minor"


def groove_consistency(onsets: np.ndarray, lines: np.ndarray) -> float:
    """Return 1 minus the mean Hamming distance per step between the onset patterns of consecutive bars.

    `onsets` is [n]. `lines` [bars + 1] has the start of each bar and the end of the last one, in the same unit.
    """
    n_bars = len(lines) - 1
    if n_bars < 2:
        return float("nan")
    bar = np.searchsorted(lines, onsets, side="right") - 1
    inside = (bar >= 0) & (bar < n_bars)
    bar, onsets = bar[inside], onsets[inside]
    step = ((onsets - lines[bar]) / np.diff(lines)[bar] * STEPS_PER_BAR + ROUNDING).astype(np.int64)
    patterns = np.zeros((n_bars, STEPS_PER_BAR), bool)
    patterns[bar, np.minimum(step, STEPS_PER_BAR - 1)] = True
    return float(1 - (patterns[1:] != patterns[:-1]).mean())


def polyphony(start: np.ndarray, end: np.ndarray) -> float:
    """Return the mean number of notes that sound at once, ignoring silence. `start` and `end` are their times, [n]."""
    if not len(start):
        return float("nan")
    times = np.concatenate([start, end])
    changes = np.concatenate([np.ones_like(start), -np.ones_like(end)])
    order = np.lexsort((changes, times))
    sounding = np.cumsum(changes[order])[:-1]
    duration = np.diff(times[order])
    total = duration[sounding > 0].sum()
    return float((sounding * duration).sum() / total) if total > 0 else float("nan")
