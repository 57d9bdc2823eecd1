"""Token-by-token generation, and completions with the exact number of bars."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np
import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError
from rwkv_music.generation import decoder
from rwkv_music.generation.completion import ForcedExit, complete
from rwkv_music.generation.completion_files import complete_to_files, completion_paths, save_completions
from rwkv_music.generation.sampling import Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.midi.edit import cut_before
from rwkv_music.midi.events import timed_messages
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import TempoMap, bar_ticks
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec
from tests.midi.midi_files import file_of, make_midi, note


@pytest.fixture(scope="module")
def codec() -> Codec:
    return make_codec("multitrack")


@pytest.fixture(scope="module")
def chorale(bach_midi: Path) -> Path:
    return min(bach_midi.glob("*.mid"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def changing_meters(tmp_path_factory) -> Path:
    """Write nine bars, three each of 4/4, 3/4 and 6/8, over a bass note held across both changes."""
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
    """Return two layers with no zero weights, so that every part of the state matters."""
    torch.manual_seed(seed)
    model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


class Position(NamedTuple):
    """The state of `MemorizedPiece`: tokens read by each row, int64 [1, B]."""

    read: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Position":
        return Position(self.read[:, index])


class MemorizedPiece(torch.nn.Module):
    """A model that reproduces one piece: after n tokens it predicts token n with certainty."""

    def __init__(self, piece: np.ndarray, vocab_size: int):
        super().__init__()
        self.piece, self.config, self.device = torch.as_tensor(piece), ModelConfig(vocab_size=vocab_size), "cpu"

    def init_state(self, batch: int) -> Position:
        return Position(torch.zeros(1, batch, dtype=torch.int64))

    def forward(self, input_ids: torch.Tensor, state: Position) -> tuple[torch.Tensor, Position]:
        T = input_ids.shape[1]
        upcoming = state.read[0][:, None] + torch.arange(1, T + 1)
        known = self.piece[upcoming.clamp(max=len(self.piece) - 1)]
        return 50.0 * torch.nn.functional.one_hot(known, self.config.vocab_size), Position(state.read + T)


def memorized(codec: Codec, path: Path) -> tuple[MemorizedPiece, np.ndarray]:
    """Return a model that reproduces the piece at `path`, and the piece's ids."""
    ids = codec.encode(path).astype(np.int64)
    return MemorizedPiece(ids, codec.vocab_size), ids


# ---- token by token --------------------------------------------------------------------------------------------------


def take(
    n: int, model: torch.nn.Module, prompt: np.ndarray, rows: int = 1, first_row: int = 0, **sampling
) -> np.ndarray:
    """Return n generated tokens of each row: [rows, n]."""
    tokens = TokenGenerator(model, rows, Sampling(**sampling)).generate(prompt, first_row=first_row)
    return np.stack([token for _, token in zip(range(n), tokens, strict=False)], axis=1)


@pytest.mark.parametrize("window", [1, 5, 1024])
def test_generation_equals_full_forward_passes(window, monkeypatch):
    monkeypatch.setattr(decoder, "PREFILL_WINDOW", window)
    model = small_model(30)
    prompt = torch.randint(30, (1, 17), generator=torch.Generator().manual_seed(0))
    found = take(20, model, prompt[0].numpy(), temperature=0)
    ids = prompt
    with torch.inference_mode():
        for _ in range(20):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    assert np.array_equal(found, ids[:, 17:].numpy())
    assert len(np.unique(found)) > 3, "a model that repeats one token proves nothing"


def test_a_sample_does_not_depend_on_the_batch():
    model = small_model(30)
    prompt = np.arange(10)
    eight = take(100, model, prompt, rows=8, seed=3)
    assert np.array_equal(take(100, model, prompt, seed=3), eight[:1])
    assert np.array_equal(take(100, model, prompt, rows=3, first_row=5, seed=3), eight[5:])
    assert len(np.unique(eight, axis=0)) == 8
    assert not np.array_equal(take(100, model, prompt, seed=4), eight[:1])


def test_a_generator_can_be_reused():
    model, prompts = small_model(30), (np.arange(10), np.arange(3, 29))
    generator = TokenGenerator(model, 2, Sampling(seed=1, repetition_penalty=0.5))
    for prompt in (*prompts, prompts[0]):
        tokens = generator.generate(prompt)
        found = np.stack([token for _, token in zip(range(30), tokens, strict=False)], axis=1)
        assert np.array_equal(found, take(30, model, prompt, rows=2, seed=1, repetition_penalty=0.5))


def test_generation_keeps_the_callers_grad_mode():
    next(TokenGenerator(small_model(30), 1).generate(np.array([1])))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_non_finite_logits_raise():
    model = small_model(30)
    with torch.no_grad():
        model.head.weight[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        next(TokenGenerator(model, 1).generate(np.array([1])))


def test_memory_is_constant():
    """The tensors in memory occupy as many bytes after 900 tokens as after 300."""
    import gc

    tokens = TokenGenerator(RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=30)), 1).generate(np.arange(5))

    def tensors_after(n: int) -> int:
        for _, _ in zip(range(n), tokens, strict=False):
            pass
        gc.collect()
        return sum(x.numel() * x.element_size() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))

    assert tensors_after(300) == tensors_after(600)


# ---- completions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_bars, bars", [(1, 1), (2, 5), (3, 3), (4, 4), (6, 2), (7, 1)])
def test_a_completion_has_exactly_the_requested_bars(codec, changing_meters, context_bars, bars):
    model, ids = memorized(codec, changing_meters)
    starts = codec.bar_starts(ids)
    for completion in complete(model, codec, changing_meters, context_bars=context_bars, bars=bars, count=3):
        assert np.array_equal(completion.prompt.ids, ids[: starts[context_bars]])
        assert np.array_equal(completion.new_ids, ids[starts[context_bars] : starts[context_bars + bars]])
        assert (completion.context_bars, completion.bars) == (context_bars, bars)

        midi, [region] = completion.midi(), completion.regions()
        joined, alone = read_notes(midi), read_notes(completion.midi_alone())
        assert (region.first_bar, region.bars, region.parts) == (context_bars, bars, None)
        (line,) = bar_ticks(midi, context_bars)[-1:]
        in_prompt = joined.start_tick < line
        assert in_prompt.sum() == codec.count_notes(completion.prompt.ids)
        assert (~in_prompt).sum() == len(alone) == codec.count_notes(completion.new_ids)
        assert np.array_equal(alone.pitch, joined.pitch[~in_prompt])
        assert np.allclose(alone.start, joined.start[~in_prompt] - TempoMap.from_midi(midi).seconds(line))
        assert np.allclose(alone.end - alone.start, (joined.end - joined.start)[~in_prompt])


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_memorized_chorale_is_completed_note_for_note(tokenizer, chorale):
    codec = make_codec(tokenizer)
    model, ids = memorized(codec, chorale)
    n_bars = len(codec.encode_piece(chorale).bar_starts)
    (completion,) = complete(model, codec, chorale, context_bars=2, bars=n_bars - 3)
    source = mido.MidiFile(chorale)
    whole, completed = read_notes(source), read_notes(completion.midi())
    requested = whole.start_tick < bar_ticks(source, n_bars - 1)[-1]
    expected = sorted(
        {(pitch, start) for pitch, start in zip(whole.pitch[requested], whole.start[requested], strict=True)}
    )
    found = sorted({(pitch, start) for pitch, start in zip(completed.pitch, completed.start, strict=True)})
    assert [pitch for pitch, _ in found] == [pitch for pitch, _ in expected]
    shift = np.array(found)[:, 1] - np.array(expected)[:, 1]
    assert np.abs(shift).max() < (1e-3 if tokenizer == "multitrack" else 0.25)  # midi-llm rounds every wait to 8 ms


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_untrained_model_completes_the_requested_bars(tokenizer, temperature, chorale, tmp_path):
    """Every sample decodes to the requested number of bars, in a file that mido can read."""
    codec = make_codec(tokenizer)
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size))
    sampling = Sampling(temperature=temperature, seed=1)
    completions = complete(model, codec, chorale, context_bars=2, bars=3, count=4, sampling=sampling, max_tokens=200)
    for completion in completions:
        assert completion.bars == 3
        ids = np.concatenate([completion.prompt.ids, completion.new_ids])
        assert not np.isin(completion.new_ids, [codec.pad_id, codec.bos_id, codec.eos_id]).any()
        if tokenizer == "multitrack":
            assert len(codec.bar_starts(ids)) == 5
        for midi, bars in ((completion.midi(), 5), (completion.midi_alone(), 3)):
            midi.save(tmp_path / "out.mid")
            read = mido.MidiFile(tmp_path / "out.mid")
            notes, lines = read_notes(read), bar_ticks(read, bars)
            assert (notes.end > notes.start).all()
            assert (notes.start_tick < lines[-1]).all()
            assert max(sum(message.time for message in track) for track in read.tracks) >= lines[-1]
            opened = sum(message.type == "note_on" and message.velocity > 0 for message in read)
            closed = sum(
                message.type == "note_off" or message.type == "note_on" and not message.velocity for message in read
            )
            assert opened == closed


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_joined_file_keeps_the_prompts_events(tokenizer, chorale):
    codec = make_codec(tokenizer)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size))
    (completion,) = complete(model, codec, chorale, context_bars=2, bars=1, sampling=Sampling(temperature=1.5))
    source, joined = mido.MidiFile(chorale), completion.midi()
    line = bar_ticks(source, 2)[-1]
    assert joined.ticks_per_beat == source.ticks_per_beat
    for own, kept in zip(source.tracks, joined.tracks, strict=False):
        assert [timed for timed in timed_messages(own) if timed[0] < line] == (
            [timed for timed in timed_messages(kept) if timed[0] < line]
        )
    sustained = read_notes(joined)
    assert (sustained.end_tick > sustained.start_tick).all()


@pytest.fixture(scope="module")
def duet() -> Callable[[int], bytes]:
    """Return a function that builds eight bars for strings on channel 4 and piano on channel 2 at a given tempo."""

    def build(tempo: int) -> bytes:
        tracks = [[(0, mido.MetaMessage("set_tempo", tempo=tempo))]]
        for channel, program, pitch in ((4, 48, 60), (2, 0, 40)):
            pan = mido.Message("control_change", control=10, value=channel, channel=channel)
            events = [(0, mido.Message("program_change", channel=channel, program=program)), (0, pan)]
            for i in range(32):
                events += note(480 * i, 480 * i + 400, pitch + i % 12, channel=channel)
            tracks.append(events)
        return file_of(make_midi(*tracks))

    return build


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("tempo", [428_571, 2_400_000, 100_000])
def test_tempo_and_channels_go_on(tokenizer, tempo, duet, tmp_path):
    """The tokens of 140 beats a minute say 142.7, those of 25 say 30, and those of 600 say 480."""
    codec, path = make_codec(tokenizer), tmp_path / "duet.mid"
    path.write_bytes(duet(tempo))
    model, _ = memorized(codec, path)
    (completion,) = complete(model, codec, path, context_bars=4, bars=3)
    joined, source = completion.midi(), mido.MidiFile(path)
    assert {m.tempo for track in joined.tracks for m in track if m.type == "set_tempo"} == {tempo}
    tracks = joined.tracks[3:]  # added for the completion
    if tokenizer == "multitrack":  # it goes into the tracks of the parts
        tracks = [cut_before(joined, completion.opening.line).tracks[i] for i in (1, 2)]
        tracks = [[m for m in track if m.type in ("note_on", "note_off")] for track in tracks]
        assert all(tracks) and len(joined.tracks) == 3
    added = [message for track in tracks for message in track if not message.is_meta]
    assert {message.type for message in added} == {"note_on", "note_off"}
    assert {message.channel for message in added} == ({2} if tokenizer == "midi-llm-piano" else {2, 4})
    whole, found = read_notes(source), read_notes(joined)
    requested = (whole.start_tick >= 4 * 1920) & (whole.start_tick < 7 * 1920)
    if tokenizer == "midi-llm-piano":
        requested &= whole.pitch < 60
    new = found.start_tick >= 4 * 1920
    assert np.array_equal(np.sort(found.pitch[new]), np.sort(whole.pitch[requested]))
    assert np.abs((found.start_tick[new] + 240) % 480 - 240).max() < 60


def test_ids_as_prompt(codec, changing_meters):
    model, ids = memorized(codec, changing_meters)
    (by_file,) = complete(model, codec, changing_meters, context_bars=2, bars=2)
    (from_ids,) = complete(model, codec, ids, context_bars=2, bars=2)
    assert np.array_equal(by_file.prompt.ids, from_ids.prompt.ids)
    assert np.array_equal(by_file.new_ids, from_ids.new_ids)
    assert np.array_equal(read_notes(by_file.midi()).pitch, read_notes(from_ids.midi()).pitch)


def test_the_context_may_be_the_whole_prompt(codec, changing_meters):
    model, ids = memorized(codec, changing_meters)
    (completion,) = complete(model, codec, changing_meters, context_bars=9, bars=2, max_tokens=5)
    assert np.array_equal(completion.prompt.ids, ids[:-1])
    assert completion.bars == 2, "the model would end the piece here"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_model_that_never_ends_a_bar_is_forced_to(tokenizer, chorale):
    """The model prefers one token wherever it is allowed; after `max_tokens` every row is ended."""
    codec = make_codec(tokenizer)
    favorite = np.flatnonzero(codec.token_properties.is_onset & (codec.token_properties.pitch == 60))[:1]
    stubborn = MemorizedPiece(favorite, codec.vocab_size)
    (completion,) = complete(stubborn, codec, chorale, context_bars=2, bars=2, max_tokens=50)
    assert completion.bars == 2 and 50 < len(completion.new_ids) < 150
    assert len(read_notes(completion.midi_alone())) > 0


def test_completions_do_not_depend_on_rows_at_once(codec, chorale):
    model = small_model(codec.vocab_size)
    options = {"context_bars": 2, "bars": 2, "sampling": Sampling(seed=5, top_p=0.99), "max_tokens": 100}
    at_once = complete(model, codec, chorale, count=5, **options)
    in_pairs = complete(model, codec, chorale, count=5, rows_at_once=2, **options)
    assert len({tuple(completion.new_ids) for completion in at_once}) == 5
    for one, other in zip(at_once, in_pairs, strict=True):
        assert np.array_equal(one.new_ids, other.new_ids)


def test_forced_exit_always_allows_a_token(codec, chorale):
    """Forced at any moment, every row is still allowed a token and ends within 14 tokens."""
    piece = codec.first_bars(codec.encode_piece(chorale), 2)
    rng = np.random.default_rng(0)
    vocabulary = np.isin(
        [token.split("_")[0] for token in codec.vocabulary], ["Bar", "TimeSig", "Velocity", "Duration"]
    )
    for begin in range(0, 40, 3):
        grammar = ForcedExit(codec.grammar(piece, 8, 2), vocabulary)
        for step in range(begin + 14):
            grammar.active = step >= begin
            allowed = grammar.allowed()
            assert allowed.any(axis=1).all()
            grammar.feed(np.array([rng.choice(np.flatnonzero(row)) for row in allowed]))
        assert grammar.ended.all()


def test_progress_counts_bars(codec, changing_meters):
    model, _ = memorized(codec, changing_meters)
    calls = []
    complete(
        model, codec, changing_meters, context_bars=2, bars=3, count=2, progress=lambda *counts: calls.append(counts)
    )
    done = [bars for bars, _ in calls]
    assert done == sorted(done) and done[0] == 0 and calls[-1] == (6, 6)


def test_bad_prompts_and_counts(codec, changing_meters, tmp_path):
    model, _ = memorized(codec, changing_meters)
    cases = {
        "missing.mid": (None, "No such file"),
        "text.mid": (b"these are words", "not a MIDI file"),
        "empty.mid": (b"", "empty file"),
    }
    for name, (content, expected) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=expected) as caught:
            complete(model, codec, tmp_path / name, context_bars=1, bars=1)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"meters\.mid has 9 bars, .* 10: .* --context-bars 9"):
        complete(model, codec, changing_meters, context_bars=10, bars=1)
    for context_bars, bars, count in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(UserError, match="give 1 or more"):
            complete(model, codec, changing_meters, context_bars=context_bars, bars=bars, count=count)
    with pytest.raises(UserError, match="--count is 1000000000: .*100,000"):
        complete(model, codec, changing_meters, context_bars=1, bars=1, count=10**9)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_and_their_names(codec, changing_meters, tmp_path, capsys):
    model, _ = memorized(codec, changing_meters)
    complete_to_files(model, codec, changing_meters, tmp_path / "one" / "OUT.mid", context_bars=2, bars=2)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["OUT.mid", "OUT.png"]
    complete_to_files(model, codec, changing_meters, tmp_path / "two" / "OUT.mid", context_bars=2, bars=2, count=2)
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == ["OUT-1.mid", "OUT-1.png", "OUT-2.mid", "OUT-2.png"]
    midi = mido.MidiFile(tmp_path / "two" / "OUT-2.mid")
    assert np.bincount(read_notes(midi).part).tolist() == [8 + 4 + 3, 1]  # the prompt's and the completion's, the bass
    assert capsys.readouterr().err == ""  # no progress bar for short work, as stderr is not a terminal


def test_a_prompt_shorter_than_its_context(codec, tmp_path):
    track = mido.MidiTrack([mido.Message("note_on", note=60, time=0), mido.Message("note_off", note=60, time=480)])
    mido.MidiFile(tracks=[track]).save(tmp_path / "short.mid")
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size))
    with pytest.raises(UserError, match=r"has 1 bar, .* 4: .* --context-bars 1"):
        complete_to_files(model, codec, tmp_path / "short.mid", tmp_path / "out.mid", context_bars=4, bars=1)
    assert [path.name for path in tmp_path.iterdir()] == ["short.mid"]


def test_bad_output_names_are_refused_before_generation(codec, changing_meters, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.mid"):
        complete_to_files(None, codec, changing_meters, tmp_path / "OUT.png", context_bars=2, bars=2)
    assert completion_paths("a/b.MIDI", 2) == [Path("a/b-1.MIDI"), Path("a/b-2.MIDI")]
    assert completion_paths("a.mid", 2, prompt="a.mid") == [Path("a-1.mid"), Path("a-2.mid")]
    for count, prompt in ((1, "a.mid"), (3, "b/../a-3.mid")):
        with pytest.raises(UserError, match="would overwrite its prompt"):
            completion_paths("a.mid", count, prompt)


def test_a_failed_write_leaves_no_files(codec, changing_meters, tmp_path):
    model, _ = memorized(codec, changing_meters)
    completions = complete(model, codec, changing_meters, context_bars=2, bars=2)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"while writing .*OUT\.mid"):
        save_completions(completions, tmp_path / "file" / "OUT.mid")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
