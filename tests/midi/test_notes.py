"""Reading notes, and removing overlaps between them."""

import mido
import numpy as np
import pytest

from rwkv_music.midi.notes import read_notes, remove_overlaps
from rwkv_music.midi.time import tick_seconds
from tests.midi.midi_files import make_midi, note


@pytest.fixture
def two_voices() -> mido.MidiFile:
    """Four bars of 3/4 with quarter notes over dotted half notes, at half the tempo from bar 3 on."""
    conductor = [
        (0, mido.MetaMessage("time_signature", numerator=3, denominator=4)),
        (0, mido.MetaMessage("set_tempo", tempo=500_000)),
        (2 * 1440, mido.MetaMessage("set_tempo", tempo=1_000_000)),
    ]
    right = [event for beat in range(12) for event in note(480 * beat, 480 * (beat + 1), 72 + beat % 5)]
    left = [event for bar in range(4) for event in note(1440 * bar, 1440 * (bar + 1), 48, channel=1)]
    return make_midi(conductor, [(0, mido.MetaMessage("track_name", name="Right hand")), *right], left)


def test_note_times_match_mido(two_voices):
    notes = read_notes(two_voices)
    elapsed, starts = 0.0, []
    for message in two_voices:  # iterating a file yields delta times in seconds
        elapsed += message.time
        if message.type == "note_on" and message.velocity > 0:
            starts.append(elapsed)
    assert np.allclose(notes.start, sorted(starts))
    assert notes.end.max() == pytest.approx(two_voices.length) == pytest.approx(3.0 + 6.0)
    assert notes.voice_names == ["Right hand", "piano"]
    assert np.bincount(notes.voice).tolist() == [12, 4]


def test_overlapping_and_unreleased_notes():
    events = [
        (0, mido.Message("note_on", note=60, velocity=50)),
        (100, mido.Message("note_on", note=60, velocity=90)),
        (200, mido.Message("note_on", note=60, velocity=0)),  # ends the first note
        (300, mido.Message("note_off", note=61)),  # has no note-on
        (960, mido.MetaMessage("end_of_track")),
    ]
    notes = read_notes(make_midi(events))
    assert notes.velocity.tolist() == [50, 90]
    assert np.allclose(notes.end, tick_seconds(make_midi(events), np.array([200, 960])))


def test_voices_are_named_by_instrument():
    drums = note(0, 10, 36, channel=9)
    strings = [(0, mido.Message("program_change", program=48, channel=2)), *note(0, 10, 60, channel=2)]
    assert read_notes(make_midi(drums, strings)).voice_names == ["drums", "ensemble"]
    port = [(0, mido.MetaMessage("midi_port", port=1))]
    midi = make_midi([*port, *strings[:1]], [*port, *note(0, 10, 60, channel=2)], note(0, 10, 60, channel=2))
    assert read_notes(midi).voice_names == ["ensemble", "piano"]  # the program belongs to port 1


def test_remove_overlaps():
    notes = [(0, 90, 60, 1), (0, 90, 60, 9), (0, 50, 60, 99), (30, 5, 60, 7), (0, 10, 40, 5), (40, 10, 40, 5)]
    rows = np.stack(remove_overlaps(*np.array(notes).T), axis=1)
    assert rows.tolist() == [[0, 10, 40, 5], [0, 30, 60, 9], [30, 5, 60, 7], [40, 10, 40, 5]]
    assert all(len(column) == 0 for column in remove_overlaps(*np.empty((4, 0), int)))
