"""The command line: help, versions, exit statuses, and errors in one sentence."""

import pytest

from rwkv_music.__main__ import main


@pytest.mark.parametrize("command", ("corpus", "prepare", "generate", "evaluate", "doctor"))
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
    "arguments, says",
    [
        (["corpus", "nobody", "--out", "OUT"], "bach"),
        (["prepare", "nowhere", "--out", "OUT"], "There is no folder nowhere"),
        (["prepare", ".", "--out", "OUT"], "no .mid or .midi file"),
        (["evaluate", "nowhere", "--data", "D"], "is not a run folder"),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mid"], "is not a run folder"),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mp3"], "ends in .mid"),
        (["generate", "nowhere", "--prompt", "p.mid", "--out", "o.mid", "--top-p", "0"], "top-p is 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_1(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr()
    [line] = said.err.strip().splitlines()
    assert line.startswith(f"rwkv_music {arguments[0]}: ") and says in line and line.endswith(".")
    assert said.out == "" and list(tmp_path.iterdir()) == []


def test_a_prompt_shorter_than_its_context(tmp_path, capsys):
    pytest.importorskip("miditok")
    import mido

    from rwkv_music import generation
    from rwkv_music.config import ModelConfig
    from rwkv_music.data.codecs import make_codec
    from rwkv_music.errors import UserError
    from rwkv_music.model_v8 import RWKV

    track = mido.MidiTrack([mido.Message("note_on", note=60, time=0), mido.Message("note_off", note=60, time=480)])
    mido.MidiFile(tracks=[track]).save(tmp_path / "short.mid")
    codec = make_codec("remi")
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size))
    with pytest.raises(UserError, match=r"has 1 bar, fewer than the 4 of its context: .* --context-bars 1"):
        generation.complete_to_files(model, codec, tmp_path / "short.mid", tmp_path / "out.mid", context_bars=4, bars=1)
    assert [path.name for path in tmp_path.iterdir()] == ["short.mid"]
