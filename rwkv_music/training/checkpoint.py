"""Saving a checkpoint and coming back from one, through DeepSpeed.

A checkpoint is written under a hidden name and renamed when every rank is done: one that has a step's name is whole
(`run_folder` says what is in it).
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
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
from rwkv_music.run_folder import CHECKPOINTS, Progress, checkpoint_name, find_checkpoint, read_progress


def save_checkpoint(engine: deepspeed.DeepSpeedEngine, config: RunConfig, progress: Progress) -> Path:
    """Write the checkpoint of `progress`; every rank calls it.

    Raises UserError if the disk does not take it, leaving nothing of it.
    """
    folder = Path(config.train.out) / CHECKPOINTS
    name = checkpoint_name(progress.step)
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
            shutil.copyfile(Path(config.train.out) / "tokenizer.json", partial / "tokenizer.json")
            write_text(partial / "progress.json", json.dumps(dataclasses.asdict(progress)) + "\n")
        dist.barrier()
        if first:
            shutil.rmtree(final, ignore_errors=True)  # of an earlier course of this run
            os.replace(partial, final)
        dist.barrier()
    except (OSError, RuntimeError) as error:
        # torch.save tells of a failed write by a RuntimeError from its archive writer.
        if isinstance(error, RuntimeError) and not any(
            word in str(error) for word in ("inline_container", "PytorchStreamWriter")
        ):
            raise
        if first:  # the others may still be writing into it
            shutil.rmtree(partial, ignore_errors=True)
        doing = f"saving the checkpoint of step {progress.step} in {folder}"
        if isinstance(error, OSError):
            raise UserError(describe_os_error(error, doing)) from error
        raise UserError(
            f"The disk did not take what was written while {doing}: free some space, then run the same command again."
        ) from error
    return final


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> None:
    """Restore weights, optimizer and random state from `checkpoint`; every rank calls it.

    Raises UserError if it is damaged.
    """
    try:
        _, client_state = engine.load_checkpoint(checkpoint.parent, tag=checkpoint.name)
        torch.set_rng_state(client_state["random_state"]["torch"])
        if torch.cuda.is_available() and "cuda" in client_state["random_state"]:
            torch.cuda.set_rng_state(client_state["random_state"]["cuda"])
    except Exception as error:  # whatever torch's and DeepSpeed's readers raise for what is not as they expect it
        first_line = str(error).strip().split("\n")[0]
        raise UserError(
            f"{checkpoint} cannot be loaded ({type(error).__name__}: {first_line}): use the DeepSpeed file that it was "
            f"written with, or name an earlier checkpoint with --resume and another --out."
        ) from error


def load_model(run: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[RWKV, Codec, RunConfig, int]:
    """The model of a run's last checkpoint (or of a checkpoint's own folder), its codec, its configuration, its step.

    On the CPU in float32, from the optimizer's master weights, whatever ZeRO stage and number of ranks wrote it; on a
    GPU in bf16, as the kernels need. Raises UserError for a folder that is no run, or a run that has no checkpoint
    yet.
    """
    run = Path(run)
    checkpoint = run if (run / "progress.json").is_file() else find_checkpoint(run)
    if checkpoint is None:
        if (run / "config.json").is_file():
            raise UserError(f"{run} has no checkpoint yet: train it first.")
        raise UserError(f"{run} is not a run folder: give the --out of train.py.")
    config = RunConfig.load(checkpoint / "config.json")
    step = read_progress(checkpoint).step
    try:
        reports = io.StringIO()  # DeepSpeed's reader reports every file
        with contextlib.redirect_stdout(reports), contextlib.redirect_stderr(reports):
            weights = get_fp32_state_dict_from_zero_checkpoint(checkpoint.parent, tag=checkpoint.name)
        with torch.device("meta"):
            model = RWKV(config.model)
        model.load_state_dict(weights, assign=True)
    except Exception as error:
        raise UserError(f"{checkpoint} cannot be loaded ({error}): use an earlier checkpoint.") from error
    model.requires_grad_(False).to(device, torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    return model.eval(), load_codec(checkpoint / "tokenizer.json"), config, step
