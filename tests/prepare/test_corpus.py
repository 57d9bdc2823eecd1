"""The music21 corpus as MIDI: correct bar lines, reproducible files, and bad scores."""

from fractions import Fraction
from pathlib import Path

import mido
import pytest

from rwkv_music.errors import UserError
from rwkv_music.prepare.corpus import _changes, _make_writer, _sources, corpus_names, to_midi, write_corpus


def notes_of(path: Path) -> int:
    return sum(message.type == "note_on" and message.velocity > 0 for message in mido.MidiFile(path))


def time_signatures(midi: mido.MidiFile) -> list[tuple[Fraction, int, int]]:
    """Return (offset in quarter notes, numerator, denominator) of every time signature in the file."""
    found = []
    for track in midi.tracks:
        now = 0
        for message in track:
            now += message.time
            if message.type == "time_signature":
                found.append((Fraction(now, midi.ticks_per_beat), message.numerator, message.denominator))
    return found


def test_chorales_have_notes(bach_midi):
    paths = sorted(bach_midi.iterdir())
    assert len(paths) == 12 and all(path.suffix == ".mid" for path in paths)
    assert all(notes_of(path) > 100 for path in paths)


def test_existing_files_are_kept_and_new_ones_are_reproducible(bach_midi, tmp_path):
    names = sorted(path.name for path in bach_midi.iterdir())[:2]
    (tmp_path / names[0]).write_bytes(b"mine")
    report = write_corpus("bach", tmp_path, workers=1, limit=2)
    assert (report.written, report.kept, report.failed) == (1, 1, [])
    assert (tmp_path / names[0]).read_bytes() == b"mine"
    assert (tmp_path / names[1]).read_bytes() == (bach_midi / names[1]).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == names


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


def test_file_with_several_tunes(tmp_path):
    written, failed = _make_writer(str(tmp_path))(("essenFolksong/teste.abc", "teste"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert failed == [] and written == len(names) > 1
    assert names[0] == "teste-0001.mid"
    assert all(notes_of(tmp_path / name) > 8 for name in names)


@pytest.mark.parametrize(
    ("source", "signatures"),
    [
        ("ryansMammoth/BossJig.abc", [(0, 6, 8)]),  # inconsistent repeat signs
        ("essenFolksong/test1.abc", None),  # one time-signature object at two positions
    ],
)
def test_scores_that_music21_fails_to_export(tmp_path, source, signatures):
    written, failed = _make_writer(str(tmp_path))((source, "x"))
    assert written > 0 and failed == []
    if signatures:
        assert time_signatures(mido.MidiFile(tmp_path / "x.mid")) == signatures


def test_score_without_measures():
    from music21 import note, stream

    part = stream.Part([note.Note(60), note.Note(62)])
    assert sum(message.type == "note_on" for message in to_midi(stream.Score([part])).tracks[1]) == 2


def test_file_names_are_unique():
    for name in ("bach", "beethoven", "monteverdi"):
        stems = [stem for _, stem in _sources(name)]
        assert len(set(stems)) == len(stems)


def test_invalid_input_raises_user_error(tmp_path):
    with pytest.raises(UserError, match="choose one of .*bach.*palestrina"):
        write_corpus("vivaldi", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="at least 1"):
        write_corpus("bach", tmp_path / "out", limit=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="writing the corpus"):
        write_corpus("bach", tmp_path / "file", workers=1, limit=1)
    assert {"bach", "palestrina", "ryansMammoth", "essenFolksong", "oneills1850", "trecento"} <= set(corpus_names())
