"""Checkpoints: DeepSpeed's own files in RUN/checkpoints/step_00001000/, beside the run's configuration and its progress.

A checkpoint is written under a hidden name and renamed when every rank is done, so that one with a step's name is whole.

    step_00001000/config.json        the RunConfig
    step_00001000/progress.json      step, samples, and how many ranks wrote it under which ZeRO stage
    step_00001000/*.pt               DeepSpeed's: weights, optimizer partitions, random state
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from rwkv_music.config import RunConfig
from rwkv_music.data.codecs import Codec, load_codec
from rwkv_music.errors import UserError, describe_os_error
from rwkv_music.files import write_text
from rwkv_music.model_v8 import RWKV

FOLDER = "checkpoints"
NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Progress:
    """How far a run is, and who wrote the checkpoint that says so."""

    step: int  # optimizer steps done
    samples: int  # rows drawn: the sampler's position
    world_size: int
    zero_stage: int


def find_checkpoint(run: str | os.PathLike, resume: str = "auto") -> Path | None:
    """The checkpoint that `resume` means: "auto", the run's last one or None; "none", None; else the folder of that path.

    Raises UserError if the path is no checkpoint, or if "none" would start afresh among the checkpoints of an earlier run.
    """
    if resume not in ("auto", "none"):
        if not (Path(resume) / "progress.json").is_file():
            raise UserError(f"{resume} is not a checkpoint (it has no progress.json): name a folder such as RUN/{FOLDER}/step_00001000.")
        return Path(resume)
    folder = Path(run) / FOLDER
    found = sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name)) if folder.is_dir() else []
    if found and resume == "none":
        raise UserError(f"{run} already holds checkpoints, up to {found[-1].name}: choose another --out, or go on with --resume auto.")
    return found[-1] if found else None


def read_progress(checkpoint: Path) -> Progress:
    """The progress of a checkpoint. Raises UserError if its file is missing or damaged."""
    try:
        return Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{checkpoint} is damaged (progress.json: {error}): remove it, or resume from another one.") from error


def check_resumable(checkpoint: Path, config: RunConfig, world_size: int, zero_stage: int) -> Progress:
    """Whether a run of `config` can go on from `checkpoint`; its progress if so, else a UserError that says why not."""
    model = RunConfig.load(checkpoint / "config.json").model
    for field in dataclasses.fields(model):
        saved, asked = getattr(model, field.name), getattr(config.model, field.name)
        if saved != asked:
            raise UserError(
                f"{checkpoint} holds a model of another shape ({field.name} is {saved}, not {asked}): "
                f"drop the flag or the dataset that changes it, or choose another --out."
            )
    progress = read_progress(checkpoint)
    if (progress.world_size, progress.zero_stage) != (world_size, zero_stage):
        raise UserError(
            f"{checkpoint} was written by {progress.world_size} ranks under ZeRO stage {progress.zero_stage}, not by {world_size} under "
            f"stage {zero_stage}: resume with the same number of ranks and the same DeepSpeed file."
        )
    return progress


def save_checkpoint(engine: deepspeed.DeepSpeedEngine, config: RunConfig, progress: Progress) -> Path:
    """Write the checkpoint of `progress`; every rank calls it. Raises UserError if the disk does not take it, leaving nothing."""
    folder = Path(config.train.out) / FOLDER
    name = f"step_{progress.step:08d}"
    partial, final = folder / f".{name}.partial", folder / name
    first = dist.get_rank() == 0
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        random_state = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            random_state["cuda"] = torch.cuda.get_rng_state()
        engine.save_checkpoint(folder, tag=partial.name, client_state={"random_state": random_state}, save_latest=False)
        if first:
            config.save(partial / "config.json")
            write_text(partial / "progress.json", json.dumps(dataclasses.asdict(progress)) + "\n")
        dist.barrier()
        if first:
            shutil.rmtree(final, ignore_errors=True)  # of an earlier course of this run
            os.replace(partial, final)
        dist.barrier()
    except (OSError, RuntimeError) as error:
        # torch.save tells of a failed write by a RuntimeError that names its stream writer.
        if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error) and "write" not in str(error):
            raise
        shutil.rmtree(partial, ignore_errors=True)
        doing = f"saving the checkpoint of step {progress.step} in {folder}"
        if isinstance(error, OSError):
            raise UserError(describe_os_error(error, doing)) from error
        raise UserError(f"A write failed while {doing}: free some disk space, then run the same command again.") from error
    return final


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> None:
    """Restore weights, optimizer and random state from `checkpoint`; every rank calls it. Raises UserError if it is damaged."""
    try:
        _, client_state = engine.load_checkpoint(checkpoint.parent, tag=checkpoint.name)
        torch.set_rng_state(client_state["random_state"]["torch"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(client_state["random_state"]["cuda"])
    except Exception as error:  # whatever torch's and DeepSpeed's readers raise for a file that is not what it should be
        raise UserError(f"{checkpoint} cannot be loaded ({error}): remove it to resume from an earlier one.") from error


def load_model(run: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[RWKV, Codec, RunConfig, int]:
    """The model of a run folder's last checkpoint (or of a checkpoint's own folder), its codec, its configuration, its step.

    On the CPU in float32, from the optimizer's master weights, whatever ZeRO stage and number of ranks wrote it; on a GPU in
    bf16, as the kernels need. Raises UserError for a folder that is no run, or a run that has no checkpoint yet.
    """
    run = Path(run)
    checkpoint = run if (run / "progress.json").is_file() else find_checkpoint(run)
    if checkpoint is None:
        what = "has no checkpoint yet: train it first" if (run / "config.json").is_file() else "is not a run folder: give the --out of train.py"
        raise UserError(f"{run} {what}.")
    config = RunConfig.load(checkpoint / "config.json")
    step = read_progress(checkpoint).step
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the reader reports each file it opens
            weights = get_fp32_state_dict_from_zero_checkpoint(checkpoint.parent, tag=checkpoint.name)
        with torch.device("meta"):
            model = RWKV(config.model)
        model.load_state_dict(weights, assign=True)
    except Exception as error:
        raise UserError(f"{checkpoint} cannot be loaded ({error}): use an earlier checkpoint.") from error
    model.requires_grad_(False).to(device, torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    return model.eval(), load_codec(checkpoint.parent.parent / "tokenizer.json"), config, step
