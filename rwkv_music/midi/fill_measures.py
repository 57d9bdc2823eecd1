"""Measures that compare generated bars with the true bars of a piece, and baselines for them.

A hole is a cell (one part in one bar) that was generated. All measures are from 0 to 1. They are 1 for the true bars:

    onset F1            F1 of the notes. A generated note is correct if the same part has a true note of the same pitch
                        that starts at most a thirty-second note earlier or later. Each true note makes at most one
                        generated note correct.
    chroma similarity   similarity of the pitch classes that sound. Each bar is divided into 16 frames. The vector of a
                        frame counts the notes that sound in it by pitch class. It is scaled to length 1, and averaged
                        over half a bar around the frame. The measure is the mean cosine of the true and the generated
                        vectors. Drums do not count.
    groove similarity   similarity of the onset times. The vector of a bar counts the onsets at each position of the bar
                        (twelve positions per quarter note). The measure is the mean cosine of the true and the
                        generated vectors.

Chroma and groove similarity treat all holes of a bar together. A frame or bar that is silent in both the generated and
the true music is left out. A frame or bar that is silent in only one of the two counts as 0. A measure is NaN if
neither the generated nor the true holes contain notes that count for it.

Sources: onset F1 is the note onset measure of mir_eval (Raffel et al. 2014), with the tolerance that MIDIMetrics
(christianazinn/MIDIMetrics) uses for infilling. Chroma similarity is the content preservation of Lu and Su,
"Transferring the Style of Homophonic Music" (ISMIR 2018), as in MIDIMetrics. Groove similarity is from Wu and Yang,
"MuseMorphose" (2021, arXiv 2105.04090), with positions that represent triplets as well.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.score import NOTE, ROUNDING, STEPS_PER_QUARTER, Score, bars_of, in_cells, in_order

TOLERANCE = 1 / 8  # of onsets, in quarter notes
FRAMES_PER_BAR = 16


@dataclass(frozen=True)
class FillMeasures:
    """The measures of one fill, described in the module docstring."""

    onset_f1: float
    chroma_similarity: float
    groove_similarity: float


def fill_measures(real: Score, filled: np.ndarray, holes: np.ndarray) -> FillMeasures:
    """Compare the notes in the holes of a generated piece with the true notes there.

    `filled`, NOTE [n], contains the generated notes. It may be the whole piece, because notes outside the holes do not
    count. `holes` is bool [bars, parts], with at most as many bars as `real`. To measure one part, mark only its holes.
    """
    true_notes, notes = (x[in_cells(x, real.lines, holes)] for x in (real.notes, filled))
    bars = holes.any(axis=1)
    lines = real.lines[: len(bars) + 1]
    return FillMeasures(
        onset_f1=onset_f1(true_notes, notes),
        chroma_similarity=chroma_similarity(true_notes, notes, lines, bars),
        groove_similarity=groove_similarity(true_notes, notes, lines, bars),
    )


def onset_f1(true_notes: np.ndarray, notes: np.ndarray) -> float:
    """Return the onset F1 of `notes`, NOTE [m], against `true_notes`, NOTE [n].

    It is the number of correct notes divided by the mean of m and n, or NaN if both are 0.
    """
    if not len(true_notes) and not len(notes):
        return float("nan")
    starts: dict[tuple[int, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for which, x in enumerate((true_notes, notes)):
        for start, part, pitch in zip(x["start"].tolist(), x["part"].tolist(), x["pitch"].tolist(), strict=True):
            starts[part, pitch][which].append(start)
    correct = sum(_n_matches(sorted(a), sorted(b)) for a, b in starts.values())
    return 2 * correct / (len(true_notes) + len(notes))


def _n_matches(a: list[float], b: list[float]) -> int:
    """Return the largest number of pairs of a time in `a` and a time in `b` that differ by at most TOLERANCE.

    Each time belongs to at most one pair. `a` and `b` are sorted.
    """
    i = j = n = 0
    while i < len(a) and j < len(b):
        if abs(a[i] - b[j]) <= TOLERANCE + ROUNDING:
            i, j, n = i + 1, j + 1, n + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return n


def chroma_similarity(true_notes: np.ndarray, notes: np.ndarray, lines: np.ndarray, bars: np.ndarray) -> float:
    """Return the mean cosine of smoothed chroma vectors over the frames of the marked bars.

    `lines`, float64 [n_bars + 1], are the bar lines. `bars`, bool [n_bars], marks the bars.
    """
    frames = np.repeat(bars, FRAMES_PER_BAR)
    return _mean_cosine(*(_smoothed_chroma(x, lines)[frames] for x in (true_notes, notes)))


def _smoothed_chroma(notes: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return the smoothed chroma vector of each frame, float64 [n_bars * FRAMES_PER_BAR, 12].

    The vectors are not scaled to any particular length, because only their cosines are used.
    """
    notes = notes[~notes["drums"]]
    steps = np.arange(FRAMES_PER_BAR) / FRAMES_PER_BAR
    edges = np.append((lines[:-1, None] + np.diff(lines)[:, None] * steps).ravel(), lines[-1:])
    first = np.maximum(np.searchsorted(edges, notes["start"] + ROUNDING, side="right") - 1, 0)
    after = np.maximum(np.searchsorted(edges, notes["end"] - ROUNDING, side="left"), first + 1)
    n_frames = len(edges) - 1
    changes = np.zeros((n_frames + 1, 12))
    pitch_class = notes["pitch"] % 12
    np.add.at(changes, (np.minimum(first, n_frames), pitch_class), 1)
    np.add.at(changes, (np.minimum(after, n_frames), pitch_class), -1)
    chroma = np.cumsum(changes, axis=0)[:-1]
    chroma /= np.maximum(np.linalg.norm(chroma, axis=1, keepdims=True), 1)  # a frame with notes has a norm of 1 or more
    sums = np.concatenate([np.zeros((1, 12)), np.cumsum(chroma, axis=0)])
    frame, half = np.arange(n_frames), FRAMES_PER_BAR // 4
    # The sum has the same cosine as the mean. Rounding leaves tiny values where nothing sounds.
    sums = sums[np.minimum(frame + half, n_frames)] - sums[np.maximum(frame - half, 0)]
    return np.where(sums > ROUNDING, sums, 0)


def groove_similarity(true_notes: np.ndarray, notes: np.ndarray, lines: np.ndarray, bars: np.ndarray) -> float:
    """Return the mean cosine of onset vectors over the marked bars. `lines` and `bars`: see `chroma_similarity`."""
    return _mean_cosine(*(_onset_counts(x, lines, bars) for x in (true_notes, notes)))


def _onset_counts(notes: np.ndarray, lines: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """Return the number of notes that start at each position of the marked bars, float64 [marked bars, positions]."""
    bar = bars_of(notes, lines)
    marked = np.append(bars, False)[bar]  # bars -1 and n_bars are not marked
    notes, bar = notes[marked], bar[marked]
    position = ((notes["start"] - lines[bar] + ROUNDING) * STEPS_PER_QUARTER).astype(np.int64)
    positions = int(np.ceil(np.diff(lines)[bars].max(initial=0) * STEPS_PER_QUARTER)) + 1
    counts = np.zeros((bars.sum(), positions))
    np.add.at(counts, ((np.cumsum(bars) - 1)[bar], position), 1)
    return counts


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean cosine of corresponding rows of `a` and `b`, [n, d] each.

    If one of two rows is zero, their cosine counts as 0. If both are zero, they are left out.
    """
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    heard = (norm_a > 0) | (norm_b > 0)
    if not heard.any():
        return float("nan")
    product = (norm_a * norm_b)[heard]
    return float(((a * b).sum(axis=1)[heard] / np.where(product > 0, product, 1)).mean())


# ---- baselines -------------------------------------------------------------------------------------------------------


def copied_neighbors(score: Score, holes: np.ndarray) -> np.ndarray:
    """Fill each hole with a copy of the nearest bar of its part that is not a hole. Return the notes, NOTE [m].

    Only bars that are as long as the hole's bar are copied. Of two equally near bars, the earlier one is copied. If the
    part has no bar to copy, the hole gets a copy of the same bar from another part: the part with the nearest number in
    which this bar is not a hole. Drum parts are copied only to drum parts, and other parts only to other parts. `holes`
    is bool [bars, parts].
    """
    n_bars, n_parts = holes.shape
    drums = _drum_parts(score, n_parts)
    length = np.diff(score.lines)[:n_bars]
    cells = _Cells(score, holes.shape)
    copies = []
    for bar, part in np.argwhere(holes).tolist():
        given = np.flatnonzero(~holes[:, part] & (np.abs(length - length[bar]) < ROUNDING))
        source = (int(given[np.argmin(np.abs(given - bar))]), part) if len(given) else None
        if source is None:
            parts = np.flatnonzero(~holes[bar] & (drums == drums[part]))
            source = (bar, int(parts[np.argmin(np.abs(parts - part))])) if len(parts) else None
        if source is not None:
            copies.append(_moved(cells[source], score.lines[bar] - score.lines[source[0]], part))
    return _joined(copies)


class RealBars:
    """The non-empty cells of many pieces, from which `fill` draws at random."""

    def __init__(self, scores: Iterable[Score]):
        self._cells: dict[tuple[float, bool], list[np.ndarray]] = defaultdict(list)  # by (bar length, whether drums)
        for score in scores:
            shape = score.n_bars, score.n_parts
            cells, drums, length = _Cells(score, shape), _drum_parts(score, shape[1]), np.diff(score.lines)
            for bar, part in np.argwhere(cells.counts > 0).tolist():
                found = _moved(cells[bar, part], -score.lines[bar], 0)
                self._cells[_rounded(length[bar]), bool(drums[part])].append(found)

    def fill(self, score: Score, holes: np.ndarray, seed: int) -> np.ndarray:
        """Fill each hole with a random real cell of the same length. Return the notes, NOTE [m].

        The same seed gives the same notes. Holes in drum parts get cells of drum parts, and the other holes get cells
        of the other parts. A hole stays empty if there is no cell of its length.
        """
        drums = _drum_parts(score, holes.shape[1])
        draws = np.random.default_rng(seed)
        copies = []
        for bar, part in np.argwhere(holes).tolist():
            length = _rounded(score.lines[bar + 1] - score.lines[bar])
            cells = self._cells.get((length, bool(drums[part])))
            if cells:
                copies.append(_moved(cells[draws.integers(len(cells))], score.lines[bar], part))
        return _joined(copies)


class _Cells:
    """The notes of a piece by cell."""

    def __init__(self, score: Score, shape: tuple[int, int]):
        notes = score.notes[in_cells(score.notes, score.lines, np.ones(shape, bool))]
        cell = bars_of(notes, score.lines) * shape[1] + notes["part"]
        order = np.argsort(cell, kind="stable")
        self._notes = notes[order]
        self.counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)  # int64 [bars, parts]
        self._ends = np.cumsum(self.counts).reshape(shape)

    def __getitem__(self, cell: tuple[int, int]) -> np.ndarray:
        return self._notes[self._ends[cell] - self.counts[cell] : self._ends[cell]]


def _drum_parts(score: Score, n_parts: int) -> np.ndarray:
    """Return whether each part plays drums, bool [n_parts]."""
    drums = np.zeros(n_parts, bool)
    drums[score.notes["part"][score.notes["drums"]]] = True
    return drums


def _moved(notes: np.ndarray, by: float, part: int) -> np.ndarray:
    """Return a copy of `notes` moved by a number of quarter notes into another part."""
    notes = notes.copy()
    notes["start"] += by
    notes["end"] += by
    notes["part"] = part
    return notes


def _rounded(quarters: float) -> float:
    return round(float(quarters), 6)


def _joined(copies: list[np.ndarray]) -> np.ndarray:
    return in_order(np.concatenate([np.zeros(0, NOTE), *copies]))
