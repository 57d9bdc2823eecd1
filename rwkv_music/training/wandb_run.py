"""The curves in Weights & Biases as well, where its package is installed: `--log wandb`.

A run folder has one run there, under a name of its own that is kept in the folder, so that a run which goes on goes on
in the same curves. Where and whether anything is sent is the package's own matter: `wandb login`, WANDB_MODE=offline.
"""

import importlib.util
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_music.errors import UserError, explained
from rwkv_music.files import write_text

NAME = ".wandb_run"  # in the run folder: the run's name there


def check_wandb() -> None:
    """Raises UserError if the package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--log wandb needs the wandb package: pip install 'rwkv-music[wandb]', or leave the flag out.")


class WandbRun:
    """A run folder's run in Weights & Biases, project rwkv-music.

    Args:
        folder: the run folder; it exists.
        hyperparameters: what runs are compared by.

    Raises UserError if the package cannot start, as without a login.
    """

    def __init__(self, folder: Path, hyperparameters: dict[str, Any]) -> None:
        import wandb

        with explained(f"reading {folder / NAME}"):
            if not (folder / NAME).exists():
                write_text(folder / NAME, secrets.token_hex(4) + "\n")
            name = (folder / NAME).read_text(encoding="utf-8").strip()
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
        # Its own count may not go back, which a return to an earlier checkpoint does.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3]."""
        import wandb

        self._run.log({"step": step, tag: wandb.Image(pixels)})

    def finish(self) -> None:
        self._run.finish()
