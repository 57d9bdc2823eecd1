"""Cutting and joining MIDI files."""

import mido
import numpy as np
import pytest

from rwkv_music.midi.edit import cut_before, join, lengthen, without_notes_from
from rwkv_music.midi.notes import read_notes
from tests.midi.midi_files import make_midi, note


def test_join_ends_notes_and_resets_controllers_at_the_line():
    """Join files of 480 and 9600 ticks per quarter note at a line after two quarter notes."""
    pedal = mido.Message("control_change", control=64, value=127)
    volume = mido.Message("control_change", control=7, value=30)
    text = mido.MetaMessage("text", text="own")
    crossing = mido.Message("note_on", note=64, velocity=50)
    opening = make_midi([(0, text), (0, pedal), (0, volume), *note(0, 960, 60), (480, crossing)])
    decoded = make_midi(
        [(0, mido.MetaMessage("set_tempo", tempo=400_000))],
        [*note(0, 9600, 60), *note(9600, 28800, 64), *note(28800, 38400, 67)],
        ticks_per_beat=9600,
    )
    joined = join(opening, 960, decoded, 19200)

    assert joined.ticks_per_beat == 9600
    notes = read_notes(joined)
    found = set(zip(notes.start_tick.tolist(), notes.end_tick.tolist(), notes.pitch.tolist(), strict=True))
    assert found == {(0, 19200, 60), (9600, 28800, 64), (28800, 38400, 67)}
    assert joined.tracks[0][0] == text
    at_line = [m for m in joined.tracks[0] if m.type == "control_change"][2:]
    assert {(m.control, m.value) for m in at_line} == {(64, 0), (7, 100)}
    assert joined.tracks[1][0] == mido.MetaMessage("set_tempo", tempo=400_000, time=19200)


def test_crossing_note_ends_where_its_pitch_starts_again():
    opening = make_midi(note(0, 400, 60), ticks_per_beat=100)
    decoded = make_midi(note(0, 300, 60, channel=1), note(250, 280, 60), ticks_per_beat=100)
    notes = read_notes(join(opening, 200, decoded, 200))
    assert list(zip(notes.start_tick.tolist(), notes.end_tick.tolist(), strict=True)) == [(0, 250), (250, 280)]


@pytest.mark.parametrize("divisions, expected", [((480, 9600), 9600), ((384, 24), 384), ((1024, 9600), 31744)])
def test_join_uses_a_common_resolution_or_the_finest_one(divisions, expected):
    opening = make_midi(note(0, divisions[0], 60), ticks_per_beat=divisions[0])
    decoded = make_midi(note(divisions[1] * 5 // 2, divisions[1] * 3, 62), ticks_per_beat=divisions[1])
    joined = join(opening, 2 * divisions[0], decoded, 2 * divisions[1])
    assert joined.ticks_per_beat == expected
    notes = read_notes(joined)
    assert np.allclose(notes.start_tick / expected, [0, 2.5]) and np.allclose(notes.end_tick / expected, [1, 3])


def test_without_notes_from_keeps_earlier_notes_whole():
    kept = read_notes(without_notes_from(make_midi([*note(0, 400, 60), *note(100, 500, 62), *note(200, 300, 60)]), 200))
    assert kept.pitch.tolist() == [60, 62] and kept.start_tick.tolist() == [0, 100]
    assert kept.end_tick.tolist() == [300, 500]  # overlapping notes of one pitch end in order


def test_lengthen_moves_the_end_of_the_track():
    midi = make_midi(note(0, 100, 60))
    lengthen(midi, 400)
    assert sum(message.time for message in midi.tracks[0]) == 400 and midi.tracks[0][-1].type == "end_of_track"
    lengthen(midi, 300)
    assert sum(message.time for message in midi.tracks[0]) == 400


def test_cut_before_keeps_settings_and_whole_notes():
    midi = mido.MidiFile(ticks_per_beat=100)
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=1),
            mido.MetaMessage("set_tempo", tempo=400_000),
            mido.Message("program_change", program=5),
            mido.Message("control_change", control=7, value=90),
            mido.Message("control_change", control=10, value=10),
            mido.Message("note_on", note=60, velocity=1, time=50),
            mido.Message("note_on", note=60, velocity=2, time=50),  # at tick 100, overlapping the first
            mido.Message("note_off", note=60, time=10),  # ends the first
            mido.Message("note_off", note=60, time=10),  # ends the second, at tick 120
            mido.MetaMessage("set_tempo", tempo=300_000, time=30),
        ]
    )
    midi.tracks.append(track)
    kept = [message for message in cut_before(midi, 100).tracks[0] if message.type != "end_of_track"]
    assert kept == [
        mido.MetaMessage("set_tempo", tempo=400_000),
        mido.Message("program_change", program=5),
        mido.Message("control_change", control=7, value=90),
        mido.Message("control_change", control=10, value=10),
        mido.Message("note_on", note=60, velocity=2, time=0),
        mido.Message("note_off", note=60, time=20),
        mido.MetaMessage("set_tempo", tempo=300_000, time=30),
    ]
