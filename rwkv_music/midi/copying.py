"""The copy rate: how much of a piece occurs in the training data.

The copy rate is the share of a piece's n-grams that also occur in the training data. The melody of a part consists of
the highest note at each onset (`skyline`). An n-gram describes 8 consecutive notes of a melody by their 7 pitch
intervals in semitones and the 7 times from onset to onset in twelfths of a quarter note. It therefore does not depend
on key, tempo, position in the bar, instrument, loudness or note lengths. Drums are left out.

Scales and repeated notes occur everywhere, so the rate is above 0 for any music. Compare it with the rate of real
pieces that are not in the training data.

Similar measures: Yin et al., "Measuring when a music generation algorithm copies too much" (2022).
"""

import numpy as np

from rwkv_music.midi.score import skyline

NGRAM_NOTES = 8
LONGEST_WAIT = (1 << 16) - 1  # the longest time from onset to onset, in steps; longer times are cut to it
LEAST_PENDING = 1 << 20  # minimum number of n-grams that are collected before they are sorted


def ngram_hashes(notes: np.ndarray, generated: np.ndarray | None = None) -> np.ndarray:
    """Return a 64-bit hash of each n-gram of `notes`, including repeated ones: uint64 [m].

    `notes` is NOTE [n] (see midi/score.py). If `generated`, bool [n], is given, only the hashes of n-grams that contain
    a generated note are returned.
    """
    order, step = skyline(notes)
    if len(order) < NGRAM_NOTES:
        return np.zeros(0, np.uint64)
    interval = np.diff(notes["pitch"][order]) + 128
    # The wait can be negative where a new part begins. `kept` leaves out the n-grams that have notes of two parts.
    wait = np.minimum(np.diff(step), LONGEST_WAIT)
    moves = (interval << 16 | wait & LONGEST_WAIT).astype(np.uint64)
    n = len(order) - NGRAM_NOTES + 1
    hashes = np.zeros(n, np.uint64)
    for i in range(NGRAM_NOTES - 1):
        hashes = _mixed(hashes + moves[i : i + n])
    part = notes["part"][order]
    kept = part[:n] == part[NGRAM_NOTES - 1 :]
    if generated is not None:
        n_generated = np.concatenate([[0], np.cumsum(generated[order])])
        kept &= n_generated[NGRAM_NOTES:] > n_generated[:n]
    return hashes[kept]


def _mixed(x: np.ndarray) -> np.ndarray:
    """Return a bijective hash of uint64 [n] (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class NgramIndex:
    """The distinct n-grams of a training set, as a sorted array of 64-bit hashes."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, np.uint64)
        self._pending: list[np.ndarray] = []
        self._n_pending = 0

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def hashes(self) -> np.ndarray:
        """The hashes, uint64 [n], sorted and distinct."""
        if self._pending:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._pending]))
            self._pending, self._n_pending = [], 0
        return self._sorted

    def add(self, hashes: np.ndarray) -> None:
        """Add the n-grams of a piece, uint64 [n]."""
        self._pending.append(np.unique(hashes))
        self._n_pending += len(self._pending[-1])
        # The array is sorted again only when it has doubled, so each hash is sorted a logarithmic number of times.
        if self._n_pending > max(LEAST_PENDING, len(self._sorted)):
            self._sorted = self.hashes

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Return whether each of `hashes`, uint64 [n], is in the index: bool [n]."""
        index = self.hashes
        if not len(index):
            return np.zeros(len(hashes), bool)
        place = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
        return index[place] == hashes


def copy_rate(hashes: np.ndarray, training: NgramIndex) -> float:
    """Return the share of the n-grams `hashes`, uint64 [n], that are in `training`; NaN if `hashes` is empty."""
    return float(training.contains(hashes).mean()) if len(hashes) else float("nan")
