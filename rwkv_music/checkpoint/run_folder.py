"""The run folder and the on-disk format of a checkpoint.

RUN/config.json                          RunConfig of the most recent start
RUN/deepspeed.json                       DeepSpeed configuration of the most recent start
RUN/tokenizer.json                       codec of the data
RUN/base.json                            in a tuned run: BaseNote (path of the base, hash of the frozen weights)
RUN/events.out.tfevents.*                TensorBoard event files
RUN/samples/                             completions and fills sampled during training
RUN/profile/                             traces (--profile)
RUN/rollbacks.json                       a Rollback for each checkpoint to which the run returned after a loss spike
RUN/validations.json                     validation losses, which determine the best checkpoint (`validations`)
RUN/.crashes                             for each crash, the checkpoint from which the run had resumed (launch/slurm.sh)
RUN/.owner                               token of the most recently started process, which alone may write checkpoints
RUN/.wandb_run, RUN/wandb/               with --log wandb: id of the Weights & Biases run, and wandb's own files
RUN/checkpoints/best                     link to the best checkpoint
RUN/checkpoints/step_00001000/           one checkpoint, after 1,000 optimizer steps
    manifest.json                        size in bytes and SHA-256 of every other file in this folder
    config.json                          RunConfig of the process that wrote the checkpoint
    progress.json                        Progress: steps, rows read, skipped steps, recent losses; ranks and ZeRO stage
    tokenizer.json                       copy of RUN/tokenizer.json
    base.json                            in a tuned run: copy of RUN/base.json
    index.json                           shape and slices ([first element, length, rank]) of every parameter; number of
                                         the optimizer's steps
    weights_00000.safetensors            rank 0's fp32 master weights, as slices by parameter name. Only rank 0's file
                                         also contains tensors of the --init file that the model does not use
    moments_00000.safetensors            the same slices of the optimizer's states: NAME.exp_avg and NAME.exp_avg_sq, or
                                         NAME.momentum for the matrices that Muon updates
    lanes_00000.safetensors              with --tbptt: the recurrent states of rank 0's document streams

A checkpoint is written to .step_00001000.partial and renamed when the files of all ranks are complete and flushed. A
folder with the final name is therefore complete unless it was damaged later. The checkpoints of a tuned run contain
only the trained parameters. `training.saving` writes checkpoints, and `saved_tensors` reads their tensors.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError, plural
from rwkv_music.files import check_types, file_sha256, parse_json, read_file, read_json, write_text

CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step_(\d{8})")
UNFINISHED_NAME = re.compile(r"\.step_\d{8}\.(partial|removed)")
MANIFEST = "manifest.json"
INDEX = "index.json"
PROGRESS = "progress.json"
TOKENIZER = "tokenizer.json"
BASE = "base.json"
ROLLBACKS = "rollbacks.json"
TENSORS = ".safetensors"  # suffix of the large files, which `fault` does not hash
STREAMS_PREFIX = "lanes_"  # "lanes" is a former name of streams, kept so that older checkpoints can be loaded


@dataclass(frozen=True)
class Progress:
    """The progress of a run at a checkpoint."""

    step: int  # optimizer steps done, including skipped ones
    samples: int  # rows read so far, which is the position of the data sampler
    skipped: int  # steps skipped because of a non-finite gradient
    world_size: int  # number of ranks that wrote the checkpoint
    zero_stage: int
    skipped_in_a_row: int = 0  # number of consecutive skipped steps up to this step
    last_step_without_spike: int | None = None  # last logged step without a spike; None in older checkpoints
    losses: tuple[float, ...] = ()  # the losses that spikes are compared with (`--on_spike rollback`), oldest first


REQUIRED_COUNTS = ("step", "samples", "skipped", "world_size", "zero_stage")  # older checkpoints lack the others


@dataclass(frozen=True)
class Rollback:
    """The number of returns to one checkpoint after loss spikes, and the position in the data after the last return."""

    count: int
    samples: int  # rows read before the last return; the run continues with the rows after these


def weights_file(rank: int) -> str:
    return f"weights_{rank:05d}{TENSORS}"


def moments_file(rank: int) -> str:
    return f"moments_{rank:05d}{TENSORS}"


def streams_file(rank: int) -> str:
    return f"{STREAMS_PREFIX}{rank:05d}{TENSORS}"


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def checkpoints(run: str | os.PathLike) -> list[Path]:
    """Return the checkpoints of a run, oldest first, including damaged ones."""
    folder = Path(run) / CHECKPOINTS
    return sorted(p for p in folder.iterdir() if CHECKPOINT_NAME.fullmatch(p.name)) if folder.is_dir() else []


# ---- the manifest ----------------------------------------------------------------------------------------------------


def write_manifest(checkpoint: Path, tensor_files: dict[str, dict]) -> None:
    """Write the manifest of a checkpoint that is otherwise complete.

    `tensor_files` has "size_bytes" and "sha256" of each tensor file. Only the other files, which are small, are hashed
    here.
    """
    files = {
        path.name: {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(checkpoint.iterdir())
        if path.suffix != TENSORS
    }
    write_text(checkpoint / MANIFEST, json.dumps({"version": 1, "files": {**files, **tensor_files}}, indent=1) + "\n")


def read_manifest(checkpoint: Path) -> dict[str, dict]:
    """Return "size_bytes" and "sha256" of each file of a checkpoint. Raises ValueError if the manifest is not valid."""
    path = checkpoint / MANIFEST
    try:
        tree = parse_json(read_file(path), {"files": dict})
        files = tree["files"]
        for name, facts in files.items():
            if Path(name).name != name or "\0" in name or not isinstance(facts["size_bytes"], int):
                raise ValueError(f"invalid entry {name[:100]!r}")
            bytes.fromhex(facts["sha256"])
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error})") from error
    if tree.get("version") != 1 or not {INDEX, "config.json", PROGRESS, TOKENIZER} <= files.keys():
        raise ValueError(f"its {MANIFEST} is of another version")
    return files


def fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, as a clause such as "it has no manifest.json"; None if nothing is.

    Checks that every file exists and has the right size, and checks the hash of every file except tensor files.
    """
    try:
        files = read_manifest(checkpoint)
    except ValueError as error:
        return str(error)
    for name, facts in files.items():
        try:
            size = (checkpoint / name).stat().st_size
        except (OSError, ValueError) as error:  # ValueError: the system cannot encode the name
            return f"its {name} cannot be read ({getattr(error, 'strerror', error)})"
        if not (checkpoint / name).is_file():
            return f"its {name} is not a file"
        if size != facts["size_bytes"]:
            return f"its {name} has {plural(size, 'byte')}, not {facts['size_bytes']:,}"
    return contents_fault(checkpoint, (name for name in files if not name.endswith(TENSORS)))


def contents_fault(checkpoint: Path, names: Iterable[str]) -> str | None:
    """Return a clause that says which of the files `names` has another hash than in the manifest; None if none has."""
    files = read_manifest(checkpoint)
    for name in names:
        try:
            if file_sha256(checkpoint / name) != files[name]["sha256"]:
                return f"its {name} has changed since it was written (another SHA-256)"
        except OSError as error:
            return f"its {name} cannot be read ({error.strerror})"
    return None


def tensor_files(checkpoint: Path) -> list[str]:
    """Return the names of a checkpoint's tensor files, sorted."""
    return sorted(name for name in read_manifest(checkpoint) if name.endswith(TENSORS))


# ---- selection -------------------------------------------------------------------------------------------------------


def find_checkpoint(run: str | os.PathLike, resume: str = "auto", before: Path | None = None) -> Path | None:
    """Return the checkpoint to resume from, or None to start from scratch.

    Args:
        resume: "auto" for the newest checkpoint of `run` without a `fault`; "none"; or the path of a checkpoint.
        before: with "auto", consider only checkpoints older than this one.

    Raises UserError if the path is not a checkpoint or is damaged. With "auto", raises UserError if all checkpoints of
    `run` are damaged. With "none" or a path, raises UserError if `run` already contains checkpoints, unless the path is
    the newest of them.
    """
    found = [path for path in checkpoints(run) if before is None or path.name < before.name]
    if resume == "auto":
        for path in reversed(found):
            if fault(path) is None:
                return path
        if found or before:
            newest = found[-1] if found else before
            raise UserError(
                f"All checkpoints of {run} are damaged ({newest.name}: {fault(newest) or 'damaged'}): restore one from "
                f"a copy, or start again with another --out."
            )
        return None
    chosen = None if resume == "none" else Path(resume)
    if chosen and not (chosen / PROGRESS).is_file():
        raise UserError(
            f"{resume} is not a checkpoint (it has no {PROGRESS}): "
            f"name a folder such as RUN/{CHECKPOINTS}/step_00001000."
        )
    if found and not (chosen and os.path.realpath(chosen) == os.path.realpath(found[-1])):
        raise UserError(
            f"{run} already holds checkpoints, up to {found[-1].name}: "
            f"choose another --out, or resume from the newest with --resume auto."
        )
    if chosen and (problem := fault(chosen)):
        raise UserError(damage_of_chosen(chosen, problem, run))
    return chosen


def damage_of_chosen(checkpoint: Path, problem: str, run: str | os.PathLike) -> str:
    """Return the error message for a damaged checkpoint that --resume names, for a run in the folder `run`."""
    remedy = "name another checkpoint with --resume"
    # `find_checkpoint` accepts a checkpoint of this run by path only if it is the newest: do not advise another path.
    if checkpoint.resolve().parent == (Path(run) / CHECKPOINTS).resolve():
        remedy = "use --resume auto, which skips damaged checkpoints"
    return f"{checkpoint} is damaged ({problem}): {remedy}."


def skipped_checkpoints(run: str | os.PathLike, chosen: Path | None) -> list[str]:
    """Return the name and the fault of each checkpoint newer than `chosen`, as clauses, newest first."""
    newer = [path for path in checkpoints(run) if chosen is None or path.name > chosen.name]
    return [f"{path.name}: {fault(path) or 'a file has changed since it was written'}" for path in reversed(newer)]


def read_progress(checkpoint: Path) -> Progress:
    """Return the progress of a checkpoint. Raises UserError if the file is missing or damaged."""
    remedy = "use another checkpoint, or restore it from a copy"
    tree = read_json(checkpoint / PROGRESS, remedy, dict.fromkeys(REQUIRED_COUNTS, int))
    try:
        losses = tuple(map(float, tree.get("losses", ())))
        progress = Progress(**{**tree, "losses": losses})
        if not isinstance(progress.skipped_in_a_row, int) or not isinstance(progress.last_step_without_spike or 0, int):
            raise ValueError("not all counts are integers")
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{checkpoint / PROGRESS} cannot be read ({error}): {remedy}.") from error
    return progress


def read_rollbacks(run: Path) -> dict[str, Rollback]:
    """Return the rollbacks of a run by checkpoint name. Raises UserError if the file is damaged."""
    path = run / ROLLBACKS
    if not path.exists():
        return {}
    remedy = "delete it, or restore it from a copy"
    counts = {"count": int, "samples": int}
    tree = read_json(path, remedy)
    try:
        check_types(tree, dict.fromkeys(tree, counts))
        return {name: Rollback(**of_one) for name, of_one in tree.items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}.") from error


def write_rollbacks(run: Path, rollbacks: dict[str, Rollback]) -> None:
    """Write the rollbacks of a run, atomically."""
    tree = {name: dataclasses.asdict(of_one) for name, of_one in rollbacks.items()}
    write_text(run / ROLLBACKS, json.dumps(tree) + "\n")


def check_resumable(checkpoint: Path, config: RunConfig) -> Progress:
    """Check that a run of `config` can resume from `checkpoint`, and return the checkpoint's progress.

    Raises UserError if the model's shape, the way the data is cut into rows, the optimizer, or the trained parameters
    differ. The number of ranks and the ZeRO stage may differ.
    """
    saved_config = RunConfig.load(checkpoint / "config.json")
    for field in dataclasses.fields(saved_config.model):
        saved, given = getattr(saved_config.model, field.name), getattr(config.model, field.name)
        if saved != given:
            raise UserError(
                f"{checkpoint} holds a model of another shape ({field.name} is {saved}, not {given}): "
                f"drop the flag or the dataset that changes it, or choose another --out."
            )
    # The position of the data sampler is valid only for the same rows in the same order.
    names = ("ctx_len", "seed", "task", "augment", "tbptt")
    names += ("completion_weight", "context_bars", "completion_bars", "infill_weight", "infill_bars")
    settings = {name: (getattr(saved_config.data, name), getattr(config.data, name)) for name in names}
    if config.data.tbptt:  # each row is a stream with its own pieces
        settings["batch_size"] = (saved_config.train.batch_size, config.train.batch_size)
    for name, (saved, given) in settings.items():
        if saved != given:
            raise UserError(
                f"{checkpoint} was made with {name} {saved}, not {given}, so its position in the data is not valid: "
                f"drop --{name}, or start a new run."
            )
    # The names and shapes of the trained parameters and of the optimizer's states depend on these.
    lora = ("lora_rank", "lora_alpha", "lora_targets") if saved_config.train.tune == "lora" else ()
    for name in ("optimizer", "tune", *lora):
        saved, given = getattr(saved_config.train, name), getattr(config.train, name)
        if saved != given:
            raise UserError(
                f"{checkpoint} was made with --{name} {saved}, not {given}: use --{name} {saved}, or start a new run."
            )
    return read_progress(checkpoint)


# ---- deletion --------------------------------------------------------------------------------------------------------


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first, so an interrupted deletion does not leave a partial checkpoint."""
    shutil.rmtree(mark_removed(checkpoint), ignore_errors=True)


def mark_removed(checkpoint: Path) -> Path:
    """Rename a checkpoint atomically so that it no longer counts as one. Return its new path, which can be deleted."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(checkpoint, removed)
    return removed


def remove_unfinished(run: str | os.PathLike) -> None:
    """Delete the remains of interrupted saves and deletions."""
    folder = Path(run) / CHECKPOINTS
    for path in folder.iterdir() if folder.is_dir() else ():
        if UNFINISHED_NAME.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
