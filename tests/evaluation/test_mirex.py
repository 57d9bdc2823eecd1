"""Continuations in the form of the MIREX task, measured beside real music."""

import pytest

from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError
from rwkv_music.evaluation import mirex
from rwkv_music.evaluation.mirex import COPY, MODEL, REAL, as_table, evaluate_mirex
from rwkv_music.midi.mirex import BAR, END, PROMPT_END
from rwkv_music.midi.score import read_score
from rwkv_music.tokenizers.registry import load_codec


@pytest.mark.parametrize("count", [1, 6])
def test_the_true_bars_equal_real_music(count, bach_data, monkeypatch):
    """Stands in for the model: it writes the true twelve bars."""
    codec = load_codec(bach_data / "tokenizer.json")
    truth, prompts = {}, []
    for piece in Pieces(bach_data, "val", codec):
        score = read_score(codec.decode(piece.ids))
        for bar in (0, 1):
            if mirex.has_form(score, 4, bar):
                prompt, real = mirex.from_score(score, 4, bar)
                truth[prompt.tobytes()] = real

    def continue_prompt(model, codec, prompt, count, sampling):
        assert BAR <= prompt[:, 0].min() and prompt[:, 0].max() < PROMPT_END
        prompts.append((prompt.tobytes(), count, sampling.seed))
        real = truth[prompt.tobytes()]
        assert PROMPT_END <= real[:, 0].min() and real[:, 0].max() < END
        return [real] * count

    monkeypatch.setattr(mirex, "continue_prompt", continue_prompt)
    report = evaluate_mirex(None, codec, bach_data, count)
    assert [(n, seed) for _, n, seed in prompts] == [(1, 0)] if count == 1 else [(4, 0), (2, 1)]
    assert len(report.measures[MODEL]) == count
    assert len(report.measures[REAL]) == len(report.measures[COPY]) == report.prompts == len({p for p, *_ in prompts})
    assert report.measures[MODEL][0] == report.measures[REAL][0] != report.measures[COPY][0]
    assert all(found.onset_f1 == 1 for found in report.against_real[MODEL])
    assert all(0 < found.onset_f1 < 1 for found in report.against_real[COPY])
    assert max(map(len, as_table(report).splitlines())) <= 120


def test_data_without_the_form_are_refused(bach_data, monkeypatch):
    monkeypatch.setattr(mirex, "has_form", lambda *_: False)
    codec = load_codec(bach_data / "tokenizer.json")
    with pytest.raises(UserError, match="16 bars of 4/4"):
        evaluate_mirex(None, codec, bach_data, 1)
