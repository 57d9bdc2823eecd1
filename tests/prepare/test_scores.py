"""Scores as MIDI: the same piece in every format, files of several pieces, bar lines, and bad scores."""

import io
import json
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rwkv_music import errors
from rwkv_music.errors import UserError
from rwkv_music.midi.events import RejectedMidi, parse_midi
from rwkv_music.midi.parts import read_parts
from rwkv_music.midi.score import read_score
from rwkv_music.midi.stats import compute_stats
from rwkv_music.prepare import scores as scores_module
from rwkv_music.prepare.scores import _changes, midi_of, split_pieces, to_midi
from rwkv_music.prepare.sources import Sources
from tests.prepare import score_files
from tests.prepare.score_files import time_signatures
from tests.prepare.test_pipeline import quick_prepare
from tests.prepare.test_sources import contents, tarred, zipped


@pytest.fixture(scope="module")
def converted() -> dict[str, bytes]:
    """The piece of score_files.py in each format, as MIDI."""
    return {name: midi_of(name, data) for name, data in score_files.files().items()}


def test_every_format_gives_the_same_notes_bars_and_parts(converted):
    expected = read_score(converted["a.mid"])
    assert len(expected.notes) == 26 and expected.lines.tolist() == [0, 1, 4, 7, 10, 13, 16, 19]
    for name, midi in converted.items():
        score = read_score(midi)
        np.testing.assert_array_equal(score.notes, expected.notes, name)
        np.testing.assert_array_equal(score.lines, expected.lines, name)
        assert compute_stats(midi).key == compute_stats(converted["a.mid"]).key, name
        # ABC names no instruments.
        programs = [part.program for part in read_parts(parse_midi(midi))[0]]
        assert programs == ([0, 0] if name == "a.abc" else [73, 42]), name
    assert [part.label for part in read_parts(parse_midi(converted["a.mxl"]))[0]] == ["Flute", "Cello"]


def test_copies_in_several_formats_are_in_one_split(tmp_path):
    """The pieces come from a folder, archives, a file with two tunes, and a single file."""
    files = score_files.files()
    other = "X:2\nM:4/4\nL:1/4\nK:G\nGABc|dcBA|\n"
    tunes = files.pop("a.abc") + other.encode()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.krn").write_bytes(files.pop("a.krn"))
    (folder / "tunes.ABC").write_bytes(tunes)
    zipped(folder / "b.zip", {"x/a.mxl": files.pop("a.mxl"), "a.mid": files.pop("a.mid")})
    tarred(folder / "c.tar.gz", {"a.xml": files.pop("a.xml"), "a.abc": other.encode()})
    single = tmp_path / "a.musicxml"
    single.write_bytes(files.pop("a.musicxml"))
    facts = quick_prepare([folder, single], tmp_path / "data", val_fraction=0.5)
    lines = (tmp_path / "data" / "pieces.jsonl").read_text().splitlines()
    assert not files and len(lines) == 6 and facts["distinct_music"] == 2
    # The second tune has the same bytes as the file in the archive, and the two XML files are equal.
    assert facts["rejected"] == {"duplicate": 2} and facts["files"] == 8
    splits = {counts["pieces"] for counts in facts["splits"].values()}
    assert splits == {1, 5}
    # One piece of each, the first in order of names.
    facts = quick_prepare([folder, single], tmp_path / "unique", val_fraction=0, unique=True)
    lines = (tmp_path / "unique" / "pieces.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).relative_to(folder).as_posix() for line in lines] == [
        "a.krn",
        "c.tar.gz/a.abc",
    ]
    assert facts["rejected"] == {"duplicate": 6} and facts["options"]["unique"]


def test_tunes_of_a_file_are_pieces():
    head = "%abc-2.1\nM:3/4\nWords about Edgar B\n\n"
    tunes = ["X:1\nL:1/4\nK:C\nCDE|\n\n", "X: 1\nL:1/4\nK:G\nGAB|\n", "X:7\nthis is no tune"]
    pieces = split_pieces("a.abc", ("\ufeff" + head + "".join(tunes)).replace("\n", "\r\n").encode())
    assert [piece.decode() for piece in pieces] == ["%abc-2.1\nM:3/4\n" + tune for tune in tunes]
    assert [note["pitch"] for note in read_score(midi_of("a.abc/2", pieces[1])).notes] == [67, 69, 71]
    assert time_signatures(to_midi(scores_module._read_score("ABC", pieces[1]))) == [(0, 3, 4)]
    assert split_pieces("a.abc", tunes[0].encode()) == [tunes[0].encode()]
    latin = "X:1\nT:\xe9\nK:C\nC\nX:2\nK:C\nD\n".encode("latin-1")
    assert "T:\xe9" in split_pieces("a.abc", latin)[0].decode()


def test_movements_of_a_kern_file_are_pieces():
    first, second = score_files.kern(), "!! Second\n**kern\n4c\n4d\n*-\n"
    assert [piece.decode() for piece in split_pieces("a.krn", (first + second + "!! end\n").encode())] == [
        first,
        second,
    ]
    assert split_pieces("a.krn", first.encode()) == [first.encode()]


@pytest.mark.parametrize("name", ["a.xml", "b.mxl", "c.abc", "d.krn", "rows.parquet/3"])
def test_content_decides_the_format(name, converted):
    files = score_files.files()
    if name.startswith("rows"):
        assert midi_of(name, files["a.mid"]) == files["a.mid"]
    for other in ("a.mxl", "a.krn", "a.musicxml", "a.abc"):
        assert scores_module.score_format(name, files[other]) == scores_module.score_format(other, b"")
    assert midi_of("a.mid", files["a.abc"]) == files["a.abc"]  # rejected by the reader of MIDI


def test_text_in_utf_16_is_read(converted):
    text = score_files.musicxml().replace("UTF-8", "UTF-16").encode("utf-16")
    assert midi_of("a.xml", text) == converted["a.xml"]


@pytest.mark.parametrize(
    "kind, content",
    [
        ("direction", "<direction-type><words>dolce</words></direction-type>"),
        ("harmony", "<root><root-step>C</root-step></root><kind>major</kind>"),
    ],
)
def test_marks_drawn_behind_a_measure_change_nothing(kind, content, converted):
    """They do not lengthen the measure, and a chord symbol adds no notes."""
    first, second, rest = score_files.musicxml().split("</measure>", 2)
    text = f"{first}</measure>{second}<{kind}>{content}<offset>1</offset></{kind}></measure>{rest}"
    assert midi_of("a.xml", text.encode()) == converted["a.xml"]


def damaged_mxl() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "no score")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.xml", b"<score-partwise>", "damaged MusicXML"),
        ("a.xml", b"<?xml version='1.0' encoding='martian'?><a/>", "damaged MusicXML"),
        ("a.xml", b"<html/>", "XML other than MusicXML"),
        ("a.xml", b"<score-timewise/>", "score-timewise MusicXML"),
        ("a.mxl", b"PK\3\4 no more", "damaged .mxl"),
        ("a.mxl", damaged_mxl(), "damaged .mxl"),
        ("a.abc", b"words", "ABC that music21 cannot convert (ABCHandlerException)"),
        ("a.krn", b"**kern\n4c\n**kern\n4d\n*-\n", "kern that music21 cannot convert (HumdrumException)"),
    ],
)
def test_bad_scores_have_a_reason(name, data, reason):
    with pytest.raises(RejectedMidi) as caught:
        midi_of(name, data)
    assert caught.value.reason == reason


def test_mxl_of_any_size_takes_little_memory(monkeypatch):
    monkeypatch.setattr(scores_module, "LARGEST_XML", 1 << 10)
    with pytest.raises(RejectedMidi, match="MusicXML larger than"):
        midi_of("a.mxl", score_files.mxl())


def test_missing_music21_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    (tmp_path / "a.mid").write_bytes(score_files.midi())
    assert len(contents(Sources([tmp_path]), tmp_path)) == 1
    tarred(tmp_path / "b.tar", {"x.krn": b""})
    sources = Sources([tmp_path])
    with pytest.raises(UserError, match=r"b\.tar/x\.krn needs music21.*rwkv-music\[music\]"):
        list(sources)
    (tmp_path / "c.abc").write_bytes(b"")
    with pytest.raises(UserError, match=r"c\.abc needs music21"):
        Sources([tmp_path])


def test_upbeat_is_a_short_bar():
    from music21 import converter

    score = converter.parse("X:1\nM:3/4\nL:1/4\nK:C\nC | DEF | GA |: B | cde | fg :|\n", format="abc")
    # An upbeat C, a bar DEF, a bar GAB divided by a repeat sign, and so on, with the repeat expanded.
    assert time_signatures(to_midi(score)) == [(0, 1, 4), (1, 3, 4)]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([4, 4, 4], [(0, 4, 4)]),
        ([1, 4, 4, 3], [(0, 1, 4), (1, 4, 4)]),  # a last bar shortened by the upbeat
        ([4, 3, 1, 4], [(0, 4, 4)]),  # a bar divided by a repeat sign
        ([4, 6, 4], [(0, 4, 4), (4, 6, 4), (10, 4, 4)]),
        ([Fraction(1, 2), 4], [(0, 1, 8), (Fraction(1, 2), 4, 4)]),
        ([4, Fraction(1, 3), 4], [(0, 4, 4)]),  # no time signature has this length
    ],
)
def test_time_signatures_match_the_bars(lengths, expected):
    starts = [Fraction(sum(lengths[:i])) for i in range(len(lengths))]
    measures = [(start, Fraction(length), (4, 4)) for start, length in zip(starts, lengths, strict=True)]
    assert list(_changes(measures)) == expected


def test_score_without_measures():
    from music21 import note, stream

    part = stream.Part([note.Note(60), note.Note(62)])
    assert sum(message.type == "note_on" for message in to_midi(stream.Score([part])).tracks[1]) == 2
