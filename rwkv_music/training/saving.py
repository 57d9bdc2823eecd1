"""Save checkpoints while training continues.

Each rank copies its optimizer's master weights and states to host memory. A thread writes the copy while the next steps
run. When all ranks have written their files, the checkpoint gets its final name between two steps.

Notable choices:
- A checkpoint is written under a hidden name. It gets its final name after every rank has finished and the manifest of
  sizes and hashes has been written. A folder with a final name was therefore complete when it was renamed. The manifest
  reveals later damage.
- The thread only writes and deletes files. All collectives run on the main thread, because collectives of a second
  thread could interleave with those of a step.
- The copy takes 12 bytes of host memory per parameter that the rank's optimizer holds (8 bytes per parameter that Muon
  updates). The memory is allocated at the first save and kept. With `--save_mode blocking` there is no copy: training
  waits for the writing.
- On a GPU, the copies are enqueued on the stream. The collective error check in `save` waits for them, but not for the
  writing to disk.
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
    mark_removed,
    moments_file,
    streams_file,
    weights_file,
    write_manifest,
)
from rwkv_music.checkpoint.safetensors_io import Written, write_tensors
from rwkv_music.checkpoint.validations import Validations
from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError
from rwkv_music.files import read_file, sync_folder, write_text
from rwkv_music.system import gib
from rwkv_music.training.consensus import on_rank0, raise_on_any_rank
from rwkv_music.training.deepspeed_engine.engine import Engine
from rwkv_music.training.tbptt import StreamStates

OWNER = ".owner"


def take_over(run: Path, token: str) -> int | None:
    """Make this process the only one that may write checkpoints into `run`, even if an earlier one is still running.

    `token` consists of host name, process ID and a random string. Return the process ID of the previous owner if it is
    still running on this host, otherwise None.
    """
    before = _owner(run).split() if (run / OWNER).exists() else []
    write_text(run / OWNER, token + "\n")
    host, own, _ = token.split()
    if len(before) != 3 or before[0] != host or before[1] == own or not before[1].isdecimal():
        # Equal process IDs do not show that the previous process is still running: in a container, each start can get
        # the same ID.
        return None
    try:
        os.kill(int(before[1]), 0)  # sends nothing
    except (OSError, ValueError, OverflowError):  # the process has ended, or the ID is damaged
        return None
    return int(before[1])


def _owner(run: Path) -> str:
    """Return the token of the process that may write checkpoints into `run`."""
    return read_file(run / OWNER).decode("utf-8", "replace").strip()


@dataclasses.dataclass
class Snapshot:
    """The content of one rank's files of a checkpoint."""

    files: dict[str, dict[str, Tensor]]  # tensors by file name and tensor name
    note: dict  # this rank's entries in the index
    wait: Callable[[], None]  # waits until the asynchronous copies have completed


class Saver:
    """A writer of a run's checkpoints, one at a time.

    `save` and `finish` are collective. They raise the same UserError on all ranks if the checkpoint cannot be written
    or if another process has taken over the run. In the first case, the partly written checkpoint is deleted.
    """

    def __init__(
        self,
        engine: Engine,
        config: RunConfig,
        token: str,  # as in `take_over`
        validations: Validations,  # of the run; rank 0 never deletes the best checkpoint
        stream_states: StreamStates | None = None,
        unread: dict[str, Tensor] | None = None,  # tensors to save that the model does not use
    ) -> None:
        self._shards, self._config, self._token = engine.shards, config, token
        self._validations, self._stream_states = validations, stream_states
        self._unread = unread or {}
        self._run = Path(config.train.out)
        self._copies: list[Tensor] = []  # host memory of the last snapshot
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        # The checkpoint that is being written:
        self._progress: Progress | None = None
        self._snapshot: Snapshot | None = None
        self._written: Future[dict[str, Written]] | None = None

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is still writing."""
        return self._written is not None and not self._written.done()

    def save(self, progress: Progress) -> None:
        """Finish the previous checkpoint, then start writing the one of `progress`."""
        self.finish()
        self._progress = progress
        try:
            raise_on_any_rank(self._doing, on_rank0(self._begin))
            self._snapshot = raise_on_any_rank(self._doing, self._take_snapshot)
        except Exception:
            self._end_save()
            raise
        self._written = self._thread.submit(self._write)
        if self._config.train.save_mode == "blocking":
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written the current checkpoint, if any, and give it its final name."""
        if self._written is None:
            return
        try:
            wait([self._written])
            raise_on_any_rank(self._doing, on_rank0(self._check_owner))  # a new owner deletes unfinished checkpoints
            note = {**self._snapshot.note, "written": raise_on_any_rank(self._doing, self._written.result)}
            notes: list = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
            dist.gather_object(note, notes if dist.get_rank() == 0 else None)
            raise_on_any_rank(self._doing, on_rank0(lambda: self._name(notes)))
        finally:
            self._end_save()

    def close(self) -> None:
        """Wait until the thread has finished writing and deleting."""
        self._thread.shutdown()

    # ---- the parts of a save -----------------------------------------------------------------------------------------

    @property
    def _partial(self) -> Path:
        return self._run / CHECKPOINTS / f".{checkpoint_name(self._progress.step)}.partial"

    @property
    def _doing(self) -> str:
        return f"saving the checkpoint of step {self._progress.step} in {self._run / CHECKPOINTS}"

    def _is_owner(self) -> bool:
        return _owner(self._run) == self._token

    def _check_owner(self) -> None:
        if not self._is_owner():
            raise UserError(
                f"Another process has taken over {self._run}, so this one cannot save: let the other one continue, or "
                f"restart this one after it has ended."
            )

    def _begin(self) -> None:
        self._check_owner()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def _take_snapshot(self) -> Snapshot:
        rank, shards = dist.get_rank(), self._shards
        states = [shards.optimizer_state(partition) for partition in range(len(shards.masters))]
        partitions = [
            {"": master, **{moment: state[moment] for moment in shards.moments(number)}}
            for number, (master, state) in enumerate(zip(shards.masters, states, strict=True))
        ]
        streams = {} if self._stream_states is None else self._stream_states.saved_tensors()
        wait_for_copies: Callable[[], None] = _nothing
        if self._config.train.save_mode == "overlapped":
            tensors = chain.from_iterable(partition.values() for partition in partitions)
            copies, wait_for_copies = self._copy([*tensors, *streams.values()])
            partitions = [{kind: next(copies) for kind in partition} for partition in partitions]
            streams = dict(zip(streams, copies, strict=True))
        weights = {piece.name: piece.of(partitions[piece.partition][""]) for piece in shards.slices} | self._unread
        moments = {
            f"{piece.name}.{moment}": piece.of(partitions[piece.partition][moment])
            for piece in shards.slices
            for moment in shards.moments(piece.partition)
        }
        files = {weights_file(rank): weights, moments_file(rank): moments}
        if streams:
            files[streams_file(rank)] = streams
        note = {
            "slices": [(piece.name, piece.start, piece.length) for piece in shards.slices]
            + [(name, 0, tensor.numel()) for name, tensor in self._unread.items()],
            "shapes": {piece.name: piece.shape for piece in shards.slices}
            | {name: tuple(tensor.shape) for name, tensor in self._unread.items()},
            "steps": int(states[0]["step"]),
        }
        return Snapshot(files, note, wait_for_copies)

    def _copy(self, tensors: list[Tensor]) -> tuple[Iterator[Tensor], Callable[[], None]]:
        """Copy `tensors` to host memory. Return the copies, and a function that waits until they are complete.

        The buffers of the previous snapshot are reused if their shapes match.
        """
        if [copy.shape for copy in self._copies] != [tensor.shape for tensor in tensors]:
            self._copies = []
            try:
                for tensor in tensors:
                    self._copies.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda))
            except RuntimeError as error:
                size = sum(tensor.nbytes for tensor in tensors)
                raise UserError(
                    f"Rank {dist.get_rank()} lacks {gib(size)} of host memory for the copy of its checkpoint "
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
        """Write this rank's files. Runs in the thread."""
        self._snapshot.wait()
        return {name: write_tensors(self._partial / name, tensors) for name, tensors in self._snapshot.files.items()}

    def _name(self, notes: list[dict]) -> None:
        """Add the remaining files to the checkpoint, and give it its final name. Runs on rank 0."""
        partial, final = self._partial, self._partial.with_name(checkpoint_name(self._progress.step))
        self._config.save(partial / "config.json")
        for file in ("tokenizer.json", *([BASE] if self._config.train.tune != "all" else ())):
            shutil.copyfile(self._run / file, partial / file)
        write_text(partial / "progress.json", json.dumps(dataclasses.asdict(self._progress)) + "\n")
        write_text(partial / INDEX, json.dumps(_index(notes)) + "\n")
        written: dict[str, Written] = {file: facts for note in notes for file, facts in note["written"].items()}
        write_manifest(partial, {file: dataclasses.asdict(facts) for file, facts in written.items()})
        sync_folder(partial)
        if wrong := fault(partial):  # on a shared file system, a file of another rank may not be visible yet
            raise UserError(
                f"The checkpoint of step {self._progress.step} is incomplete ({wrong}): check the file system."
            )
        if final.exists():  # saved before a rollback, or damaged
            self._delete_later(mark_removed(final))
        os.replace(partial, final)
        sync_folder(final.parent)
        self.prune(self._progress)

    def prune(self, progress: Progress) -> None:
        """Delete former best checkpoints (`Validations.superseded`) and, if `keep` is not 0, all but the `keep` newest.

        After a skipped step, only former best checkpoints are deleted. The best checkpoint is never deleted. `progress`
        is that of the newest checkpoint. Runs on rank 0.
        """
        if not self._is_owner():
            return
        final = self._run / CHECKPOINTS / checkpoint_name(progress.step)
        keep = self._config.train.keep
        # Damaged checkpoints newer than this one do not count. If they did, the last valid one could be deleted.
        kept = [path for path in checkpoints(self._run) if path.name <= final.name]
        best = self._validations.best()
        superseded = set(self._validations.superseded()) - {final}
        # After a skipped step the weights may have diverged, so `keep` does not apply until a step succeeds.
        if keep and not progress.skipped_in_a_row:
            superseded |= set(kept[:-keep]) - {best and self._validations.checkpoint(best)}
        for old in sorted(superseded):
            self._delete_later(mark_removed(old))
        self._validations.link_best()

    def _delete_later(self, folder: Path) -> None:
        self._thread.submit(shutil.rmtree, folder, ignore_errors=True)  # in the thread, because it can take long

    def _end_save(self) -> None:
        """End the current save, and delete the checkpoint's folder if it does not have its final name yet."""
        with contextlib.suppress(OSError):
            if dist.get_rank() == 0 and self._is_owner():
                shutil.rmtree(self._partial, ignore_errors=True)
        self._progress = self._snapshot = self._written = None


def _nothing() -> None:
    """Do nothing. Used where there are no copies to wait for."""


def _index(notes: list[dict]) -> dict:
    """Combine the notes of all ranks into the index: which rank's file has which elements of which parameter."""
    parameters, held = {}, {}
    for rank, note in enumerate(notes):
        parameters.update({name: list(shape) for name, shape in note["shapes"].items()})
        for name, start, length in note["slices"]:
            held.setdefault(name, []).append([start, length, rank])
    return {"version": 1, "optimizer_steps": notes[0]["steps"], "parameters": parameters, "slices": held}
