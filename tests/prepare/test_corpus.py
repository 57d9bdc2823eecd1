"""The music21 corpus as MIDI: reproducible files, and bad scores."""

from pathlib import Path

import mido
import pytest

from rwkv_music.errors import UserError
from rwkv_music.prepare.corpus import _make_writer, _sources, corpus_names, write_corpus
from tests.prepare.score_files import time_signatures


def notes_of(path: Path) -> int:
    return sum(message.type == "note_on" and message.velocity > 0 for message in mido.MidiFile(path))


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
