"""The grammars of all codecs: they allow real music, and sampled rows decode and have the requested bars."""

import mido
import numpy as np
import pytest

from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec
from tests.midi.midi_files import file_of, odd_piece


@pytest.fixture(scope="module", params=TOKENIZERS)
def codec(request):
    return make_codec(request.param)


@pytest.fixture(scope="module")
def piece(codec, bach_midi):
    return codec.encode_piece(sorted(bach_midi.iterdir())[0])


def sample(grammar, seed=0) -> list[np.ndarray]:
    """Return rows of tokens sampled uniformly from the allowed ones, each with its closing tokens."""
    rng = np.random.default_rng(seed)
    rows = [[] for _ in grammar.ended]
    for _ in range(20_000):
        if grammar.ended.all():
            return [np.array([*row, *grammar.closing(i)], np.int64) for i, row in enumerate(rows)]
        tokens = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in grammar.allowed()])
        grammar.feed(tokens)
        for i in np.flatnonzero(~grammar.ended):
            rows[i].append(tokens[i])
    raise AssertionError("some rows do not end")


def test_real_music_is_allowed(codec, bach_midi):
    for source in [*sorted(bach_midi.iterdir())[:6], *map(odd_piece, range(4))]:
        piece = codec.encode_piece(source)
        grammar = codec.grammar(codec.first_bars(piece, 0))
        for number, token in enumerate(piece.ids[1:], start=1):
            assert grammar.allowed()[0, token], (number, codec.vocabulary[token])
            assert not grammar.ended[0]
            grammar.feed(np.array([token]))
        assert grammar.ended[0]
        if codec.name == "multitrack":
            assert grammar.bars[0] == len(piece.bar_starts)


def test_real_music_is_allowed_after_any_bar(codec, bach_midi):
    for source in [*sorted(bach_midi.iterdir())[:2], *map(odd_piece, range(3))]:
        piece = codec.encode_piece(source)
        for n in range(1, min(len(piece.bar_starts), 12)):
            prompt = codec.first_bars(piece, n)
            grammar = codec.grammar(prompt)
            for token in piece.ids[len(prompt.ids) :][:60]:
                assert grammar.allowed()[0, token], (n, codec.vocabulary[token])
                grammar.feed(np.array([token]))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_rows_have_the_requested_bars_and_decode(codec, piece, n):
    prompt = codec.first_bars(piece, n)
    grammar = codec.grammar(prompt, rows=12, bars=3)
    rows = sample(grammar)
    assert (grammar.bars == 3).all()
    for row in rows:
        assert not np.isin(row, [codec.pad_id, codec.bos_id, codec.eos_id]).any()
        ids = np.concatenate([prompt.ids, row])
        midi = codec.decode(ids, prompt.bar_lines)
        assert codec.count_notes(row) and any(message.type == "note_on" for message in midi)
        if codec.name == "multitrack":
            assert len(codec.bar_starts(ids)) == n + 3 and codec.bar_starts(row)[0] == 0


def test_midi_llm_rows_end_at_the_bar_line(bach_midi):
    codec = make_codec("midi-llm")
    piece = codec.encode_piece(sorted(bach_midi.iterdir())[0])
    for n in range(1, 6):
        prompt = codec.first_bars(piece, n)
        lines = prompt.bar_lines.start_ms
        end_ms = lines[n] + 3 * (lines[-1] - lines[-2])
        for row in sample(codec.grammar(prompt, rows=4, bars=3), seed=n):
            waits = codec._wait_ms[np.concatenate([prompt.ids, row])]
            assert abs(waits.sum() - end_ms) <= 4
            midi = codec.decode(np.concatenate([prompt.ids, row]), prompt.bar_lines)
            last = max(sum(message.time for message in track) for track in midi.tracks)
            bar_ticks = 4 * midi.ticks_per_beat * np.divide(*prompt.bar_lines.signatures[-1])
            assert last <= (n + 3) * bar_ticks + 1 or len(np.unique(prompt.bar_lines.signatures, axis=0)) > 1


def test_prompt_whose_last_wait_spans_all_requested_bars():
    """The rows end at once."""
    codec = make_codec("midi-llm")
    track = mido.MidiTrack(
        [
            mido.Message("note_on", note=60, time=0),
            mido.Message("note_off", note=60, time=480),
            mido.Message("note_on", note=62, time=480 * 18),
            mido.Message("note_off", note=62, time=480),
        ]
    )
    midi = mido.MidiFile(ticks_per_beat=480, tracks=[track])
    prompt = codec.first_bars(codec.encode_piece(file_of(midi)), 2)
    assert prompt.bar_starts.tolist() == [1, 6]
    whole = codec.encode_piece(file_of(midi))
    late = type(prompt)(whole.ids[: whole.bar_starts[-1]], prompt.bar_starts[:1], prompt.bar_lines)
    grammar = codec.grammar(late, rows=2, bars=1)
    assert grammar.ended.all() and (grammar.bars == 1).all()


def test_eos_before_the_last_bar(codec, piece):
    """EOS is allowed only if the piece may end, and only after a complete note."""
    prompt = codec.first_bars(piece, 2)
    for grammar, may_end in (
        (codec.grammar(prompt, bars=3), False),
        (codec.grammar(prompt, bars=3, may_end=True), True),
        (codec.grammar(prompt), True),
    ):
        seen = set()
        for token in piece.ids[len(prompt.ids) : -1][:40]:
            seen.add(bool(grammar.allowed()[0, codec.eos_id]))
            grammar.feed(np.array([token]))
        assert seen == ({True, False} if may_end else {False})
        if may_end:
            while not grammar.allowed()[0, codec.eos_id]:
                grammar.feed(np.flatnonzero(grammar.allowed()[0])[:1])
            bars = grammar.bars[0]
            grammar.feed(np.array([codec.eos_id]))
            assert grammar.ended[0] and grammar.bars[0] == bars + 1 and len(grammar.closing(0)) == 0


def test_rows_are_independent(codec, piece):
    """A row has the same state in a batch and alone, also after it has ended."""
    prompt = codec.first_bars(piece, 2)
    together = codec.grammar(prompt, rows=3, bars=1)
    alone = [codec.grammar(prompt, rows=1, bars=1) for _ in range(3)]
    rng = np.random.default_rng(1)
    for _ in range(300):
        tokens = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in together.allowed()])
        together.feed(tokens)
        for row, grammar in enumerate(alone):
            grammar.feed(tokens[row : row + 1])
        np.testing.assert_array_equal(together.classes, np.concatenate([g.classes for g in alone], axis=1))
        np.testing.assert_array_equal(together.bars, np.concatenate([g.bars for g in alone]))
        np.testing.assert_array_equal(together.ended, np.concatenate([g.ended for g in alone]))
    assert together.ended.all() and (together.bars == 1).all()


def test_bars_are_finite(codec, piece):
    """A bar ends even if the highest allowed token is always taken."""
    grammar = codec.grammar(codec.first_bars(piece, 1), rows=1, bars=1)
    for _ in range(400_000):
        if grammar.ended[0]:
            return
        grammar.feed(np.array([codec.vocab_size - 1 - grammar.allowed()[0, ::-1].argmax()]))
        if codec.name != "multitrack" and grammar.classes[0, 0] == grammar.tables[0].shape[0] - 1:
            return  # the highest key may be repeated without end, so only sampling leaves it
    raise AssertionError("the bar does not end")
