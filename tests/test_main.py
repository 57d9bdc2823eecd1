"""The command line: help, exit statuses, one-sentence errors, and the output of each command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_music.__main__ import main
from rwkv_music.midi import audio


@pytest.mark.parametrize("command", ("corpus", "prepare", "generate", "mirex", "evaluate", "export", "doctor"))
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


def test_a_prompt_shorter_than_its_context(tmp_path, capsys):
    import mido

    from rwkv_music.config import ModelConfig
    from rwkv_music.errors import UserError
    from rwkv_music.generation.completion_files import complete_to_files
    from rwkv_music.model_v8 import RWKV
    from rwkv_music.tokenizers.registry import make_codec

    track = mido.MidiTrack([mido.Message("note_on", note=60, time=0), mido.Message("note_off", note=60, time=480)])
    mido.MidiFile(tracks=[track]).save(tmp_path / "short.mid")
    codec = make_codec("multitrack")
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size))
    with pytest.raises(UserError, match=r"has 1 bar, .* 4: .* --context-bars 1"):
        complete_to_files(model, codec, tmp_path / "short.mid", tmp_path / "out.mid", context_bars=4, bars=1)
    assert [path.name for path in tmp_path.iterdir()] == ["short.mid"]


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


def load_untrained(monkeypatch, data, **settings):
    """Make the commands load an untrained model of the data's tokenizer instead of a run's."""
    import torch

    from rwkv_music import __main__ as command_line
    from rwkv_music.config import DataConfig, ModelConfig, RunConfig, TrainConfig
    from rwkv_music.model_v8 import RWKV
    from rwkv_music.tokenizers.registry import load_codec

    codec = load_codec(data / "tokenizer.json")
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)
    config = RunConfig(shape, DataConfig(**settings), TrainConfig())
    model = RWKV(config.model).requires_grad_(False)
    monkeypatch.setattr(command_line, "_load", lambda run, which, state: (model, codec, config, "step 7"))


@pytest.fixture
def untrained(bach_data, monkeypatch):
    load_untrained(monkeypatch, bach_data)


def test_generate(untrained, bach_midi, tmp_path, capsys):
    import mido

    prompt = min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)
    command = ["generate", ".", "--prompt", str(prompt), "--context-bars", "2", "--bars", "1", "--count", "2"]
    command += ["--top-k", "50", "--repetition-penalty", "0.2", "--repetition-window", "64"]
    can_render = shutil.which("fluidsynth") and any(Path(f).glob("*.sf[23]") for f in audio.SOUNDFONT_FOLDERS)
    wav = ["--wav"] if can_render else []
    assert main([*command, "--out", str(tmp_path / "joined.mid"), *wav]) == 0
    assert main([*command, "--out", str(tmp_path / "alone.mid"), "--completion-only"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert len(output) == 4 and all("2 bars of prompt, 1 generated by step 7" in line for line in output)
    expected = {f"{name}-{i}{kind}" for name in ("joined", "alone") for i in (1, 2) for kind in (".mid", ".png")}
    expected |= {f"joined-{i}.wav" for i in (1, 2)} if wav else set()
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert mido.MidiFile(tmp_path / "joined-1.mid").length > mido.MidiFile(tmp_path / "alone-1.mid").length


def test_generate_from_exported_weights(bach_data, bach_midi, tmp_path, capsys):
    import torch

    from rwkv_music.config import ModelConfig
    from rwkv_music.model_v8 import RWKV
    from rwkv_music.tokenizers.registry import load_codec

    vocab_size = load_codec(bach_data / "tokenizer.json").vocab_size
    file, prompt = tmp_path / "tiny.pth", min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)
    shape = ModelConfig(n_layer=1, n_embd=64, vocab_size=vocab_size, channel_mix="x070")
    torch.save(RWKV(shape).state_dict(), file)
    command = ["generate", str(file), "--prompt", str(prompt), "--bars", "1", "--out", str(tmp_path / "out.mid")]
    assert main(command) == 1
    assert "no tokenizer beside" in capsys.readouterr().err
    shutil.copyfile(bach_data / "tokenizer.json", tmp_path / "tiny.pth.tokenizer.json")
    assert main(command) == 0
    assert "4 bars of prompt, 1 generated by tiny.pth" in capsys.readouterr().out
    assert (tmp_path / "out.mid").is_file() and (tmp_path / "out.png").is_file()
    assert main(["export", str(file), "--format", "hf", "--out", str(tmp_path / "folder")]) == 0
    command[1] = str(tmp_path / "folder")
    assert main(command) == 0
    assert "by folder" in capsys.readouterr().out


def test_evaluate(untrained, bach_data, capsys):
    assert main(["evaluate", "RUN", "--data", str(bach_data), "--samples", "2", "--bars", "2"]) == 0
    output = capsys.readouterr().out
    for expected in ("at step 7", "n-gram", "by position", "2 completed", "groove consistency", "note density"):
        assert expected in output


def test_evaluate_an_infilling_run(bach_data, monkeypatch, capsys):
    from rwkv_music.generation import fill

    load_untrained(monkeypatch, bach_data, task="infill")
    monkeypatch.setattr(fill, "TOKENS_PER_BAR", 8)
    command = ["evaluate", "RUN", "--data", str(bach_data), "--context-bars", "1", "--bars", "2"]
    assert main([*command, "--fills", "1"]) == 0
    output = capsys.readouterr().out
    for expected in ("part 1", "bars, both sides", "onset f1", "not asked", "copy rate", "onset position"):
        assert expected in output


def test_a_run_without_infilling_has_no_holes(bach_data, monkeypatch, capsys):
    load_untrained(monkeypatch, bach_data, task="mix", completion_weight=0.5)
    command = ["evaluate", "RUN", "--data", str(bach_data)]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "part 1" in output and "holes" not in output
    assert main([*command, "--fills", "2"]) == 1
    assert "--task mix, so it cannot fill in" in capsys.readouterr().err


def test_mirex(bach_data, monkeypatch, tmp_path, capsys):
    from rwkv_music.generation import completion
    from rwkv_music.midi.mirex import read_notes

    load_untrained(monkeypatch, bach_data)
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
