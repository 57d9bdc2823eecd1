import struct

import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.events import RejectedMidi, read_midi
from rwkv_music.tokenizers.registry import make_codec

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
def test_whole_files_pass(data):
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
def test_reasons(data, reason, tmp_path):
    (tmp_path / "x.mid").write_bytes(data)
    for source in (data, tmp_path / "x.mid"):
        with pytest.raises(RejectedMidi) as raised:
            read_midi(source)
        assert raised.value.reason == reason


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file.*x.mid"):
        read_midi(tmp_path / "x.mid")


def test_fingerprint_tells_options_apart():
    assert make_codec("remi").fingerprint == make_codec("remi", positions_per_beat=24).fingerprint
    assert make_codec("remi").fingerprint != make_codec("remi", positions_per_beat=12).fingerprint
    assert make_codec("remi").fingerprint != make_codec("remi", n_velocities=16).fingerprint
