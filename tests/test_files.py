"""Files and folders that are whole or absent, and errors told in a sentence."""

import errno

import pytest

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_folder, atomic_path, write_text


class Interrupted(Exception):
    pass


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    with pytest.raises(Interrupted), atomic_path(path) as partial:
        partial.write_text("tw")
        raise Interrupted
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_by_a_whole_one_only(tmp_path):
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
    "number, says",
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied"), (errno.EIO, "error while saving X")],
)
def test_errors_of_the_system_are_sentences_with_a_remedy(number, says):
    with pytest.raises(UserError, match=says) as caught, explained("saving X"):
        raise OSError(number, "Input/output error", "/some/path")
    sentence = str(caught.value)
    assert "saving X" in sentence and "/some/path" in sentence and sentence.endswith(".")
