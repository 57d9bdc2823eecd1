"""The loss of a split, however its rows are shared out, and the figures beside it."""

import math

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.data.codecs import load_codec
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.errors import UserError
from rwkv_music.evaluation import as_table, evaluate, summed_loss
from rwkv_music.model_v8 import RWKV


@pytest.fixture(scope="module")
def model(bach_data):
    torch.manual_seed(0)
    vocabulary = load_codec(bach_data / "tokenizer.json").vocab_size
    return RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=vocabulary)).requires_grad_(False)


def test_the_sum_does_not_depend_on_batches_or_ranks(model, bach_data):
    dataset = MusicDataset(bach_data, "val", 100)
    one = summed_loss(model, dataset, 4, "cpu")
    assert one[1] == dataset.n_targets
    torch.testing.assert_close(summed_loss(model, dataset, 7, "cpu"), one, rtol=1e-5, atol=0)
    shared = sum(summed_loss(model, dataset, 2, "cpu", rank=rank, world_size=3) for rank in range(3))
    torch.testing.assert_close(shared, one, rtol=1e-5, atol=0)


def test_only_the_first_rows_when_asked(model, bach_data):
    dataset = MusicDataset(bach_data, "val", 100)
    some = summed_loss(model, dataset, 2, "cpu", max_rows=4)
    assert some[1] == sum(batch.n_targets for _, batch in zip(range(2), dataset.validation_batches(2), strict=False))


def test_an_untrained_model_is_near_the_uniform_and_the_bigram_far_below(model, bach_data):
    codec = load_codec(bach_data / "tokenizer.json")
    train, val = evaluate(model, codec, bach_data, ctx_len=128, batch_size=4)
    assert [row.split for row in (train, val)] == ["train", "val"]
    assert val.nats_per_token == pytest.approx(math.log(codec.vocab_size), abs=0.5)
    assert val.bigram_nats_per_token < val.unigram_nats_per_token < val.nats_per_token
    pieces = MusicDataset(bach_data, "val", 128)
    notes = sum(codec.count_notes(pieces._tokens[i]) for i in range(pieces.n_documents))
    assert val.bits_per_note == pytest.approx(val.nats_per_token * val.targets / notes / math.log(2))
    assert len(as_table([train, val]).splitlines()) == 3


def test_another_tokenizer_is_refused(model, bach_data):
    codec = load_codec(bach_data / "tokenizer.json")

    class Other:
        fingerprint, vocab_size = "0" * 64, codec.vocab_size

    with pytest.raises(UserError, match="another tokenizer"):
        evaluate(model, Other(), bach_data, 128, 4)
