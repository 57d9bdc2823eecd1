"""Histograms that describe a set of pieces, and the divergence between the histograms of two sets.

    pitch class       pitch class of each note
    pitch             pitch of each note
    interval          interval from note to note in the melody of a part (`skyline`), -24 to 24 semitones
    note length       length of each note, 0 to 96 steps
    onset interval    time from onset to onset in the melody of a part, 0 to 96 steps
    onset position    position of each note's start in its bar, 0 to 96 steps, drums included
    polyphony         number of notes that sound in each step from the first note to the last, 0 to 16
    notes per bar     number of notes that start in each bar, 0 to 64, drums included

A step is a twelfth of a quarter note. Drums are left out, except where the list has "drums included". A value outside a
range counts as the nearest end of the range. The histograms of all pieces are added, so long pieces weigh more.

The Jensen-Shannon divergence of two histograms, in bits, is between 0 (the same distribution) and 1 (nothing in
common). Random differences between small sets also make it positive. Compare it with the divergence of two sets of real
pieces of the same sizes.

Sources: the features are those of Yang and Lerch, "On the evaluation of generative models in music" (2018). The
divergence is from Lin, "Divergence measures based on the Shannon entropy" (1991).
"""

import numpy as np

from rwkv_music.midi.score import ROUNDING, STEPS_PER_QUARTER, Score, skyline

LARGEST_INTERVAL = 24  # semitones
LONGEST = 8 * STEPS_PER_QUARTER
MOST_SOUNDING = 16
MOST_NOTES_PER_BAR = 64
SIZES = {
    "pitch class": 12,
    "pitch": 128,
    "interval": 2 * LARGEST_INTERVAL + 1,
    "note length": LONGEST + 1,
    "onset interval": LONGEST + 1,
    "onset position": LONGEST + 1,
    "polyphony": MOST_SOUNDING + 1,
    "notes per bar": MOST_NOTES_PER_BAR + 1,
}


class Descriptors:
    """The histograms of a set of pieces: `counts[name]` is int64 [SIZES[name]]."""

    def __init__(self) -> None:
        self.counts = {name: np.zeros(size, np.int64) for name, size in SIZES.items()}

    def add(self, score: Score) -> None:
        """Add the notes and bars of a piece."""
        notes, bar = score.notes, score.bars()
        melodic = notes[~notes["drums"]]
        order, step = skyline(notes)
        same_part = np.diff(notes["part"][order]) == 0
        self._add("pitch class", melodic["pitch"] % 12)
        self._add("pitch", melodic["pitch"])
        self._add("interval", np.diff(notes["pitch"][order])[same_part] + LARGEST_INTERVAL)
        self._add("note length", np.rint((melodic["end"] - melodic["start"]) * STEPS_PER_QUARTER))
        self._add("onset interval", np.diff(step)[same_part])
        inside = (bar >= 0) & (bar < score.n_bars)
        in_bar = notes["start"][inside] - score.lines[bar[inside]]
        self._add("onset position", (in_bar + ROUNDING) * STEPS_PER_QUARTER)
        self._add("polyphony", *_sounding(melodic))
        self._add("notes per bar", np.bincount(bar[inside], minlength=score.n_bars))

    def _add(self, name: str, values: np.ndarray, repeats: np.ndarray | None = None) -> None:
        size = SIZES[name]
        counts = np.bincount(np.clip(values, 0, size - 1).astype(np.int64), repeats, minlength=size)
        self.counts[name] += counts.astype(np.int64)

    def divergences(self, other: "Descriptors") -> dict[str, float]:
        """Return the Jensen-Shannon divergence of each histogram from that of `other`, in bits."""
        return {name: jensen_shannon(counts, other.counts[name]) for name, counts in self.counts.items()}


def _sounding(notes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of notes that sound, and for how many steps each number holds: int64 [2n - 1] each.

    Each element describes the time between two successive starts or ends of notes. A step is a twelfth of a quarter
    note.
    """
    start = np.rint(notes["start"] * STEPS_PER_QUARTER).astype(np.int64)
    end = np.maximum(np.rint(notes["end"] * STEPS_PER_QUARTER).astype(np.int64), start + 1)
    steps = np.concatenate([start, end])
    order = np.argsort(steps, kind="stable")
    change = np.where(order < len(notes), 1, -1)
    return np.cumsum(change)[:-1], np.diff(steps[order])


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two histograms, [n] each, in bits; NaN if one histogram is empty."""
    if not a.sum() or not b.sum():
        return float("nan")
    p, q = a / a.sum(), b / b.sum()
    return max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())
