"""Reading notes, and removing overlaps between them."""

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import DRUMS, TimedMessage
from rwkv_music.midi.notes import NamedPart, read_notes, remove_overlaps
from rwkv_music.midi.time import TempoMap
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
    assert notes.parts == [NamedPart(1, 0, 0, "Right hand"), NamedPart(2, 1, 0, "piano")]
    assert np.bincount(notes.part).tolist() == [12, 4]


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
    assert np.allclose(notes.end, TempoMap.from_midi(make_midi(events)).seconds(np.array([200, 960])))


def test_parts_have_names_and_programs():
    drums = note(0, 10, 36, channel=9)
    strings = [program(48, 2), *note(0, 10, 60, channel=2)]
    assert parts_of(drums, strings) == [NamedPart(0, 9, DRUMS, "drums"), NamedPart(1, 2, 48, "ensemble")]
    port = [(0, mido.MetaMessage("midi_port", port=1))]
    setup, notes = [*port, program(48, 2)], note(0, 10, 60, channel=2)
    assert parts_of(setup, [*port, *notes], notes) == [NamedPart(1, 18, 48, "ensemble"), NamedPart(2, 2, 0, "piano")]
    # The program of the first note counts, and a name that is UTF-8.
    named = (0, mido.MetaMessage("track_name", name="Flöte".encode().decode("latin-1")))
    later = program(73, 0, 480)
    assert parts_of([named, program(40), *note(0, 10, 60), later]) == [NamedPart(0, 0, 40, "Flöte")]
    # A track of several channels: each channel is a part, named after its instrument.
    assert parts_of([named, *notes, *note(0, 9, 40, channel=1)]) == [
        NamedPart(0, 1, 0, "piano"),
        NamedPart(0, 2, 0, "piano"),
    ]


def test_programs_of_notes_and_rhythm_parts():
    """A message of GS makes channel 11 a rhythm part; a program change applies to the notes after it."""
    rhythm = mido.Message("sysex", data=(0x41, 0x10, 0x42, 0x12, 0x40, 0x1B, 0x15, 0x02, 0x0E))
    named = mido.MetaMessage("track_name", name="Percussion")
    kit = [(0, named), (0, rhythm), *note(0, 10, 36, channel=11)]
    found = read_notes(make_midi(kit, [*note(0, 10, 60), program(7, 0, 10), *note(10, 20, 60)], [program(3, 0)]))
    assert found.parts[0] == NamedPart(0, 11, DRUMS, "Percussion")
    assert found.program[found.part == 1].tolist() == [3, 7]


def program(number: int, channel: int = 0, tick: int = 0) -> TimedMessage:
    return tick, mido.Message("program_change", program=number, channel=channel)


def parts_of(*tracks: list[TimedMessage]) -> list[NamedPart]:
    return read_notes(make_midi(*tracks)).parts


def test_remove_overlaps():
    notes = [(0, 90, 60, 1), (0, 90, 60, 9), (0, 50, 60, 99), (30, 5, 60, 7), (0, 10, 40, 5), (40, 10, 40, 5)]
    rows = np.stack(remove_overlaps(*np.array(notes).T), axis=1)
    assert rows.tolist() == [[0, 10, 40, 5], [0, 30, 60, 9], [30, 5, 60, 7], [40, 10, 40, 5]]
    assert all(len(column) == 0 for column in remove_overlaps(*np.empty((4, 0), int)))


@pytest.mark.parametrize("n", range(5))
def test_remove_overlaps_keeps_some_notes_that_start_together(n):
    """They end at the next start of their pitch, also if it is MAX_UNISON notes away."""
    together = [(0, 90 - k, 60, k) for k in range(n)]
    later = [(80, 9, 60, 1), (80, 9, 60, 1), (0, 99, 61, 1)]
    rows = np.stack(remove_overlaps(*np.array(together + later).T, max_unison=3), axis=1).tolist()
    assert sorted(rows) == sorted([[0, 80, 60, k] for k in range(min(n, 3))] + [list(note) for note in later])
    assert rows == sorted(rows, key=lambda row: (row[0], row[2], row[1]))
