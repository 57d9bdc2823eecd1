"""Fills of held-out pieces: what is measured is known where the model is replaced by the truth."""

import numpy as np
import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError
from rwkv_music.evaluation import fills
from rwkv_music.evaluation.fills import COPY, LEFT_ONLY, MODEL, RANDOM, as_table, draw_tasks, evaluate_fills, score_of
from rwkv_music.generation import fill
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.controls import CONTROLS
from rwkv_music.midi.measures import mean_and_deviation
from rwkv_music.midi.score import read_score
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.multitrack_cells import control_tokens, read_excerpt
from rwkv_music.tokenizers.registry import make_codec

CODEC = make_codec("multitrack")
EMPTY = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def held_out(bach_data):
    return list(Pieces(bach_data, "val", CODEC))


def cells_of(piece):
    """Yield the bar, the part number and the content of each cell, with the token of the bar's time signature."""
    excerpt = read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids))
    for bar, row in enumerate(excerpt.cells):
        for number, cell in row.items():
            yield number, cell.content, excerpt.signatures[bar]


def test_the_truth_is_right_and_requested_classes_are_met(held_out, bach_data, monkeypatch):
    """Stands in for the model: it writes the true cells, or cells that have the class asked for."""
    calls = []
    by_class = {}
    for piece in held_out:
        for number, content, signature in cells_of(piece):
            for token in control_tokens([content], np.array([signature]))[0].tolist():
                by_class.setdefault((number, token, signature), content)

    def write_cells(model, codec, excerpt, holes, *, count, controls=None, **options):
        calls.append((excerpt, list(holes), controls, count, options))
        contents = {}
        for bar, number in holes:
            cell = excerpt.cells[bar].get(number)
            contents[bar, number] = EMPTY if cell is None else cell.content
            for token in (controls or {}).get(number, []):
                contents[bar, number] = by_class[number, token, excerpt.signatures[bar]]
        return [contents] * count

    monkeypatch.setattr(fills, "write_cells", write_cells)
    report = evaluate_fills(None, CODEC, bach_data, 30, context_bars=2, bars=4, rows_at_once=3)
    assert report.split == "val" and report.sets_of_holes == 8
    means = {name: mean_and_deviation(found)[0] for name, found in report.measures.items()}
    assert {name: len(found) for name, found in report.measures.items()} == {
        MODEL: 30, LEFT_ONLY: 30, COPY: 8, RANDOM: 30
    }  # fmt: skip
    for name in (MODEL, LEFT_ONLY):
        assert (means[name].onset_f1, means[name].groove_similarity) == (1, pytest.approx(1))
        assert means[name].chroma_similarity == pytest.approx(1)
    assert 0 < means[RANDOM].onset_f1 < means[COPY].onset_f1 < 1
    assert report.copy_rate == pytest.approx(report.real_copy_rate, abs=0.05)
    assert report.divergences.keys() == report.real_divergences.keys() and min(report.divergences.values()) >= 0
    assert [row.name for row in report.adherence] == [control.name for control in CONTROLS]
    for row in report.adherence:
        assert row.cells > 0 and row.exact == row.within_one == 1
        assert 0 < row.exact_uncontrolled <= row.within_one_uncontrolled <= 1
    assert report.adherence[0].exact_uncontrolled < 1

    # Fills, fills from the left side, fills with controls: of the same holes.
    assert {options["rows_at_once"] for *_, options in calls} == {3} and calls[-1][3] == 2
    plain, left = calls[0][:2], calls[1][:2]
    bars = [bar for bar, _ in plain[1]]
    assert len(left[0].cells) == max(bars) + 1 < len(plain[0].cells)
    assert {bar for bar, _ in left[1]} == set(range(min(bars), max(bars) + 1))
    assert {number for _, number in left[1]} >= set(left[0].parts)


def test_holes_lie_between_the_context_bars_and_follow_the_seed(held_out):
    tasks = draw_tasks(held_out, 12, context_bars=2, bars=3, seed=5)
    assert len(tasks) == 12
    for task in tasks:
        assert len(task.excerpt.cells) == 7 and {bar for bar, _ in task.holes} <= {2, 3, 4}
        assert task.marked.sum() == len(task.holes) and all(task.marked[bar, part - 1] for bar, part in task.holes)
    same, other = (draw_tasks(held_out, 12, context_bars=2, bars=3, seed=seed) for seed in (5, 6))
    assert [t.holes for t in same] == [t.holes for t in tasks] != [t.holes for t in other]
    assert len({tuple(task.holes) for task in tasks}) > 6
    [single] = draw_tasks(held_out, 1, context_bars=1, bars=1, seed=0)
    assert single.holes == [(1, number) for number in single.excerpt.bars(1, 2).parts]


def test_the_score_of_an_excerpt_is_that_of_its_file(held_out):
    for piece in held_out:
        found = score_of(read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids)))
        expected = read_score(CODEC.decode(piece.ids))
        np.testing.assert_allclose(found.lines, expected.lines)
        assert found.notes[["pitch", "part", "drums"]].tolist() == expected.notes[["pitch", "part", "drums"]].tolist()
        for name in ("start", "end"):
            np.testing.assert_allclose(found.notes[name], expected.notes[name])


def test_an_untrained_model_is_measured(bach_data, monkeypatch):
    monkeypatch.setattr(fill, "TOKENS_PER_BAR", 8)  # it would write long bars
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=CODEC.vocab_size)).requires_grad_(False)
    report = evaluate_fills(
        model, CODEC, bach_data, 2, context_bars=1, bars=2, sampling=Sampling(seed=3), rows_at_once=2
    )
    mean, _ = mean_and_deviation(report.measures[MODEL])
    assert mean.onset_f1 < 0.3 and report.copy_rate == 0 and report.divergences["pitch"] > 0.5
    assert sum(row.cells for row in report.adherence) > 0
    table = as_table(report)
    assert max(map(len, table.splitlines())) <= 120 and "nan" not in table


def test_pieces_that_are_too_short_are_refused(bach_data):
    with pytest.raises(UserError, match="402 bars.*--context-bars"):
        evaluate_fills(None, CODEC, bach_data, 1, context_bars=200)
