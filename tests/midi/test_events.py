"""Reading and writing events."""

import io
import struct

import mido
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.events import (
    CONTROL_CHANGE,
    NOTE_OFF,
    NOTE_ON,
    PROGRAM_CHANGE,
    TEMPO,
    TIME_SIGNATURE,
    RejectedMidi,
    read_events,
    read_midi,
    to_track,
)
from tests.midi.midi_files import file_of, odd_piece

HEADER = b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480)
TRACK = b"MTrk" + struct.pack(">I", 12) + bytes([0, 0x90, 60, 64, 0x81, 0x70, 0x80, 60, 0, 0, 0xFF, 0x2F])


def header(midi_format=1, n_tracks=1, division=480, size=6) -> bytes:
    return b"MThd" + struct.pack(">IHHH", size, midi_format, n_tracks, division)


@pytest.mark.parametrize(
    "data",
    [
        HEADER + TRACK,
        HEADER + TRACK + b"junk after the end",
        HEADER + b"XFIH" + struct.pack(">I", 3) + b"abc" + TRACK,
        header(size=8) + b"\0\0" + TRACK,
    ],
)
def test_read_midi_accepts_valid_files(data):
    assert read_midi(data) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"these are words\n" * 10, "not a MIDI file"),
        (b"RIFF", "not a MIDI file"),
        (HEADER[:9], "truncated"),
        (HEADER, "truncated"),
        (HEADER + TRACK[:-1], "truncated"),
        (header(n_tracks=2) + TRACK, "truncated"),
        (header(size=2) + TRACK, "damaged header"),
        (header(midi_format=9) + TRACK, "damaged header"),
        (header(midi_format=2) + TRACK, "format 2 (independent patterns)"),
        (header(division=0) + TRACK, "zero ticks per quarter note"),
        (header(division=0xE728) + TRACK, "SMPTE time (no beats)"),
    ],
)
def test_read_midi_rejects_invalid_files(data, reason, tmp_path):
    (tmp_path / "x.mid").write_bytes(data)
    for source in (data, tmp_path / "x.mid"):
        with pytest.raises(RejectedMidi) as raised:
            read_midi(source)
        assert raised.value.reason == reason


def test_read_midi_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file.*x.mid"):
        read_midi(tmp_path / "x.mid")


KINDS = {
    "note_off": NOTE_OFF,
    "note_on": NOTE_ON,
    "control_change": CONTROL_CHANGE,
    "program_change": PROGRAM_CHANGE,
    "set_tempo": TEMPO,
    "time_signature": TIME_SIGNATURE,
}
VALUES = {"note", "velocity", "control", "value", "program", "tempo", "numerator", "denominator"}


def mido_events(data: bytes) -> list[tuple]:
    events, now = [], 0
    for message in mido.MidiFile(file=io.BytesIO(data)).merged_track:
        now += message.time
        if message.type in KINDS:
            values = [value for name, value in vars(message).items() if name in VALUES]
            channel = getattr(message, "channel", 0)
            events.append((now, KINDS[message.type], channel, *(values + [0, 0])[:2]))
    return events


@pytest.mark.parametrize("seed", range(12))
def test_read_events_matches_mido(seed):
    data = odd_piece(seed)
    ticks_per_quarter, events = read_events(data)
    assert ticks_per_quarter == mido.MidiFile(file=io.BytesIO(data)).ticks_per_beat
    assert [event for event in events if event[1]] == mido_events(data)


def test_read_events_matches_mido_on_real_files(bach_midi):
    for path in bach_midi.iterdir():
        assert [event for event in read_events(path.read_bytes())[1] if event[1]] == mido_events(path.read_bytes())


def one_track(content: bytes) -> bytes:
    return b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize(
    "content",
    [
        b"\0\x90\x3c\x40\x83\xff\x7f\x3c\0",  # running status after a delta time of three bytes
        b"\0\x90\x3c\x40\0\xff\x01\x02la\0\x3c\0",  # running status across a meta event
        b"\0\xff\x7f\x81\0" + bytes(128) + b"\0\x90\x3c\x40",
        b"\0\xf0\x03abc\0\xf8\0\x90\x3c\x40",
    ],
)
def test_read_events_encodings(content):
    assert [event for event in read_events(one_track(content))[1] if event[1]] == mido_events(one_track(content))


@pytest.mark.parametrize(
    "content",
    [
        b"\0\x3c\x40",  # no status
        b"\0\x90\x3c",  # no velocity
        b"\0\x90\x3c\x80",
        b"\0\xf4",
        b"\0\xff\x51\x03\x07",
        b"\0\xff\x7f\xff\xff\xff\xff\x7f",
        b"\xff\xff",
        b"\0",
    ],
)
def test_read_events_rejects_damaged_tracks(content):
    with pytest.raises(RejectedMidi, match="damaged events"):
        read_events(one_track(content))


def test_to_track_puts_note_offs_first():
    on, off = mido.Message("note_on", note=1), mido.Message("note_off", note=1)
    track = to_track([(0, on), (9, on), (9, off), (20, off)])
    assert [(message.type, message.time) for message in track][1:3] == [("note_off", 9), ("note_on", 0)]
    midi = mido.MidiFile(tracks=[track])
    assert file_of(midi).endswith(b"\xff\x2f\0")
