"""Byte-pair encoding of `remi` tokens: frequent sequences within a bar become single tokens.

MidiTok's trainer learns the merges, and the codec stores only their list. Merges never cross a bar line, so every bar
still starts with a new token. BOS and EOS are never merged.

Source: Sennrich et al., "Neural machine translation of rare words with subword units" (2016); Fradet et al., "Byte pair
encoding for symbolic music" (2023).
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from miditok import REMI
    from tokenizers import Tokenizer

# Returns an iterator over (unmerged ids of a piece with BOS and EOS, the index of each bar's first token).
Documents = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
Merge = tuple[int, int]  # the two tokens that become one; merge n creates token n_base + n
FIRST_CHARACTER = 33  # MidiTok represents token i by the character 33 + i


class BytePairs:
    """The merges of a vocabulary of `n_base` tokens, in the order in which they were learned.

    `parts` are the base ids that each id consists of.
    """

    def __init__(self, n_base: int, merges: list[Merge]):
        self.n_base, self.merges = n_base, merges
        self.parts = [[i] for i in range(n_base)]
        for left, right in merges:
            self.parts.append(self.parts[left] + self.parts[right])

    def merge(self, ids: np.ndarray, bar_starts: np.ndarray) -> np.ndarray:
        """Merge the base ids [n] of a piece with BOS and EOS, whose bars start at `bar_starts`, to ids [m], m <= n."""
        bars = [bar for bar in np.split(ids[:-1], bar_starts) if len(bar)]
        merged = self._model.encode_batch([_as_text(bar) for bar in bars])
        return np.array([*(i for bar in merged for i in bar.ids), ids[-1]], dtype=ids.dtype)

    def split(self, ids: np.ndarray) -> np.ndarray:
        """Return the base ids of merged ids."""
        return np.array([part for i in ids.tolist() for part in self.parts[i]], dtype=np.int64)

    @cached_property
    def _model(self) -> "Tokenizer":
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        texts = [_as_text(parts) for parts in self.parts]
        merges = [(texts[left], texts[right]) for left, right in self.merges]
        return Tokenizer(BPE(vocab={text: i for i, text in enumerate(texts)}, merges=merges))


def learn_merges(tokenizer: "REMI", documents: Documents, n: int, vocab_size: int) -> list[Merge]:
    """Learn merges from the `n` pieces of `documents`, for at most `vocab_size` tokens, fewer if little repeats.

    `tokenizer` has no merges and is modified.
    """

    class Bars:
        def __len__(self) -> int:
            return n

        def __iter__(self) -> Iterator[list[str]]:
            for ids, bar_starts in documents():
                yield [_as_text(bar) for bar in np.split(ids[:-1], bar_starts)[1:]]

    n_base = len(tokenizer.vocab)
    tokenizer.train(vocab_size=vocab_size, iterator=Bars())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        saved = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    model = json.loads(saved["_model"])["model"]
    id_of = model["vocab"]
    merges = [tuple(id_of[text] for text in merge) for merge in model["merges"]]
    created = [id_of["".join(merge)] for merge in model["merges"]]
    if created != list(range(n_base, n_base + len(merges))):
        raise RuntimeError("MidiTok's trainer returned merged tokens in an unexpected order")
    return merges


def _as_text(ids: Iterable[int]) -> str:
    return "".join(chr(FIRST_CHARACTER + int(i)) for i in ids)
