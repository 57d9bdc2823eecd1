"""Failed writes to standard output: one sentence and exit status 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_music.errors import checked_output

PROJECT = Path(__file__).parents[1]
RUN = """
import sys
from rwkv_music import __main__ as command_line
command_line._run_doctor = lambda options: print({text}) or {effect}
sys.exit(command_line.main(["doctor"]))
"""


def run(program: str, stdout: int | str, unbuffered: bool = False) -> subprocess.CompletedProcess:
    with open(stdout, "wb") as file:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
        return subprocess.run(
            [sys.executable, "-c", program],
            stdout=file,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=PROJECT,
            text=True,
        )


@pytest.mark.parametrize(("text", "unbuffered"), [("'short'", False), ("'long' * 9999", False), ("'short'", True)])
def test_full_output_device_is_one_sentence(text, unbuffered):
    done = run(RUN.format(text=text, effect="0"), "/dev/full", unbuffered)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("rwkv_music doctor: ") and "standard output" in line and line.endswith(".")


@pytest.mark.parametrize("program", [["-m", "rwkv_music", "--help"]])
def test_help_on_a_full_output_device(program):
    with open("/dev/full", "wb") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run(
            [sys.executable, *program], stdout=full, stderr=subprocess.PIPE, env=environment, cwd=PROJECT, text=True
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "standard output" in done.stderr


def test_closed_pipe_is_silent():
    read, write = os.pipe()
    os.close(read)
    done = run(RUN.format(text="'long' * 9999", effect="0"), write)
    assert (done.returncode, done.stderr) == (1, "")


def test_errors_of_other_files_are_unchanged(capfd):
    with pytest.raises(FileNotFoundError), checked_output():
        open("/nowhere/at/all")
