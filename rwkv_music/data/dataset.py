"""Batches from a prepared dataset: rows of tokens and targets, addressed by one sample counter.

The task of a row is next-token prediction, the completion of a few bars (see tasks.py), or filling in holes (see
infill.py). A row can contain several documents. The model resets its state at the start of each document, and no token
has a target from another document. A window is the section of the data from which a task makes one example. For
next-token prediction, a window is as long as a row. For completion and infill, it is usually much shorter, so a row
contains as many windows as fit.

Each row is one sample. Samples are numbered by a counter that is never reset. In a mix of tasks, a fixed pattern
assigns each sample number to a task. It also determines how many samples of the same task precede a sample. This count
is the sample's number i in its task. The windows of a task form an endless sequence of passes over the data. Seed and
pass determine a permutation, which is the order of the windows in that pass. Sample i of a task starts with window i *
K of this sequence, where K is the mean number of windows per row, rounded up. A row takes as many windows from there as
fit. If it takes fewer than K, the rest are skipped in this pass. If it takes more, the next row of the task repeats the
surplus ones. A batch is a range of sample numbers, so it depends neither on the number of processes nor on earlier
batches.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import distributed as dist

from rwkv_music.config import IGNORE_INDEX, DataConfig
from rwkv_music.data.augment import Augmenter
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.infill import InfillRows
from rwkv_music.data.permutation import Permutation
from rwkv_music.data.shares import assign
from rwkv_music.data.tasks import CompletionRows, NextTokenRows, Row, joined
from rwkv_music.errors import UserError, explained
from rwkv_music.files import file_sha256, read_json
from rwkv_music.ops.context_parallel import ContextPart
from rwkv_music.tokenizers.registry import load_codec

SPLITS = ("train", "val")
Rows = NextTokenRows | CompletionRows | InfillRows  # the windows of a task
MAX_WINDOWS = 2**10  # per row
MEASURED = 128  # number of windows from which a task's mean window length is computed
DATASET_TYPES = {  # the required entries of dataset.json
    "tokenizer": {"name": str, "fingerprint": str, "vocab_size": int, "pad_id": int},
    "splits": {split: {"pieces": int} for split in SPLITS},
    "sha256": {"tokenizer.json": str},
}


@dataclass(frozen=True)
class StreamEdges:
    """The connections of a batch's rows to the previous and the next window of their streams (see streams.py)."""

    rows: torch.Tensor  # int64 [K], the indices of the rows that start inside a piece; K may be 0
    documents: torch.Tensor  # int64 [K], the index of the first document of each of these rows
    ending: torch.Tensor  # int64 [E], the rows whose end is in this batch: all rows, except in a `Batch.part`
    last: torch.Tensor  # int64 [E], the index of the last document of each row in `ending`

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "StreamEdges":
        """Return a copy with `change` applied to each tensor."""
        return StreamEdges(*map(change, (self.rows, self.documents, self.ending, self.last)))


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens.

    Derived values such as `max_length` and `positions` are computed on the host. If a GPU computed them, the host would
    have to wait for the GPU. NumPy computes them, because torch's operators start threads for long rows: with torch,
    dividing a row of 131,072 tokens among ranks took 100 ms on a host with 32 cores.
    """

    input_ids: torch.Tensor  # int64 [B, T]
    targets: torch.Tensor  # int64 [B, T], the next token of the same document, or -100 for no target
    cu_seqlens: torch.Tensor  # int32 [D + 1], document boundaries in the flattened tokens, including all row starts
    positions: torch.Tensor  # int64 [P], the indices where the flattened `targets` are not -100, ascending
    max_length: int  # length of the longest document in tokens
    edges: StreamEdges | None = None  # for windows of document streams (TBPTT)
    context: ContextPart | None = None  # with context parallelism, which part of the tokens this batch is

    @property
    def n_targets(self) -> int:
        return self.positions.numel()

    def arguments(self) -> dict:
        """Return the keyword arguments of `RWKV.forward` that compute the loss."""
        return {
            "input_ids": self.input_ids,
            "targets": self.targets,
            "cu_seqlens": self.cu_seqlens,
            "positions": self.positions,
            "max_length": self.max_length,
            "context": self.context,
        }

    def part(self, group: dist.ProcessGroup) -> "Batch":
        """Return this rank's part of a batch, for context parallelism: one row of consecutive tokens.

        All ranks of `group` must have the same batch. The flattened tokens are divided evenly among the ranks. If there
        are fewer tokens than ranks, documents of one token without a target are added. The `edges` of a part describe
        the rows that start or end in it.
        """
        tensors = (self.input_ids, self.targets, self.cu_seqlens, self.positions)
        input_ids, targets, cu_seqlens, positions = (x.numpy().ravel() for x in tensors)
        if (missing := group.size() - len(input_ids)) > 0:
            input_ids = np.pad(input_ids, (0, missing), mode="edge")
            targets = np.pad(targets, (0, missing), constant_values=IGNORE_INDEX)
            added = cu_seqlens[-1] + np.arange(1, missing + 1, dtype=np.int32)
            cu_seqlens = np.concatenate([cu_seqlens, added])
        own, context = ContextPart.of(cu_seqlens.tolist(), group)
        bounds = np.array(own)
        start, stop = own[0], own[-1]
        first, last = np.searchsorted(positions, (start, stop))
        edges = self.edges and _edges_of_part(self.edges, cu_seqlens, bounds)
        row = (input_ids[None, start:stop], targets[None, start:stop])
        tensors = (*row, (bounds - start).astype(np.int32), positions[first:last] - start)
        return Batch(*map(torch.from_numpy, tensors), int(np.diff(bounds).max()), edges, context)

    def pinned(self) -> "Batch":
        """Return a copy in pinned memory."""
        return self._each(_pinned)

    def to(self, device: torch.device | str) -> "Batch":
        """Return a copy on `device`. From pinned memory the copy is asynchronous."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors = (self.input_ids, self.targets, self.cu_seqlens, self.positions)
        return Batch(*map(change, tensors), self.max_length, self.edges and self.edges.each(change), self.context)


def _pinned(x: torch.Tensor) -> torch.Tensor:
    """Return a copy of x in pinned memory."""
    copy = torch.empty_like(x, pin_memory=True)
    np.copyto(copy.numpy(), x.numpy())
    return copy


def _edges_of_part(edges: StreamEdges, cu_seqlens: np.ndarray, bounds: np.ndarray) -> StreamEdges:
    """Return the edges of one part of a batch (see `Batch.part`).

    `bounds`, int64 [D + 1], are the bounds of the documents in this part, and `cu_seqlens` those of all documents. Both
    are indices into the tokens of the whole batch.
    """
    rows, documents, ending_rows, last = (x.numpy() for x in (edges.rows, edges.documents, edges.ending, edges.last))
    starts, stops = cu_seqlens[documents], cu_seqlens[last + 1]
    starting = (bounds[0] <= starts) & (starts < bounds[-1])
    ending = (bounds[0] < stops) & (stops <= bounds[-1])
    first, final = np.searchsorted(bounds, starts[starting]), np.searchsorted(bounds, stops[ending]) - 1
    return StreamEdges(*map(torch.from_numpy, (rows[starting], first, ending_rows[ending], final)))


RowOrBatch = TypeVar("RowOrBatch", Row, Batch)


class MusicDataset:
    """One split of a dataset folder, as rows of at most `ctx_len` tokens.

    Raises UserError if the folder is not a dataset, if the split is empty or damaged, if `ctx_len` is not positive, if
    the tokenizer does not match, or if the split has no rows for the task.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        split: str,  # "train" or "val"
        ctx_len: int,  # T, the length of a row in tokens
        seed: int = 0,  # determines the order, augmentation and holes of windows, and which tags are dropped
        fingerprint: str | None = None,  # the fingerprint that the dataset's tokenizer must have; None for any
        task: str = "pretrain",  # or "completion", "infill" or "mix"
        completion_weight: float = 0.5,  # in a mix, the fraction of samples that are completions
        context_bars: int = 4,
        completion_bars: int = 4,
        augment: str = "none",  # or "transpose" or "all" (see augment.py); the validation split is never augmented
        infill_weight: float = 0.0,  # in a mix, the fraction of samples that are excerpts with holes
        infill_bars: int = 24,  # the maximum number of bars in an excerpt with holes
        vary: bool = True,  # whether training rows are augmented and lose tags at random (see augment.py)
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
        if ctx_len < 1:
            raise UserError(f"The context length is {ctx_len} tokens: choose at least 1.")
        self.data_dir, self.split, self.ctx_len, self.seed, self.task = Path(data_dir), split, ctx_len, seed, task
        facts = read_dataset_json(data_dir)
        tokenizer = facts["tokenizer"]
        self.tokenizer_name: str = tokenizer["name"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self.pad_id: int = tokenizer["pad_id"]
        self.fingerprint: str = tokenizer["fingerprint"]
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise UserError(
                f"The tokenizer of {data_dir} ({self.tokenizer_name}, {self.fingerprint[:12]}) is not the model's "
                f"({fingerprint[:12]}): use data prepared with the model's tokenizer, or train a new model."
            )
        self.tokens = tokens = BinIdx(self.data_dir / split)
        self.n_documents = len(tokens)
        self.n_tokens = tokens.n_tokens
        self.n_targets = self.n_tokens - self.n_documents  # of one pass of next-token prediction
        if self.n_targets < 1:
            remedy = "prepare it with a larger --val-fraction" if split == "val" else "prepare it from more files"
            raise UserError(f"The {split} split of {data_dir} has no targets: {remedy}.")
        self.augmenter = augmenter = None
        if vary and split == "train" and (augment != "none" or facts.get("tags")):
            self.augmenter = augmenter = Augmenter(load_codec(self.data_dir / "tokenizer.json"), augment, seed)
        # Each task's share of the samples, as a `Fraction`: a float would be inexact for large sample numbers.
        weights = {"completion": Fraction(str(completion_weight)), "infill": Fraction(str(infill_weight))}
        weights = weights if task == "mix" else {task: Fraction(1)}
        weights["pretrain"] = 1 - weights.get("completion", 0) - weights.get("infill", 0)
        self._weights = {name: weight for name, weight in weights.items() if weight}
        codec = None if task == "pretrain" else load_codec(self.data_dir / "tokenizer.json")
        self._next_token = NextTokenRows(tokens, ctx_len, augmenter)
        self.tasks: dict[str, Rows] = {}  # the tasks that have samples
        if "completion" in self._weights:
            bars = (context_bars, completion_bars)
            self.tasks["completion"] = CompletionRows(data_dir, split, tokens, codec, ctx_len, *bars, augmenter)
        if "infill" in self._weights:
            self.tasks["infill"] = InfillRows(data_dir, split, tokens, codec, ctx_len, infill_bars, seed, augmenter)
        if "pretrain" in self._weights:
            self.tasks["pretrain"] = self._next_token
        self._per_row = {name: self._windows_per_row(name) for name in self.tasks}  # K of the module docstring
        # Samples per epoch. In an epoch, every task makes at least one pass over its windows.
        self.n_samples = int(max(-(-self.n_rows(name) // self._weights[name]) for name in self.tasks))

    @classmethod
    def of(cls, config: DataConfig, split: str, fingerprint: str | None = None) -> "MusicDataset":
        """Return a split of the dataset of a run's configuration. Raises UserError as the constructor does."""
        return cls(
            config.data, split, config.ctx_len, config.seed, fingerprint, config.task, config.completion_weight,
            config.context_bars, config.completion_bars, config.augment, config.infill_weight, config.infill_bars,
        )  # fmt: skip

    @property
    def is_slow(self) -> bool:
        """Whether it takes much Python code to make a row."""
        return list(self.tasks) != ["pretrain"] or self.augmenter is not None

    def n_rows(self, task: str) -> int:
        """Return the number of samples in one pass over the windows of a task."""
        return -(-self.tasks[task].n_windows // self._per_row[task])

    def _windows_per_row(self, task: str) -> int:
        """Return the mean number of windows per row of a task, rounded up."""
        rows = self.tasks[task]
        if rows is self._next_token:
            return 1
        windows = np.linspace(0, rows.n_windows - 1, MEASURED, dtype=np.int64).tolist()
        return -(-self.ctx_len * MEASURED // sum(len(rows.row(w, w).input_ids) for w in windows))

    def task_of(self, sample: int) -> tuple[str, int]:
        """Return the task of sample number `sample`, and how many samples of this task come before it."""
        return assign(sample, self._weights)

    def windows_of(self, sample: int) -> Iterator[int]:
        """Yield window numbers without end: the first window of a sample, then those that follow it in its task."""
        task, number = self.task_of(sample)
        n_windows = self.tasks[task].n_windows
        for place in itertools.count(number * self._per_row[task]):
            passes, position = divmod(place, n_windows)
            yield Permutation(n_windows, self.seed, passes)[position]

    def row(self, sample: int) -> Row:
        """Return sample number `sample`, of at most `ctx_len` tokens. Raises UserError as `checked` does."""
        if sample < 0:
            raise ValueError(f"sample {sample} does not exist: sample numbers start at 0")
        rows, windows = self.tasks[self.task_of(sample)[0]], self.windows_of(sample)
        if rows is self._next_token:
            return self.checked(rows.row(next(windows), sample))
        parts, room = [], self.ctx_len
        for number, window in enumerate(itertools.islice(windows, MAX_WINDOWS)):
            part = rows.row(window, sample * MAX_WINDOWS + number, room if parts else None)
            if part is None:
                break
            parts.append(part)
            room -= len(part.input_ids)
        return self.checked(joined(parts))

    def batch(self, counter_start: int, counter_stop: int) -> Batch:
        """Return samples counter_start..counter_stop - 1, one per row. If there are none, return one row of padding."""
        if counter_start > counter_stop:
            raise ValueError(f"samples {counter_start}..{counter_stop} are not a batch")
        return self.batch_of([self.row(sample) for sample in range(counter_start, counter_stop)])

    def batch_of(self, rows: list[Row]) -> Batch:
        """Return a batch of rows that `row` returned. If there are none, return one row of padding."""
        return self._rectangular(rows or [self._padding()])

    def checked(self, tokens: RowOrBatch) -> RowOrBatch:
        """Return `tokens`, a row or a batch. Raises UserError if it has a token outside the tokenizer's vocabulary."""
        if (largest := int(tokens.input_ids.max())) >= self.vocab_size:
            raise UserError(
                f"{self.data_dir}/{self.split}.bin is damaged (token {largest} in a vocabulary of {self.vocab_size}): "
                "prepare the data again."
            )
        return tokens

    def sample(self, index: int) -> Batch:
        """Return sample number `index` as a batch of one row."""
        return self.batch(index, index + 1)

    def validation_batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Yield this rank's batches of a single pass over the windows, in order, with `batch_size` windows per batch.

        A mix of tasks yields windows for next-token prediction. In completion and infill, a window starts at almost
        every bar, so windows overlap. Of these, only every `validation_step`-th window is used. Every rank gets the
        same number of batches, because the model may run collective operations. The last batches are filled with
        padding that has no targets; a whole batch can be padding. To get the mean loss of the split, divide the summed
        loss of all ranks by the sum of `n_targets`.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size} is below 1, or rank {rank} is not one of {world_size} ranks")
        task = self._next_token if self.task == "mix" else self.tasks[self.task]
        padding = self._padding()
        windows = range(0, task.n_windows, task.validation_step)
        for start in range(rank * batch_size, len(windows) + rank * batch_size, batch_size * world_size):
            own = windows[start : start + batch_size]
            rows = [task.row(window, window) for window in own] + [padding] * (batch_size - len(own))
            yield self.checked(self._rectangular(rows) if task is self._next_token else self._one_row(rows))

    def _padding(self) -> Row:
        """Return a row of one token without a target."""
        return Row(np.full(1, self.pad_id), np.full(1, IGNORE_INDEX), np.zeros(1, np.int64))

    def _rectangular(self, rows: list[Row]) -> Batch:
        """Return a batch [B, T] in which each row is padded at its end."""
        shape = len(rows), self.ctx_len
        input_ids, targets = np.full(shape, self.pad_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        for i, row in enumerate(rows):
            input_ids[i, : len(row.input_ids)] = row.input_ids
            targets[i, : len(row.targets)] = row.targets
        return make_batch(input_ids, targets, [i * self.ctx_len + row.starts for i, row in enumerate(rows)])

    def _one_row(self, rows: list[Row]) -> Batch:
        """Return a batch [1, M] of all rows, one after the other."""
        row = joined(rows)
        return make_batch(row.input_ids[None], row.targets[None], [row.starts])


def make_batch(
    input_ids: np.ndarray, targets: np.ndarray, starts: list[np.ndarray], edges: StreamEdges | None = None
) -> Batch:
    """Return a batch of input_ids and targets, int64 [B, T]. Documents start at `starts` in the flattened tokens."""
    cu_seqlens = np.concatenate([*starts, [input_ids.size]]).astype(np.int32)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        positions=torch.from_numpy(np.flatnonzero(targets != IGNORE_INDEX)),
        max_length=int(np.diff(cu_seqlens).max()),
        edges=edges,
    )


def read_dataset_json(data_dir: str | os.PathLike) -> dict:
    """Return the content of a folder's dataset.json. Raises UserError if the folder is not a dataset."""
    path = Path(data_dir) / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{data_dir} is not a dataset folder (no dataset.json): write one with `python -m rwkv_music prepare`."
        )
    return read_json(path, "prepare the data again", DATASET_TYPES)


def check_tokenizer_file(data_dir: str | os.PathLike) -> None:
    """Raise UserError if the tokenizer.json of a dataset folder cannot be used.

    It must exist, have the SHA-256 in dataset.json, and name a tokenizer that this version has.
    """
    path = Path(data_dir) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{data_dir} is damaged (no {path.name}): prepare the data again.")
    with explained(f"reading {path}"):
        found = file_sha256(path)
    if found != read_dataset_json(data_dir)["sha256"][path.name]:
        raise UserError(
            f"{path} is not the file that dataset.json describes (another SHA-256): restore the original file, or "
            "prepare the data again."
        )
    load_codec(path)
