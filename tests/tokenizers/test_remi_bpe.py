"""Byte-pair encoding of remi tokens."""

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.tokenizers.registry import load_codec, make_codec
from tests.midi.midi_files import file_of


@pytest.fixture(scope="module")
def base():
    return make_codec("remi")


@pytest.fixture(scope="module")
def pieces(base, bach_midi):
    return [base.encode_piece(path) for path in sorted(bach_midi.iterdir())]


def learn(base, pieces, vocab_size=1600):
    return base.with_merges(lambda: ((piece.ids, piece.bar_starts) for piece in pieces), len(pieces), vocab_size)


@pytest.fixture(scope="module")
def codec(base, pieces):
    return learn(base, pieces)


def test_fewer_tokens_for_the_same_music(codec, base, pieces, bach_midi):
    assert codec.vocab_size == 1600 and codec.vocabulary[: base.vocab_size] == base.vocabulary
    for path, plain in zip(sorted(bach_midi.iterdir()), pieces, strict=True):
        piece = codec.encode_piece(path)
        assert len(piece.ids) < 0.7 * len(plain.ids)
        assert len(piece.bar_starts) == len(plain.bar_starts)
        assert codec.count_notes(piece.ids) == base.count_notes(plain.ids)
        assert file_of(codec.decode(piece.ids)) == file_of(base.decode(plain.ids))
        assert file_of(codec.decode(piece.ids[: piece.bar_starts[3]])) == file_of(
            base.decode(plain.ids[: plain.bar_starts[3]])
        )
        np.testing.assert_array_equal(codec.encode(file_of(codec.decode(piece.ids))), piece.ids)


def test_learning_is_deterministic(codec, base, pieces, tmp_path):
    again = learn(base, pieces)
    assert again.fingerprint == codec.fingerprint != base.fingerprint
    codec.save(tmp_path / "tokenizer.json")
    loaded = load_codec(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == codec.fingerprint
    np.testing.assert_array_equal(loaded.apply_merges(pieces[0].ids).ids, codec.apply_merges(pieces[0].ids).ids)


def test_merged_grammar(codec, pieces):
    """The grammar allows merged music, and sampled rows have the requested bars."""
    for plain in pieces[:4]:
        piece = codec.apply_merges(plain.ids)
        grammar = codec.grammar(codec.first_bars(piece, 0))
        for token in piece.ids[1:]:
            assert grammar.allowed()[0, token], codec.vocabulary[token]
            grammar.feed(np.array([token]))
        assert grammar.bars[0] == len(piece.bar_starts)
    prompt = codec.first_bars(piece, 2)
    grammar = codec.grammar(prompt, rows=6, bars=4)
    rng = np.random.default_rng(0)
    rows = [[] for _ in range(6)]
    while not grammar.ended.all():
        tokens = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in grammar.allowed()])
        grammar.feed(tokens)
        for i in np.flatnonzero(~grammar.ended):
            rows[i].append(tokens[i])
    for row in rows:
        ids = np.concatenate([prompt.ids, row])
        assert len(codec.bar_starts(ids)) == 6
        codec.decode(ids)


@pytest.mark.parametrize("vocab_size", [100, 1318, 70_000])
def test_vocabulary_sizes_out_of_range(base, pieces, vocab_size):
    with pytest.raises(UserError, match="1,319 to 65,536"):
        learn(base, pieces, vocab_size)
