"""The loss of a split on any number of ranks, the baselines, and the measures of completions."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.errors import UserError
from rwkv_music.evaluation import losses
from rwkv_music.evaluation.completions import sample_measures
from rwkv_music.evaluation.losses import as_table, evaluate, part_losses, parts_as_table, summed_loss
from rwkv_music.midi.measures import mean_and_deviation
from rwkv_music.model_v8 import RWKV
from rwkv_music.prepare.pipeline import prepare
from rwkv_music.tokenizers.registry import load_codec


@pytest.fixture(scope="module")
def model(bach_data):
    torch.manual_seed(0)
    vocabulary = load_codec(bach_data / "tokenizer.json").vocab_size
    return RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=vocabulary)).requires_grad_(False)


def test_the_loss_does_not_depend_on_batches_or_ranks(model, bach_data):
    dataset = MusicDataset(bach_data, "val", 100)
    one = summed_loss(model, dataset, 4, "cpu")
    assert one[1] == dataset.n_targets
    torch.testing.assert_close(summed_loss(model, dataset, 7, "cpu"), one, rtol=1e-5, atol=0)
    shared = sum(summed_loss(model, dataset, 2, "cpu", rank=rank, world_size=3) for rank in range(3))
    torch.testing.assert_close(shared, one, rtol=1e-5, atol=0)


def test_max_rows(model, bach_data):
    dataset = MusicDataset(bach_data, "val", 100)
    some = summed_loss(model, dataset, 2, "cpu", max_rows=4)
    assert some[1] == sum(batch.n_targets for _, batch in zip(range(2), dataset.validation_batches(2), strict=False))


def test_an_untrained_model_is_near_uniform_and_the_baselines_are_better(model, bach_data):
    codec = load_codec(bach_data / "tokenizer.json")
    train, val = evaluate(model, codec, bach_data, ctx_len=128, batch_size=4)
    assert [row.split for row in (train, val)] == ["train", "val"]
    assert val.nats_per_token == pytest.approx(math.log(codec.vocab_size), abs=0.5)
    assert val.bigram_nats_per_token < val.unigram_nats_per_token < val.nats_per_token
    pieces = BinIdx(bach_data / "val")
    notes = sum(codec.count_notes(pieces[i]) for i in range(len(pieces)))
    assert val.bits_per_note == pytest.approx(val.nats_per_token * val.targets / notes / math.log(2))
    assert val.ngram_nats_per_token <= val.bigram_nats_per_token and 2 <= val.ngram <= 5
    assert len(as_table([train, val]).splitlines()) == 7


def test_loss_by_position(model, bach_data):
    """Equals a sum over the tokens of each tenth of each piece."""
    codec = load_codec(bach_data / "tokenizer.json")
    _, val = evaluate(model, codec, bach_data, ctx_len=100, batch_size=3)
    pieces, dataset = BinIdx(bach_data / "val"), MusicDataset(bach_data, "val", 100)
    window_nats = []
    with torch.no_grad():
        for batch in dataset.validation_batches(1):
            logits = model(batch.input_ids, cu_seqlens=batch.cu_seqlens)[0]
            window_nats += torch.nn.functional.cross_entropy(
                logits, batch.targets[0], ignore_index=-100, reduction="none"
            ).tolist()
    nats, targets = [0.0] * 10, [0] * 10
    for i in range(len(pieces)):
        start, stop = pieces.offsets[i : i + 2].tolist()
        for place in range(1, stop - start):
            nats[place * 10 // (stop - start)] += window_nats[start + place - 1]
            targets[place * 10 // (stop - start)] += 1
    assert val.by_position == pytest.approx([n / t for n, t in zip(nats, targets, strict=True)], rel=1e-4)
    assert val.targets == sum(targets)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_with_tbptt_windows_do_not_matter(model, bach_data, batch_size):
    """Equals the loss with every piece in one window."""
    codec = load_codec(bach_data / "tokenizer.json")
    evaluations = evaluate(model, codec, bach_data, ctx_len=60, batch_size=batch_size, tbptt=True)
    for split, found in zip(("train", "val"), evaluations, strict=True):
        nats, targets, pieces = [0.0] * 10, [0] * 10, BinIdx(bach_data / split)
        for i in range(len(pieces)):
            ids = torch.from_numpy(pieces[i].astype(np.int64))
            losses = torch.nn.functional.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
            for place, value in enumerate(losses.tolist(), 1):
                nats[place * 10 // len(ids)] += value
                targets[place * 10 // len(ids)] += 1
        assert found.targets == sum(targets)
        assert found.nats_per_token == pytest.approx(sum(nats) / sum(targets), rel=1e-5)
        assert found.by_position == pytest.approx([n / t for n, t in zip(nats, targets, strict=True)], rel=1e-4)


@pytest.mark.parametrize("tokenizer", ["multitrack", "midi-llm"])
def test_completions_are_measured_beside_real_bars(tokenizer, bach_midi, tmp_path):
    prepare([bach_midi], tmp_path / "data", tokenizer=tokenizer, workers=1, val_fraction=0.2)
    codec = load_codec(tmp_path / "data" / "tokenizer.json")
    torch.manual_seed(0)
    untrained = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)).requires_grad_(False)
    real, completed = sample_measures(untrained, codec, tmp_path / "data", 4, context_bars=2, bars=3)
    assert len(completed) == 4 and 1 <= len(real) <= 4
    (bach, _), (noise, _) = mean_and_deviation(real), mean_and_deviation(completed)
    assert bach.scale_consistency > 0.85 > noise.scale_consistency
    assert bach.pitch_class_entropy < noise.pitch_class_entropy and bach.pitch_range < noise.pitch_range
    assert 1.5 < bach.polyphony < 5
    with pytest.raises(UserError, match="choose fewer"):
        sample_measures(untrained, codec, tmp_path / "data", 1, context_bars=2, bars=900)


def test_another_tokenizer_is_refused(model, bach_data):
    codec = load_codec(bach_data / "tokenizer.json")

    class Other:
        fingerprint, vocab_size = "0" * 64, codec.vocab_size

    with pytest.raises(UserError, match="tokenizer of"):
        evaluate(model, Other(), bach_data, 128, 4)


def test_a_folder_that_is_not_a_dataset_is_refused(model, bach_midi):
    with pytest.raises(UserError, match="is not a dataset folder"):
        evaluate(model, None, bach_midi, 64, 2)


def test_losses_of_parts_add_up(bach_data, monkeypatch):
    """The rows have the tokens that stand after each Part, and together the loss of the whole split."""
    codec = load_codec(bach_data / "tokenizer.json")
    torch.manual_seed(0)
    untrained = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)).requires_grad_(False)
    pieces, expected = BinIdx(bach_data / "val"), Counter()
    for i in range(len(pieces)):
        name = ""
        for token in (codec.vocabulary[i] for i in pieces[i][1:]):
            starts = {"Part": token.replace("Part_", "part "), "Bar": "", "EOS": ""}
            name = starts.get(token.split("_")[0], name)
            expected[name] += 1
    split, rows = part_losses(untrained, codec, bach_data, ctx_len=200, batch_size=3)
    assert split == "val"
    assert {row.name: row.tokens for row in rows[:-1]} == {name: n for name, n in expected.items() if name}
    assert rows[-1].tokens == expected[""] and rows[-1].notes == 0
    assert sum(row.notes for row in rows) == sum(codec.count_notes(pieces[i]) for i in range(len(pieces)))
    _, val = evaluate(untrained, codec, bach_data, ctx_len=200, batch_size=3)
    assert sum(row.nats for row in rows) == pytest.approx(val.nats_per_token * val.targets)
    assert rows[0].bits_per_note == pytest.approx(rows[0].nats / rows[0].notes / math.log(2))
    assert len(parts_as_table(split, rows).splitlines()) == 1 + len(rows)

    monkeypatch.setattr(losses, "PART_ROWS", 3)
    _, fewer = part_losses(untrained, codec, bach_data, ctx_len=200, batch_size=3)
    assert [row.name for row in fewer] == ["part 1", "part 2", f"parts 3 to {len(rows) - 1}", rows[-1].name]
    assert fewer[2].notes == sum(row.notes for row in rows[2:-1])
