"""Reading and writing events."""

import io
import struct

import mido
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.events import (
    CONTROL_CHANGE,
    GM2_MODE,
    GM_MODE,
    GS_MODE,
    MELODIC_PART,
    NORMAL_PARTS,
    NOTE_OFF,
    NOTE_ON,
    PROGRAM_CHANGE,
    RHYTHM_PART,
    SYSEX,
    TEMPO,
    TIME_SIGNATURE,
    XG_MODE,
    ParsedMidi,
    RejectedMidi,
    parse_midi,
    read_midi,
    to_track,
)
from tests.midi.midi_files import file_of, numbers, odd_piece

HEADER = b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480)
EVENTS = bytes([0, 0x90, 60, 64, 0x81, 0x70, 0x80, 60, 0])
END = b"\0\xff\x2f\0"


def chunk(content: bytes, length: int | None = None) -> bytes:
    """Return a track chunk; `length` is the value of its length field, by default the right one."""
    return b"MTrk" + struct.pack(">I", len(content) if length is None else length) + content


TRACK = chunk(EVENTS + END)


def header(midi_format=1, n_tracks=1, division=480, size=6) -> bytes:
    return b"MThd" + struct.pack(">IHHH", size, midi_format, n_tracks, division)


@pytest.mark.parametrize(
    "data",
    [
        HEADER + TRACK,
        HEADER + TRACK + b"junk after the end",
        header(size=8) + b"\0\0" + TRACK,
        HEADER + chunk(EVENTS),
        header(midi_format=0) + TRACK + b"MTrk is only a word here",
    ],
)
def test_readable_files_are_not_changed(data):
    assert read_midi(data) == data
    assert len(mido.MidiFile(file=io.BytesIO(data)).tracks) == 1


def note_messages(data: bytes) -> list[tuple]:
    """Return (track, tick, pitch, velocity) of all note messages of a file, read with mido."""
    rows = []
    for number, track in enumerate(mido.MidiFile(file=io.BytesIO(data)).tracks):
        now = 0
        for message in track:
            now += message.time
            if message.type in ("note_on", "note_off"):
                rows.append((number, now, message.note, message.velocity))
    return rows


ONE = [(0, 0, 60, 64), (0, 240, 60, 0)]
TWO = ONE + [(1, *row[1:]) for row in ONE]
SECOND = chunk(b"\x05" + EVENTS[1:] + END)
REPAIRED = {
    "header that is too short": (header(size=2) + TRACK, ONE),
    "header that ends beyond the file": (header(size=9999) + TRACK, ONE),
    "header that covers the first track": (header(n_tracks=2, size=6 + len(TRACK)) + TRACK + TRACK, TWO),
    "chunk that is not a track": (HEADER + b"XFIH" + struct.pack(">I", 3) + b"abc" + TRACK, ONE),
    "RIFF header (.rmi)": (b"RIFF\x40\0\0\0RMIDdata\x30\0\0\0" + HEADER + TRACK + b"\0", ONE),
    "byte after End of Track": (header(n_tracks=2) + chunk(EVENTS + END + b"\0") + TRACK, TWO),
    "events after End of Track": (HEADER + chunk(EVENTS + END + EVENTS), ONE),
    "byte between the tracks": (header(n_tracks=2) + TRACK + b"\0" + TRACK, TWO),
    "too many tracks declared": (header(n_tracks=5) + TRACK + TRACK, TWO),
    "too few tracks declared": (header(n_tracks=1) + TRACK + TRACK, TWO),
    "no tracks declared": (header(n_tracks=0) + TRACK + TRACK, TWO),
    "format 0 with two tracks": (header(midi_format=0, n_tracks=2) + TRACK + TRACK, TWO),
    "length beyond the file": (HEADER + chunk(EVENTS + END, 999), ONE),
    "length that covers the next track": (header(n_tracks=2) + chunk(EVENTS + END, 20) + TRACK, TWO),
    "length that ends inside an event": (header(n_tracks=2) + chunk(EVENTS + END, 2) + TRACK, TWO),
    "length that ends between events": (header(n_tracks=2) + chunk(EVENTS + END, 4) + TRACK, TWO),
    "zero length": (header(n_tracks=2) + chunk(EVENTS + END, 0) + TRACK, TWO),
    "velocity 200": (HEADER + chunk(b"\0\x90\x3c\xc8" + END), [(0, 0, 60, 127)]),
    "pitch 188": (HEADER + chunk(b"\0\x90\xbc\x40" + END), [(0, 0, 127, 64)]),
    "byte above 127 in a system exclusive message": (HEADER + chunk(b"\0\xf0\3\xff\1\xf7" + EVENTS + END), ONE),
    "running status after a system message": (
        HEADER + chunk(b"\0\x90\x3c\x40\0\xf0\2\1\xf7\x81\x70\x3c\0" + END),
        ONE,
    ),
    "real-time message": (HEADER + chunk(b"\0\xf8" + EVENTS + END), ONE),
    "key signature of mode 255": (HEADER + chunk(b"\0\xff\x59\2\0\xff" + EVENTS + END), ONE),
    "key signature with 127 sharps": (HEADER + chunk(b"\0\xff\x59\2\x7f\0" + EVENTS + END), ONE),
    "key signature without a mode": (HEADER + chunk(b"\0\xff\x59\1\0" + EVENTS + END), ONE),
    "tempo of two bytes": (HEADER + chunk(b"\0\xff\x51\2\7\xa1" + EVENTS + END), ONE),
    "time signature of two bytes": (HEADER + chunk(b"\0\xff\x58\2\3\2" + EVENTS + END), ONE),
    "time signature with a denominator of 2^29": (HEADER + chunk(b"\0\xff\x58\2\3\x1d" + EVENTS + END), ONE),
    "SMPTE offset with 99 minutes": (HEADER + chunk(b"\0\xff\x54\5\0\x63\0\0\0" + EVENTS + END), ONE),
    "unknown meta event after a delta time": (
        HEADER + chunk(EVENTS[:4] + b"\x81\x40\xff\x60\1a\x30" + EVENTS[6:] + END),
        ONE,
    ),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_repaired_files(case):
    """Both readers find all notes, and mido can write what it reads."""
    data, notes = REPAIRED[case]
    midi = parse_midi(data)
    assert [(track, *rest) for tick, kind, _, a, b, track in midi.events if kind in (NOTE_ON, NOTE_OFF)
            for rest in [(tick, a, b)]] == sorted(notes, key=lambda row: row[1])  # fmt: skip
    found = note_messages(midi.data)
    first = found[0][0]
    assert [(track - first, *rest) for track, *rest in found] == notes
    file_of(mido.MidiFile(file=io.BytesIO(midi.data)))
    assert parse_midi(midi.data).data == midi.data  # a repaired file needs no repair


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_repaired_for_mido_or_rejected(seed):
    """After random damage, mido reads and writes the events that the tokenizers read."""
    draws = numbers(seed)
    data = bytearray(odd_piece(seed % 8))
    for _ in range(1 + next(draws) % 3):
        data[14 + next(draws) % (len(data) - 14)] = next(draws) % 256
    try:
        midi = parse_midi(bytes(data))
    except RejectedMidi as error:
        assert error.reason.startswith(("damaged events (", "truncated", "no tracks"))
        return
    written = parse_midi(file_of(mido.MidiFile(file=io.BytesIO(midi.data))))
    assert [event for event in written.events if event[1]] == [event for event in midi.events if event[1]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"these are words\n" * 10, "not a MIDI file"),
        (b"RIFF", "not a MIDI file"),
        (HEADER[:9], "truncated"),
        (HEADER, "no tracks"),
        (HEADER + TRACK[:-1], "truncated"),
        (header(midi_format=9) + TRACK, "damaged header"),
        (header(size=2) + b"abcd" + TRACK, "damaged header"),
        (header(size=9999) + b"abcd" + TRACK, "damaged header"),
        (header(midi_format=2) + TRACK, "format 2 (independent patterns)"),
        (header(division=0) + TRACK, "zero ticks per quarter note"),
        (header(division=0xE728) + TRACK, "SMPTE time (no beats)"),
    ],
)
def test_parse_midi_rejects_invalid_files(data, reason, tmp_path):
    (tmp_path / "x.mid").write_bytes(data)
    for source in (data, tmp_path / "x.mid"):
        with pytest.raises(RejectedMidi) as raised:
            parse_midi(source)
        assert raised.value.reason == reason


def test_parse_midi_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file.*x.mid"):
        parse_midi(tmp_path / "x.mid")


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


def meaningful(midi: ParsedMidi) -> list[tuple]:
    """Return the events of known kinds, without their tracks."""
    return [event[:5] for event in midi.events if event[1]]


@pytest.mark.parametrize("seed", range(12))
def test_events_match_mido(seed):
    data = odd_piece(seed)
    midi = parse_midi(data)
    assert midi.ticks_per_quarter == mido.MidiFile(file=io.BytesIO(data)).ticks_per_beat
    assert meaningful(midi) == mido_events(data)


def test_events_match_mido_on_real_files(bach_midi):
    for path in bach_midi.iterdir():
        assert meaningful(parse_midi(path)) == mido_events(path.read_bytes())


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
def test_encodings_of_events(content):
    assert meaningful(parse_midi(one_track(content))) == mido_events(one_track(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\x3c\x40", "no status byte"),
        (b"\0\x90\x3c", "truncated"),
        (b"\0\xf4", "undefined status byte"),
        (b"\0\xff\x51\x03\x07", "truncated"),
        (b"\0\xff\x7f\xff\xff\xff\xff\x7f", "truncated"),
        (b"\xff\xff", "truncated"),
        (b"\xff\xff\xff\xff\x7f\x90\x3c\x40", "delta time"),
        (b"\0", "truncated"),
    ],
)
def test_damaged_tracks_are_rejected(content, reason):
    with pytest.raises(RejectedMidi, match=reason):
        parse_midi(one_track(content))


def test_an_event_crosses_the_end_of_its_track():
    with pytest.raises(RejectedMidi, match="crosses the end of its track"):
        parse_midi(header(n_tracks=2) + chunk(b"\0\x90\x3c") + TRACK)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"\x7e\x7f\x09\x01", (0, NORMAL_PARTS, GM_MODE)),
        (b"\x7e\x7f\x09\x03", (0, NORMAL_PARTS, GM2_MODE)),
        (b"\x41\x10\x42\x12\x40\x00\x7f\x00\x41", (0, NORMAL_PARTS, GS_MODE)),
        (b"\x41\x10\x42\x12\x40\x11\x15\x01\x19", (0, RHYTHM_PART, GS_MODE)),
        (b"\x41\x10\x42\x12\x40\x1a\x15\x02\x0f", (10, RHYTHM_PART, GS_MODE)),
        (b"\x41\x10\x42\x12\x40\x10\x15\x00\x1b", (9, MELODIC_PART, GS_MODE)),
        (b"\x43\x10\x4c\x00\x00\x7e\x00", (0, NORMAL_PARTS, XG_MODE)),
        (b"\x43\x10\x4c\x08\x0b\x07\x02", (11, RHYTHM_PART, XG_MODE)),
        (b"\x43\x10\x4c\x08\x09\x07\x00", (9, MELODIC_PART, XG_MODE)),
    ],
)
def test_messages_that_assign_rhythm_parts(message, expected):
    content = b"\0\xff\x21\1\1\0\xf0" + bytes([len(message) + 1]) + message + b"\xf7" + EVENTS + END
    channel, a, b = expected
    found = [event for event in parse_midi(one_track(content)).events if event[1] == SYSEX]
    assert found == [(0, SYSEX, 16 + channel, a, b, 0)]  # the port is 1


def test_to_track_puts_note_offs_first():
    on, off = mido.Message("note_on", note=1), mido.Message("note_off", note=1)
    track = to_track([(0, on), (9, on), (9, off), (20, off)])
    assert [(message.type, message.time) for message in track][1:3] == [("note_off", 9), ("note_on", 0)]
    midi = mido.MidiFile(tracks=[track])
    assert file_of(midi).endswith(b"\xff\x2f\0")
