"""Weights from wherever they lie: a `.pth`, a `.safetensors`, a run or one of its checkpoints, an exported folder.

Opening reads names and shapes alone. The model's shape follows from them and every tensor is held against it before
anything is allocated; then whoever needs elements of a tensor reads these and no others.

Notable choices:
- Nothing that is opened can run code: a `.pth` goes through torch's unpickler for tensors alone and is mapped into
  memory, where processes of one machine share it; the rest is safetensors and JSON.
- Layer 0's v0, v1 and v2 in BlinkDL's files are passed over: the value residual starts in that layer, nothing reads
  them there, and his own programs ignore them too. They go along with a run, so that its .pth is whole again.
- What was made for inference alone is refused with the reason: quantised, transposed or compiled weights cannot be
  trained on, and half of them would load without a complaint.

Sources: BlinkDL's RWKV-LM, RWKV-v7/rwkv_v7_demo.py and rwkv_v8_rc00_demo.py (names, what is ignored); the `rwkv`
package 0.8.32 (what its conversion leaves behind).
"""

import os
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rwkv_music.checkpoint.run_folder import contents_fault, find_checkpoint, read_progress
from rwkv_music.checkpoint.run_folder import fault as checkpoint_fault
from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import load_codec

UNREAD = tuple(f"blocks.0.att.{name}" for name in ("v0", "v1", "v2"))
TOKENIZER_SUFFIX = ".tokenizer.json"  # of the file beside an exported one; in an exported folder its whole name
TRAINABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# The first bytes of files that hold a network for inference, and what they are.
INFERENCE_FILES = {
    b"GGUF": "a GGUF file",
    b"lmgg": "a ggml file",
    b"fmgg": "a ggml file of rwkv.cpp",
    b"tjgg": "a ggml file",
    b"\x08": "an ONNX file",
}
OLDER = re.compile(r"blocks\.\d+\.att\.time_(mix|maa|decay|first|faaaa)")
QUANTISED = re.compile(r"_(strategy|mm8|mx|rx|my|ry)$|\.(qweight|qzeros|scales|weight_scale|SCB|absmax)$")


class Tensors(Protocol):
    """Where tensors are read from: their shapes by name, and any run of their elements."""

    shapes: dict[str, tuple[int, ...]]

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (1-D, any float dtype) with the elements of tensor `name` from `start` on."""


class PthFile:
    """The tensors of a `.pth`, mapped into memory; one in the format from before torch 1.6 is read as a whole.

    Raises UserError for a file that holds no tensors by name.
    """

    def __init__(self, path: Path) -> None:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                inside = [name.split("/", 1)[-1] for name in archive.namelist()]
            if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
                raise _inference_only(path, "a TorchScript program: its weights are constants of compiled code")
            if "data.pkl" not in inside:
                raise UserError(f"{path} is an archive without torch's tensors in it: give a .pth of RWKV weights.")
        try:
            tensors = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is no .pth, or holds more than tensors, which could run code, and is not opened: save a state "
                f"dict alone, as torch.save(model.state_dict(), FILE) does."
            ) from error
        except (RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path} is cut short or no .pth ({type(error).__name__} from torch.load): download or copy it again."
            ) from error
        if not isinstance(tensors, dict) or not tensors:
            raise UserError(f"{path} holds no tensors by name: give a .pth made of a model's state dict.")
        strange = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
        if strange:
            raise UserError(
                f"{path} holds {', '.join(strange[:5])} beside or instead of tensors by name: save the model's state "
                f"dict alone."
            )
        for name, tensor in tensors.items():
            if tensor.dtype not in TRAINABLE:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise _inference_only(
                    path, f"quantised ({name} is {kind}), and what was rounded off does not come back"
                )
        self._tensors: dict[str, Tensor] = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        tensor = self._tensors[name]
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
        out.copy_(flat[start : start + out.numel()])


@dataclass(frozen=True)
class Weights:
    """A model's weights, of which so far only names and shapes were read.

    Attributes:
        source: the file, the checkpoint's folder or the exported folder.
        config: the model's shape, as the tensors' shapes tell it.
        tensors: all parameters of a model of that shape, by its own names.
        tokenizer: the tokenizer.json beside them, if there is one.
        step: of the checkpoint that they are; None for a file.
    """

    source: Path
    config: ModelConfig
    tensors: Tensors
    tokenizer: Path | None
    step: int | None = None

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (1-D, any float dtype) with the elements of parameter `name` from `start` on.

        Raises UserError if the file is damaged there.
        """
        try:
            with explained(f"reading {self.source}"):
                self.tensors.read_into(out, name, start)
        except DamagedFile as error:
            raise UserError(f"{self.source} is damaged ({error}): restore it from a copy.") from error

    def read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """All of parameter `name`. Raises UserError as `read_into` does."""
        out = torch.empty(self.tensors.shapes[name], dtype=dtype, device=device)
        self.read_into(out.view(-1), name)
        return out


def open_weights(path: str | os.PathLike, verify: bool = True) -> Weights:
    """Open a `.pth`, a `.safetensors`, a run (its newest whole checkpoint), a checkpoint or an exported folder.

    Args:
        verify: also hold every byte of a checkpoint against the hashes in its manifest.

    Raises UserError for what is not there, is damaged, cannot be trained on, or holds other tensors than an RWKV v7 or
    v8 does; these it names one by one.
    """
    path = Path(path)
    tokenizer, step = path.with_name(path.name + TOKENIZER_SUFFIX), None
    with explained(f"reading {path}"):
        if path.is_dir():
            path, tensors, tokenizer, step = _open_folder(path, verify)
        elif not path.is_file():
            raise UserError(f"There is no {path}: give a .pth or .safetensors file, a run, or a checkpoint of one.")
        else:
            tensors = open_tensors(path)
    config = shape_of(tensors.shapes, path)
    return Weights(path, config, tensors, tokenizer if tokenizer.is_file() else None, step)


def is_exported(path: Path) -> bool:
    """Whether it is a file or an exported folder, and not a run or a checkpoint."""
    return path.is_file() or (path / "model.safetensors").is_file()


def find_codec(path: str | os.PathLike) -> Codec:
    """The codec of a run, a checkpoint, or an exported file or folder: what its model's tokens mean.

    Raises UserError where no tokenizer lies with the weights, as with a file from elsewhere: prepare data with the
    tokenizer of its model and load that, with `load_codec("DATA/tokenizer.json")`.
    """
    tokenizer = open_weights(path, verify=False).tokenizer
    if tokenizer is None:
        raise UserError(
            f"No tokenizer lies beside {path}: put the tokenizer.json of its model's data there, as "
            f"{Path(path).name}{TOKENIZER_SUFFIX}."
        )
    return load_codec(tokenizer)


def load_pretrained(
    path: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    model_class: type[RWKV] = RWKV,
) -> RWKV:
    """Build a `model_class` from the weights at `path`; see `rwkv_music.RWKV.from_pretrained`.

    Tensors are read one at a time.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    weights = open_weights(path)
    with torch.device("meta"):
        model = model_class(weights.config)
    read = {name: weights.read(name, dtype, device) for name, _ in model.named_parameters()}
    model.load_state_dict(read, assign=True)
    return model.requires_grad_(True).eval()


def unread_tensors(weights: Weights) -> dict[str, Tensor]:
    """Those of `UNREAD` that are there, in fp32. Raises UserError as `Weights.read` does."""
    return {name: weights.read(name, torch.float32) for name in UNREAD if name in weights.tensors.shapes}


# ---- what is in it ---------------------------------------------------------------------------------------------------


def shape_of(shapes: dict[str, tuple[int, ...]], source: Path) -> ModelConfig:
    """The shape of the RWKV v7 or v8 model whose tensors these are.

    Raises UserError if they are not all there, or there are others, or shapes contradict each other: name by name.
    """
    _refuse_inference_layouts(shapes, source)
    try:
        vocab_size, n_embd = shapes["emb.weight"]
        head_size = shapes["blocks.0.att.r_k"][1]
        layers = {int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name)}
        values = shapes.get("blocks.1.att.v1") or shapes.get("blocks.0.att.v1") or (0, 0)
        config = ModelConfig(
            n_layer=max(layers) + 1,
            n_embd=n_embd,
            vocab_size=vocab_size,
            head_size=head_size,
            dim_ffn=shapes["blocks.0.ffn.key.weight"][0],
            channel_mix="x080" if "blocks.0.ffn.enn.weight" in shapes else "x070",
            decay_rank=shapes["blocks.0.att.w1"][1],
            iclr_rank=shapes["blocks.0.att.a1"][1],
            value_rank=values[1],
            gate_rank=shapes["blocks.0.att.g1"][1],
        )
    except (KeyError, IndexError, ValueError, UserError) as error:
        told = f"has no {error.args[0]}" if isinstance(error, KeyError) else "has tensors of other dimensions"
        raise UserError(f"{source} is not an RWKV v7 or v8 (it {told}): give weights of one.") from error
    if len(layers) != config.n_layer:
        gaps = ", ".join(str(layer) for layer in range(config.n_layer) if layer not in layers)
        raise UserError(f"{source} is not whole (no tensor of layer {gaps}): take the whole file.")
    expected = parameter_shapes(config)
    missing = [name for name in expected if name not in shapes]
    foreign = [name for name in shapes if name not in expected and name not in UNREAD]
    others = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if missing or foreign or others:
        lists = {"missing": missing, "not of this model": foreign, "of another shape": others}
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)
        raise UserError(f"{source} does not hold an RWKV v7 or v8 of {config.n_layer} layers ({told}): give one.")
    return config


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's parameters, in its order; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in RWKV(config).named_parameters()}


def _refuse_inference_layouts(shapes: dict[str, tuple[int, ...]], source: Path) -> None:
    if quantised := [name for name in shapes if QUANTISED.search(name)]:
        raise _inference_only(source, f"converted or quantised for inference ({quantised[0]})")
    if any(OLDER.match(name) for name in shapes):
        raise UserError(f"{source} holds an RWKV from before v7, another model: give v7 (x070) or v8 weights.")
    flat = len(shapes.get("blocks.0.att.r_k", (0, 0))) == 1
    emb, key = shapes.get("emb.weight"), shapes.get("blocks.0.ffn.key.weight")
    transposed = emb and key and len(emb) == len(key) == 2 and key[1] != emb[1] and key[0] == emb[1]
    if flat or transposed:
        how = "its matrices are transposed" if transposed else "its r_k is flat"
        raise _inference_only(source, f"laid out for inference ({how}, and the first norm may be folded into emb)")


def _inference_only(source: Path, what: str) -> UserError:
    return UserError(f"{source} is {what}, so it can play but not be trained: take the .pth that it was made from.")


# ---- where it lies ---------------------------------------------------------------------------------------------------


def open_tensors(path: Path) -> Tensors:
    """The tensors of a `.pth` or `.safetensors`, whatever they are. Raises UserError for a file of something else."""
    with open(path, "rb") as file:
        start = file.read(9)
    # Whatever its name, a safetensors file begins with its header's length in eight bytes and the header, an object.
    long_enough = int.from_bytes(start[:8], "little") < path.stat().st_size
    is_safetensors = path.suffix == ".safetensors" or (start[8:] == b"{" and long_enough)
    for magic, what in INFERENCE_FILES.items():
        if start.startswith(magic) and not is_safetensors:
            raise _inference_only(path, f"{what}, made for inference")
    if not is_safetensors:
        return PthFile(path)
    try:
        return TensorFile(path)
    except DamagedFile as error:
        raise UserError(f"{path} cannot be opened ({error}): give a .safetensors of float tensors.") from error


def _open_folder(path: Path, verify: bool) -> tuple[Path, Tensors, Path, int | None]:
    """Of a run, a checkpoint or an exported folder: where, its tensors, its tokenizer, its step."""
    from rwkv_music.checkpoint.reading import SavedTensors

    if is_exported(path):
        from rwkv_music.checkpoint.export import HuggingFaceTensors

        return path, HuggingFaceTensors(open_tensors(path / "model.safetensors")), path / TOKENIZER_SUFFIX[1:], None
    checkpoint = path if (path / "progress.json").is_file() else find_checkpoint(path)
    if checkpoint is None:
        has = "has no checkpoint yet" if (path / "config.json").is_file() else "is neither a run nor a checkpoint"
        raise UserError(f"{path} {has}: give the --out of a train.py that has saved, or a file of weights.")
    wrong = checkpoint_fault(checkpoint)
    if wrong is None and verify:
        names = sorted(file.name for file in checkpoint.glob("weights_*.safetensors"))
        wrong = contents_fault(checkpoint, names)
    try:
        if wrong:
            raise DamagedFile(wrong)
        tensors: Tensors = SavedTensors(checkpoint)
    except DamagedFile as error:
        raise UserError(f"{checkpoint} is damaged ({error}): use an earlier checkpoint, or restore it.") from error
    if (checkpoint / "base.json").is_file():
        from rwkv_music.checkpoint.tuning import TunedTensors, refuse_a_state

        refuse_a_state(checkpoint)
        tensors = TunedTensors(checkpoint, tensors)
    return checkpoint, tensors, checkpoint / "tokenizer.json", read_progress(checkpoint).step
