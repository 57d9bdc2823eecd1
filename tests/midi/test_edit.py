"""Cutting MIDI files at a tick, and joining a completion to the file that prompted it."""

import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.edit import cut_before, file_of_prompt, join, lengthen
from rwkv_music.midi.piano_roll import bar_ticks, read_notes
from rwkv_music.tokenizers.registry import make_codec


def part(*events: tuple[int, mido.Message]) -> mido.MidiTrack:
    """Events at absolute ticks."""
    track, now = mido.MidiTrack(), 0
    for tick, message in events:
        track.append(message.copy(time=tick - now))
        now = tick
    return track


def note(start: int, end: int, pitch: int, channel: int = 0) -> list[tuple[int, mido.Message]]:
    on = mido.Message("note_on", note=pitch, velocity=80, channel=channel)
    return [(start, on), (end, mido.Message("note_off", note=pitch, channel=channel))]


def test_a_joined_file_has_both_and_nothing_hangs():
    """The prompt at 480 ticks a quarter, the completion at 9600; the line is after two quarters."""
    pedal = mido.Message("control_change", control=64, value=127)
    volume = mido.Message("control_change", control=7, value=30)
    opening = mido.MidiFile(ticks_per_beat=480)
    opening.tracks.append(
        part(
            (0, mido.MetaMessage("text", text="own")), (0, pedal), (0, volume), *note(0, 960, 60), *note(960, 5000, 61)
        )
    )
    opening.tracks[0][-2:] = part((0, mido.Message("note_on", note=64, velocity=50, time=0)))  # begins before the line
    opening.tracks[0][-1].time = -480
    decoded = mido.MidiFile(ticks_per_beat=9600)
    decoded.tracks.append(part((0, mido.MetaMessage("set_tempo", tempo=400_000))))
    decoded.tracks.append(part(*note(0, 9600, 60), *note(9600, 28800, 64), *note(28800, 38400, 67)))
    joined = join(opening, 960, decoded, 19200)

    assert joined.ticks_per_beat == 9600
    notes = read_notes(joined)
    found = set(zip(notes.start_tick.tolist(), notes.end_tick.tolist(), notes.pitch.tolist(), strict=True))
    assert found == {(0, 19200, 60), (9600, 28800, 64), (28800, 38400, 67)}
    assert joined.tracks[0][0] == mido.MetaMessage("text", text="own")
    at_line = [m for m in joined.tracks[0] if m.type == "control_change"][2:]
    assert {(m.control, m.value) for m in at_line} == {(64, 0), (7, 100)}
    assert joined.tracks[1][0] == mido.MetaMessage("set_tempo", tempo=400_000, time=19200)


def test_a_sounding_note_ends_before_its_key_is_struck_again():
    opening, decoded = mido.MidiFile(ticks_per_beat=100), mido.MidiFile(ticks_per_beat=100)
    opening.tracks.append(part(*note(0, 400, 60)))
    decoded.tracks.append(
        part(
            *note(0, 300, 60, channel=1),
        )
    )
    decoded.tracks.append(part(*note(250, 280, 60)))
    notes = read_notes(join(opening, 200, decoded, 200))
    assert list(zip(notes.start_tick.tolist(), notes.end_tick.tolist(), strict=True)) == [(0, 250), (250, 280)]


@pytest.mark.parametrize("divisions, expected", [((480, 9600), 9600), ((384, 24), 384), ((1024, 9600), 31744)])
def test_times_are_kept_exactly_or_as_finely_as_a_file_can(divisions, expected):
    opening, decoded = (mido.MidiFile(ticks_per_beat=division) for division in divisions)
    opening.tracks.append(part(*note(0, divisions[0], 60)))
    decoded.tracks.append(part(*note(divisions[1] * 5 // 2, divisions[1] * 3, 62)))
    joined = join(opening, 2 * divisions[0], decoded, 2 * divisions[1])
    assert joined.ticks_per_beat == expected
    notes = read_notes(joined)
    assert np.allclose(notes.start_tick / expected, [0, 2.5]) and np.allclose(notes.end_tick / expected, [1, 3])


@pytest.mark.parametrize("tokenizer", ["remi", "midi-llm"])
@pytest.mark.parametrize("early", [0, 7, 30])
def test_the_prompt_is_found_in_its_file(tokenizer, early):
    """Silent bars first; a player who is a little early for the third bar, whose note belongs to it in remi."""
    codec = make_codec(tokenizer)
    midi = mido.MidiFile(ticks_per_beat=480)
    lead = 2 * 1920
    times = [lead, lead + 960, lead + 1920, lead + 2 * 1920 - early, lead + 2 * 1920 + 960]
    midi.tracks.append(part(*(event for i, t in enumerate(times) for event in note(t, t + 400, 60 + i))))
    piece = codec.encode_piece(save(midi))
    leading = len(bar_ticks(midi, 5)) - 1 - len(piece.bar_starts)
    prompt = codec.first_bars(piece, 4 - leading)
    opening, line = file_of_prompt(codec, midi, prompt)
    assert line == lead + 2 * 1920
    assert len(read_notes(opening)) == codec.count_notes(prompt.ids)
    foreign = mido.MidiFile(ticks_per_beat=480, tracks=[part(*note(0, 100, 90))])
    assert file_of_prompt(codec, foreign, prompt) is None


def save(midi: mido.MidiFile) -> bytes:
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def test_a_file_is_lengthened_by_its_end():
    midi = mido.MidiFile(ticks_per_beat=100, tracks=[part(*note(0, 100, 60))])
    lengthen(midi, 400)
    assert sum(message.time for message in midi.tracks[0]) == 400 and midi.tracks[0][-1].type == "end_of_track"
    lengthen(midi, 300)
    assert sum(message.time for message in midi.tracks[0]) == 400


def test_cutting_keeps_settings_and_whole_notes():
    midi = mido.MidiFile(ticks_per_beat=100)
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=1),
            mido.MetaMessage("set_tempo", tempo=400_000),
            mido.Message("program_change", program=5),
            mido.Message("control_change", control=7, value=90),
            mido.Message("control_change", control=10, value=10),
            mido.Message("note_on", note=60, velocity=1, time=50),
            mido.Message("note_on", note=60, velocity=2, time=50),  # at tick 100, while the first still sounds
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
