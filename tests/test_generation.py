"""Sampling, token by token generation, and completions that are exact to the bar."""

from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np
import pytest
import torch

from rwkv_music import generation
from rwkv_music.config import ModelConfig
from rwkv_music.data.codecs import Codec, make_codec
from rwkv_music.errors import UserError
from rwkv_music.generation import (
    Sampling,
    complete,
    complete_to_files,
    completion_paths,
    cut_before,
    generate,
    sample_token,
    save_completions,
    uniforms,
)
from rwkv_music.model_v8 import RWKV
from rwkv_music.pianoroll import read_notes

GRID = (torch.arange(20_000) + 0.5) / 20_000  # every place of the cumulative distribution, evenly


@pytest.fixture(scope="module")
def codec() -> Codec:
    return make_codec("remi")


@pytest.fixture(scope="module")
def chorale(bach_midi: Path) -> Path:
    return min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def changing_meters(tmp_path_factory) -> Path:
    """Nine bars, 4/4, 3/4 and 6/8 by threes, over a bass note that is held across each change."""
    midi, track, bass = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack(), mido.MidiTrack()
    midi.tracks += [track, bass]
    track.append(mido.MetaMessage("set_tempo", tempo=600_000))
    for numerator, denominator in ((4, 4), (3, 4), (6, 8)):
        track.append(mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator))
        for step in range(3 * numerator):
            track.append(mido.Message("note_on", note=60 + step, velocity=80))
            track.append(mido.Message("note_off", note=60 + step, time=480 * 4 // denominator))
    bass.append(mido.Message("program_change", program=32, channel=1))
    bass.append(mido.Message("note_on", note=36, velocity=70, channel=1, time=480 * 10))
    bass.append(mido.Message("note_off", note=36, channel=1, time=480 * 8))
    path = tmp_path_factory.mktemp("meters") / "meters.mid"
    midi.save(path)
    return path


def small_model(vocab_size: int, seed: int = 0) -> RWKV:
    """Two layers with random weights everywhere, so that every part of the state matters."""
    torch.manual_seed(seed)
    model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


class Place(NamedTuple):
    """How far each row of `ByHeart` has read: int64 [1, B]."""

    read: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Place":
        return Place(self.read[:, index])


class ByHeart(torch.nn.Module):
    """A model that knows one piece by heart: with n tokens behind it, it is certain of token n."""

    def __init__(self, piece: np.ndarray, vocab_size: int):
        super().__init__()
        self.piece, self.vocab_size = torch.as_tensor(piece), vocab_size
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def init_state(self, batch: int) -> Place:
        return Place(torch.zeros(1, batch, dtype=torch.int64))

    def forward(self, input_ids: torch.Tensor, state: Place) -> tuple[torch.Tensor, Place]:
        T = input_ids.shape[1]
        upcoming = state.read[0][:, None] + torch.arange(1, T + 1)
        known = self.piece[upcoming.clamp(max=len(self.piece) - 1)]
        return 50.0 * torch.nn.functional.one_hot(known, self.vocab_size), Place(state.read + T)


def by_heart(codec: Codec, path: Path, eos_after: int | None = None) -> tuple[ByHeart, np.ndarray]:
    """A model that knows the piece at `path` (with EOS in place of the token `eos_after`), and the piece's ids."""
    ids = codec.encode(path).astype(np.int64)
    known = ids if eos_after is None else np.append(ids[:eos_after], codec.eos_id)
    return ByHeart(known, codec.vocab_size), ids


# ---- sampling --------------------------------------------------------------------------------------------------------


def drawn_share(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """The share of each token over an even grid of random numbers."""
    tokens = sample_token(logits.expand(len(GRID), -1), GRID, sampling)
    return np.bincount(tokens.numpy(), minlength=len(logits)) / len(GRID)


def expected_share(logits: torch.Tensor, s: Sampling) -> np.ndarray:
    """The distribution that `Sampling` documents, one token at a time."""
    p = torch.softmax(logits.double(), dim=-1).numpy()
    order = np.argsort(-p, kind="stable")
    kept, mass = np.zeros(len(p)), 0.0
    for rank, token in enumerate(order):
        if mass < s.top_p and (not s.top_k or rank < s.top_k) and p[token] >= s.min_p * p.max():
            kept[token] = p[token] ** (1 / s.temperature)
        mass += p[token]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=2.0),
        Sampling(temperature=0.01),
        Sampling(top_p=0.7),
        Sampling(top_p=1e-9),
        Sampling(top_k=3),
        Sampling(top_k=1000),
        Sampling(min_p=0.2),
        Sampling(min_p=1.0),
        Sampling(temperature=1.5, top_p=0.8, top_k=9, min_p=0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_the_documented_distribution(sampling, dtype):
    logits = (3 * torch.randn(40, generator=torch.Generator().manual_seed(1))).to(dtype)
    drawn, expected = drawn_share(logits, sampling), expected_share(logits, sampling)
    assert np.abs(drawn - expected).max() < 2 / len(GRID)
    assert not (drawn > 0)[expected == 0].any()


def test_forbidden_tokens_are_never_drawn_not_even_at_the_ends():
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, 300:400] = torch.randn(100, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.0, 1 - 2**-24])
    for sampling in (Sampling(), Sampling(temperature=3.0), Sampling(top_p=0.999), Sampling(temperature=0)):
        token = sample_token(logits, ends, sampling)
        assert ((token >= 300) & (token < 400)).all()
    assert sample_token(logits, ends, Sampling()).tolist() == [300, 399]


def test_temperature_zero_is_greedy():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_token(logits, torch.rand(8), Sampling(temperature=0)), logits.argmax(dim=-1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("setting", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0}], ids=str)
def test_a_row_that_is_not_finite_is_marked_and_the_others_are_drawn(bad, setting):
    logits = torch.zeros(3, 10)
    logits[1, 4] = bad
    token = sample_token(logits, torch.full((3,), 0.5), Sampling(**setting))
    assert token[1] == -1 and token[0] == token[2] >= 0


@pytest.mark.parametrize(
    "name, value",
    [("temperature", -1), ("temperature", np.nan), ("top_p", 0), ("top_k", -1), ("min_p", 2), ("seed", -9)],
)
def test_impossible_settings_are_told(name, value):
    with pytest.raises(UserError, match="choose"):
        Sampling(**{name: value})


def test_random_numbers_of_a_row_depend_on_seed_and_row_alone():
    def first(seed: int, rows: int, n: int = 600) -> np.ndarray:  # more than two blocks
        return torch.stack([numbers for _, numbers in zip(range(n), uniforms(seed, rows), strict=False)]).numpy()

    many = first(7, 12)
    assert many.dtype == np.float32 and many.min() >= 0 and many.max() < 1
    assert np.array_equal(first(7, 3), many[:, :3])
    assert abs(many.mean() - 0.5) < 0.02
    correlation = np.corrcoef(np.hstack([many, first(8, 12)]).T) - np.eye(24)
    assert np.abs(correlation).max() < 0.2  # rows and seeds differ


# ---- token by token --------------------------------------------------------------------------------------------------


def take(n: int, steps) -> np.ndarray:
    """The first n tokens of each row: [B, n]."""
    return np.stack([token for _, token in zip(range(n), steps, strict=False)], axis=1)


@pytest.mark.parametrize("window", [1, 5, 1024])
def test_generation_equals_running_the_whole_sequence_again_for_each_token(window, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_WINDOW", window)
    model = small_model(30)
    prompt = torch.randint(30, (2, 17), generator=torch.Generator().manual_seed(0))
    found = take(20, generate(model, prompt, Sampling(temperature=0)))
    ids = prompt
    with torch.inference_mode():
        for _ in range(20):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    assert np.array_equal(found, ids[:, 17:].numpy())
    assert len(np.unique(found)) > 3, "a model that repeats one token proves nothing"


def test_a_sample_does_not_depend_on_how_many_are_drawn_with_it():
    model = small_model(30)
    prompt = np.arange(10)
    eight = take(100, generate(model, prompt, Sampling(seed=3), samples=8))
    assert np.array_equal(take(100, generate(model, prompt, Sampling(seed=3), samples=1)), eight[:1])
    assert np.array_equal(take(100, generate(model, prompt, Sampling(seed=3), samples=5)), eight[:5])
    assert len(np.unique(eight, axis=0)) == 8
    assert not np.array_equal(take(100, generate(model, prompt, Sampling(seed=4))), eight[:1])


def test_samples_of_one_prompt_stand_together():
    model = small_model(30)
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    rows = take(10, generate(model, prompts, Sampling(temperature=0), samples=2))
    one = take(10, generate(model, prompts[1], Sampling(temperature=0)))
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[2:], np.repeat(one, 2, axis=0))


def test_first_token_is_one_of_those_allowed():
    allowed = np.zeros(30, dtype=bool)
    allowed[[7, 9]] = True
    rows = take(2, generate(small_model(30), np.array([1]), Sampling(), samples=64, first_allowed=allowed))
    assert set(rows[:, 0]) == {7, 9} and len(set(rows[:, 1])) > 2


def test_the_caller_keeps_its_own_grad_mode_between_tokens():
    steps = generate(small_model(30), np.array([1]), Sampling())
    next(steps)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_diverged_model_is_told():
    model = small_model(30)
    with torch.no_grad():
        model.head.weight[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        next(generate(model, np.array([1]), Sampling()))


# ---- completions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_bars, bars", [(1, 1), (2, 5), (3, 3), (4, 4), (6, 2), (7, 1)])
def test_completion_is_exact_to_the_bar(codec, changing_meters, context_bars, bars):
    model, ids = by_heart(codec, changing_meters)
    starts = codec.bar_starts(ids)
    for completion in complete(model, codec, changing_meters, context_bars=context_bars, bars=bars, count=3):
        assert np.array_equal(completion.prompt_ids, ids[: starts[context_bars]])
        assert np.array_equal(completion.new_ids, ids[starts[context_bars] : starts[context_bars + bars]])
        assert (completion.ended, completion.bars) == ("bars", bars)

        joined, alone = read_notes(completion.midi()), read_notes(completion.midi_alone())
        in_prompt = joined.start < completion.prompt_end_seconds() - 1e-6
        assert in_prompt.sum() == codec.count_notes(completion.prompt_ids)
        assert (~in_prompt).sum() == len(alone) == codec.count_notes(completion.new_ids)
        assert np.array_equal(alone.pitch, joined.pitch[~in_prompt])
        assert np.allclose(alone.start, joined.start[~in_prompt] - completion.prompt_end_seconds())
        assert np.allclose(alone.end - alone.start, (joined.end - joined.start)[~in_prompt])


def test_real_music_comes_back_when_the_model_knows_it(codec, chorale):
    model, ids = by_heart(codec, chorale)
    n_bars = len(codec.bar_starts(ids))
    (completion,) = complete(model, codec, chorale, context_bars=2, bars=n_bars)
    assert (completion.ended, completion.bars) == ("eos", n_bars - 2)  # the piece ends before the bars asked for
    original, played = read_notes(codec.decode(ids)), read_notes(completion.midi())
    assert np.array_equal(original.pitch, played.pitch) and np.allclose(original.start, played.start)


def test_ids_are_a_prompt_too(codec, changing_meters):
    model, ids = by_heart(codec, changing_meters)
    (by_file,) = complete(model, codec, changing_meters, context_bars=2, bars=2)
    (from_ids,) = complete(model, codec, ids, context_bars=2, bars=2)
    assert np.array_equal(by_file.prompt_ids, from_ids.prompt_ids)
    assert np.array_equal(by_file.new_ids, from_ids.new_ids)


def test_all_bars_of_the_prompt_may_be_its_context(codec, changing_meters):
    model, ids = by_heart(codec, changing_meters)
    (completion,) = complete(model, codec, changing_meters, context_bars=9, bars=2, max_tokens=5)
    assert np.array_equal(completion.prompt_ids, ids[:-1])
    assert completion.new_ids[0] in ids[codec.bar_starts(ids)], "a bar is opened though the model would end the piece"


def test_an_early_end_of_the_piece_is_kept_and_told(codec, changing_meters):
    ids = codec.encode(changing_meters).astype(np.int64)
    starts = codec.bar_starts(ids)
    model, _ = by_heart(codec, changing_meters, eos_after=starts[4] + 3)
    (completion,) = complete(model, codec, changing_meters, context_bars=2, bars=6)
    assert np.array_equal(completion.new_ids, ids[starts[2] : starts[4] + 3])
    assert (completion.ended, completion.bars) == ("eos", 3)


def test_a_model_that_never_ends_a_bar_meets_its_budget(codec, changing_meters):
    ids = codec.encode(changing_meters).astype(np.int64)
    starts = codec.bar_starts(ids)
    endless = ByHeart(np.append(ids[: starts[2] + 1], ids[starts[2] + 2]), codec.vocab_size)
    (completion,) = complete(endless, codec, changing_meters, context_bars=2, bars=3)
    longest = np.diff(starts)[:2].max()
    assert (completion.ended, completion.bars) == ("budget", 1)
    assert len(completion.new_ids) == 3 * max(64, 4 * longest)
    assert completion.midi().length > 0
    (short,) = complete(endless, codec, changing_meters, context_bars=2, bars=3, max_tokens=10)
    assert len(short.new_ids) == 10


def test_an_untrained_model_completes_too(codec, chorale):
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size))
    hot = Sampling(temperature=1.5, seed=1)
    for completion in complete(model, codec, chorale, context_bars=1, bars=1, count=4, sampling=hot, max_tokens=100):
        assert 0 < len(completion.new_ids) <= 100
        notes = read_notes(completion.midi())
        assert (notes.start < completion.prompt_end_seconds() - 1e-6).sum() == codec.count_notes(completion.prompt_ids)
        assert (notes.end > notes.start).all()


def test_progress_counts_bars_and_ends_full(codec, changing_meters):
    model, _ = by_heart(codec, changing_meters)
    calls = []
    complete(
        model, codec, changing_meters, context_bars=2, bars=3, count=2, progress=lambda *counts: calls.append(counts)
    )
    done = [bars for bars, _ in calls]
    assert done == sorted(done) and done[0] == 0 and calls[-1] == (6, 6)


def test_bad_prompts_are_one_sentence_each(codec, changing_meters, tmp_path):
    model, _ = by_heart(codec, changing_meters)
    cases = {
        "missing.mid": (None, "No such file"),
        "text.mid": (b"these are words", "not a MIDI file"),
        "empty.mid": (b"", "empty file"),
    }
    for name, (content, expected) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=expected) as told:
            complete(model, codec, tmp_path / name, context_bars=1, bars=1)
        assert name in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"meters\.mid has 9 bars, fewer than the 10 .* --context-bars 9"):
        complete(model, codec, changing_meters, context_bars=10, bars=1)
    for context_bars, bars, count in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(UserError, match="give 1 or more"):
            complete(model, codec, changing_meters, context_bars=context_bars, bars=bars, count=count)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_are_named_read_again_and_alone(codec, changing_meters, tmp_path, capsys):
    model, _ = by_heart(codec, changing_meters)
    complete_to_files(model, codec, changing_meters, tmp_path / "one" / "OUT.mid", context_bars=2, bars=2)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["OUT.mid", "OUT.png"]
    complete_to_files(model, codec, changing_meters, tmp_path / "two" / "OUT.mid", context_bars=2, bars=2, count=2)
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == ["OUT-1.mid", "OUT-1.png", "OUT-2.mid", "OUT-2.png"]
    midi = mido.MidiFile(tmp_path / "two" / "OUT-2.mid")
    assert np.bincount(read_notes(midi).voice).tolist() == [3 * 4 + 3, 1]  # three bars of 4/4, one of 3/4, and the bass
    assert "4/4" in capsys.readouterr().err  # the progress bar, at its end


def test_names_that_are_not_midi_are_told_before_the_work(codec, changing_meters, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.mid"):
        complete_to_files(None, codec, changing_meters, tmp_path / "OUT.png", context_bars=2, bars=2)
    assert completion_paths("a/b.MIDI", 2) == [Path("a/b-1.MIDI"), Path("a/b-2.MIDI")]


def test_what_cannot_be_written_leaves_nothing(codec, changing_meters, tmp_path):
    model, _ = by_heart(codec, changing_meters)
    completions = complete(model, codec, changing_meters, context_bars=2, bars=2)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="writing the completion"):
        save_completions(completions, tmp_path / "file" / "OUT.mid")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_cutting_keeps_settings_and_whole_notes():
    midi = mido.MidiFile(ticks_per_beat=100)
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=1),
            mido.MetaMessage("set_tempo", tempo=400_000),
            mido.Message("program_change", program=5),
            mido.Message("control_change", control=7, value=90),
            mido.Message("control_change", control=10, value=10),
            mido.Message("note_on", note=60, velocity=1, time=50),
            mido.Message("note_on", note=60, velocity=2, time=50),  # at tick 100, while the first still sounds
            mido.Message("note_off", note=60, time=10),  # ends the first
            mido.Message("note_off", note=60, time=10),  # ends the second, at tick 120
            mido.MetaMessage("set_tempo", tempo=300_000, time=30),
        ]
    )
    midi.tracks.append(track)
    kept = [message for message in cut_before(midi, 100).tracks[0] if message.type != "end_of_track"]
    assert kept == [
        mido.MetaMessage("set_tempo", tempo=400_000),
        mido.Message("program_change", program=5),
        mido.Message("control_change", control=7, value=90),
        mido.Message("control_change", control=10, value=10),
        mido.Message("note_on", note=60, velocity=2, time=0),
        mido.Message("note_off", note=60, time=20),
        mido.MetaMessage("set_tempo", tempo=300_000, time=30),
    ]
