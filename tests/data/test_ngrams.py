import math

import numpy as np
import pytest

from rwkv_music.data.binidx import BinIdx, BinIdxWriter
from rwkv_music.data.dataset import read_dataset_json
from rwkv_music.data.ngrams import bigram_nats_per_token, ngram_nats_per_token, unigram_nats_per_token


def binidx(prefix, documents) -> BinIdx:
    with BinIdxWriter(prefix) as writer:
        for document in documents:
            writer.add(np.array(document))
    return BinIdx(prefix)


def bigram_by_hand(train, val, vocab_size) -> float:
    """The same model from dictionaries, one token at a time."""
    pairs, firsts, unigrams = {}, {}, {}
    for document in train:
        for a, b in zip(document, document[1:], strict=False):
            pairs[a, b] = pairs.get((a, b), 0) + 1
            firsts[a] = firsts.get(a, 0) + 1
            unigrams[b] = unigrams.get(b, 0) + 1

    def discount(counts):
        once, twice = counts.count(1), counts.count(2)
        return min(max(once / (once + 2 * twice), 0.01), 0.99) if once + twice else 0.5

    d1, d2 = discount(list(unigrams.values())), discount(list(pairs.values()))
    n = sum(unigrams.values())

    def p_unigram(b):
        return (max(unigrams.get(b, 0) - d1, 0) + d1 * len(unigrams) / vocab_size) / n

    def p(a, b):
        if a not in firsts:
            return p_unigram(b)
        kinds = sum(first == a for first, _ in pairs)
        return (max(pairs.get((a, b), 0) - d2, 0) + d2 * kinds * p_unigram(b)) / firsts[a]

    for a in range(vocab_size):
        assert math.isclose(sum(p(a, b) for b in range(vocab_size)), 1)
    terms = [-math.log(p(a, b)) for document in val for a, b in zip(document, document[1:], strict=False)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_against_dictionaries(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("rwkv_music.data.ngrams.CHUNK_TOKENS", chunk)
    rng = np.random.default_rng(0)
    train, val = ([rng.zipf(1.5, size).clip(0, 19).tolist() for size in (30, 1, 17)] for _ in range(2))
    found = bigram_nats_per_token(binidx(tmp_path / "t", train), binidx(tmp_path / "v", val), 20)
    assert found == pytest.approx(bigram_by_hand(train, val, 20), rel=1e-12)


def test_a_cycle_is_learnt_and_documents_are_not_joined(tmp_path):
    train = binidx(tmp_path / "t", [[0, *([1, 2, 3] * 200), 4]] * 20)
    val = binidx(tmp_path / "v", [[0, *([1, 2, 3] * 50), 4]] * 2)
    assert bigram_nats_per_token(train, val, 5) < 0.05
    assert unigram_nats_per_token(train, val, 5) == pytest.approx(math.log(3), abs=0.05)


def test_large_vocabulary_is_sparse(tmp_path):
    ids = np.random.default_rng(0).integers(0, 20096, 20000)
    train = binidx(tmp_path / "t", [ids])
    # Unrelated tokens cannot be told better than evenly, and a sound model is not much worse than that.
    val = binidx(tmp_path / "v", [np.random.default_rng(1).integers(0, 20096, 2000)])
    assert math.log(20096) - 0.05 < bigram_nats_per_token(train, val, 20096) < math.log(20096) + 0.7


def test_nothing_to_score(tmp_path):
    train = binidx(tmp_path / "t", [[1, 2, 3]])
    assert math.isnan(bigram_nats_per_token(train, binidx(tmp_path / "v", []), 5))


def test_on_chorales(bach_data):
    train, val = BinIdx(bach_data / "train"), BinIdx(bach_data / "val")
    vocab_size = read_dataset_json(bach_data)["tokenizer"]["vocab_size"]
    bigram = bigram_nats_per_token(train, val, vocab_size)
    assert 1.0 < bigram < unigram_nats_per_token(train, val, vocab_size) < math.log(vocab_size)


def ngram_by_hand(train, val, vocab_size, order) -> float:
    """The same model from dictionaries, as a recursion over its contexts."""
    counts = [{} for _ in range(order + 1)]  # by length, (context, token)
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


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_ngrams_against_dictionaries(tmp_path, monkeypatch, order, chunk):
    monkeypatch.setattr("rwkv_music.data.ngrams.CHUNK_TOKENS", chunk)
    rng = np.random.default_rng(0)
    train, val = ([rng.choice(7, size=n, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0]) for n in sizes] for sizes in
                  ([9, 1, 30, 4], [12, 2, 1, 8]))  # fmt: skip
    val.append(np.array([6, 6, 6, 0, 1]))  # what never occurred
    found = ngram_nats_per_token(binidx(tmp_path / "train", train), binidx(tmp_path / "val", val), 7, order)
    train, val = ([document.tolist() for document in split] for split in (train, val))
    assert len(found) == order - 1
    assert found[-1] == pytest.approx(ngram_by_hand(train, val, 7, order), rel=1e-12)


def test_two_grams_are_the_bigram(bach_data):
    train, val = BinIdx(bach_data / "train"), BinIdx(bach_data / "val")
    vocabulary = read_dataset_json(bach_data)["tokenizer"]["vocab_size"]
    bigram = bigram_nats_per_token(train, val, vocabulary)
    assert ngram_nats_per_token(train, val, vocabulary, order=2) == [pytest.approx(bigram, rel=1e-12)]


def test_longer_ones_know_what_the_bigram_cannot(tmp_path):
    """What follows depends on the two tokens before."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(20):
        tokens = [0, 1]
        for _ in range(200):
            tokens.append((tokens[-1] + tokens[-2]) % 5 if rng.random() < 0.9 else int(rng.integers(5)))
        documents.append(tokens)
    train, val = binidx(tmp_path / "train", documents[:15]), binidx(tmp_path / "val", documents[15:])
    two, three, four = ngram_nats_per_token(train, val, 5, order=4)
    ideal = -(0.92 * math.log(0.92) + 0.08 * math.log(0.02))
    assert two > 1.5 and three == pytest.approx(ideal, rel=0.15) and four < 1.3 * three


def test_only_the_first_documents_are_counted_when_there_are_too_many(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 5, size=20) for _ in range(6)]
    whole, part = binidx(tmp_path / "whole", documents), binidx(tmp_path / "part", documents[:2])
    limited = ngram_nats_per_token(whole, whole, 5, order=3, most_tokens=45)
    assert limited[-1] > ngram_nats_per_token(whole, whole, 5, order=3)[-1]
    assert limited == pytest.approx(ngram_nats_per_token(part, whole, 5, order=3), rel=0.1)  # but for the unigram
