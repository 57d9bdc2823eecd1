"""Saving checkpoints while the training goes on.

Each rank copies what its optimizer holds into memory of the host, and a thread writes the copy; the next steps are
taken meanwhile. When all ranks have written, the checkpoint gets its name, between two steps.

Notable choices:
- A checkpoint is written under a hidden name. It gets its step's name when every rank is done and a manifest of sizes
  and hashes is in it: what has that name was whole once, and the manifest tells whether it still is.
- The thread only writes. All that ranks must agree on is agreed on by the main thread: a collective in another one
  would get in between those of the step.
- The copy costs 12 bytes of the host's memory for each parameter that the rank's optimizer holds, made at the first
  save and kept. `--save_mode blocking` does without, and the training waits.
- On a GPU the copies wait in the device's queue behind the step, and the next step behind them. The main thread waits
  for them too, when it agrees with the other ranks on what there is to write: gigabytes to the host, not to the disk.
- What fails on one rank is told by all as one sentence, and nothing of the checkpoint is left.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import deepspeed
import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.checkpoint.run_folder import (
    BASE,
    CHECKPOINTS,
    INDEX,
    Progress,
    checkpoint_name,
    checkpoints,
    fault,
    moments_file,
    streams_file,
    take_name_away,
    weights_file,
    write_manifest,
)
from rwkv_music.checkpoint.safetensors_io import Written, write_tensors
from rwkv_music.config import RunConfig
from rwkv_music.errors import SharedError, UserError
from rwkv_music.files import sync_folder, write_text
from rwkv_music.training.consensus import on_rank0, raise_on_any_rank
from rwkv_music.training.deepspeed_engine import zero_shards
from rwkv_music.training.metrics import gib

if TYPE_CHECKING:
    from rwkv_music.training.tbptt import StreamStates

OWNER = ".owner"


def take_over(run: Path, token: str) -> int | None:
    """Make this start the one that may write checkpoints into `run`. A job that was thought dead must not.

    Args:
        token: the machine's name, the process's number, and what no other start has.

    Returns the process that had it before, if one of this machine has that number still, and it is another one.
    """
    before = (run / OWNER).read_text(encoding="utf-8").split() if (run / OWNER).exists() else []
    write_text(run / OWNER, token + "\n")
    host, own, _ = token.split()
    if len(before) != 3 or before[0] != host or before[1] == own or not before[1].isdecimal():
        return None  # in a container a start has the number that the one before had
    try:
        os.kill(int(before[1]), 0)  # sends nothing
    except OSError:
        return None
    return int(before[1])


@dataclasses.dataclass
class Snapshot:
    """What a rank's files will hold.

    Attributes:
        files: by their names, the tensors of each by theirs.
        note: what the index must know of them.
        arrive: waits until copies that are under way are there.
    """

    files: dict[str, dict[str, Tensor]]
    note: dict
    arrive: Callable[[], None]


class Saver:
    """Writes a run's checkpoints, one at a time. Every rank calls each method, at the same step.

    `save` and `finish` raise UserError, on all ranks the same, if the disk does not take a checkpoint (nothing of it is
    left then) or if another start has taken the run over.

    Args:
        token: what `take_over` was given.
        streams: the states that are carried from step to step, if any are.
        unread: whole tensors that the model has no use for, for this rank to write beside its weights.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        config: RunConfig,
        token: str,
        streams: "StreamStates | None" = None,
        unread: dict[str, Tensor] | None = None,
    ) -> None:
        self._engine, self._config, self._token, self._streams = engine, config, token, streams
        self._unread = unread or {}
        self._run = Path(config.train.out)
        self._copies: list[Tensor] = []  # on the host, of what was saved last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        # Of the checkpoint that is being written:
        self._progress: Progress | None = None
        self._snapshot: Snapshot | None = None
        self._written: Future[dict[str, Written]] | None = None

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is not done yet."""
        return self._written is not None and not self._written.done()

    def save(self, progress: Progress) -> None:
        """Begin the checkpoint of `progress`, when the one before has its name."""
        self.finish()
        self._progress = progress
        try:
            raise_on_any_rank(self._doing, on_rank0(self._begin))
            self._snapshot = raise_on_any_rank(self._doing, self._take_snapshot)
        except SharedError:
            self._forget()
            raise
        self._written = self._thread.submit(self._write)
        if self._config.train.save_mode == "blocking":
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written what was begun last, and give it its name; nothing if it has one."""
        if self._written is None:
            return
        try:
            wait([self._written])
            raise_on_any_rank(self._doing, on_rank0(self._check_owner))  # another start removes what is unfinished
            note = {**self._snapshot.note, "written": raise_on_any_rank(self._doing, self._written.result)}
            notes: list = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
            dist.gather_object(note, notes if dist.get_rank() == 0 else None)
            raise_on_any_rank(self._doing, on_rank0(lambda: self._name(notes)))
        finally:
            self._forget()

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown()

    # ---- the parts of a save ----------------------------------------------------------------------------------------

    @property
    def _partial(self) -> Path:
        return self._run / CHECKPOINTS / f".{checkpoint_name(self._progress.step)}.partial"

    @property
    def _doing(self) -> str:
        return f"saving the checkpoint of step {self._progress.step} in {self._run / CHECKPOINTS}"

    def _is_owner(self) -> bool:
        return (self._run / OWNER).read_text(encoding="utf-8").strip() == self._token

    def _check_owner(self) -> None:
        if not self._is_owner():
            raise UserError(
                f"Another start of this run has taken {self._run} over, so this one saves no more: "
                f"let that one go on, or start again when it has ended."
            )

    def _begin(self) -> None:
        self._check_owner()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def _take_snapshot(self) -> Snapshot:
        rank, mine = dist.get_rank(), zero_shards.pieces(self._engine)
        masters = zero_shards.master_partitions(self._engine)
        states = [zero_shards.optimizer_state(self._engine, master) for master in masters]
        tensors = {"": masters, **{moment: [state[moment] for state in states] for moment in zero_shards.MOMENTS}}
        carried = {} if self._streams is None else self._streams.tensors()
        arrive: Callable[[], None] = _nothing
        if self._config.train.save_mode == "overlapped":
            copies, arrive = self._copy([*chain.from_iterable(tensors.values()), *carried.values()])
            tensors = {kind: [next(copies) for _ in of_kind] for kind, of_kind in tensors.items()}
            carried = dict(zip(carried, copies, strict=True))
        weights = {piece.name: piece.of(tensors[""][piece.partition]) for piece in mine} | self._unread
        moments = {
            f"{piece.name}.{moment}": piece.of(tensors[moment][piece.partition])
            for piece in mine
            for moment in zero_shards.MOMENTS
        }
        files = {weights_file(rank): weights, moments_file(rank): moments}
        if carried:
            files[streams_file(rank)] = carried
        note = {
            "slices": [(piece.name, piece.start, piece.length) for piece in mine]
            + [(name, 0, tensor.numel()) for name, tensor in self._unread.items()],
            "shapes": {piece.name: piece.shape for piece in mine}
            | {name: tuple(tensor.shape) for name, tensor in self._unread.items()},
            "steps": int(states[0]["step"]),
        }
        return Snapshot(files, note, arrive)

    def _copy(self, tensors: list[Tensor]) -> tuple[Iterator[Tensor], Callable[[], None]]:
        """`tensors` on the host, in the memory of the copies before; and what waits until they are there."""
        if [copy.shape for copy in self._copies] != [tensor.shape for tensor in tensors]:
            self._copies = []
            try:
                for tensor in tensors:
                    self._copies.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda))
            except RuntimeError as error:
                size = sum(tensor.nbytes for tensor in tensors)
                raise UserError(
                    f"Rank {dist.get_rank()} has not {gib(size)} of the host's memory for the copy of what it saves "
                    f"({' '.join(str(error).split())[:100]}): add --save_mode blocking."
                ) from error
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor.detach(), non_blocking=True)
        if not any(tensor.is_cuda for tensor in tensors):
            return iter(self._copies), _nothing
        copied = torch.cuda.Event()
        copied.record()
        return iter(self._copies), copied.synchronize

    def _write(self) -> dict[str, Written]:
        """In the thread."""
        self._snapshot.arrive()
        return {name: write_tensors(self._partial / name, tensors) for name, tensors in self._snapshot.files.items()}

    def _name(self, notes: list[dict]) -> None:
        """Complete the checkpoint that all ranks have written, and name it; on the first one."""
        partial, final = self._partial, self._partial.with_name(checkpoint_name(self._progress.step))
        self._config.save(partial / "config.json")
        for file in ("tokenizer.json", *([BASE] if self._config.train.tune != "all" else ())):
            shutil.copyfile(self._run / file, partial / file)
        write_text(partial / "progress.json", json.dumps(dataclasses.asdict(self._progress)) + "\n")
        write_text(partial / INDEX, json.dumps(_index(notes)) + "\n")
        written: dict[str, Written] = {file: facts for note in notes for file, facts in note["written"].items()}
        write_manifest(partial, {file: dataclasses.asdict(facts) for file, facts in written.items()})
        sync_folder(partial)
        if wrong := fault(partial):  # on a file system of several machines another rank's file may be missing here
            raise UserError(
                f"The checkpoint of step {self._progress.step} did not arrive whole ({wrong}): check the disk."
            )
        nameless = [take_name_away(final)] if final.exists() else []  # of an earlier course of this run, or damaged
        os.replace(partial, final)
        sync_folder(final.parent)
        keep = self._config.train.keep
        # A damaged one that was passed over may be newer, and does not count: it would cost the last whole one.
        kept = [path for path in checkpoints(self._run) if path.name <= final.name]
        nameless += [take_name_away(old) for old in kept[:-keep]] if keep else []
        for folder in nameless:
            self._thread.submit(shutil.rmtree, folder, ignore_errors=True)  # which may take a while

    def _forget(self) -> None:
        """Nothing is being written any more; what has not got its name goes."""
        with contextlib.suppress(OSError):
            if dist.get_rank() == 0 and self._is_owner():
                shutil.rmtree(self._partial, ignore_errors=True)
        self._progress = self._snapshot = self._written = None


def _nothing() -> None:
    """There is nothing to wait for."""


def _index(notes: list[dict]) -> dict:
    """Which rank has which elements of which parameter, from what every rank told."""
    parameters, held = {}, {}
    for rank, note in enumerate(notes):
        parameters.update({name: list(shape) for name, shape in note["shapes"].items()})
        for name, start, length in note["slices"]:
            held.setdefault(name, []).append([start, length, rank])
    return {"version": 1, "optimizer_steps": notes[0]["steps"], "parameters": parameters, "slices": held}
