"""The run folder RUN: what is in it, and where a run that goes on begins.

RUN/config.json                          the RunConfig of the last start
RUN/tokenizer.json                       the codec of its data
RUN/events.out.tfevents.*                TensorBoard's curves
RUN/samples/                             completions made while training
RUN/checkpoints/step_00001000/           a checkpoint; one that has this name is whole
    config.json                          the RunConfig it was made under
    progress.json                        its Progress
    *.pt                                 DeepSpeed's: weights, optimizer partitions, random state
"""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError

CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step_(\d{8})")


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


@dataclass(frozen=True)
class Progress:
    """How far a run is, and who wrote the checkpoint that says so."""

    step: int  # optimizer steps done
    samples: int  # rows drawn: the sampler's position
    world_size: int
    zero_stage: int


def find_checkpoint(run: str | os.PathLike, resume: str = "auto") -> Path | None:
    """The checkpoint that `resume` means: "auto", the run's last one or None; "none", None; else that path.

    Raises UserError if the path is no checkpoint, or if `run` holds checkpoints that the new course would mix with:
    any for "none", later ones for a path.
    """
    folder = Path(run) / CHECKPOINTS
    found = sorted(p for p in folder.iterdir() if CHECKPOINT_NAME.fullmatch(p.name)) if folder.is_dir() else []
    if resume == "auto":
        return found[-1] if found else None
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
    return asked


def read_progress(checkpoint: Path) -> Progress:
    """The progress of a checkpoint. Raises UserError if its file is missing or damaged."""
    try:
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
        if not all(isinstance(value, int) for value in dataclasses.astuple(progress)):
            raise ValueError("not all whole numbers")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{checkpoint} is damaged (progress.json: {error}): name another one with --resume.") from error
    return progress


def check_resumable(checkpoint: Path, config: RunConfig, world_size: int, zero_stage: int) -> Progress:
    """Whether a run of `config` can go on from `checkpoint`; its progress if so, else a UserError that says why not."""
    started = RunConfig.load(checkpoint / "config.json")
    for field in dataclasses.fields(started.model):
        saved, asked = getattr(started.model, field.name), getattr(config.model, field.name)
        if saved != asked:
            raise UserError(
                f"{checkpoint} holds a model of another shape ({field.name} is {saved}, not {asked}): "
                f"drop the flag or the dataset that changes it, or choose another --out."
            )
    for name in ("ctx_len", "seed"):  # the sampler's position counts rows of this length, in this order
        saved, asked = getattr(started.data, name), getattr(config.data, name)
        if saved != asked:
            raise UserError(
                f"{checkpoint} was made with {name} {saved}, not {asked}, and its place in the data means nothing "
                f"under another: drop --{name}, or start a new run."
            )
    progress = read_progress(checkpoint)
    if (progress.world_size, progress.zero_stage) != (world_size, zero_stage):
        raise UserError(
            f"{checkpoint} was written by {progress.world_size} ranks under ZeRO stage {progress.zero_stage}, "
            f"not by {world_size} under stage {zero_stage}: "
            f"resume with the same number of ranks and the same DeepSpeed file."
        )
    return progress
