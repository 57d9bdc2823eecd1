"""Atomic files and folders, and operating-system errors as sentences."""

import errno

import pytest

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_folder, atomic_path, write_text


class Interrupted(Exception):
    pass


def test_file_is_written_atomically(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    with pytest.raises(Interrupted), atomic_path(path) as partial:
        partial.write_text("tw")
        raise Interrupted
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_folder_is_replaced_atomically(tmp_path):
    folder = tmp_path / "a"
    with atomic_folder(folder) as partial:
        (partial / "x").write_text("1")
    with pytest.raises(Interrupted), atomic_folder(folder) as partial:
        (partial / "x").write_text("2")
        raise Interrupted
    assert (folder / "x").read_text() == "1"
    with atomic_folder(folder) as partial:
        (partial / "y").write_text("3")
    assert [path.name for path in folder.iterdir()] == ["y"] and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "number, match",
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied"), (errno.EIO, "error while saving X")],
)
def test_os_errors_become_sentences_with_a_remedy(number, match):
    with pytest.raises(UserError, match=match) as caught, explained("saving X"):
        raise OSError(number, "Input/output error", "/some/path")
    sentence = str(caught.value)
    assert "saving X" in sentence and "/some/path" in sentence and sentence.endswith(".")
