"""The command `prepare`."""

import json

import pytest

from rwkv_music.__main__ import main


def test_prepare_filters(bach_midi, tmp_path, capsys):
    command = ["prepare", str(bach_midi), "--out", str(tmp_path / "data"), "--tokenizer", "midi-llm", "--workers", "1"]
    assert main([*command, "--seconds", "45:", "--programs", "0-7,40", "--tracks", ":9"]) == 0
    facts = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert facts["options"]["filters"] == {"seconds": [45, None], "tracks": [0, 9], "programs": [*range(8), 40]}
    assert 0 < facts["rejected"]["shorter than 45 s"] < 12
    assert "shorter than 45 s" in capsys.readouterr().out
    for wrong in (["--seconds", "a:b"], ["--programs", "piano"], ["--seconds", "9"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *wrong])
    assert main([*command, "--tag-folders"]) == 1
    assert "midi-llm has no option tags" in capsys.readouterr().err
