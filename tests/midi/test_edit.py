"""Cutting MIDI files."""

from operator import itemgetter

import mido

from rwkv_music.midi.edit import cut_after, cut_before, lengthen, releases
from rwkv_music.midi.events import timed_messages
from tests.midi.midi_files import make_midi, note


def test_cut_after_keeps_earlier_events_and_releases_finds_the_rest():
    """A note and a pedal are held at the line, one note never ends, and one starts on the line."""
    pedal = [(50, mido.Message("control_change", control=64, value=127))]
    pedal += [(250, mido.Message("control_change", control=64, value=0))]
    never = note(150, 0, 70)[:1]
    text = [(tick, mido.MetaMessage("lyrics", text=str(tick))) for tick in (199, 200)]
    midi = make_midi(
        sorted([*note(0, 400, 60), *pedal, *never, *text, *note(200, 300, 60), *note(300, 500, 62)], key=itemgetter(0))
    )
    cut = timed_messages(cut_after(midi, 200).tracks[0])
    assert cut == [(now, message) for now, message in timed_messages(midi.tracks[0]) if now < 200] and len(cut) == 4
    [found] = releases(midi, 200)
    expected = {
        (250, "control_change", None),
        (300, "note_off", 60),
        (500, "note_off", 70),
    }  # the first note ends first
    assert {(now, message.type, getattr(message, "note", None)) for now, message in found} == expected


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
            mido.MetaMessage("midi_port", port=1),
            mido.Message("sysex", data=(126, 127, 9, 1)),
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
        mido.MetaMessage("midi_port", port=1),
        mido.Message("sysex", data=(126, 127, 9, 1)),
        mido.MetaMessage("set_tempo", tempo=400_000),
        mido.Message("program_change", program=5),
        mido.Message("control_change", control=7, value=90),
        mido.Message("control_change", control=10, value=10),
        mido.Message("note_on", note=60, velocity=2, time=0),
        mido.Message("note_off", note=60, time=20),
        mido.MetaMessage("set_tempo", tempo=300_000, time=30),
    ]
