"""The histograms and their divergence, on music with known values."""

import math

import numpy as np
import pytest

from rwkv_music.midi.descriptors import SIZES, Descriptors, jensen_shannon
from tests.midi.scores import score_of


def counted(*scores) -> dict[str, dict[int, int]]:
    """Return the bins that are not empty, by descriptor."""
    found = Descriptors()
    for score in scores:
        found.add(score)
    return {name: {int(i): int(counts[i]) for i in np.flatnonzero(counts)} for name, counts in found.counts.items()}


def test_histograms_of_a_melody_over_a_held_note():
    rows = [(0, 1, 60), (1, 0.5, 72), (1.5, 2.5, 67), (0, 12, 48, 1)]
    found = counted(score_of(rows, 2))
    assert found["pitch class"] == {0: 3, 7: 1}
    assert found["pitch"] == {48: 1, 60: 1, 67: 1, 72: 1}
    assert found["interval"] == {24 + 12: 1, 24 - 5: 1}
    assert found["note length"] == {12: 1, 6: 1, 30: 1, 96: 1}  # the longest is counted as eight quarter notes
    assert found["onset interval"] == {12: 1, 6: 1}
    assert found["onset position"] == {0: 2, 12: 1, 18: 1}
    assert found["polyphony"] == {1: 96, 2: 48}
    assert found["notes per bar"] == {0: 1, 4: 1}


def test_drums_count_for_positions_and_notes_per_bar_alone():
    found = counted(score_of([(i / 2, 0.1, 36) for i in range(8)], 1, drums=True))
    assert found.pop("onset position") == {6 * i: 1 for i in range(8)}
    assert found.pop("notes per bar") == {8: 1}
    assert all(not counts for counts in found.values())


def test_jensen_shannon():
    assert jensen_shannon(np.array([1, 3]), np.array([2, 6])) == 0
    assert jensen_shannon(np.array([5, 0]), np.array([0, 1])) == 1
    # p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - (0 + 1) / 2
    expected = 0.75 * math.log2(4 / 3) + 0.25 * 2 - 0.5
    assert jensen_shannon(np.array([2, 0]), np.array([3, 3])) == pytest.approx(expected)
    assert math.isnan(jensen_shannon(np.zeros(2), np.ones(2)))
    # scipy 1.17.1: jensenshannon([1, 2, 3], [3, 1, 0], base=2) ** 2
    assert jensen_shannon(np.array([1, 2, 3]), np.array([3, 1, 0])) == pytest.approx(0.3991241773221159)


def test_divergences_of_two_sets():
    first, second = Descriptors(), Descriptors()
    for score in (score_of([(0, 1, 60), (1, 1, 62)], 1), score_of([(0, 1, 64)], 1)):
        first.add(score)
    second.add(score_of([(0, 1, 72), (1, 1, 74), (2, 1, 76)], 1))
    found = first.divergences(second)
    assert list(found) == list(SIZES)
    assert found["pitch class"] == found["note length"] == found["interval"] == found["polyphony"] == 0
    assert found["pitch"] == found["notes per bar"] == 1
    assert 0 < found["onset position"] < 1
