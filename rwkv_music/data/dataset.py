"""Batches from a prepared dataset: fixed windows over one stream of tokens, named by one counter.

Notable choices:
- All documents of a split form one stream, cut into windows of `ctx_len` tokens at stride `ctx_len`: in a pass every
  token that has a predecessor in its own document is a target exactly once. The last window is padded.
- A window may hold several documents. `cu_seqlens` says where they start, so that the model resets its state there,
  and the target that would cross from one document's end to the next one's start does not count.
- Training position is one counter of samples, never reset. Sample n belongs to pass n // n_windows, and a permutation
  computed from (seed, pass) sends it to its window. A batch is a range of that counter: it does not depend on how many
  processes share the work, nor on what was read before.
- Reading needs numpy and torch alone: the tokenizer's facts come from its JSON.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.permutation import Permutation
from rwkv_music.errors import UserError, explained

SPLITS = ("train", "val")
IGNORED = -100


@dataclass
class Batch:
    """B windows of T tokens.

    Attributes:
        input_ids: int64 [B, T].
        targets: int64 [B, T], the next token of the same document, -100 where none counts.
        cu_seqlens: int32 [D + 1], where documents start in the B * T flattened tokens, each row's first token included;
            0 first, B * T last, strictly increasing.
        n_targets: how many targets count; it may be 0 (see `MusicDataset.validation_batches`).
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: torch.Tensor
    n_targets: int

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.input_ids.to(device), self.targets.to(device), self.cu_seqlens.to(device), self.n_targets)


class MusicDataset:
    """One split of a dataset folder, as windows of `ctx_len` tokens.

    Args:
        data_dir: a folder written by `prepare`.
        split: "train" or "val".
        ctx_len: T, the length of a window in tokens.
        seed: names the order of the windows.
        fingerprint: when given, the fingerprint of the tokenizer that the dataset must have been written with.

    Attributes:
        tokenizer_name, vocab_size, pad_id, fingerprint: the tokenizer's.
        n_documents, n_tokens: the split's.
        n_windows: W, the windows of a pass, the last one perhaps padded.
        n_targets: the targets of a pass.

    Raises:
        UserError: the folder is not a dataset, its split is empty or damaged, `ctx_len` is not positive, or its
            tokenizer is another one.
    """

    def __init__(
        self, data_dir: str | os.PathLike, split: str, ctx_len: int, seed: int = 0, fingerprint: str | None = None
    ):
        if split not in SPLITS:
            raise ValueError(f"split is one of {SPLITS}, not {split!r}")
        if ctx_len < 1:
            raise UserError(f"The context length is {ctx_len} tokens: choose at least 1.")
        self.data_dir, self.split, self.ctx_len, self.seed = Path(data_dir), split, ctx_len, seed
        tokenizer = read_dataset_json(data_dir)["tokenizer"]
        self.tokenizer_name: str = tokenizer["name"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self.pad_id: int = tokenizer["pad_id"]
        self.fingerprint: str = tokenizer["fingerprint"]
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise UserError(
                f"{data_dir} was prepared with another tokenizer ({self.tokenizer_name}, {self.fingerprint[:12]}) than "
                f"the model's ({fingerprint[:12]}): give data prepared with the model's, or train a new model."
            )
        self._tokens = BinIdx(self.data_dir / split)
        self.n_documents = len(self._tokens)
        self.n_tokens = self._tokens.n_tokens
        self.n_targets = self.n_tokens - self.n_documents
        if self.n_targets < 1:
            remedy = "prepare it with a larger --val-fraction" if split == "val" else "prepare it from more files"
            raise UserError(f"The {split} split of {data_dir} has nothing to predict: {remedy}.")
        self.n_windows = -(-(self.n_tokens - 1) // ctx_len)

    def window_of(self, sample: int) -> int:
        """The window that sample number `sample` reads: 0 <= window < n_windows."""
        passes, position = divmod(sample, self.n_windows)
        return Permutation(self.n_windows, self.seed, passes)[position]

    def batch(self, counter_start: int, counter_stop: int) -> Batch:
        """The samples counter_start..counter_stop, one a row.

        A process of several asks for its own part of the step's range; the parts of all of them are the step's samples.
        """
        if not 0 <= counter_start < counter_stop:
            raise ValueError(f"samples {counter_start}..{counter_stop} are not a batch")
        return self._windows([self.window_of(sample) for sample in range(counter_start, counter_stop)])

    def sample(self, index: int) -> Batch:
        """Sample number `index` alone, as a batch of one row."""
        return self.batch(index, index + 1)

    def validation_batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """All windows once, in order, `batch_size` rows a batch, shared between `world_size` processes.

        Every rank gets the same number of batches of the same shape (collective operations inside the model must meet).
        Rows past the last window are padding with no target, and a whole batch may be: a mean over the split is the sum
        over targets divided by the sum of `n_targets`.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
        for start in range(rank * batch_size, self.n_windows + rank * batch_size, batch_size * world_size):
            yield self._windows(range(start, start + batch_size))

    def _windows(self, windows: list[int] | range) -> Batch:
        T = self.ctx_len
        input_ids = np.full((len(windows), T), self.pad_id, np.int64)
        targets = np.full((len(windows), T), IGNORED, np.int64)
        starts = []
        for row, window in enumerate(windows):
            if window >= self.n_windows:
                starts.append([row * T])
                continue
            start = window * T
            stop = min(start + T, self.n_tokens)
            tokens = self._tokens.tokens(start, min(stop + 1, self.n_tokens))
            input_ids[row, : stop - start] = tokens[: stop - start]
            targets[row, : len(tokens) - 1] = tokens[1:]
            first, last = np.searchsorted(self._tokens.offsets, [start + 1, stop + 1])
            begun = self._tokens.offsets[first:last] - start  # documents that begin in 1..T of this row
            targets[row, begun - 1] = IGNORED
            starts += [[row * T], row * T + begun[begun < T]]
        starts.append([input_ids.size])
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            targets=torch.from_numpy(targets),
            cu_seqlens=torch.from_numpy(np.concatenate(starts).astype(np.int32)),
            n_targets=int((targets != IGNORED).sum()),
        )


def read_dataset_json(data_dir: str | os.PathLike) -> dict:
    """The facts of a dataset folder, as `prepare` wrote them; a `UserError` if it is not one."""
    path = Path(data_dir) / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{data_dir} is not a dataset folder (no dataset.json): write one with `python -m rwkv_music prepare`."
        )
    with explained(f"reading {path}"):
        text = path.read_text(encoding="utf-8")
    try:
        facts = json.loads(text)
        missing = {"name", "vocab_size", "pad_id", "fingerprint"} - set(facts["tokenizer"])
    except (ValueError, KeyError, TypeError):
        missing = {"tokenizer"}
    if missing:
        raise UserError(f"{path} is damaged (no {', '.join(sorted(missing))}): prepare the data again.")
    return facts
