"""Coming back from a checkpoint, on any number of ranks and under any ZeRO stage. `saving` writes them.

Each rank's files hold what its optimizer held, the fp32 master weights and AdamW's moments, as slices of the model's
own parameters; an index says who held what. Whoever comes back reads the slices that are his. The weights that the
model computes with are the rounded masters, so they are not kept twice.

Notable choices:
- Nothing in it can run code: tensors as safetensors, everything else as JSON.
- No random state: nothing in a step draws numbers that its seed and counters do not name.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rwkv_music.checkpoint.run_folder import (
    INDEX,
    contents_fault,
    fault,
    find_checkpoint,
    read_progress,
    tensor_files,
)
from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile
from rwkv_music.checkpoint.tuning import TunedTensors, add_states, read_whole
from rwkv_music.checkpoint.weights import UNREAD, parameter_shapes
from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import load_codec


def weights_file(rank: int) -> str:
    return f"weights_{rank:05d}.safetensors"


def moments_file(rank: int) -> str:
    return f"moments_{rank:05d}.safetensors"


def streams_file(rank: int) -> str:
    return f"lanes_{rank:05d}.safetensors"


class SavedTensors:
    """The tensors of a checkpoint, read in whatever slices are asked for.

    Raises DamagedFile for an index that does not tell of whole parameters, or a file that is not as the index says;
    OSError for one that cannot be read.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._files: dict[str, TensorFile] = {}
        try:
            index = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))
            self.shapes = {name: tuple(shape) for name, shape in index["parameters"].items()}
            self.optimizer_steps = int(index["optimizer_steps"])
            self._slices = {
                name: sorted((int(start), int(length), int(rank)) for start, length, rank in held)
                for name, held in index["slices"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFile(f"{INDEX} cannot be read ({error})") from error

    def read_into(self, out: Tensor, name: str, start: int = 0, moment: str | None = None) -> None:
        """Fill `out` (1-D) with the master weights of parameter `name` from element `start` on, or with a moment of
        theirs.
        """
        done = 0
        for first, length, rank in self._slices.get(name, ()):
            begin, end = max(start + done, first), min(start + out.numel(), first + length)
            if begin == start + done and begin < end:
                file = self._file(moments_file(rank) if moment else weights_file(rank))
                key = f"{name}.{moment}" if moment else name
                file.read_into(out[done : done + end - begin], key, begin - first)
                done += end - begin
        if done != out.numel():
            raise DamagedFile(f"no file holds the elements of {name} from {start + done:,} on")

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile(self._checkpoint / name)
        return self._files[name]


def checkpoint_of(run: str | os.PathLike) -> Path:
    """A run's last checkpoint, or the checkpoint whose own folder it is.

    Raises UserError for a folder that is no run, a run without a checkpoint, or a damaged checkpoint.
    """
    run = Path(run)
    checkpoint = run if (run / "progress.json").is_file() else find_checkpoint(run)
    if checkpoint is None:
        if (run / "config.json").is_file():
            raise UserError(f"{run} has no checkpoint yet: train it first.")
        raise UserError(f"{run} is not a run folder: give the --out of train.py.")
    if wrong := fault(checkpoint):
        raise UserError(f"{checkpoint} is damaged ({wrong}): use an earlier checkpoint, or restore it from a copy.")
    return checkpoint


def load_weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """The fp32 master weights of a checkpoint by the model's names, one at a time.

    Raises UserError if it is damaged.
    """
    with damage_as_user_error(checkpoint):
        if wrong := contents_fault(checkpoint, (f for f in tensor_files(checkpoint) if f.startswith("weights_"))):
            raise DamagedFile(wrong)
        saved = SavedTensors(checkpoint)
        for name, shape in saved.shapes.items():
            if name in UNREAD:  # they are no parameters of ours
                continue
            weight = torch.empty(shape)
            saved.read_into(weight.view(-1), name)
            yield name, weight


@contextmanager
def damage_as_user_error(checkpoint: Path) -> Iterator[None]:
    """Turn what a reader raises for a damaged file inside the block into a UserError."""
    try:
        yield
    except DamagedFile as error:
        raise UserError(
            f"{checkpoint} cannot be loaded ({error}): use an earlier checkpoint, or restore it from a copy."
        ) from error


def load_model(run: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[RWKV, Codec, RunConfig, int]:
    """The model of a run's last checkpoint (or of a checkpoint's own folder), its codec, its configuration, its step.

    That of a tuned run is whole, with its base, its states or its adapters in it. On the CPU in float32, from the
    optimizer's master weights; on a GPU in bf16, as the kernels need. Raises UserError for a folder that is no run, a
    run that has no checkpoint yet, a checkpoint that is damaged, or a base that is not there or another.
    """
    checkpoint = checkpoint_of(run)
    config = RunConfig.load(checkpoint / "config.json")
    step = read_progress(checkpoint).step
    with explained(f"reading {checkpoint}"):
        weights = dict(load_weights(checkpoint))
    if config.train.tune != "all":
        states = {name: state for name, state in weights.items() if name.endswith(".time_state")}
        with damage_as_user_error(checkpoint):
            whole = TunedTensors(checkpoint, SavedTensors(checkpoint))
            weights = {name: read_whole(whole, name) for name in parameter_shapes(config.model)} | states
    with torch.device("meta"):
        model = RWKV(config.model)
        if config.train.tune == "state":
            add_states(model)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{checkpoint} cannot be loaded ({error}): use an earlier checkpoint.") from error
    model.requires_grad_(False).to(device, torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    return model.eval(), load_codec(checkpoint / "tokenizer.json"), config, step
