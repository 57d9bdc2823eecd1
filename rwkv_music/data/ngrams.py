"""Baselines: n-gram models of the same tokens, scored on the same targets as the model.

All orders use interpolated absolute discounting. A fixed discount is subtracted from every count. The freed probability
goes to the model with one token less of context, down to the uniform distribution. The discount is the leave-one-out
estimate n1 / (n1 + 2 n2) from the training split, so nothing is tuned on the split that is scored. Memory grows with
the n-grams that occur, not with a power of the vocabulary size.

An n-gram's key is the index of its first n - 1 tokens in the table of the order below, times V, plus its last token. So
an n-gram of any order and vocabulary fits 64 bits.

Source: Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language modelling" (1994).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rwkv_music.data.binidx import BinIdx

CHUNK_TOKENS = 1 << 22
NGRAM_TOKENS = 1 << 23  # bounds the tables of orders above 2 to about a gigabyte


def ngram_nats_per_token(
    train: BinIdx, val: BinIdx, vocab_size: int, order: int = 5, most_tokens: int = NGRAM_TOKENS
) -> list[float]:
    """Cross-entropy of `val` under the 1-gram to `order`-gram models of `train`, in nats per token.

    The mean is over every token of `val` that has a predecessor in its own document: the targets on which the model is
    scored. If there are none, all values are NaN. Order 1 counts all of `train`. Higher orders count its first
    documents, at most `most_tokens` tokens but at least one document.
    """
    first_documents = max(int(np.searchsorted(train.offsets, most_tokens, side="right")) - 1, 1)
    tables: list[_Ngrams] = []
    for n in range(1, order + 1):
        tables.append(_count(train, len(train) if n == 1 else min(first_documents, len(train)), tables, vocab_size))
    totals, n_targets = np.zeros(order), 0
    for ids, is_target in _chunks(val, len(val)):
        p = np.full(len(ids), 1 / vocab_size)
        contexts = np.zeros(len(ids), np.int64)
        for i, table in enumerate(tables):
            found = table.find(contexts, ids, vocab_size)
            p = table.probabilities(contexts, found, p)
            totals[i] -= np.log(p[is_target]).sum()
            contexts = _next_contexts(found, is_target)
        n_targets += int(is_target.sum())
    return (totals / n_targets).tolist() if n_targets else [float("nan")] * order


@dataclass(frozen=True)
class _Ngrams:
    """The n-grams of one order: K n-grams with C different contexts (their first n - 1 tokens)."""

    keys: np.ndarray  # int64 [K], ascending; for order 1, every token of the vocabulary, whether it occurs or not
    counts: np.ndarray  # int64 [K]
    context_counts: np.ndarray  # float64 [C], the number of tokens that follow each context
    context_followers: np.ndarray  # int64 [C], the number of different tokens that follow each context
    discount: float  # subtracted from every count

    def find(self, contexts: np.ndarray, ids: np.ndarray, vocab_size: int) -> np.ndarray:
        """Return int64 [T], the index of the n-gram that ends with each token; -1 if it is not in the table."""
        if not len(self.keys):  # no training document is long enough
            return np.full(len(ids), -1)
        keys = contexts * vocab_size + ids  # negative, so not in the table, where the context is -1
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def probabilities(self, contexts: np.ndarray, found: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return float64 [T], each token's probability after its context.

        `contexts`, int64 [T], has the index of each token's context, or -1 if it does not occur. In that case, the
        result is `lower`, float64 [T], the probabilities of the order below. `found`, int64 [T], is from `find`.
        """
        if not len(self.keys):
            return lower
        seen = np.where(contexts >= 0, self.context_counts[contexts], 0)
        counts = np.where(found >= 0, self.counts[found], 0)
        backoff = self.discount * self.context_followers[contexts] * lower
        return np.where(seen > 0, (np.maximum(counts - self.discount, 0) + backoff) / np.maximum(seen, 1), lower)


def _count(tokens: BinIdx, n_documents: int, lower: list[_Ngrams], vocab_size: int) -> _Ngrams:
    """Count the n-grams of the order above `lower` in the first documents."""
    n_contexts = len(lower[-1].keys) if lower else 1
    keys = np.arange(0 if lower else vocab_size)
    counts = np.zeros(len(keys), np.int64)
    for ids, is_target in _chunks(tokens, n_documents):
        contexts = np.zeros(len(ids), np.int64)
        for table in lower:
            contexts = _next_contexts(table.find(contexts, ids, vocab_size), is_target)
        counted = is_target & (contexts >= 0)
        new_keys, new_counts = np.unique(contexts[counted] * vocab_size + ids[counted], return_counts=True)
        keys, index = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
        counts = np.bincount(index, np.concatenate([counts, new_counts]), len(keys)).astype(np.int64)
    contexts = keys // vocab_size
    context_followers = np.bincount(contexts[counts > 0], minlength=n_contexts)
    return _Ngrams(keys, counts, np.bincount(contexts, counts, n_contexts), context_followers, _discount(counts))


def _next_contexts(found: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """Return the contexts of the next order: the n-gram that ends with the token before, in the same document."""
    return np.where(is_target, np.roll(found, 1), -1)


def _chunks(tokens: BinIdx, n_documents: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids int64 [T], is_target bool [T]) of the first documents, a few whole documents at a time."""
    first = 0
    while first < n_documents:
        end = tokens.offsets[first] + CHUNK_TOKENS
        last = min(max(int(np.searchsorted(tokens.offsets, end, side="right")) - 1, first + 1), n_documents)
        starts = tokens.offsets[first : last + 1]
        ids = tokens.tokens(int(starts[0]), int(starts[-1])).astype(np.int64)
        is_target = np.ones(len(ids), bool)
        is_target[starts[:-1] - starts[0]] = False  # a first token has no predecessor
        yield ids, is_target
        first = last


def _discount(counts: np.ndarray) -> float:
    """Return the leave-one-out discount of the counts, clipped to (0, 1) where few n-grams occur once or twice."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return float(np.clip(once / (once + 2 * twice), 0.01, 0.99)) if once + twice else 0.5
