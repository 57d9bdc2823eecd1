"""Failed writes to standard output: one sentence, and no effect on the output that succeeds."""

import contextlib
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train as train_py
from rwkv_music.errors import OutputClosed, UserError, checked_output

PROJECT = Path(__file__).parents[1]


@contextlib.contextmanager
def standard_output(descriptor: int, write_through: bool = False):
    """A context in which standard output is `descriptor`, also for Python."""
    sys.stdout.flush()
    kept, python = os.dup(1), sys.stdout
    os.dup2(descriptor, 1)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "wb", closefd=False), "utf-8", write_through=write_through)
    try:
        yield
    finally:
        sys.stdout = python
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def full_device(write_through: bool = False):
    with open("/dev/full", "wb") as full, standard_output(full.fileno(), write_through):
        yield


@contextlib.contextmanager
def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    with standard_output(write):
        os.close(write)
        yield


@pytest.mark.parametrize("text", ["short", "long" * 9999])
@pytest.mark.parametrize("write_through", [False, True])
@pytest.mark.parametrize("error", [None, SystemExit])
def test_a_full_device_is_one_sentence(text, write_through, error):
    with full_device(write_through), pytest.raises(UserError, match=r"^The disk is full while .* standard output"):
        with checked_output():
            print(text)
            if error:
                raise error


@pytest.mark.parametrize("text", ["short", "long" * 9999])
def test_a_run_continues_without_its_output(text, capsys):
    with full_device(), checked_output(continues=True):
        print(text)
        print(text, flush=True)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Standard output cannot be written (No space left on device)") and line.endswith(".")


def test_a_closed_pipe_is_its_own_error():
    with closed_pipe(), pytest.raises(OutputClosed), checked_output():
        print("text")


def test_errors_of_other_files_are_unchanged_and_nothing_is_added(tmp_path):
    """Also if the error is that of a full disk; the text before it is written."""
    with open(tmp_path / "out", "wb") as file, standard_output(file.fileno()):
        with pytest.raises(OSError, match="No space"), checked_output():
            print("text")
            raise OSError(errno.ENOSPC, "No space left on device", "model.pth")
    assert (tmp_path / "out").read_text() == "text\n"


def test_the_first_error_counts():
    with full_device(), pytest.raises(KeyError), checked_output():
        print("text")
        raise KeyError


def test_a_closed_output_is_discarded(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with checked_output():
        print("text", file=sys.stdout)
        assert not sys.stdout.isatty()
    assert sys.stdout is None


@pytest.mark.parametrize("main", ["rwkv_music", "train"])
def test_help_on_a_full_device(main, capsys):
    from rwkv_music.__main__ import main as command_line

    with full_device():
        status = (command_line if main == "rwkv_music" else train_py.main)(["--help"])
    assert status == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(main) and "standard output" in line


def test_the_end_of_a_process_adds_no_error():
    """In a process of its own: Python flushes standard output again when it ends."""
    program = "import sys; from rwkv_music import __main__ as m; m.doctor.run = lambda _: print('text'); "
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program + "sys.exit(m.main(['doctor']))"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=PROJECT, env={**os.environ, "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("rwkv_music doctor: ") and "standard output" in line and line.endswith(".")
