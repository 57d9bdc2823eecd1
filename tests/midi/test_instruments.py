"""The instrument of each note, whatever track sets it."""

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import DRUMS, TimedMessage, parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.stats import compute_stats
from rwkv_music.tokenizers.registry import make_codec
from tests.midi.midi_files import file_of, make_midi, note


def program(tick: int, number: int, channel: int = 0) -> TimedMessage:
    return tick, mido.Message("program_change", program=number, channel=channel)


def control(tick: int, number: int, value: int, channel: int = 0) -> TimedMessage:
    return tick, mido.Message("control_change", control=number, value=value, channel=channel)


def port(number: int) -> TimedMessage:
    return 0, mido.MetaMessage("midi_port", port=number)


def sysex(*data: int) -> TimedMessage:
    return 0, mido.Message("sysex", data=data)


GS_RESET = sysex(0x41, 0x10, 0x42, 0x12, 0x40, 0, 0x7F, 0, 0x41)
GS_PART_11_IS_RHYTHM = sysex(0x41, 0x10, 0x42, 0x12, 0x40, 0x1A, 0x15, 2, 0x0F)
GS_PART_10_IS_MELODIC = sysex(0x41, 0x10, 0x42, 0x12, 0x40, 0x10, 0x15, 0, 0x1B)
XG_ON = sysex(0x43, 0x10, 0x4C, 0, 0, 0x7E, 0)
XG_PART_11_IS_RHYTHM = sysex(0x43, 0x10, 0x4C, 8, 10, 7, 2)
GM2_ON = sysex(0x7E, 0x7F, 9, 3)

PROGRAMS = {
    # (tracks, the programs of the notes in order of their starts)
    "no program": ([note(0, 480, 60)], [0]),
    "set-up track": ([[program(0, 40)], note(0, 480, 60)], [40]),
    "set-up track at the end": ([note(0, 480, 60), [program(0, 40)]], [40]),
    "second staff": ([[program(0, 19), *note(0, 480, 60)], note(480, 960, 48)], [19, 19]),
    "change in another track": ([[program(0, 19), program(960, 20)], note(0, 960, 60) + note(960, 1920, 62)], [19, 20]),
    "change during a note": ([[program(0, 19), *note(0, 960, 60), program(480, 20)]], [19]),
    "change after the note": ([note(0, 480, 60), [program(480, 40)]], [0]),
    "other channel": ([[program(0, 40, 1)], note(0, 480, 60)], [0]),
    "two ports": (
        [[port(0), program(0, 40)], [port(1), program(0, 73)], [port(0), *note(0, 9, 60)], [port(1), *note(9, 18, 60)]],
        [40, 73],
    ),
    "drums of the second port": ([[port(1), *note(0, 9, 36, channel=9)]], [DRUMS]),
    "rhythm part by GS": ([[GS_RESET, GS_PART_11_IS_RHYTHM], note(0, 9, 36, channel=10)], [DRUMS]),
    "rhythm part of another port": ([[port(1), GS_PART_11_IS_RHYTHM], note(0, 9, 36, channel=10)], [0]),
    "rhythm part until the reset": ([[GS_PART_11_IS_RHYTHM, GS_RESET], note(0, 9, 36, channel=10)], [0]),
    "melodic part 10 by GS": ([[GS_PART_10_IS_MELODIC, program(0, 33, 9)], note(0, 9, 36, channel=9)], [33]),
    "rhythm part by XG": ([[XG_ON, XG_PART_11_IS_RHYTHM], note(0, 9, 36, channel=10)], [DRUMS]),
    "rhythm part by an XG bank": (
        [[XG_ON, control(0, 0, 127, 10), program(0, 0, 10)], note(0, 9, 36, channel=10)],
        [DRUMS],
    ),
    "melodic part by an XG bank": (
        [
            [XG_ON, control(0, 0, 127), program(0, 0), control(9, 0, 0), program(9, 4)],
            note(0, 9, 36) + note(9, 18, 36),
        ],
        [DRUMS, 4],
    ),
    "bank 127 without XG": ([[control(0, 0, 127), program(0, 5)], note(0, 9, 36)], [5]),
    "rhythm part by a GM2 bank": ([[GM2_ON, control(0, 0, 120), program(0, 0)], note(0, 9, 36)], [DRUMS]),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs(case):
    tracks, expected = PROGRAMS[case]
    data = file_of(make_midi(*tracks, ticks_per_beat=24))
    assert played_notes(parse_midi(data)).program.tolist() == expected
    assert np.flatnonzero(compute_stats(data).programs).tolist() == sorted(set(expected))
    codec = make_codec("multitrack")
    named = [codec.vocabulary[token] for token in codec.encode(data)]
    named = [token.removeprefix("Program_") for token in named if token.startswith("Program_")]
    assert set(named) == {"Drums" if number == DRUMS else str(number) for number in expected}


@pytest.mark.parametrize("case", ["set-up track", "second staff", "change in another track"])
def test_midi_llm_reads_the_programs_of_other_tracks(case):
    tracks, expected = PROGRAMS[case]
    codec = make_codec("midi-llm")
    letters = {19: "pi", 20: "pi", 40: "v"}
    found = [codec.vocabulary[token] for token in codec.encode(file_of(make_midi(*tracks)))]
    onsets = [token.split(":")[0] for token in found if ":" in token and not token.endswith(":0")]
    assert onsets == [letters[number] for number in expected]


@pytest.mark.parametrize(
    ("case", "n"), [("two ports", 1), ("rhythm part by GS", 1), ("melodic part 10 by GS", 1), ("second staff", 0)]
)
def test_midi_llm_counts_the_notes_that_it_misreads(case, n):
    piece = make_codec("midi-llm").encode_piece(file_of(make_midi(*PROGRAMS[case][0])))
    assert piece.lost.get("notes read as another instrument", 0) == n


EMPTY = note(480, 480, 60)[::-1]


@pytest.mark.parametrize(
    ("tracks", "ends"),
    [
        ([note(0, 480, 60), note(0, 960, 64)[:1], note(0, 720, 67)], [480, 720, 720]),
        ([note(0, 480, 60)[:1] + [(960, mido.MetaMessage("text"))]], [960]),  # to the end of its track
        ([note(0, 480, 60)[:1] + [control(240, 123, 0), *note(0, 960, 64)]], [240, 960]),
        ([note(0, 480, 60)[:1] + note(240, 480, 60)], [480, 480]),  # the first note-off ends the first note
        ([EMPTY + note(0, 480, 64)], [480]),  # a note without length whose note-off came first
        ([EMPTY + note(480, 720, 60) + note(960, 1440, 60)], [720, 1440]),  # it takes no note-off of a later note
        ([EMPTY[:1] + note(480, 960, 60)], [960]),  # a note-off without a note
        # A note-off without a note, and notes that start together, each with a note-off.
        ([EMPTY[:1] + [note(480, 0, 60)[0], *note(480, 720, 60), note(0, 960, 60)[1]]], [720, 960]),
        ([EMPTY + [note(480, 0, 60)[0], *note(480, 720, 60), note(0, 960, 60)[1]]], [720, 960]),  # the first has none
    ],
)
def test_notes_without_a_note_off_sound_to_the_end(tracks, ends):
    assert sorted(played_notes(parse_midi(file_of(make_midi(*tracks)))).end.tolist()) == ends


def test_multitrack_counts_notes_without_length():
    piece = make_codec("multitrack").encode_piece(file_of(make_midi(EMPTY + note(480, 720, 60) + note(960, 1440, 60))))
    assert piece.lost == {"notes without length": 1}


def test_pedals_belong_to_channels():
    tracks = [[control(0, 64, 127), control(960, 64, 0), *note(0, 480, 60)], note(0, 480, 48), note(0, 480, 72, 80, 1)]
    codec = make_codec("multitrack")
    tokens = [codec.vocabulary[token] for token in codec.encode(file_of(make_midi(*tracks)))]
    assert [token for token in tokens if token.startswith("Duration")] == ["Duration_48"] * 2 + ["Duration_24"]


def test_reset_controllers_releases_the_pedal():
    notes = played_notes(parse_midi(file_of(make_midi([control(0, 64, 127), control(960, 121, 0), *note(0, 480, 60)]))))
    assert notes.pedals == {0: [(0, 127), (960, 0)]}
