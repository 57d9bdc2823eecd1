"""Parts, cells and melodies of scores."""

import mido
import numpy as np

from rwkv_music.midi.score import in_cells, read_score, skyline
from tests.midi.midi_files import file_of, make_midi, note
from tests.midi.scores import notes_of


def test_a_part_is_a_channel_of_a_track_and_times_are_quarter_notes():
    for ticks in (96, 480):
        meter = [(0, mido.MetaMessage("time_signature", numerator=3, denominator=4))]
        drums = note(0, ticks // 2, 36, channel=9) + note(4 * ticks, 5 * ticks, 38, channel=9)
        two_hands = note(ticks, 3 * ticks, 60, channel=1) + note(0, ticks, 48)
        midi = make_midi(meter, drums, two_hands, ticks_per_beat=ticks)
        for source in (midi, file_of(midi)):
            score = read_score(source)
            assert score.notes.tolist() == [
                (0, 0.5, 36, 0, True),
                (0, 1, 48, 1, False),
                (1, 3, 60, 2, False),
                (4, 5, 38, 0, True),
            ]
            assert score.lines.tolist() == [0, 3, 6] and (score.n_bars, score.n_parts) == (2, 3)
            assert score.bars().tolist() == [0, 0, 0, 1]


def test_a_file_without_notes_has_no_bars():
    score = read_score(make_midi([]))
    assert len(score.notes) == 0 and (score.n_bars, score.n_parts) == (0, 0)


def test_a_note_is_in_the_cell_in_which_it_starts():
    notes = notes_of([(0, 8, 60, 0), (3.5, 1, 62, 1), (4, 1, 64, 1), (9, 1, 65, 0), (4, 1, 67, 2)])
    lines = np.array([0.0, 4.0, 8.0])
    cells = np.array([[True, False], [False, True]])  # the last bar and the third part are in none
    assert notes["pitch"][in_cells(notes, lines, cells)].tolist() == [60, 64]
    assert not in_cells(notes, lines, np.zeros((2, 0), bool)).any()


def test_the_skyline_is_the_highest_note_of_each_moment_and_part():
    notes = notes_of([(0, 1, 60), (0.01, 1, 67), (0, 1, 64), (1, 1, 59), (0, 2, 72, 1), (1.25, 1, 74, 1)])
    order, step = skyline(notes)
    assert notes["pitch"][order].tolist() == [67, 59, 72, 74] and step.tolist() == [0, 12, 0, 15]
    assert len(skyline(notes_of([(0, 1, 36)], drums=True))[0]) == 0
