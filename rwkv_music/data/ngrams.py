"""What a model must beat: unigram, bigram and n-gram models of the same tokens, scored on the same targets.

All are interpolated absolute discounting: a fixed part of every count is set aside for what was never seen, and shared
out by the model that looks one token less far back, down to the uniform. The discount is Ney, Essen and Kneser's
leave-one-out estimate n1 / (n1 + 2 n2) from the training split's own counts, so nothing is tuned on the split that is
scored. Counts are sparse: their size follows what occurs, not the power of the vocabulary.

An n-gram is counted under the number of the shorter one that it begins with, so that a 5-gram of any vocabulary is a
number of 64 bits. Its counts take about 100 bytes a training token, so of a long training split only the first
`NGRAM_TOKENS` are counted.

Source: Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language modelling" (1994).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rwkv_music.data.binidx import BinIdx

CHUNK_TOKENS = 1 << 22
NGRAM_TOKENS = 1 << 23  # under a gigabyte of counts


def bigram_nats_per_token(train: BinIdx, val: BinIdx, vocab_size: int) -> float:
    """Cross-entropy of `val` under a bigram model of `train`, in nats a token.

    The mean is over every token of `val` that has a predecessor in its own document: the targets that a model is scored
    on. NaN when there is none.
    """
    unigram = _Unigram.fit(train, vocab_size)
    pairs, counts = _count_pairs(train, vocab_size)
    contexts = pairs // vocab_size
    context_counts = np.bincount(contexts, counts, vocab_size)
    context_followers = np.bincount(contexts, minlength=vocab_size)
    discount = _discount(counts)

    total = n = 0
    for previous, current in _transitions(val):
        wanted = previous * vocab_size + current
        where = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        count = np.where(pairs[where] == wanted, counts[where], 0)
        seen = context_counts[previous]
        # A context that never occurred says nothing: all of its weight goes to the unigram.
        backoff = np.where(seen > 0, discount * context_followers[previous] / np.maximum(seen, 1), 1.0)
        p = np.maximum(count - discount, 0) / np.maximum(seen, 1) + backoff * unigram.p[current]
        total -= np.log(p).sum()
        n += len(p)
    return float(total / n) if n else float("nan")


def unigram_nats_per_token(train: BinIdx, val: BinIdx, vocab_size: int) -> float:
    """Cross-entropy of `val` under a unigram model of `train`, in nats a token, over the same targets as the bigram."""
    unigram = _Unigram.fit(train, vocab_size)
    total = n = 0
    for _, current in _transitions(val):
        total -= np.log(unigram.p[current]).sum()
        n += len(current)
    return float(total / n) if n else float("nan")


def ngram_nats_per_token(
    train: BinIdx, val: BinIdx, vocab_size: int, order: int = 5, most_tokens: int = NGRAM_TOKENS
) -> list[float]:
    """Cross-entropy of `val` under the 2-gram to `order`-gram models of `train`, over the same targets as the bigram.

    What occurs rarely teaches a long n-gram little: which n is best depends on how much there is to count. They are
    counted in the first documents of `train`, `most_tokens` at most (but one document at least).
    """
    unigram = _Unigram.fit(train, vocab_size)
    last = max(int(np.searchsorted(train.offsets, most_tokens, side="right")) - 1, 1)
    orders = _count_ngrams(*_with_places(train, 0, min(last, len(train))), vocab_size, order)
    totals, n = np.zeros(order - 1), 0
    first = 0
    while first < len(val):
        last = max(int(np.searchsorted(val.offsets, val.offsets[first] + CHUNK_TOKENS, side="right")) - 1, first + 1)
        ids, place = _with_places(val, first, last)
        for i, p in enumerate(_ngram_probabilities(orders, unigram.p[ids], ids, place, vocab_size)):
            totals[i] -= np.log(p[place > 0]).sum()
        n += int((place > 0).sum())
        first = last
    return (totals / n).tolist() if n else [float("nan")] * (order - 1)


@dataclass(frozen=True)
class _Ngrams:
    """The n-grams of one n that occur."""

    keys: np.ndarray  # int64, rising: the number of the first n - 1 tokens * V + the last one
    counts: np.ndarray  # int64
    context_counts: np.ndarray  # float64, by the number of the first n - 1: how often a token comes after them
    context_followers: np.ndarray  # int64, and how many different ones
    discount: float


def _count_ngrams(ids: np.ndarray, place: np.ndarray, vocab_size: int, order: int) -> list[_Ngrams]:
    """The 2-grams to n-grams of ids [T], of which each stands at `place` in its document."""
    orders = []
    grams, n_contexts = ids, vocab_size  # of each token, the number of the (n - 1)-gram that ends with it
    for n in range(2, order + 1):
        whole = np.flatnonzero(place >= n - 1)
        keys, inverse, counts = np.unique(
            grams[whole - 1] * vocab_size + ids[whole], return_inverse=True, return_counts=True
        )
        contexts = keys // vocab_size
        context_counts = np.bincount(contexts, counts, n_contexts)
        orders.append(
            _Ngrams(keys, counts, context_counts, np.bincount(contexts, minlength=n_contexts), _discount(counts))
        )
        grams = np.zeros_like(ids)  # those that a document's beginning cuts off are not looked at
        grams[whole] = inverse
        n_contexts = len(keys)
    return orders


def _ngram_probabilities(
    orders: list[_Ngrams], p: np.ndarray, ids: np.ndarray, place: np.ndarray, vocab_size: int
) -> Iterator[np.ndarray]:
    """float64 [T] from the unigram's, of one order after the other; a context that never occurred says nothing."""
    grams = ids  # -1 for one that never occurred
    for n, counted in enumerate(orders, start=2):
        if not len(counted.keys):  # no document is so long
            yield p
            continue
        context = np.where(place >= n - 1, np.concatenate([[-1], grams[:-1]]), -1)
        reached = context >= 0
        context = np.maximum(context, 0)
        wanted = context * vocab_size + ids
        at = np.minimum(np.searchsorted(counted.keys, wanted), len(counted.keys) - 1)
        known = reached & (counted.keys[at] == wanted)
        seen = np.where(reached, counted.context_counts[context], 0)
        spared = counted.discount * counted.context_followers[context] * p
        count = np.where(known, counted.counts[at], 0)
        p = np.where(seen > 0, (np.maximum(count - counted.discount, 0) + spared) / np.maximum(seen, 1), p)
        grams = np.where(known, at, -1)
        yield p


def _with_places(tokens: BinIdx, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, their places in their documents), int64, of the documents first .. last."""
    offsets = tokens.offsets[first : last + 1]
    ids = tokens.tokens(int(offsets[0]), int(offsets[-1])).astype(np.int64)
    return ids, np.arange(len(ids)) - np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))


@dataclass
class _Unigram:
    p: np.ndarray  # float64 [vocab_size], every entry positive

    @classmethod
    def fit(cls, train: BinIdx, vocab_size: int) -> "_Unigram":
        counts = np.zeros(vocab_size, np.int64)
        for _, current in _transitions(train):
            counts += np.bincount(current, minlength=vocab_size)
        discount = _discount(counts[counts > 0])
        spared = discount * (counts > 0).sum()
        return cls((np.maximum(counts - discount, 0) + spared / vocab_size) / counts.sum())


def _discount(counts: np.ndarray) -> float:
    """The leave-one-out discount of positive counts, kept inside (0, 1) where too few were seen to tell."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return float(np.clip(once / (once + 2 * twice), 0.01, 0.99)) if once + twice else 0.5


def _transitions(tokens: BinIdx) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(previous, current) ids, int64, for every token with a predecessor in its own document, a chunk at a time."""
    for start in range(0, tokens.n_tokens - 1, CHUNK_TOKENS):
        stop = min(start + CHUNK_TOKENS, tokens.n_tokens - 1)
        ids = tokens.tokens(start, stop + 1).astype(np.int64)
        inside = np.ones(stop - start, bool)
        first, last = np.searchsorted(tokens.offsets, [start + 1, stop + 1])
        inside[tokens.offsets[first:last] - start - 1] = False
        yield ids[:-1][inside], ids[1:][inside]


def _count_pairs(tokens: BinIdx, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that occur, as previous * vocab_size + current in rising order, and how often each does."""
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for previous, current in _transitions(tokens):
        found, times = np.unique(previous * vocab_size + current, return_counts=True)
        merged, where = np.unique(np.concatenate([pairs, found]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, times]), len(merged)).astype(np.int64)
        pairs = merged
    return pairs, counts
