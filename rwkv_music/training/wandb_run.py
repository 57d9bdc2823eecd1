"""Curves in Weights & Biases (`--log wandb`), in addition to TensorBoard.

A run folder corresponds to one Weights & Biases run. The folder contains the id of that run, so that a resumed run
continues its curves. `wandb login` and the variable WANDB_MODE (for example offline) determine where data is sent.
"""

import importlib.util
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_music.errors import UserError, explained
from rwkv_music.files import read_file, write_text

NAME = ".wandb_run"  # file in the run folder that holds the run's id


def check_wandb() -> None:
    """Raise UserError if the wandb package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--log wandb needs the wandb package: run pip install 'rwkv-music[wandb]', or drop the flag.")


class WandbRun:
    """A run in the Weights & Biases project rwkv-music.

    Raises UserError if wandb cannot start, for example without a login.
    """

    def __init__(self, folder: Path, hyperparameters: dict[str, Any]) -> None:
        import wandb

        with explained(f"reading {folder / NAME}"):
            if not (folder / NAME).exists():
                write_text(folder / NAME, secrets.token_hex(4) + "\n")
            name = read_file(folder / NAME).decode("utf-8", "replace").strip()
        try:
            self._run = wandb.init(
                project="rwkv-music",
                id=name,
                name=folder.resolve().name,
                dir=str(folder),
                resume="allow",
                config=hyperparameters,
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(f"wandb does not start ({error}): run `wandb login`, or set WANDB_MODE=offline.") from error
        # wandb's own step counter must not decrease, but the step of a run does when it returns to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """Log an image, uint8 [height, width, 3]."""
        import wandb

        self._run.log({"step": step, tag: wandb.Image(pixels)})

    def finish(self) -> None:
        self._run.finish()
