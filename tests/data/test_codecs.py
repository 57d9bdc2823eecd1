import json
import struct

import numpy as np
import pytest

from rwkv_music.data.codecs import RejectedMidi, load_codec, make_codec, read_midi
from rwkv_music.errors import UserError

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


def test_saved_and_loaded(tmp_path, bach_midi):
    codec = make_codec("remi")
    codec.save(tmp_path / "tokenizer.json")
    facts = json.loads((tmp_path / "tokenizer.json").read_text())
    assert facts["name"] == "remi" and facts["vocab_size"] == len(facts["vocabulary"]) == codec.vocab_size
    assert set(facts["libraries"]) == {"miditok", "symusic"}
    loaded = load_codec(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == codec.fingerprint == facts["fingerprint"]
    path = sorted(bach_midi.iterdir())[0]
    np.testing.assert_array_equal(loaded.encode(path), codec.encode(path))


def test_fingerprint_tells_options_apart():
    assert make_codec("remi").fingerprint == make_codec("remi", positions_per_beat=24).fingerprint
    assert make_codec("remi").fingerprint != make_codec("remi", positions_per_beat=12).fingerprint
    assert make_codec("remi").fingerprint != make_codec("remi", n_velocities=16).fingerprint


def test_options_survive(tmp_path):
    make_codec("remi", positions_per_beat=12).save(tmp_path / "t.json")
    assert load_codec(tmp_path / "t.json").options == {"positions_per_beat": 12, "n_velocities": 32}


def test_another_library_version_is_noticed(tmp_path, bach_midi):
    """A library that would number the same music differently must not encode for this tokenizer.json."""
    codec = make_codec("remi")
    swapped = [*codec.vocabulary[:-2], codec.vocabulary[-1], codec.vocabulary[-2]]
    other = type(codec)(vocabulary=swapped, libraries={"miditok": "0.0.1"})
    other.save(tmp_path / "t.json")
    with pytest.raises(UserError, match="numbers tokens differently.*miditok==0.0.1"):
        load_codec(tmp_path / "t.json").encode(sorted(bach_midi.iterdir())[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["vocabulary"].reverse(), "altered"),
        (lambda facts: facts["options"].update(n_velocities=16), "altered"),
        (lambda facts: facts["options"].update(colour=1), "not a tokenizer.json"),
        (lambda facts: facts.update(format_version=99), "not a tokenizer.json"),
        (lambda facts: facts.pop("name"), "not a tokenizer.json"),
        (lambda facts: facts.update(name="abc"), "no tokenizer 'abc'"),
    ],
)
def test_altered_tokenizers_are_refused(tmp_path, change, says):
    path = tmp_path / "tokenizer.json"
    make_codec("remi").save(path)
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=says):
        load_codec(path)


@pytest.mark.parametrize("options", [{"positions_per_beat": 0}, {"positions_per_beat": 97}, {"n_velocities": 128}])
def test_options_that_cannot_be(options):
    with pytest.raises(UserError, match="choose from 1 to"):
        make_codec("remi", **options)


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="remi has no option colour"):
        make_codec("remi", colour=1)
    with pytest.raises(UserError, match="choose one of remi"):
        make_codec("abc")
    with pytest.raises(UserError, match="No such file"):
        load_codec(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe not json")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_codec(tmp_path / "tokenizer.json")
