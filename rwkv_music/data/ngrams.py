"""Baselines: n-gram models of a dataset's training split, scored on the same targets as the trained model.

All orders use interpolated absolute discounting. A fixed discount is subtracted from every count. The freed probability
goes to the model with one less token of context. The model below order 1 is the uniform distribution. If n1 n-grams
occur once and n2 n-grams occur twice in the training split, the discount is the leave-one-out estimate n1 / (n1 + 2
n2). Nothing is tuned on the split that is scored. Memory grows with the number of n-grams that occur, not with a power
of the vocabulary size V.

The key of an n-gram is V times the index of its first n - 1 tokens in the table of the next lower order, plus its last
token. The keys of all orders and vocabularies therefore fit into 64 bits.

Source: Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language modelling" (1994).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rwkv_music.data.binidx import BinIdx

CHUNK_TOKENS = 1 << 22
NGRAM_TOKENS = 1 << 23  # bounds the tables of orders above 1 to about a gigabyte


def ngram_nats_per_token(
    train: BinIdx, val: BinIdx, vocab_size: int, order: int = 5, most_tokens: int = NGRAM_TOKENS
) -> list[float]:
    """Return the cross-entropy of `val` in nats per token under n-gram models of `train`, of orders 1 to `order`.

    The mean is over all tokens of `val` that have a predecessor in their document, which are the targets on which the
    model is scored. If there are none, all values are NaN. Order 1 counts all of `train`. Higher orders count its first
    documents: as many as have at most `most_tokens` tokens together, but at least one.
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
    """The table of one order: K n-grams and their C possible contexts, which are the n-grams of the next lower order.

    Order 1 has one context, which is empty.
    """

    keys: np.ndarray  # int64 [K], ascending; for order 1, all tokens of the vocabulary, including unused ones
    counts: np.ndarray  # int64 [K]
    context_counts: np.ndarray  # float64 [C], the number of tokens that follow each context
    context_followers: np.ndarray  # int64 [C], the number of different tokens that follow each context
    discount: float  # subtracted from every count

    def find(self, contexts: np.ndarray, ids: np.ndarray, vocab_size: int) -> np.ndarray:
        """Return the index of the n-gram that ends with each token, int64 [T]; -1 if it is not in the table."""
        if not len(self.keys):  # no training document is long enough
            return np.full(len(ids), -1)
        keys = contexts * vocab_size + ids  # where the context is -1, the key is negative, so it is not in the table
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def probabilities(self, contexts: np.ndarray, found: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return the probability of each token after its context, float64 [T].

        `contexts`, int64 [T], are the indices of the contexts, or -1 for those that do not occur. `found`, int64 [T],
        is from `find`. `lower`, float64 [T], are the probabilities of the next lower order. They are the result for
        contexts that do not occur.
        """
        if not len(self.keys):
            return lower
        seen = np.where(contexts >= 0, self.context_counts[contexts], 0)
        counts = np.where(found >= 0, self.counts[found], 0)
        backoff = self.discount * self.context_followers[contexts] * lower
        return np.where(seen > 0, (np.maximum(counts - self.discount, 0) + backoff) / np.maximum(seen, 1), lower)


def _count(tokens: BinIdx, n_documents: int, lower: list[_Ngrams], vocab_size: int) -> _Ngrams:
    """Count the n-grams of one order in the first documents. `lower` has the tables of all lower orders."""
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
    """Return the contexts of the next order: for each token, the n-gram that ends with the token before it.

    The context is -1 for the first token of a document.
    """
    return np.where(is_target, np.roll(found, 1), -1)


def _chunks(tokens: BinIdx, n_documents: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids int64 [T], is_target bool [T]) of the first documents, in chunks of whole documents."""
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
    """Return the leave-one-out discount, limited to 0.01 to 0.99. It is 0.5 if no n-gram occurs once or twice."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return float(np.clip(once / (once + 2 * twice), 0.01, 0.99)) if once + twice else 0.5
