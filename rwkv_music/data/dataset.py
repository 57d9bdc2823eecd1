"""Batches from a prepared dataset: rows of tokens and targets, named by one counter.

Notable choices:
- What a row asks is its task's (see tasks.py): the next token everywhere, or the completion of a few bars.
- A row may hold several documents. `cu_seqlens` says where they start, so that the model resets its state there, and
  the target that would cross from one document's end to the next one's start does not count.
- Training position is one counter of samples, never reset. With a mix of tasks, sample n is the next of the one or of
  the other by a fixed pattern, so each task has a counter of its own that follows from the one. Row i of a task belongs
  to pass i // n_windows, and a permutation computed from (seed, pass) sends it to its window. A batch is a range of the
  counter: it does not depend on how many processes share the work, nor on what was read before.
- Rows of completions are as long as they are: they are packed one after the other, with no padding between them.
- Reading needs numpy and torch alone: the tokenizer's facts come from its JSON.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from rwkv_music.config import IGNORE_INDEX, DataConfig
from rwkv_music.data.augment import Augmenter
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.permutation import Permutation
from rwkv_music.data.tasks import Completions, Row, Stream
from rwkv_music.errors import UserError, explained
from rwkv_music.tokenizers.registry import load_codec

SPLITS = ("train", "val")


@dataclass(frozen=True)
class StreamEdges:
    """Where the rows of a batch go on from the window before, and into the one after (see streams.py).

    Attributes:
        rows: int64 [K], those of the B rows that begin inside a piece; K may be 0.
        documents: int64 [K], the number of each one's first document among the D of the batch.
        last: int64 [B], the number of each row's last document.
    """

    rows: torch.Tensor
    documents: torch.Tensor
    last: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens, and what the model needs to know of them that a GPU would have to be asked for.

    Attributes:
        input_ids: int64 [B, T].
        targets: int64 [B, T], the next token of the same document, -100 where none counts.
        cu_seqlens: int32 [D + 1], where documents start in the B * T flattened tokens, each row's first token included;
            0 first, B * T last, strictly increasing.
        positions: int64 [P], the places of the targets that count in the B * T flattened ones, rising; P may be 0 (see
            `MusicDataset.validation_batches`).
        max_length: tokens of the longest document.
        edges: where its rows are windows of streams, whose states are carried.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    max_length: int
    edges: StreamEdges | None = None

    @property
    def n_targets(self) -> int:
        return self.positions.numel()

    def arguments(self) -> dict:
        """The batch as `RWKV.forward` takes it for its loss."""
        return {
            "input_ids": self.input_ids,
            "targets": self.targets,
            "cu_seqlens": self.cu_seqlens,
            "positions": self.positions,
            "max_length": self.max_length,
        }

    def pinned(self) -> "Batch":
        """In memory that a GPU can copy from by itself."""
        return self._each(lambda x: x.pin_memory())

    def to(self, device: torch.device | str) -> "Batch":
        """On `device`; from pinned memory the copy runs while the host goes on."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors = (self.input_ids, self.targets, self.cu_seqlens, self.positions)
        edges = self.edges and StreamEdges(*map(change, (self.edges.rows, self.edges.documents, self.edges.last)))
        return Batch(*map(change, tensors), self.max_length, edges)


class MusicDataset:
    """One split of a dataset folder, as rows of at most `ctx_len` tokens.

    Args:
        data_dir: a folder written by `prepare`.
        split: "train" or "val".
        ctx_len: T, the length of a row in tokens.
        seed: names the order of the windows, and their variations.
        fingerprint: when given, the fingerprint of the tokenizer that the dataset must have been written with.
        task: "pretrain", "completion" or "mix".
        completion_weight: in a mix, the fraction of the samples that are completions.
        context_bars, completion_bars: of a completion.
        augment: "none", "transpose" or "all" (see augment.py). Validation is never varied.

    Attributes:
        tokenizer_name, vocab_size, pad_id, fingerprint: the tokenizer's.
        tokens, augmenter: the split's tokens as they lie there, and what varies them (None for nothing).
        n_documents, n_tokens: the split's.
        n_windows: W, the samples in which each task's windows have all come once; in a mix, those of the longer one.
        n_targets: the targets of a pass over the stream of all tokens.

    Raises:
        UserError: the folder is not a dataset, its split is empty or damaged, `ctx_len` is not positive, its tokenizer
            is another one, or it has nothing for the task.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        split: str,
        ctx_len: int,
        seed: int = 0,
        fingerprint: str | None = None,
        task: str = "pretrain",
        completion_weight: float = 0.5,
        context_bars: int = 4,
        completion_bars: int = 4,
        augment: str = "none",
    ):
        if split not in SPLITS:
            raise ValueError(f"split is one of {SPLITS}, not {split!r}")
        if ctx_len < 1:
            raise UserError(f"The context length is {ctx_len} tokens: choose at least 1.")
        self.data_dir, self.split, self.ctx_len, self.seed, self.task = Path(data_dir), split, ctx_len, seed, task
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
        self.tokens = tokens = BinIdx(self.data_dir / split)
        self.n_documents = len(tokens)
        self.n_tokens = tokens.n_tokens
        self.n_targets = self.n_tokens - self.n_documents
        if self.n_targets < 1:
            remedy = "prepare it with a larger --val-fraction" if split == "val" else "prepare it from more files"
            raise UserError(f"The {split} split of {data_dir} has nothing to predict: {remedy}.")
        self.augmenter = augmenter = None
        if augment != "none" and split == "train":
            self.augmenter = augmenter = Augmenter(load_codec(self.data_dir / "tokenizer.json"), augment, seed)
        self._stream = Stream(tokens, ctx_len, augmenter)
        self._completions: Completions | None = None
        if task != "pretrain":
            codec = load_codec(self.data_dir / "tokenizer.json")
            bars = (context_bars, completion_bars)
            self._completions = Completions(data_dir, split, tokens, codec, ctx_len, *bars, augmenter)
        weights = {"pretrain": 0, "completion": 1, "mix": str(completion_weight)}
        self._weight = Fraction(weights[task])  # exact, so that a sample's task is, however far the counter
        passes = [-(-self._stream.n_windows // (1 - self._weight))] if self._weight < 1 else []
        passes += [-(-self._completions.n_windows // self._weight)] if self._completions and self._weight else []
        self.n_windows = int(max(passes))

    @classmethod
    def of(cls, config: DataConfig, split: str, fingerprint: str | None = None) -> "MusicDataset":
        """The split that a run's configuration names. Raises what the constructor does."""
        return cls(
            config.data, split, config.ctx_len, config.seed, fingerprint, config.task, config.completion_weight,
            config.context_bars, config.completion_bars, config.augment,
        )  # fmt: skip

    def window_of(self, sample: int) -> tuple[Stream | Completions, int]:
        """The task that sample number `sample` is of, and its window: 0 <= window < n_windows of that task."""
        completions = sample * self._weight.numerator // self._weight.denominator  # of them before this sample
        is_completion = (sample + 1) * self._weight.numerator // self._weight.denominator > completions
        task, number = (self._completions, completions) if is_completion else (self._stream, sample - completions)
        passes, position = divmod(number, task.n_windows)
        return task, Permutation(task.n_windows, self.seed, passes)[position]

    def batch(self, counter_start: int, counter_stop: int) -> Batch:
        """The samples counter_start..counter_stop, one a row; a task with completions packs them all in one row.

        A process of several asks for its own part of the step's range; the parts of all of them are the step's samples.
        """
        if not 0 <= counter_start < counter_stop:
            raise ValueError(f"samples {counter_start}..{counter_stop} are not a batch")
        rows = []
        for sample in range(counter_start, counter_stop):
            task, window = self.window_of(sample)
            rows.append(task.row(window, sample))
        return self.checked(self._packed(rows) if self._completions else self._rectangular(rows))

    def checked(self, batch: Batch) -> Batch:
        """`batch`, whose tokens are all of the tokenizer. Raises UserError if they are not: the model has no others."""
        if (largest := int(batch.input_ids.max())) >= self.vocab_size:
            raise UserError(
                f"{self.data_dir}/{self.split}.bin holds token {largest}, but its tokenizer has {self.vocab_size}, so "
                f"it is damaged: prepare the data again."
            )
        return batch

    def sample(self, index: int) -> Batch:
        """Sample number `index` alone, as a batch of one row."""
        return self.batch(index, index + 1)

    def validation_batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """All windows once, in order, `batch_size` samples a batch, shared between `world_size` processes.

        They are completions if those are the only task, else windows of the stream. Every rank gets the same number of
        batches (collective operations inside the model must meet). What is past the last window is padding with no
        target, and a whole batch may be: a mean over the split is the sum over targets divided by the sum of
        `n_targets`.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
        task = self._completions if self.task == "completion" else self._stream
        nothing = Row(np.full(1, self.pad_id), np.full(1, IGNORE_INDEX), np.zeros(1, np.int64))
        for start in range(rank * batch_size, task.n_windows + rank * batch_size, batch_size * world_size):
            rows = [task.row(i, i) if i < task.n_windows else nothing for i in range(start, start + batch_size)]
            yield self.checked(self._packed(rows) if task is self._completions else self._rectangular(rows))

    def _rectangular(self, rows: list[Row]) -> Batch:
        """[B, T], each row padded at its end."""
        shape = len(rows), self.ctx_len
        input_ids, targets = np.full(shape, self.pad_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
        for i, row in enumerate(rows):
            input_ids[i, : len(row.input_ids)] = row.input_ids
            targets[i, : len(row.targets)] = row.targets
        return make_batch(input_ids, targets, [i * self.ctx_len + row.starts for i, row in enumerate(rows)])

    def _packed(self, rows: list[Row]) -> Batch:
        """[1, M], one row after the other."""
        begins = np.cumsum([0] + [len(row.input_ids) for row in rows[:-1]])
        input_ids, targets = (
            np.concatenate(parts)[None] for parts in ([r.input_ids for r in rows], [r.targets for r in rows])
        )
        return make_batch(input_ids, targets, [begin + row.starts for begin, row in zip(begins, rows, strict=True)])


def make_batch(
    input_ids: np.ndarray, targets: np.ndarray, starts: list[np.ndarray], edges: StreamEdges | None = None
) -> Batch:
    """A batch of input_ids and targets int64 [B, T], its documents beginning at `starts` in the flattened tokens."""
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
    """The facts of a dataset folder, as `prepare` wrote them; a `UserError` if it is not one."""
    path = Path(data_dir) / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{data_dir} is not a dataset folder (no dataset.json): write one with `python -m rwkv_music prepare`."
        )
    with explained(f"reading {path}"):
        content = path.read_bytes()
    try:
        facts = json.loads(content)
        missing = {"name", "vocab_size", "pad_id", "fingerprint"} - set(facts["tokenizer"])
    except (ValueError, KeyError, TypeError):
        missing = {"tokenizer"}
    if missing:
        raise UserError(f"{path} is damaged (no {', '.join(sorted(missing))}): prepare the data again.")
    return facts
