"""N-gram baselines against dictionaries, on known distributions and on real scores."""

import math

import numpy as np
import pytest

from rwkv_music.data.binidx import BinIdx, BinIdxWriter
from rwkv_music.data.dataset import read_dataset_json
from rwkv_music.data.ngrams import ngram_nats_per_token


def binidx(prefix, documents) -> BinIdx:
    with BinIdxWriter(prefix) as writer:
        for document in documents:
            writer.add(np.array(document))
    return BinIdx(prefix)


def test_cycle_is_learned_and_documents_are_not_joined(tmp_path):
    train = binidx(tmp_path / "t", [[0, *([1, 2, 3] * 200), 4]] * 20)
    val = binidx(tmp_path / "v", [[0, *([1, 2, 3] * 50), 4]] * 2)
    unigram, bigram = ngram_nats_per_token(train, val, 5, order=2)
    assert bigram < 0.05 and unigram == pytest.approx(math.log(3), abs=0.05)


def test_large_vocabulary_is_sparse(tmp_path):
    ids = np.random.default_rng(0).integers(0, 20096, 20000)
    train = binidx(tmp_path / "t", [ids])
    # The uniform distribution is optimal for independent tokens; the model must not be much worse.
    val = binidx(tmp_path / "v", [np.random.default_rng(1).integers(0, 20096, 2000)])
    bigram = ngram_nats_per_token(train, val, 20096, order=2)[1]
    assert math.log(20096) - 0.05 < bigram < math.log(20096) + 0.7


def test_no_targets_give_nan(tmp_path):
    train = binidx(tmp_path / "t", [[1, 2, 3]])
    nats = ngram_nats_per_token(train, binidx(tmp_path / "v", []), 5, order=3)
    assert len(nats) == 3 and all(map(math.isnan, nats))


def test_on_chorales(bach_data):
    train, val = BinIdx(bach_data / "train"), BinIdx(bach_data / "val")
    vocab_size = read_dataset_json(bach_data)["tokenizer"]["vocab_size"]
    unigram, bigram = ngram_nats_per_token(train, val, vocab_size, order=2)
    assert 1.0 < bigram < unigram < math.log(vocab_size)


def ngram_by_hand(train, val, vocab_size, order) -> float:
    """Compute the same value with dictionaries and a recursion over the contexts."""
    counts = [{} for _ in range(order + 1)]  # by order, of (context, token)
    for document in train:
        for n in range(1, order + 1):
            for i in range(max(n - 1, 1), len(document)):
                gram = tuple(document[i - n + 1 : i + 1])
                counts[n][gram] = counts[n].get(gram, 0) + 1

    def discount(n):
        once, twice = (list(counts[n].values()).count(k) for k in (1, 2))
        return min(max(once / (once + 2 * twice), 0.01), 0.99) if once + twice else 0.5

    def p(context, token):
        n = len(context) + 1
        shorter = p(context[1:], token) if context else 1 / vocab_size
        seen = {gram: count for gram, count in counts[n].items() if gram[:-1] == context}
        if not seen:
            return shorter
        kept = max(seen.get((*context, token), 0) - discount(n), 0)
        return (kept + discount(n) * len(seen) * shorter) / sum(seen.values())

    terms = []
    for document in val:
        for i in range(1, len(document)):
            context = tuple(document[max(0, i - order + 1) : i])
            assert i > 3 or math.isclose(sum(p(context, token) for token in range(vocab_size)), 1)
            terms.append(-math.log(p(context, document[i])))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("order", [2, 5])
@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_ngrams_against_dictionaries(tmp_path, monkeypatch, order, chunk):
    monkeypatch.setattr("rwkv_music.data.ngrams.CHUNK_TOKENS", chunk)
    rng = np.random.default_rng(0)
    train, val = ([rng.choice(7, size=n, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0]) for n in sizes] for sizes in
                  ([9, 1, 30, 4], [12, 2, 1, 8]))  # fmt: skip
    val.append(np.array([6, 6, 6, 0, 1]))  # never occurs in train
    found = ngram_nats_per_token(binidx(tmp_path / "train", train), binidx(tmp_path / "val", val), 7, order)
    train, val = ([document.tolist() for document in split] for split in (train, val))
    assert found == [pytest.approx(ngram_by_hand(train, val, 7, n), rel=1e-12) for n in range(1, order + 1)]


def test_trigram_beats_bigram_where_two_tokens_decide(tmp_path):
    """Each token depends on the two tokens before it."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(20):
        tokens = [0, 1]
        for _ in range(200):
            tokens.append((tokens[-1] + tokens[-2]) % 5 if rng.random() < 0.9 else int(rng.integers(5)))
        documents.append(tokens)
    train, val = binidx(tmp_path / "train", documents[:15]), binidx(tmp_path / "val", documents[15:])
    _, two, three, four = ngram_nats_per_token(train, val, 5, order=4)
    ideal = -(0.92 * math.log(0.92) + 0.08 * math.log(0.02))
    assert two > 1.5 and three == pytest.approx(ideal, rel=0.15) and four < 1.3 * three


def test_most_tokens_limits_the_counted_documents(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 5, size=20) for _ in range(6)]
    whole, part = binidx(tmp_path / "whole", documents), binidx(tmp_path / "part", documents[:2])
    limited = ngram_nats_per_token(whole, whole, 5, order=3, most_tokens=45)
    assert limited[-1] > ngram_nats_per_token(whole, whole, 5, order=3)[-1]
    assert limited[0] == ngram_nats_per_token(whole, whole, 5, order=1)[0]  # the unigram counts all documents
    assert limited == pytest.approx(ngram_nats_per_token(part, whole, 5, order=3), rel=0.1)
