"""How the rows of a step are divided among ranks and micro-batches.

Batch sizes and gradient clipping can be set on the command line and in the DeepSpeed file. If both set a value, the two
values must be equal.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

from rwkv_music.config import TrainConfig
from rwkv_music.errors import UserError, plural
from rwkv_music.training.deepspeed_file import SHARED_KEYS


@dataclass(frozen=True)
class BatchPlan:
    """The division of a step's rows, and the settings and DeepSpeed configuration that follow from it."""

    train: TrainConfig  # the run's settings with all batch sizes filled in
    deepspeed: dict[str, Any]  # the DeepSpeed configuration with all batch sizes filled in
    world_size: int
    accumulation: int  # micro-batches per rank and step; with `tbptt`, per rank and window

    @property
    def groups(self) -> int:
        """Number of groups. The ranks of a group read the same rows. Without context parallelism, a rank is a group."""
        return self.world_size // self.train.context_parallel

    def group_of(self, rank: int) -> int:
        """Return the number of the group that a rank belongs to."""
        return rank // self.train.context_parallel

    @property
    def zero(self) -> dict[str, Any]:
        """The section "zero_optimization" of the DeepSpeed configuration."""
        return self.deepspeed["zero_optimization"]

    @property
    def zero_stage(self) -> int:
        return self.zero["stage"]

    def tokens(self, ctx_len: int) -> int:
        """Return the number of tokens of a micro-batch that one rank processes, if a row has `ctx_len` tokens."""
        return -(-self.train.micro_batch_size * ctx_len // self.train.context_parallel)

    def row_ranges(self, rank: int, first: int) -> list[range]:
        """Return the row numbers of each of a rank's micro-batches in the step whose first row has number `first`.

        In an elastic run with more micro-batches than rows, some micro-batches are empty.
        """
        shares = self.groups * self.accumulation
        ends = [first + self.train.batch_size * i // shares for i in range(shares + 1)]
        return [range(ends[i], ends[i + 1]) for i in range(self.group_of(rank), shares, self.groups)]


def largest_micro_batch(batch_size: int, groups: int, limit: int) -> int:
    """Return the largest micro-batch size, at most `limit`, that divides the batch evenly; 0 if there is none.

    `groups` is `BatchPlan.groups`.
    """
    return next((rows for rows in range(limit, 0, -1) if batch_size % (rows * groups) == 0), 0)


def plan_batches(
    train: TrainConfig,
    given: set[str],  # fields of `train` that the command line sets; the DeepSpeed file may override only the others
    file: dict[str, Any],
    path: str | os.PathLike,
    world_size: int,
    windows: int = 1,  # windows per row and step (`tbptt`); DeepSpeed counts each one as an accumulation step
) -> BatchPlan:
    """Divide a step's rows among ranks and micro-batches.

    In an elastic run, the micro-batches may differ by one row, and micro_batch_size is the maximum number of rows. The
    loss is a mean over all targets of the step, so it does not depend on the division. Raises UserError if the command
    line and the file disagree, or if the batch cannot be divided.
    """
    for key, name in SHARED_KEYS.items():
        value = file.get(key, "auto")
        if value == "auto":
            continue
        if name in given and getattr(train, name) != value:
            raise UserError(
                f"{path} sets {key} to {value}, but --{name} is {getattr(train, name)}: remove one of the two."
            )
        train = dataclasses.replace(train, **{name: value})
    accumulation = file.get("gradient_accumulation_steps", "auto")
    if world_size % train.context_parallel:
        raise UserError(
            f"--context_parallel {train.context_parallel} does not divide the {plural(world_size, 'rank')}: choose a "
            f"divisor of {world_size}, or another number of ranks."
        )
    groups = world_size // train.context_parallel
    readers = plural(groups, "rank") if groups == world_size else f"{groups} groups of {train.context_parallel} ranks"
    if train.elastic and windows == 1:
        if accumulation != "auto":
            raise UserError(
                f"{path} sets gradient_accumulation_steps to {accumulation}, but an elastic run derives it from the "
                f'number of ranks: set it to "auto", and use --micro_batch_size.'
            )
        if train.batch_size < groups:
            raise UserError(f"batch_size {train.batch_size} is smaller than the {readers}: choose a larger one.")
        limit = train.micro_batch_size or math.ceil(train.batch_size / groups)
        shares = math.ceil(train.batch_size / (groups * limit))
        rows = math.ceil(train.batch_size / (groups * shares))
        train = dataclasses.replace(train, micro_batch_size=limit)
        return BatchPlan(train, _filled_in(file, train, rows, world_size, shares), world_size, shares)
    if not train.micro_batch_size:
        rows = groups * (1 if accumulation == "auto" else accumulation)
        if train.batch_size % rows:
            steps = "" if accumulation == "auto" else f" and {plural(accumulation, 'accumulation step')}"
            raise UserError(
                f"batch_size {train.batch_size} does not divide among {readers}{steps}: choose a multiple of {rows}."
            )
        train = dataclasses.replace(train, micro_batch_size=train.batch_size // rows)
    rows = train.micro_batch_size * groups
    if train.batch_size % rows:
        raise UserError(
            f"batch_size {train.batch_size} is not a multiple of "
            f"micro_batch_size {train.micro_batch_size} x {readers}: choose a multiple of {rows}."
        )
    if accumulation not in ("auto", train.batch_size // rows):
        raise UserError(
            f"{path} sets gradient_accumulation_steps to {accumulation}, but batch_size {train.batch_size} "
            f"over {readers} x micro_batch_size {train.micro_batch_size} needs {train.batch_size // rows}: "
            f"remove gradient_accumulation_steps or --micro_batch_size."
        )
    shares = train.batch_size // rows
    filled_in = _filled_in(file, train, train.micro_batch_size, world_size, shares * windows)
    return BatchPlan(train, filled_in, world_size, shares)


def _filled_in(file: dict[str, Any], train: TrainConfig, rows: int, world_size: int, shares: int) -> dict[str, Any]:
    """Return the DeepSpeed file with its sizes filled in, for ranks that take `shares` micro-batches of `rows` rows.

    DeepSpeed does not support context parallelism: it counts each rank's part of a row as a row.
    """
    return {
        **file,
        "train_batch_size": rows * world_size * shares,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": shares,
        "gradient_clipping": train.grad_clip,
    }
