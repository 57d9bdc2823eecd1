"""The command `generate`."""

import shutil
from pathlib import Path

import mido
import torch

from rwkv_music.__main__ import main
from rwkv_music.config import ModelConfig
from rwkv_music.midi import audio
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import load_codec


def test_generate(bach_data, load_untrained, bach_midi, tmp_path, capsys):
    load_untrained(bach_data)
    prompt = min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)
    command = ["generate", ".", "--prompt", str(prompt), "--context-bars", "2", "--bars", "1", "--count", "2"]
    command += ["--top-k", "50", "--repetition-penalty", "0.2", "--repetition-window", "64"]
    can_render = shutil.which("fluidsynth") and any(Path(f).glob("*.sf[23]") for f in audio.SOUNDFONT_FOLDERS)
    wav = ["--wav"] if can_render else []
    assert main([*command, "--out", str(tmp_path / "joined.mid"), *wav]) == 0
    assert main([*command, "--out", str(tmp_path / "alone.mid"), "--completion-only"]) == 0
    output = capsys.readouterr().out.splitlines()
    expected = "2 bars of prompt, 1 generated with the weights of step 7"
    assert len(output) == 4 and all(expected in line for line in output)
    expected = {f"{name}-{i}{kind}" for name in ("joined", "alone") for i in (1, 2) for kind in (".mid", ".png")}
    expected |= {f"joined-{i}.wav" for i in (1, 2)} if wav else set()
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert mido.MidiFile(tmp_path / "joined-1.mid").length > mido.MidiFile(tmp_path / "alone-1.mid").length


def test_generate_from_exported_weights(bach_data, bach_midi, tmp_path, capsys):
    vocab_size = load_codec(bach_data / "tokenizer.json").vocab_size
    file, prompt = tmp_path / "tiny.pth", min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)
    shape = ModelConfig(n_layer=1, n_embd=64, vocab_size=vocab_size, channel_mix="x070")
    torch.save(RWKV(shape).state_dict(), file)
    command = ["generate", str(file), "--prompt", str(prompt), "--bars", "1", "--out", str(tmp_path / "out.mid")]
    assert main(command) == 1
    assert "no tokenizer" in capsys.readouterr().err
    shutil.copyfile(bach_data / "tokenizer.json", tmp_path / "tiny.pth.tokenizer.json")
    assert main(command) == 0
    assert "4 bars of prompt, 1 generated with the weights of tiny.pth" in capsys.readouterr().out
    assert (tmp_path / "out.mid").is_file() and (tmp_path / "out.png").is_file()
    assert main(["export", str(file), "--format", "hf", "--out", str(tmp_path / "folder")]) == 0
    command[1] = str(tmp_path / "folder")
    assert main(command) == 0
    assert "of folder" in capsys.readouterr().out


def test_generate_without_a_model_uses_that_of_the_package(bach_midi, tmp_path, capsys):
    prompt = min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)
    command = ["generate", "--prompt", str(prompt), "--fill", "bars=3 parts=2", "--out", str(tmp_path / "out.mid")]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "No MODEL is given, so the included model is used."
    assert "1 cell filled in with the weights of model.safetensors" in second and (tmp_path / "out.mid").is_file()
