"""Atomic files and folders, and operating-system errors as sentences, and damaged JSON."""

import errno
import os
import socket
from contextlib import nullcontext

import pytest

from rwkv_music.errors import UserError, explained
from rwkv_music.files import (
    atomic_folder,
    atomic_path,
    check_types,
    file_sha256,
    output_folder,
    parse_json,
    read_file,
    read_json,
    write_text,
)
from tests.damaged_json import DAMAGED_JSON


class Interrupted(Exception):
    pass


def special_file(path, kind):
    """Make something at `path` that is not a regular file, and return `path`."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # the length of a socket's name is limited
    elif kind == "folder":
        path.mkdir()
    elif kind == "link loop":
        path.symlink_to(path)
    return path


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


def test_only_regular_files_are_replaced(tmp_path):
    """A pipe stands for every special file, such as /dev/null, which root could replace."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"), atomic_path(tmp_path / "pipe"):
        pytest.fail("the block runs")
    with pytest.raises(UserError, match="is a folder"), atomic_path(tmp_path):
        pytest.fail("the block runs")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "link loop", "missing"])
def test_only_regular_files_are_read(kind, tmp_path):
    """`open` would wait forever for the other end of a FIFO."""
    path = special_file(tmp_path / "x", kind)
    for read in (read_file, file_sha256):
        with pytest.raises(UserError, match="while reading X"), explained("reading X"):
            read(path)
    with pytest.raises(UserError, match=f"reading {path}"):
        read_json(path, "restore it")


def test_an_output_folder_replaces_no_other_files(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("1")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, ".", "new"):
        with pytest.raises(UserError, match="contains other files .x") if path != "new" else nullcontext():
            with output_folder(path) as partial:
                (partial / "y").write_text("2")
    with output_folder("new") as partial:
        (partial / "y").write_text("3")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["new", "x"]
    assert (tmp_path / "new" / "y").read_text() == "3"


@pytest.mark.parametrize(
    "number, match",
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied"), (errno.EIO, "error while saving X")],
)
def test_os_errors_become_sentences_with_a_remedy(number, match):
    with pytest.raises(UserError, match=match) as caught, explained("saving X"):
        raise OSError(number, "Input/output error", "/some/path")
    sentence = str(caught.value)
    assert "saving X" in sentence and "/some/path" in sentence and sentence.endswith(".")


@pytest.mark.parametrize("content", DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_damaged_json_is_one_sentence(tmp_path, content):
    with pytest.raises(ValueError, match=r"^[^\n]{5,120}$"):
        parse_json(content)
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.json cannot be read \([^\n]{5,120}\): restore it\.$"):
        read_json(path, "restore it")


def test_unreadable_json_is_one_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"reading {path}"):
            read_json(path, "restore it")


@pytest.mark.parametrize("value", [None, True, "1", 1.5, [], {}, 1])
def test_types_of_entries(value):
    for kind in (int, float, str, dict, bool):
        fits = isinstance(value, kind) or (kind is float and value == 1)
        if fits and not (kind in (int, float) and value is True):
            check_types({"a": value}, {"a": kind})
        else:
            with pytest.raises(ValueError, match="b.a is not "):
                check_types({"b": {"a": value}}, {"b": {"a": kind}})
    with pytest.raises(ValueError, match="no b.c"):
        check_types({"b": {"a": value}}, {"b": {"c": int}})
