"""Opening weights from any source: a `.pth`, a `.safetensors`, a run, one of its checkpoints, or an exported folder."""

import os
from pathlib import Path

import torch
from torch import Tensor

from rwkv_music.checkpoint.huggingface import HF_WEIGHTS, HuggingFaceTensors
from rwkv_music.checkpoint.run_folder import PROGRESS, TOKENIZER, fault, read_progress
from rwkv_music.checkpoint.saved_tensors import SavedTensors, damage_as_user_error, load_weights
from rwkv_music.checkpoint.tensors import UNREAD, Tensors, Weights, open_tensors, read_whole, shape_of
from rwkv_music.checkpoint.tuning import Base, BaseNote, TunedTensors, add_states
from rwkv_music.checkpoint.validations import BEST, choose_checkpoint
from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import load_codec

# The model that is included in the package, with its tokenizer file. benchmarks/shipped_model.py exported both.
SHIPPED_MODEL = Path(__file__).parent.parent / "shipped" / "model.safetensors"


def open_weights(path: str | os.PathLike, verify: bool = True) -> Weights:
    """Open a weight file, a run (its best checkpoint; see `validations`), a checkpoint or an exported folder.

    With `verify`, the hashes of a checkpoint's weights are checked. Raises UserError if `path` does not exist, is
    damaged, is for inference only, contains only initial states, or does not have the tensors of an RWKV v7 or v8.
    """
    path = Path(path)
    tokenizer, step = tokenizer_beside(path), None
    with explained(f"reading {path}"):
        if not path.exists():
            raise UserError(f"There is no {path}: give a .pth or .safetensors file, a run folder, or a checkpoint.")
        if path.is_file():
            tensors = open_tensors(path)
        elif is_exported(path):
            file = path / HF_WEIGHTS
            tensors, tokenizer = HuggingFaceTensors(open_tensors(file), file), path / TOKENIZER
        else:
            path = checkpoint_of(path)
            with damage_as_user_error(path):
                tensors, config = SavedTensors(path, verify), RunConfig.load(path / "config.json")
            if config.train.tune == "state":
                raise UserError(
                    f"{path} holds initial states to use with the weights of {BaseNote.read(path).init}: give those "
                    f"weights here, and give {path} to `generate --state` or `export --format state`."
                )
            tensors, tokenizer = _with_base(path, config, tensors), path / TOKENIZER
            step = read_progress(path).step
    config = shape_of(tensors.shapes, path)
    return Weights(path, config, tensors, tokenizer if tokenizer.is_file() else None, step)


def checkpoint_of(path: str | os.PathLike) -> Path:
    """Return the best checkpoint of a run, or `path` itself if it is a checkpoint. A link is resolved.

    Raises UserError if `path` is neither a run nor a checkpoint, if the run has no checkpoint, or if the checkpoint is
    damaged.
    """
    return chosen_checkpoint(path)[0]


def chosen_checkpoint(path: str | os.PathLike, which: str | None = None) -> tuple[Path, str]:
    """Return a checkpoint, and a clause that explains the choice, "" if there was no choice.

    `path` is a run or a checkpoint, as for `checkpoint_of`; `which` is as for `choose_checkpoint`. Raises UserError as
    these two functions do, and if `which` is given although `path` is a checkpoint.
    """
    path, reason = Path(path), ""
    if (path / PROGRESS).is_file():
        checkpoint = path.resolve() if path.is_symlink() else path
        if which is not None:
            raise UserError(f"{path} is a checkpoint, not a run folder: drop --checkpoint {which}.")
    else:
        checkpoint, reason = choose_checkpoint(path, which or BEST)
    if checkpoint is None:
        if (path / "config.json").is_file():
            raise UserError(f"{path} has no checkpoint yet: train it first.")
        raise UserError(f"{path} is not a run folder or a checkpoint: give the --out folder of train.py.")
    if found := fault(checkpoint):
        raise UserError(f"{checkpoint} is damaged ({found}): use an earlier checkpoint, or restore it from a copy.")
    return checkpoint, reason


def is_exported(path: Path) -> bool:
    """Return whether `path` is a weight file or an exported folder rather than a run or a checkpoint."""
    return path.is_file() or (path / HF_WEIGHTS).is_file()


def tokenizer_beside(path: Path) -> Path:
    """Return the path of the tokenizer file that accompanies the weight file `path`."""
    return path.parent / f"{path.name}.{TOKENIZER}"  # `with_name` would fail for "." and "/", which have no name


def find_codec(path: str | os.PathLike) -> Codec:
    """Return the codec that is stored with a run, a checkpoint, or an exported file or folder.

    Raises UserError if no tokenizer is stored there. In that case, use `load_codec("DATA/tokenizer.json")` with the
    dataset on which the model was trained.
    """
    tokenizer = open_weights(path, verify=False).tokenizer
    if tokenizer is None:
        place = Path(path) / TOKENIZER if Path(path).is_dir() else tokenizer_beside(Path(path))
        raise UserError(f"There is no tokenizer for {path}: copy the tokenizer.json of the model's data to {place}.")
    return load_codec(tokenizer)


def load_pretrained(
    path: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    model_class: type[RWKV] = RWKV,
) -> RWKV:
    """Build a `model_class` from the weights at `path`; see `rwkv_music.RWKV.from_pretrained`.

    Tensors are read one by one, so the peak memory is that of the model plus one tensor.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    weights = open_weights(path)
    with torch.device("meta"):
        model = model_class(weights.config)
    model.load_state_dict(
        {name: weights.read(name, dtype, device) for name, _ in model.named_parameters()}, assign=True
    )
    return model.requires_grad_(True).eval()


def load_model(run: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[RWKV, Codec, RunConfig, int]:
    """Load the model of a run's best checkpoint or of a checkpoint folder, merged with its base if the run was tuned.

    Return the frozen model in evaluation mode (float32 on a CPU, bfloat16 on a GPU), its codec, the run's configuration
    and the checkpoint's optimizer step. Raises UserError as `checkpoint_of` does, and if the base is missing or has
    changed.
    """
    checkpoint = checkpoint_of(run)
    config = RunConfig.load(checkpoint / "config.json")
    with explained(f"reading {checkpoint}"), damage_as_user_error(checkpoint):
        saved = SavedTensors(checkpoint, verify=True)
        tensors = _with_base(checkpoint, config, saved)
        weights = {name: read_whole(tensors, name) for name in tensors.shapes if name not in UNREAD}
        weights |= {name: read_whole(saved, name) for name in saved.shapes if name.endswith(".time_state")}
    with torch.device("meta"):
        model = RWKV(config.model)
        if config.train.tune == "state":
            add_states(model)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{checkpoint} cannot be loaded ({error}): use an earlier checkpoint.") from error
    model.requires_grad_(False).to(device, torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    return model.eval(), load_codec(checkpoint / TOKENIZER), config, read_progress(checkpoint).step


def unread_tensors(weights: Weights) -> dict[str, Tensor]:
    """Return the `UNREAD` tensors that `weights` has, by name, in fp32. Raises UserError if the file is damaged."""
    return {name: weights.read(name, torch.float32) for name in UNREAD if name in weights.shapes}


def tuned_states(path: str | os.PathLike, model: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tuned initial states at `path` by parameter name, float32, for use with the weights at `model`.

    `path` is a run of `--tune state`, one of its checkpoints, or a file of states. A file does not record its base, and
    its tensors are returned unchecked; `set_states` checks their names and shapes. For a run or a checkpoint, raises
    UserError if it has no states or if they were tuned on another base.
    """
    path = Path(path)
    if not path.is_dir():
        with explained(f"reading {path}"):
            file = open_tensors(path)
            return {name: read_whole(file, name) for name in file.shapes}
    checkpoint = checkpoint_of(path)
    config = RunConfig.load(checkpoint / "config.json")
    if config.train.tune != "state":
        raise UserError(f"{path} holds no tuned state: give a run that was trained with --tune state.")
    Base(open_weights(model, verify=False), config.model, "state").check(BaseNote.read(checkpoint).sha256, path)
    return load_weights(checkpoint)


def _with_base(checkpoint: Path, config: RunConfig, saved: SavedTensors) -> Tensors:
    """Return the tensors of the complete model: `saved`, merged with the base if the run was tuned.

    Raises UserError if the base is missing or has changed.
    """
    if config.train.tune == "all":
        return saved
    note = BaseNote.read(checkpoint)
    if not Path(note.init).exists():
        raise UserError(f"{checkpoint} was tuned on {note.init}, which no longer exists: restore it there.")
    base = Base(open_weights(note.init), config.model, config.train.tune)
    base.check(note.sha256, checkpoint)
    return TunedTensors(base, saved, config.model, config.train)
