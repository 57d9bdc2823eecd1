"""Tensors in weight files: open a `.pth` or `.safetensors`, read slices of its tensors, and infer the model's shape.

Notable choices:
- Opening a file reads only names and shapes, except for a `.pth` written by PyTorch before 1.6, which is read
  completely. Every other `.pth` is memory-mapped, so processes on one machine share its pages. `shape_of` checks the
  shapes before the model is allocated.
- Opening a file cannot run code: a `.pth` is read with torch's tensors-only unpickler, and everything else is
  safetensors or JSON.
- BlinkDL's files contain v0, v1 and v2 of layer 0, which no program uses, because layer 0 has no value residual. They
  are not parameters of the model. A run keeps them only so that an exported `.pth` is complete.
- Files that were converted for inference (quantized, transposed or compiled) are rejected, with the reason. They cannot
  be trained, but some of them could be loaded without an error.

Sources: BlinkDL's RWKV-LM, RWKV-v7/rwkv_v7_demo.py and rwkv_v8_rc00_demo.py (names, ignored tensors); the `rwkv`
package 0.8.32 (its conversion for inference).
"""

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError, explained, plural
from rwkv_music.files import open_file
from rwkv_music.model_v8 import RWKV

UNREAD = tuple(f"blocks.0.att.{name}" for name in ("v0", "v1", "v2"))
TRAINABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Magic numbers of inference-only file formats.
INFERENCE_FILES = {
    b"GGUF": "a GGUF file",
    b"lmgg": "a ggml file",
    b"fmgg": "a ggml file of rwkv.cpp",
    b"tjgg": "a ggml file",
    b"\x08": "an ONNX file",
}
OLDER = re.compile(r"blocks\.\d+\.att\.time_(mix|maa|decay|first|faaaa)")
QUANTIZED = re.compile(r"_(strategy|mm8|mx|rx|my|ry)$|\.(qweight|qzeros|scales|weight_scale|SCB|absmax)$")


class Tensors(Protocol):
    """A source of named tensors. It gives their shapes, and reads any contiguous range of their elements."""

    shapes: dict[str, tuple[int, ...]]

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (1-D, any float dtype) with the elements of tensor `name`, beginning at element `start`."""


def read_whole(
    tensors: Tensors, name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the whole tensor `name` as `dtype` on `device`."""
    out = torch.empty(tensors.shapes[name], dtype=dtype, device=device)
    tensors.read_into(out.view(-1), name)
    return out


@dataclass(frozen=True)
class Weights:
    """An opened source of a model's weights. Names and shapes are known, and elements are read on demand."""

    source: Path  # the file, the checkpoint folder or the exported folder
    config: ModelConfig  # the shape of the model, inferred from the shapes of the tensors
    tensors: Tensors  # all parameters of a model of this shape, by BlinkDL's names
    tokenizer: Path | None  # the tokenizer.json stored with the weights
    step: int | None = None  # optimizer step of the checkpoint; None for a file or an exported folder

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.tensors.shapes

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """See `Tensors.read_into`. Raises UserError if this part of the file is damaged or cannot be read."""
        try:
            with explained(f"reading {self.source}"):
                self.tensors.read_into(out, name, start)
        except DamagedFile as error:
            raise UserError(f"{self.source} is damaged ({error}): restore it from a copy.") from error

    def read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Return the whole parameter `name`. Raises UserError if the file is damaged."""
        return read_whole(self, name, dtype, device)


class PthFile:
    """The tensors of a `.pth` file (see `Tensors`), memory-mapped unless the file was written by PyTorch before 1.6.

    Raises UserError for a file that is not a state dict of float tensors.
    """

    def __init__(self, path: Path) -> None:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                inside = [name.split("/", 1)[-1] for name in archive.namelist()]
            if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
                raise _inference_only(path, "a TorchScript program, whose weights are constants of compiled code")
            if "data.pkl" not in inside:
                raise UserError(f"{path} is a zip archive without torch tensors: give a .pth of RWKV weights.")
        try:
            tensors = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is not a .pth of tensors only (pickled objects could run code, so they are not loaded): "
                f"save just the state dict, as in torch.save(model.state_dict(), FILE)."
            ) from error
        except (RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path} is truncated or not a .pth ({type(error).__name__} from torch.load): copy it again."
            ) from error
        if not isinstance(tensors, dict) or not tensors:
            raise UserError(f"{path} holds no named tensors: give a .pth saved from a model's state dict.")
        others = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
        if others:
            raise UserError(
                f"{path} holds entries that are not tensors ({', '.join(others[:5])}): save just the state dict."
            )
        for name, tensor in tensors.items():
            if tensor.dtype not in TRAINABLE:
                raise _inference_only(path, f"quantized ({name} is {str(tensor.dtype).removeprefix('torch.')})")
        self._tensors: dict[str, Tensor] = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        tensor = self._tensors[name]
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
        out.copy_(flat[start : start + out.numel()])


def open_tensors(path: Path) -> Tensors:
    """Open a `.pth` or `.safetensors` file with tensors of any names. Raises UserError for a file in another format."""
    with open_file(path) as file:
        start = file.read(9)
    # A safetensors file may have another suffix. It begins with the length of its header in eight bytes, followed by
    # the header, which is a JSON object.
    long_enough = int.from_bytes(start[:8], "little") < path.stat().st_size
    is_safetensors = path.suffix == ".safetensors" or (start[8:] == b"{" and long_enough)
    for magic, description in INFERENCE_FILES.items():
        if start.startswith(magic) and not is_safetensors:
            raise _inference_only(path, description)
    if not is_safetensors:
        return PthFile(path)
    try:
        return TensorFile(path)
    except DamagedFile as error:
        raise UserError(f"{path} cannot be opened ({error}): give a .safetensors file of float tensors.") from error


# ---- the model's shape -----------------------------------------------------------------------------------------------


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a model's parameters, in the model's order, without allocating them."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in RWKV(config).named_parameters()}


def shape_of(shapes: dict[str, tuple[int, ...]], source: Path) -> ModelConfig:
    """Infer the configuration of the RWKV v7 or v8 model whose tensors have these names and shapes.

    Raises UserError, which names the tensors, if any are missing, unknown or of the wrong shape.
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
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else "tensors of other dimensions"
        raise UserError(f"{source} is not an RWKV v7 or v8 ({reason}): give RWKV v7 or v8 weights.") from error
    if len(layers) != config.n_layer:
        gaps = ", ".join(str(layer) for layer in range(config.n_layer) if layer not in layers)
        raise UserError(f"{source} is incomplete (no tensor of layer {gaps}): give the complete file.")
    expected = parameter_shapes(config)
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected and name not in UNREAD],
        "wrong shape": [
            f"{name} {list(shapes[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    if any(problems.values()):
        reasons = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        raise UserError(
            f"{source} is not an RWKV v7 or v8 of {plural(config.n_layer, 'layer')} ({reasons}): give RWKV v7 "
            "or v8 weights."
        )
    return config


def _refuse_inference_layouts(shapes: dict[str, tuple[int, ...]], source: Path) -> None:
    if quantized := [name for name in shapes if QUANTIZED.search(name)]:
        raise _inference_only(source, f"converted or quantized ({quantized[0]})")
    if any(OLDER.match(name) for name in shapes):
        raise UserError(f"{source} is an RWKV older than v7: give v7 (x070) or v8 weights.")
    flat = len(shapes.get("blocks.0.att.r_k", (0, 0))) == 1
    emb, key = shapes.get("emb.weight"), shapes.get("blocks.0.ffn.key.weight")
    transposed = emb and key and len(emb) == len(key) == 2 and key[1] != emb[1] and key[0] == emb[1]
    if flat or transposed:
        raise _inference_only(
            source, f"converted ({'its matrices are transposed' if transposed else 'its r_k is flat'})"
        )


def _inference_only(source: Path, what: str) -> UserError:
    return UserError(f"{source} is {what}: it is for inference only, so give the .pth that it was made from.")
