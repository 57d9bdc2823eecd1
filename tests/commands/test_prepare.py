"""The command `prepare`."""

import json
import re

import mido
import pytest

from rwkv_music.__main__ import main
from tests.midi.midi_files import make_midi, note


def test_prepare_filters(bach_midi, tmp_path, capsys):
    command = ["prepare", str(bach_midi), "--out", str(tmp_path / "data"), "--tokenizer", "midi-llm", "--workers", "1"]
    assert (
        main(
            [
                *command,
                "--seconds",
                "45:",
                "--programs",
                "0-7,40",
                "--tracks",
                ":9",
                "--on-grid",
                "95:",
                "--loops",
                ":1",
            ]
        )
        == 0
    )
    facts = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert facts["options"]["filters"] == {
        "seconds": [45, None],
        "tracks": [0, 9],
        "loops": [0, 1],
        "on_grid": [95, None],
        "programs": [*range(8), 40],
    }
    printed = capsys.readouterr().out
    for reason in ("shorter than 45 s", "a passage played more times in succession than 1"):
        assert f"rejected: {facts['rejected'][reason]:,} ({reason})" in printed
    rejected = (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == sum(facts["rejected"].values()) < 12
    for wrong in (["--seconds", "a:b"], ["--programs", "piano"], ["--seconds", "9"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *wrong])
    assert main([*command, "--tag-folders"]) == 1
    assert "midi-llm has no option tags" in capsys.readouterr().err


def test_prepare_counts_in_the_singular(tmp_path, capsys):
    effect = [(0, mido.Message("program_change", channel=1, program=127)), *note(0, 240, 60, channel=1)]
    make_midi(note(0, 240, 60), effect).save(tmp_path / "one.mid")
    command = ["prepare", str(tmp_path / "one.mid"), "--out", str(tmp_path / "data"), "--tokenizer", "midi-llm"]
    assert main([*command, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^train: 1 piece, \d tokens, 1 note$", printed, re.MULTILINE)
    assert "lost by the tokenizer: notes of other instruments (1, in 1 piece)\n" in printed
