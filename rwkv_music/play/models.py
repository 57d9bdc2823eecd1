"""The models of the page. They are loaded at the start and, with --follow, when training has saved a new checkpoint."""

import sys
import time
from pathlib import Path

import torch

from rwkv_music.checkpoint.run_folder import PROGRESS
from rwkv_music.checkpoint.validations import BEST, LAST
from rwkv_music.checkpoint.weights import (
    SHIPPED_MODEL,
    chosen_checkpoint,
    find_codec,
    is_exported,
    load_model,
    load_pretrained,
)
from rwkv_music.errors import UserError
from rwkv_music.generation.decoder import make_decoder
from rwkv_music.generation.fill import check_infills, check_tokenizer
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.multitrack import Multitrack

CHECK_EVERY_S = 2.0


class Model:
    """A loaded model that can fill in. Raises UserError if the model cannot be loaded or cannot fill in.

    From a run folder, the best checkpoint is loaded, or, if the run is followed, the newest one that is not damaged.
    """

    model: RWKV
    codec: Multitrack
    step: int | None  # optimizer step of the checkpoint; None for exported weights
    is_followed: bool  # whether newer checkpoints are loaded

    def __init__(self, path: Path, follow: bool = False):
        if not path.exists():
            raise UserError(f"There is no {path}: give a run folder, a checkpoint or exported weights.")
        self.path = path
        self._is_run = path.is_dir() and not is_exported(path) and not (path / PROGRESS).is_file()
        self.is_followed = follow and self._is_run
        self._reported = ""
        self._checked = 0.0
        self._load()

    @property
    def name(self) -> str:
        return "the included model" if self.path == SHIPPED_MODEL else str(self.path)

    def _load(self) -> None:
        if is_exported(self.path):
            codec, step = find_codec(self.path), None
            check_tokenizer(codec)
            model = load_pretrained(self.path).requires_grad_(False)
        else:
            source = self._checkpoint()
            model, codec, config, step = load_model(source, "cuda" if torch.cuda.is_available() else "cpu")
            check_tokenizer(codec)
            check_infills(self.path, config)
            self._loaded = source
        # This builds the kernels or packs the weights, so that the first request does not wait for it.
        make_decoder(model, 1).read(torch.tensor([codec.bos_id], device=model.device))
        self.model, self.codec, self.step = model, codec, step

    def _checkpoint(self) -> Path:
        which = (LAST if self.is_followed else BEST) if self._is_run else None
        return chosen_checkpoint(self.path, which)[0]

    def follow(self) -> bool:
        """If a followed run has a newer checkpoint, load it and return True.

        Check at most every CHECK_EVERY_S seconds.
        """
        if not self.is_followed or time.monotonic() < self._checked + CHECK_EVERY_S:
            return False
        self._checked = time.monotonic()
        try:
            if self._checkpoint() == self._loaded:
                return False
            self._load()
        except UserError as error:
            if self._reported != str(error):
                self._reported = str(error)
                print(f"rwkv_music play: {error} Step {self.step:,} stays loaded.", file=sys.stderr, flush=True)
            return False
        print(f"{self.name}: step {self.step:,} loaded", flush=True)
        return True


def load_models(paths: list[Path], follow: bool = False) -> list[Model]:
    """Load one model, or two to compare. Without a path, load the included model.

    Raises UserError if loading fails, for more than two paths or the same path twice, and if `follow` is True but no
    path is a run folder.
    """
    paths = paths or [SHIPPED_MODEL]
    if len(paths) > 2:
        raise UserError(f"{len(paths)} models are given: give one, or two to compare.")
    if len(paths) == 2 and paths[0].resolve() == paths[1].resolve():
        raise UserError(f"{paths[0]} is named twice: name two different runs or checkpoints to compare.")
    models = [Model(path, follow) for path in paths]
    if follow and not any(model.is_followed for model in models):
        raise UserError("--follow needs a run folder, but none is given: name one, or drop --follow.")
    return models
