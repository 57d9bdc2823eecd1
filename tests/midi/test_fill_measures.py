"""The measures of fills, on bars with known values, and the baselines."""

import math

import numpy as np
import pytest

from rwkv_music.midi.fill_measures import FillMeasures, RealBars, copied_neighbors, fill_measures, onset_f1
from rwkv_music.midi.score import Score, in_cells, read_score
from tests.midi.midi_files import odd_piece
from tests.midi.scores import notes_of, score_of

QUARTERS = [(i, 1.0, 60 + i) for i in range(4)]


def values(onset_f1: float, chroma: float, groove: float, tolerance: float = 1e-12) -> dict[str, float]:
    """Return what `vars` of the measures must equal."""
    return pytest.approx(vars(FillMeasures(onset_f1, chroma, groove)), abs=tolerance)


def bar_of(rows: list[tuple], filled: list[tuple]) -> FillMeasures:
    """Return the measures of one bar of one part."""
    return fill_measures(score_of(rows, 1), notes_of(filled), np.ones((1, 1), bool))


def test_the_true_bars_have_the_highest_values_and_silence_the_lowest():
    assert vars(bar_of(QUARTERS, QUARTERS)) == values(1, 1, 1)
    assert bar_of(QUARTERS, []) == bar_of([], QUARTERS) == FillMeasures(0, 0, 0)
    nothing = bar_of([], [])
    assert all(math.isnan(value) for value in vars(nothing).values())


def test_onset_f1_counts_each_true_note_once():
    true = notes_of([(0, 1, 60), (1, 1, 62), (2, 1, 64)])
    assert onset_f1(true, notes_of([(0.125, 3, 60), (1.2, 1, 62), (2, 1, 65)])) == pytest.approx(2 * 1 / 6)
    # Both generated notes are within the tolerance of the only true one.
    assert onset_f1(true[:1], notes_of([(0, 1, 60), (0.1, 1, 60)])) == pytest.approx(2 * 1 / 3)
    # The first true note takes the first generated one, which leaves the second for the other true note.
    pairs = notes_of([(0, 1, 60), (0.2, 1, 60)]), notes_of([(0.1, 1, 60), (0.3, 1, 60)])
    assert onset_f1(*pairs) == 1
    assert onset_f1(true, notes_of([(0, 1, 60, 1), (1, 1, 62, 1), (2, 1, 64, 1)])) == 0  # another part


def test_chroma_similarity_depends_on_what_sounds():
    # An octave and repeated notes do not matter.
    assert bar_of([(0, 4, 60)], [(0, 2, 72), (2, 2, 60)]).chroma_similarity == pytest.approx(1)
    assert bar_of([(0, 4, 60)], [(0, 4, 61)]).chroma_similarity == 0
    # Two of three pitch classes in common: 2 / (sqrt 3 * sqrt 3); one of one and two: 1 / sqrt 2.
    triads = [[(0, 4, pitch) for pitch in chord] for chord in ((60, 64, 67), (60, 64, 69))]
    assert bar_of(*triads).chroma_similarity == pytest.approx(2 / 3)
    assert bar_of([(0, 4, 60)], [(0, 4, 60), (0, 4, 67)]).chroma_similarity == pytest.approx(math.sqrt(0.5))
    # The second half differs. Frames near the middle average both halves: the cosine at frame i, which averages frames
    # i - 4 to i + 3, is that of (1, 0) and (n, 8 - n), where n of the 8 frames are in the first half.
    n = np.array([min(8, max(0, 8 - (i - 4))) if i >= 4 else 8 for i in range(13)])
    cosines = [*(n / np.hypot(n, 8 - n)), *[0] * 3]
    changed = bar_of([(0, 4, 60)], [(0, 2, 60), (2, 2, 61)])
    assert changed.chroma_similarity == pytest.approx(np.mean(cosines))


def test_chroma_similarity_leaves_out_what_is_silent_in_both_and_drums():
    true, filled = [(0, 1, 60)], [(0, 1, 60), (4, 0.25, 61)]
    result = fill_measures(score_of(true, 2), notes_of(filled), np.ones((2, 1), bool))
    # Averages hear the first note in frames 0 to 7, and the wrong one, of a single frame, in frames 13 to 20.
    assert result.chroma_similarity == pytest.approx(8 / 16)
    drums = fill_measures(score_of([(0, 1, 36)], 1, True), notes_of([(0, 1, 36)], True), np.ones((1, 1), bool))
    assert math.isnan(drums.chroma_similarity) and (drums.onset_f1, drums.groove_similarity) == (1, 1)


def test_groove_similarity_depends_on_when_notes_start():
    higher = [(start, 0.1, pitch + 7) for start, _, pitch in QUARTERS]
    assert bar_of(QUARTERS, higher).groove_similarity == pytest.approx(1)
    assert bar_of(QUARTERS, [(i + 0.5, 0.5, 60) for i in range(4)]).groove_similarity == 0
    # Two of four onsets: 2 / (sqrt 2 * 2). Two notes at once count twice: 5 / (sqrt 7 * 2).
    assert bar_of(QUARTERS, QUARTERS[:2]).groove_similarity == pytest.approx(2 / (math.sqrt(2) * 2))
    assert bar_of(QUARTERS, [*QUARTERS, (0, 1, 72)]).groove_similarity == pytest.approx(5 / (math.sqrt(7) * 2))
    thirds = [(i / 3, 1 / 3, 60) for i in range(12)]
    assert bar_of(thirds, thirds[::3]).groove_similarity == pytest.approx(4 / (math.sqrt(12) * 2))


def test_only_the_holes_count():
    real = score_of([(0, 1, 60), (4, 1, 62), (4, 1, 48, 1)], 2)
    holes = np.array([[False, False], [True, False]])
    filled = notes_of([(0, 1, 70), (4, 1, 62), (5, 1, 50, 1)])
    assert vars(fill_measures(real, filled, holes)) == values(1, 1, 1)
    holes[1, 1] = True
    assert fill_measures(real, filled, holes).onset_f1 == pytest.approx(2 * 1 / 4)


def test_values_of_other_implementations():
    """The values are those of mir_eval 0.8.2 (F1), of MIDIMetrics (chroma) and of smg-metrics 5.4.3 (groove)."""
    true = [(0, 1, 60), (0, 2, 64), (1, 0.5, 62), (1.5, 0.5, 64), (2, 2, 65), (2, 2, 57), (3.5, 0.5, 67)]
    filled = [(0, 2, 60), (0.125, 1, 64), (1.5, 0.25, 64), (2, 1, 69), (2, 1, 57), (3, 1, 67), (3.25, 0.75, 71)]
    # MIDIMetrics adds 1e-8 to a norm.
    expected = values(0.5714285714285714, 0.68852276822715, 0.7035264706814485, tolerance=1e-8)
    assert vars(bar_of(true, filled)) == expected


@pytest.mark.parametrize("seed", range(6))
def test_any_piece_compared_with_itself_and_with_baselines(seed):
    real = read_score(odd_piece(seed))
    holes = np.random.default_rng(seed).random((real.n_bars, real.n_parts)) < 0.5
    marked = in_cells(real.notes, real.lines, holes)
    same = vars(fill_measures(real, real.notes, holes)).values()
    assert (marked & ~real.notes["drums"]).any() and list(same) == pytest.approx([1, 1, 1])
    for filled in (copied_neighbors(real, holes), RealBars([real]).fill(real, holes, seed)):
        assert in_cells(filled, real.lines, holes).all()
        assert all(-1e-9 <= value <= 1 + 1e-9 for value in vars(fill_measures(real, filled, holes)).values())


def test_copied_neighbors():
    rows = [
        (0, 1, 60),
        (4, 1, 62),
        (8, 1, 64),
        (12, 1, 65),
        (0, 1, 40, 1),
        (4, 1, 41, 1),
        (8, 1, 43, 1),
        (12, 1, 45, 1),
    ]
    score = score_of(rows, 4)
    holes = np.zeros((4, 2), bool)
    holes[1:3, 0] = True
    assert copied_neighbors(score, holes).tolist() == notes_of([(4, 1, 60), (8, 1, 65)]).tolist()
    holes[:, 0] = True  # a whole part: the other part's bars
    assert (
        copied_neighbors(score, holes).tolist()
        == notes_of([(4 * i, 1, (40, 41, 43, 45)[i]) for i in range(4)]).tolist()
    )
    assert len(copied_neighbors(score, np.ones((4, 2), bool))) == 0
    # Only bars of the same length are copied.
    upbeat = Score(notes_of([(0, 0.5, 55), (1, 1, 60), (5, 1, 62), (9, 1, 64)]), np.array([0.0, 1, 5, 9, 13]))
    first = np.array([[False], [True], [False], [False]])
    assert copied_neighbors(upbeat, first).tolist() == notes_of([(1, 1, 62)]).tolist()


def test_random_bars_are_real_bars_of_the_same_length():
    pool = RealBars([score_of([(0, 1, 70), (1, 1, 71), (8, 1, 72)], 3), score_of([(4, 1, 38)], 2, drums=True)])
    score = score_of([(0, 1, 60), (4, 1, 60), (8, 1, 60)], 3)
    holes = np.ones((3, 1), bool)
    drawn = pool.fill(score, holes, seed=1)
    assert drawn.tolist() == pool.fill(score, holes, seed=1).tolist()
    seen = {tuple(pool.fill(score, holes, seed)["pitch"].tolist()) for seed in range(20)}
    assert {pitch for pitches in seen for pitch in pitches} == {70, 71, 72} and len(seen) > 1
    bars = [drawn["start"][drawn["start"] // 4 == bar] % 4 for bar in range(3)]
    assert all(starts.tolist() in ([0, 1], [0]) for starts in bars)
    waltz = Score(score.notes, np.array([0.0, 3, 6, 9]))
    assert len(pool.fill(waltz, holes, seed=1)) == 0
