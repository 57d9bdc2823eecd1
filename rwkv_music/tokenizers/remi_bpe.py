"""Byte-pair encoding of `remi` tokens: runs that are frequent become tokens of their own, within a bar.

MidiTok's trainer learns which; what it learned is a list of merges, that is all a codec keeps. No merge reaches over a
bar line, so a bar still begins with a token of its own, and BOS and EOS stay alone.

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

# Called for an iterator over (base ids of a piece with BOS and EOS, where its bars begin).
Documents = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
Merge = tuple[int, int]  # the two tokens that become one; the n-th merge makes token n_base + n
FIRST_CHARACTER = 33  # MidiTok writes token i as the character 33 + i


class BytePairs:
    """Merges, ready to use.

    Attributes:
        parts: for each id the base ids that it stands for.
    """

    def __init__(self, n_base: int, merges: list[Merge]):
        self.n_base, self.merges = n_base, merges
        self.parts = [[i] for i in range(n_base)]
        for left, right in merges:
            self.parts.append(self.parts[left] + self.parts[right])

    def merge(self, ids: np.ndarray, bar_starts: np.ndarray) -> np.ndarray:
        """Base ids [n], whose bars begin at `bar_starts`, with BOS first and EOS last, as ids [m], m <= n."""
        bars = [bar for bar in np.split(ids[:-1], bar_starts) if len(bar)]
        merged = self._model.encode_batch([_as_text(bar) for bar in bars])
        return np.array([*(i for bar in merged for i in bar.ids), ids[-1]], dtype=ids.dtype)

    def split(self, ids: np.ndarray) -> np.ndarray:
        """Ids as base ids."""
        return np.array([part for i in ids.tolist() for part in self.parts[i]], dtype=np.int64)

    @cached_property
    def _model(self) -> "Tokenizer":
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        texts = [_as_text(parts) for parts in self.parts]
        return Tokenizer(
            BPE(
                vocab={text: i for i, text in enumerate(texts)},
                merges=[(texts[left], texts[right]) for left, right in self.merges],
            )
        )


def learn_merges(tokenizer: "REMI", documents: Documents, n: int, vocab_size: int) -> list[Merge]:
    """The merges that MidiTok's trainer finds, up to a vocabulary of `vocab_size`; fewer where music does not repeat.

    Args:
        tokenizer: without merges; it learns them too.
        documents: what to learn from.
        n: how many pieces those are.
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
    made = [id_of["".join(merge)] for merge in model["merges"]]
    if made != list(range(n_base, n_base + len(merges))):
        raise RuntimeError("MidiTok's trainer numbers its tokens in an order that was not foreseen")
    return merges


def _as_text(ids: Iterable[int]) -> str:
    return "".join(chr(FIRST_CHARACTER + int(i)) for i in ids)
