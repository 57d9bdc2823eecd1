"""What a model must beat: unigram and bigram models of the same tokens, scored on the same targets.

The bigram is interpolated absolute discounting: a fixed part of every count is set aside for what was never seen, and
shared out by the unigram, which does the same down to the uniform. The discount is Ney, Essen and Kneser's
leave-one-out estimate n1 / (n1 + 2 n2) from the training split's own counts, so nothing is tuned on the split that is
scored. Counts are sparse: their size follows the pairs that occur, not the square of the vocabulary.

Source: Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language modelling" (1994).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rwkv_music.data.binidx import BinIdx

CHUNK_TOKENS = 1 << 22


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
