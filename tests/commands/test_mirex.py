"""The command `mirex`."""

import json

from rwkv_music.__main__ import main
from rwkv_music.generation import completion
from rwkv_music.midi.mirex import read_notes


def test_mirex(bach_data, load_untrained, monkeypatch, tmp_path, capsys):
    load_untrained(bach_data)
    monkeypatch.setattr(completion, "TOKENS_PER_BAR", 8)  # an untrained model would write long bars
    prompt = tmp_path / "in.json"
    notes = [{"start": 16 + 16 * i, "pitch": 60 + i, "duration": 4} for i in range(4)]
    prompt.write_text(json.dumps({"prompt": notes}))
    command = ["mirex", str(tmp_path), "--prompt", str(prompt), "--out", str(tmp_path / "new" / "out.json")]
    assert main([*command, "--count", "2", "--temperature", "1.2"]) == 0
    assert capsys.readouterr().out.count("notes in twelve bars") == 2
    first, second = (read_notes(tmp_path / "new" / f"out-{i}.json", "generation") for i in (1, 2))
    assert len(first) and len(second) and first.tolist() != second.tolist()
    prompt.write_text('{"prompt": []}')
    assert main(command) == 1
    assert "in.json has no notes" in capsys.readouterr().err
