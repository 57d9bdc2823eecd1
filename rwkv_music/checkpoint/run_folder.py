"""The run folder RUN: what is in it, which of its checkpoints are whole, and where a run that goes on begins.

RUN/config.json                          the RunConfig of the last start
RUN/tokenizer.json                       the codec of its data
RUN/events.out.tfevents.*                TensorBoard's curves
RUN/samples/                             completions made while training
RUN/.owner                               the start that may write checkpoints: a later one takes over
RUN/checkpoints/step_00001000/           a checkpoint; it got this name when it was whole
    manifest.json                        size and SHA-256 of every other file
    config.json                          the RunConfig it was made under
    progress.json                        its Progress
    tokenizer.json                       the codec
    base.json                            of a tuned run: where its base was, and the SHA-256 of the frozen weights
    index.json                           which rank's files hold which elements of which parameter
    weights_00000.safetensors            what rank 0 held of the fp32 master weights
    moments_00000.safetensors            and of AdamW's two moments
    lanes_00000.safetensors              with --tbptt: the states of its streams
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
from rwkv_music.errors import UserError
from rwkv_music.files import file_sha256, write_text

CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step_(\d{8})")
UNFINISHED_NAME = re.compile(r"\.step_\d{8}\.(partial|removed)")
MANIFEST = "manifest.json"
INDEX = "index.json"
TENSORS = ".safetensors"  # files too large to be read whole at every look


@dataclass(frozen=True)
class Progress:
    """How far a run is, and who wrote the checkpoint that says so."""

    step: int  # optimizer steps done, those among them that were skipped
    samples: int  # rows drawn: the sampler's position
    skipped: int  # of the steps, because of a gradient that was not finite
    world_size: int
    zero_stage: int


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def checkpoints(run: str | os.PathLike) -> list[Path]:
    """The checkpoints of a run, the oldest first, whole or not."""
    folder = Path(run) / CHECKPOINTS
    return sorted(p for p in folder.iterdir() if CHECKPOINT_NAME.fullmatch(p.name)) if folder.is_dir() else []


# ---- whole or damaged ------------------------------------------------------------------------------------------------


def write_manifest(checkpoint: Path, tensor_files: dict[str, dict]) -> None:
    """Make the manifest of a checkpoint whose other files are all there.

    Args:
        tensor_files: "size_bytes" and "sha256" of the files that were hashed while they were written. The others are
            small and are read.
    """
    files = {
        path.name: {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(checkpoint.iterdir())
        if path.suffix != TENSORS
    }
    write_text(checkpoint / MANIFEST, json.dumps({"version": 1, "files": {**files, **tensor_files}}, indent=1) + "\n")


def read_manifest(checkpoint: Path) -> dict[str, dict]:
    """Size and hash of each file of a checkpoint. Raises ValueError, saying why, if there is no such manifest."""
    try:
        tree = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = tree["files"]
        for name, facts in files.items():
            if Path(name).name != name or not isinstance(facts["size_bytes"], int):
                raise ValueError("an entry that is none")
            bytes.fromhex(facts["sha256"])
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error})") from error
    if tree.get("version") != 1 or not {INDEX, "config.json", "progress.json", "tokenizer.json"} <= files.keys():
        raise ValueError(f"its {MANIFEST} is not one of this version")
    return files


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as far as can be seen without reading its tensors; None if nothing.

    Every file must be there and of its size, and the small ones must have their hash.
    """
    try:
        files = read_manifest(checkpoint)
    except ValueError as error:
        return str(error)
    for name, facts in files.items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError as error:
            return f"its {name} cannot be read ({error.strerror})"
        if size != facts["size_bytes"]:
            return f"its {name} has {size:,} bytes, not {facts['size_bytes']:,}"
    return contents_fault(checkpoint, (name for name in files if not name.endswith(TENSORS)))


def contents_fault(checkpoint: Path, names: Iterable[str]) -> str | None:
    """The first of the files `names` whose bytes are not those that were written, as a clause; None if none is."""
    files = read_manifest(checkpoint)
    for name in names:
        try:
            if file_sha256(checkpoint / name) != files[name]["sha256"]:
                return f"its {name} is not as it was written (another SHA-256)"
        except OSError as error:
            return f"its {name} cannot be read ({error.strerror})"
    return None


def tensor_files(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's large files, in a fixed order."""
    return sorted(name for name in read_manifest(checkpoint) if name.endswith(TENSORS))


# ---- which one -------------------------------------------------------------------------------------------------------


def find_checkpoint(run: str | os.PathLike, resume: str = "auto", before: Path | None = None) -> Path | None:
    """The checkpoint that `resume` means: "auto", the run's newest one without a `fault`, or None; "none", None; else
    that path.

    Args:
        before: with "auto", only checkpoints that are older than this one.

    Raises UserError if the path is no checkpoint or a damaged one, if `run` holds checkpoints that the new course would
    mix with (any for "none", later ones for a path), or if it holds some and all are damaged.
    """
    found = [path for path in checkpoints(run) if before is None or path.name < before.name]
    if resume == "auto":
        for path in reversed(found):
            if fault(path) is None:
                return path
        if found or before:
            newest = found[-1] if found else before
            raise UserError(
                f"No checkpoint of {run} is whole ({newest.name}: {fault(newest) or 'damaged'}): restore one from a "
                f"copy, or start again with another --out."
            )
        return None
    asked = None if resume == "none" else Path(resume)
    if asked and not (asked / "progress.json").is_file():
        raise UserError(
            f"{resume} is not a checkpoint (it has no progress.json): "
            f"name a folder such as RUN/{CHECKPOINTS}/step_00001000."
        )
    if found and not (asked and asked.resolve() == found[-1].resolve()):
        raise UserError(
            f"{run} already holds checkpoints, up to {found[-1].name}: "
            f"choose another --out, or go on with --resume auto."
        )
    if asked and (wrong := fault(asked)):
        raise UserError(f"{asked} is damaged ({wrong}): name another one with --resume.")
    return asked


def passed_over(run: str | os.PathLike, chosen: Path | None) -> list[str]:
    """Of a run's checkpoints newer than `chosen`, one clause each: what is wrong with it."""
    newer = [path for path in checkpoints(run) if chosen is None or path.name > chosen.name]
    return [f"{path.name}: {fault(path) or 'a file is not as it was written'}" for path in reversed(newer)]


def read_progress(checkpoint: Path) -> Progress:
    """The progress of a checkpoint. Raises UserError if its file is missing or damaged."""
    try:
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
        if not all(isinstance(value, int) for value in dataclasses.astuple(progress)):
            raise ValueError("not all whole numbers")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{checkpoint} is damaged (progress.json: {error}): name another one with --resume.") from error
    return progress


def check_resumable(checkpoint: Path, config: RunConfig) -> Progress:
    """Whether a run of `config` can go on from `checkpoint`; its progress if so, else a UserError that says why not.

    The number of ranks and the ZeRO stage may be others than those that wrote it.
    """
    started = RunConfig.load(checkpoint / "config.json")
    for field in dataclasses.fields(started.model):
        saved, asked = getattr(started.model, field.name), getattr(config.model, field.name)
        if saved != asked:
            raise UserError(
                f"{checkpoint} holds a model of another shape ({field.name} is {saved}, not {asked}): "
                f"drop the flag or the dataset that changes it, or choose another --out."
            )
    # The sampler's position counts rows of this length, of these tasks, in this order.
    names = ("ctx_len", "seed", "task", "completion_weight", "context_bars", "completion_bars", "augment", "tbptt")
    settings = {name: (getattr(started.data, name), getattr(config.data, name)) for name in names}
    if config.data.tbptt:  # each row has its own pieces
        settings["batch_size"] = (started.train.batch_size, config.train.batch_size)
    for name, (saved, asked) in settings.items():
        if saved != asked:
            raise UserError(
                f"{checkpoint} was made with {name} {saved}, not {asked}, and its place in the data means nothing "
                f"under another: drop --{name}, or start a new run."
            )
    # It holds what trained alone, by these names and shapes.
    names = ("tune", "lora_rank", "lora_alpha", "lora_targets") if started.train.tune == "lora" else ("tune",)
    for name in names:
        saved, asked = getattr(started.train, name), getattr(config.train, name)
        if saved != asked:
            raise UserError(f"{checkpoint} was made with --{name} {saved}, not {asked}: drop it, or start a new run.")
    return read_progress(checkpoint)


# ---- taking away -----------------------------------------------------------------------------------------------------


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint. It loses its name first: what an interruption leaves does not look like one."""
    shutil.rmtree(take_name_away(checkpoint), ignore_errors=True)


def take_name_away(checkpoint: Path) -> Path:
    """Make a checkpoint one no more, at once; what is left of it, to be deleted."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(checkpoint, removed)
    return removed


def remove_unfinished(run: str | os.PathLike) -> None:
    """Delete what saves and deletions that were cut short have left."""
    folder = Path(run) / CHECKPOINTS
    for path in folder.iterdir() if folder.is_dir() else ():
        if UNFINISHED_NAME.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
