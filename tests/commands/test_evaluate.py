"""The command `evaluate`."""

from rwkv_music.__main__ import main
from rwkv_music.generation import fill


def test_evaluate(bach_data, load_untrained, capsys):
    load_untrained(bach_data)
    assert main(["evaluate", "RUN", "--data", str(bach_data), "--samples", "2", "--bars", "2"]) == 0
    output = capsys.readouterr().out
    for expected in ("at step 7", "n-gram", "by position", "2 completed", "groove consistency", "note density"):
        assert expected in output


def test_evaluate_an_infilling_run(bach_data, load_untrained, monkeypatch, capsys):
    load_untrained(bach_data, task="infill")
    monkeypatch.setattr(fill, "TOKENS_PER_BAR", 8)
    command = ["evaluate", "RUN", "--data", str(bach_data), "--context-bars", "1", "--bars", "2"]
    assert main([*command, "--fills", "1"]) == 0
    output = capsys.readouterr().out
    for expected in ("part 1", "bars, both sides", "onset f1", "not requested", "copy rate", "onset position"):
        assert expected in output


def test_a_run_without_infilling_has_no_holes(bach_data, load_untrained, capsys):
    load_untrained(bach_data, task="mix", completion_weight=0.5)
    command = ["evaluate", "RUN", "--data", str(bach_data)]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "part 1" in output and "holes" not in output
    assert main([*command, "--fills", "2"]) == 1
    assert "--task mix, so it cannot fill in" in capsys.readouterr().err
