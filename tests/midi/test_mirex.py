"""The files of the MIREX task, to and from MIDI."""

import json

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.mirex import END, from_score, has_form, read_notes, repeated_prompt, to_midi, write_notes
from rwkv_music.midi.score import read_score
from tests.midi.scores import score_of

PROMPT = np.array([[16, 60, 8], [16, 64, 8], [24, 65, 8], [79, 67, 1]])
NEW = np.array([[80, 72, 16], [271, 60, 1]])


@pytest.mark.parametrize(("upbeat", "bars"), [([], 4), ([[12, 55, 4]], 5)])
def test_notes_survive_midi(tmp_path, upbeat, bars):
    prompt = np.concatenate([np.array(upbeat, int).reshape(-1, 3), PROMPT])
    midi, context_bars = to_midi(np.concatenate([prompt, NEW]))
    assert context_bars == bars
    score = read_score(midi)
    assert score.n_bars == bars + 12 and score.lines[1] == 4
    assert {m.program for m in midi.tracks[0] if m.type == "program_change"} == {0}
    given, new = from_score(score, context_bars)
    assert given.tolist() == prompt.tolist() and new.tolist() == NEW.tolist()
    for entry, notes in (("prompt", given), ("generation", new)):
        write_notes(tmp_path / "notes.json", notes, entry)
        assert list(json.loads((tmp_path / "notes.json").read_text())) == [entry]
        assert read_notes(tmp_path / "notes.json", entry).tolist() == notes.tolist()


def test_a_real_piece_becomes_a_prompt_and_its_continuation():
    rows = [
        (0, 1, 50), (3.8, 1, 51),  # before the first bar that is used
        (4.1, 1, 60, 0), (4, 2, 60, 1),  # one note of both parts on the grid; the longer one is kept
        (19.9, 0.01, 62), (20, 0.01, 64), (67, 9, 65), (68, 1, 66),
    ]  # fmt: skip
    given, new = from_score(score_of(rows, 18), context_bars=4, first_bar=1)
    assert given.tolist() == [[16, 60, 8]]
    assert new.tolist() == [[80, 62, 1], [80, 64, 1], [268, 65, 4]]
    drums = score_of([(0, 1, 36)], 18, drums=True)
    assert all(len(notes) == 0 for notes in from_score(drums, 4))


def test_a_piece_of_the_form_has_sixteen_bars_of_four_quarters():
    score = score_of([(0, 1, 60)], 18)
    assert [has_form(score, *bars) for bars in ((4, 0), (5, 1), (4, 2), (5, 2))] == [True, True, True, False]
    score.lines[10:] -= 1  # one bar of three quarters
    assert not has_form(score, 4)


def test_the_copy_baseline_repeats_the_four_full_bars():
    prompt = np.concatenate([[[12, 55, 4]], PROMPT, [[78, 50, 9]]])
    assert repeated_prompt(prompt).tolist() == [
        [start + 64 * i, pitch, length] for i in (1, 2, 3) for start, pitch, length in [*PROMPT.tolist(), [78, 50, 2]]
    ]


def test_long_notes_are_cut_at_the_end(tmp_path):
    write_notes(tmp_path / "new.json", np.array([[270, 60, 30]]))
    assert read_notes(tmp_path / "new.json", "generation").tolist() == [[270, 60, END - 270]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "not a JSON object"),
        ('{"notes": []}', "no prompt"),
        ('{"prompt": [{"start": 16, "pitch": 60}]}', "Note 1 .*duration"),
        ('{"prompt": [{"start": 16, "pitch": 60, "duration": 1}, 3]}', "Note 2 "),
        ('{"prompt": [{"start": 1.5, "pitch": 60, "duration": 1}]}', "Note 1 .*integer"),
        ('{"prompt": [{"start": true, "pitch": 60, "duration": 1}]}', "Note 1 .*integer"),
        ('{"prompt": [{"start": 80, "pitch": 60, "duration": 1}]}', "Note 1 .*starts at 80.*0 to 79"),
        ('{"prompt": [{"start": 0, "pitch": 128, "duration": 1}]}', "pitch 128"),
        ('{"prompt": [{"start": 0, "pitch": 60, "duration": 0}]}', "duration 0"),
    ],
)
def test_a_file_that_is_not_of_the_task_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "in.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        read_notes(path)
    assert "in.json" in str(raised.value) and "\n" not in str(raised.value)
