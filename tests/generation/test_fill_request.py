"""Reading which cells a user wants to be written."""

import re

import mido
import pytest

from rwkv_music.errors import UserError
from rwkv_music.generation.fill_request import describe_parts, parse_fill, parse_new_part
from rwkv_music.midi.cells import NewPart
from rwkv_music.midi.events import DRUMS, ParsedMidi, parse_midi
from rwkv_music.midi.parts import read_parts
from tests.midi.midi_files import file_of, make_midi, note

BAR = 1920  # ticks of 4/4


def piece(upbeat: bool = False) -> ParsedMidi:
    """Return four bars of Violin I, Violin II, an electric bass without a name and drums."""
    tracks = []
    for name, program, channel in (("Violin I", 40, 0), ("Violin II", 40, 1), ("", 33, 2), ("", 0, 9)):
        track = [(0, mido.MetaMessage("track_name", name=name))] if name else []
        track.append((0, mido.Message("program_change", channel=channel, program=program)))
        for bar in range(4):
            track += note(bar * BAR + 10, bar * BAR + 100, 60, channel=channel)
        tracks.append(track)
    meters = [(0, 1), (480, 4)] if upbeat else [(0, 4)]
    meter = [(tick, mido.MetaMessage("time_signature", numerator=n, denominator=4)) for tick, n in meters]
    return parse_midi(file_of(make_midi(meter, *tracks)))


def cells(bars, parts) -> set[tuple[int, int]]:
    return {(bar, part) for bar in bars for part in parts}


@pytest.mark.parametrize(
    "fills, expected",
    [
        (["bars=2-3"], cells((1, 2), (1, 2, 3, 4))),
        (["bars=1, 3-4 parts=3"], cells((0, 2, 3), (3,))),
        (["parts=violin i,BASS"], cells(range(4), (1, 3))),
        (["Parts=Violin II, drums bars = 4"], cells((3,), (2, 4))),
        (["bars=1 parts=1", "bars=2 parts=2"], {(0, 1), (1, 2)}),
        (["parts=elec"], cells(range(4), (3,))),
        (["parts=II"], cells(range(4), (2,))),
    ],
)
def test_bars_and_parts_by_number_and_name(fills, expected):
    assert parse_fill(fills, piece(), "a.mid") == expected


def test_an_upbeat_is_bar_0():
    midi = piece(upbeat=True)
    assert parse_fill(["bars=0-1 parts=1"], midi, "a.mid") == {(0, 1), (1, 1)}
    with pytest.raises(UserError, match="bars 0 to 3, of which bar 0 is an upbeat"):
        parse_fill(["bars=4"], midi, "a.mid")


def test_new_parts_follow_those_of_the_file():
    """A new part is written in all bars unless a value names it."""
    new = [NewPart(32), NewPart(DRUMS, "Shaker")]
    assert parse_fill([], piece(), "a.mid", new) == cells(range(4), (5, 6))
    fills = ["bars=2", "bars=3-4 parts=shaker,acoustic bass"]
    assert parse_fill(fills, piece(), "a.mid", new) == cells((1,), range(1, 5)) | cells((2, 3), (5, 6))


@pytest.mark.parametrize(
    "fills, facts",
    [
        ([], "--fill"),
        (["5-8"], '"5-8".*bars or parts'),
        (["bars="], '"bars="'),
        (["bars=1 bars=2"], '"bars=1 bars=2"'),
        (["voices=1 bars=2"], '"voices=1 bars=2"'),
        (["bars=3-2"], '"bars=3-2".*5-8,12'),
        (["bars=two"], '"bars=two".*5-8,12'),
        (["bars=0"], '"bars=0".*a.mid.*bars 1 to 4'),
        (["bars=3-99999999999999999999"], "bars 1 to 4"),
        (["parts=5"], 'no part "5".*4 Drums \\(drums\\)'),
        (["parts=0"], 'no part "0"'),
        (["parts=cello"], 'no part "cello".*1 Violin I \\(program 40, Violin\\), 2 Violin II'),
        (["parts=1,"], 'no part ""'),
        (["parts=violin"], 'several parts "violin".*1 Violin I '),
        (["parts=1,2,3,4"], "every note of a.mid"),
        (["bars=1-4"], "every note of a.mid"),
    ],
)
def test_what_cannot_be_filled(fills, facts):
    with pytest.raises(UserError, match=facts) as raised:
        parse_fill(fills, piece(), "a.mid")
    assert "\n" not in str(raised.value) and not re.search(r"\. [A-Z]", str(raised.value))


def test_a_piece_without_notes():
    with pytest.raises(UserError, match="a.mid has no notes"):
        parse_fill(["bars=1"], parse_midi(file_of(make_midi([]))), "a.mid")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("program=32", NewPart(32)),
        ("program=Drums name=Tom's kit", NewPart(DRUMS, "Tom's kit")),
        ("name=Low program=fretless", NewPart(35, "Low")),
        ("program=violin", NewPart(40)),
    ],
)
def test_new_parts_by_number_and_name(text, expected):
    assert parse_new_part(text) == expected


@pytest.mark.parametrize(
    "text, facts",
    [
        ("32", "program or name"),
        ("name=Bass", "0 to 127, or drums"),
        ("program=128", "0 to 127, or drums"),
        ("program=kazoo", "0 to 127, or drums"),
        ("program=slap", "36 \\(Slap Bass 1\\), 37 \\(Slap Bass 2\\)"),
    ],
)
def test_new_parts_that_cannot_be_added(text, facts):
    with pytest.raises(UserError, match=facts):
        parse_new_part(text)


def test_labels_of_parts():
    """Names are read as UTF-8 if they are valid, otherwise as Latin-1."""
    names = [b"Fl\xc3\xb6te", b"Fl\xf6te", b" "]
    tracks = [[(0, mido.MetaMessage("track_name", name=n.decode("latin-1"))), *note(0, 9, 60)] for n in names]
    parts, _ = read_parts(parse_midi(file_of(make_midi(*tracks))))
    assert [part.label for part in parts] == ["Flöte", "Flöte", "Acoustic Grand Piano"]
    assert describe_parts(parts).startswith("1 Flöte (program 0, Acoustic Grand Piano), 2 Flöte")
