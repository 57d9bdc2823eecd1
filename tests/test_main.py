"""The command line: help, exit statuses, one-sentence errors, and paths that are not UTF-8."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_music.__main__ import COMMANDS, main


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"rwkv_music {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", ([], ["nonsense"], ["corpus"], ["prepare", "x"], ["generate", "r", "--count", "x"])
)
def test_bad_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["corpus", "nobody", "--out", "OUT"], "bach"),
        (["prepare", "nowhere", "--out", "OUT"], "There is no file or folder nowhere"),
        (["prepare", ".", "--out", "OUT"], "There is no music"),
        (["evaluate", "nowhere", "--data", "D"], "is not a run folder"),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mid"], "There is no nowhere"),
        (["generate", ".", "--prompt", "p.mid", "--out", "o.mid"], "reading the prompt p.mid"),
        (["generate", ".", "--prompt", __file__, "--out", "o.mid"], "is not a run folder"),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mp3"], "ends in .mid"),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mid", "--top-p", "0"], "top-p is 0"),
        (
            ["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mid", "--count", "999999999"],
            "--count is 999999999",
        ),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mid", "--bars", "0"], "--bars is 0"),
        (["generate", "nowhere", "--out", "o.mid", "--top-k", "9" * 20], "top-k is 999"),
        (["prepare", ".", "--out", "OUT", "--workers", "0"], "--workers is 0"),
        (["prepare", ".", "--out", "OUT", "--workers", "9" * 20], "--workers is 999"),
        (["corpus", "bach", "--out", "OUT", "--workers", "-1"], "--workers is -1"),
        (["evaluate", "nowhere", "--data", "D", "--batch-size", "0"], "--batch-size is 0"),
        (["evaluate", "nowhere", "--data", "D", "--bars", "0"], "--bars is 0"),
        (["evaluate", "nowhere", "--data", "D", "--samples", "-1"], "--samples is -1"),
        (["evaluate", "nowhere", "--data", "D", "--fills", "-1"], "--fills is -1"),
        (["evaluate", "nowhere", "--data", "D", "--mirex", "-1"], "--mirex is -1"),
        (["mirex", "nowhere", "--prompt", "p.json", "--out", "o.json"], "p.json"),
        (["mirex", "nowhere", "--prompt", "p.json", "--out", "o.mid"], "ends in .json"),
        (["mirex", "nowhere", "--prompt", "p.json", "--out", "p.json"], "overwrite its prompt"),
        (["mirex", "nowhere", "--prompt", "p.json", "--out", "o.json", "--count", "0"], "--count is 0"),
        (["mirex", "nowhere", "--prompt", __file__, "--out", "o.json"], "test_main.py"),
        (["export", "nowhere", "--out", "OUT.pth"], "There is no nowhere"),
        (["export", ".", "--out", "OUT.pth"], ". is not a run folder"),
    ],
)
def test_errors_are_one_sentence_and_status_1(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    output = capsys.readouterr()
    [line] = output.err.strip().splitlines()
    assert line.startswith(f"rwkv_music {arguments[0]}: ") and reason in line and line.endswith(".")
    assert output.out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path, reason", [("", "the value is empty"), ("x" * 256, "longer than 255 bytes")])
def test_impossible_paths_are_status_2(path, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["corpus", "bach", "--out", path],
        ["prepare", path, "--out", "D"],
        ["prepare", ".", "--out", path],
        ["generate", path, "--prompt", "p.mid", "--out", "o.mid"],
        ["mirex", "RUN", "--prompt", path, "--out", "o.json"],
        ["evaluate", "RUN", "--data", path],
        ["export", path, "--out", "OUT"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2 and reason in capsys.readouterr().err


def test_paths_that_are_not_utf8_are_printed(bach_midi, tmp_path):
    """In a process of its own: what its standard output encodes is tested."""
    midi, out = tmp_path / "m\udcffd", tmp_path / "d\udcffd"
    midi.mkdir()
    for path in bach_midi.glob("*.mid"):
        shutil.copy(path, midi)
    command = [sys.executable, "-m", "rwkv_music", "prepare", midi, "--out", out, "--workers", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"dataset: {tmp_path}/d\\udcffd" in done.stdout and (out / "dataset.json").is_file()
