"""Tags of prompts, and pieces from scratch."""

import numpy as np
import pytest
import torch

from rwkv_music.__main__ import main
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError
from rwkv_music.generation.completion import complete
from rwkv_music.generation.prompt_tags import parse_tags, tagged
from rwkv_music.generation.sampling import Sampling
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec

TAGS = {"composer": ["bach", "clara schumann"], "genre": [f"g{i}" for i in range(50)]}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_piece_from_scratch_has_the_requested_bars_and_tags(tokenizer, tmp_path):
    with_tags = tokenizer == "multitrack"
    codec = make_codec(tokenizer, **({"tags": TAGS} if with_tags else {}))
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)).requires_grad_(False)
    tags = {"composer": "Clara  Schumann"} if with_tags else {}
    completions = complete(model, codec, bars=2, count=2, tags=tags, max_tokens=60, sampling=Sampling(seed=1))
    head = [codec.vocabulary[i] for i in completions[0].prompt.ids]
    assert head[1:] == (["Tag_composer=clara schumann", "Tag_genre=none"] if with_tags else [])
    for completion in completions:
        assert (completion.context_bars, completion.bars) == (0, 2)
        assert not any(codec.vocabulary[i].startswith("Tag") for i in completion.new_ids)
        if tokenizer == "multitrack":
            assert codec.bar_starts(completion.new_ids)[0] == 0 and len(codec.bar_starts(completion.new_ids)) == 2
        completion.midi().save(tmp_path / "out.mid")


def test_tags_are_read_and_checked():
    assert parse_tags(["composer=Bach", " Genre = G1"]) == {"composer": "bach", "genre": "g1"}
    for texts, reason in ((["bach"], '"bach".*composer=bach'), (["a=1", "A=2"], "the a twice"), (["a="], '"a="')):
        with pytest.raises(UserError, match=reason):
            parse_tags(texts)
    codec = make_codec("multitrack", tags=TAGS)
    piece = codec.empty_piece()
    assert np.array_equal(tagged(codec, piece, {}).ids, piece.ids)
    for tags, reason in (
        ({"mood": "x"}, '"mood": give one of composer, genre'),
        ({"composer": "x"}, 'composer "x": give one of bach, clara schumann, none'),
        ({"genre": "g7x"}, r'genre "g7x": give one of g7, .* \(31 more in'),
    ):
        with pytest.raises(UserError, match=reason):
            tagged(codec, piece, tags)
    for name in ("midi-llm", "multitrack"):
        plain = make_codec(name)
        with pytest.raises(UserError, match=f"{name} has no tags"):
            tagged(plain, plain.empty_piece(), {"composer": "bach"})


def test_tags_of_a_file_and_of_the_command_line(bach_midi, tmp_path, monkeypatch, capsys):
    codec = make_codec("multitrack", tags=TAGS)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)).requires_grad_(False)
    [completion] = complete(
        model, codec, min(bach_midi.iterdir()), context_bars=2, bars=1, tags={"genre": "g1"}, max_tokens=20
    )
    assert [codec.vocabulary[i] for i in completion.prompt.ids[1:4]] == ["Tag_composer=none", "Tag_genre=g1", "Bar"]
    monkeypatch.setattr("rwkv_music.commands.common.load_run", lambda run, which, state: (model, codec, None, "step 7"))
    command = ["generate", ".", "--bars", "1", "--out", str(tmp_path / "new.mid"), "--tag", "composer=bach"]
    assert main(command) == 0 and (tmp_path / "new.mid").is_file() and (tmp_path / "new.png").is_file()
    assert main([*command, "--tag", "mood=x"]) == main([*command, "--tag", "bach"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) >= 2
