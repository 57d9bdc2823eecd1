"""Weights for others: BlinkDL's `.pth`, the same as `.safetensors`, or a folder for Hugging Face's `transformers`.

They come from anything that `weights` opens, one tensor after the other: no GPU, no DeepSpeed, and no second copy.

Notable choices:
- bf16 unless asked otherwise: what RWKV's files are, and what a model trained in bf16 computes with. A run's fp32
  master weights are rounded once, so that weights which came as bf16 and were not trained leave as they came.
- The same weights give the same bytes, whichever ranks and ZeRO stage held them.
- A `.pth` has v0, v1 and v2 in layer 0 too, as they were in the file that the model began with, else all zero: nothing
  reads them there, but BlinkDL's trainer expects them.
- The codec goes beside, so that who has the file knows what its tokens mean.

Sources: BlinkDL's RWKV-LM (names, shapes, types); flash-linear-attention's fla/models/rwkv7 and utils/
convert_from_rwkv7.py and rwkv7-hf's modeling_rwkv7.py (the names and configuration of the Hugging Face model).
"""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from rwkv_music.checkpoint.safetensors_io import write_one_by_one
from rwkv_music.checkpoint.weights import TOKENIZER_SUFFIX, UNREAD, Tensors, Weights, open_weights, parameter_shapes
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_folder, atomic_path, write_text
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import load_codec

FORMATS = ("pth", "safetensors", "hf")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NOTE = {"format": "pt"}  # in a safetensors header; transformers asks for it


def export(
    source: str | os.PathLike, out: str | os.PathLike, format: str = "pth", dtype: torch.dtype = torch.bfloat16
) -> Weights:
    """Write the weights of `source` to `out`: a file, or for "hf" a folder; whole or not at all.

    Args:
        source: what `open_weights` opens.
        format: one of `FORMATS`.
        dtype: of all tensors, bfloat16 or float32.

    Returns what was exported. Raises UserError for what cannot be opened or written, and for "hf" with a v8 model.
    """
    out = Path(out)
    weights = open_weights(source)
    if out.exists() and out.is_dir() != (format == "hf"):
        raise UserError(f"{out} is a {'file' if format == 'hf' else 'folder'} already: choose another --out.")
    if format == "hf" and weights.config.channel_mix != "x070":
        raise UserError(
            f"{weights.source} is a v8, which transformers has no model for yet: export it as pth or safetensors."
        )
    if format == "hf" and weights.config.head_size != 64:
        raise UserError(
            f"{weights.source} has heads of {weights.config.head_size}, and the norm over one is another in "
            f"transformers' model unless it is 64: export it as pth or safetensors."
        )
    with explained(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "hf":
            _write_folder(weights, out, dtype)
            return weights
        with atomic_path(out) as partial:
            if format == "pth":
                _write_pth(weights, partial, dtype)
            else:
                shapes = parameter_shapes(weights.config)
                write_one_by_one(partial, shapes, lambda name: weights.read(name, dtype), dtype, NOTE)
        if weights.tokenizer is not None:
            with atomic_path(out.with_name(out.name + TOKENIZER_SUFFIX)) as partial:
                shutil.copyfile(weights.tokenizer, partial)
    return weights


def _write_pth(weights: Weights, path: Path, dtype: torch.dtype) -> None:
    config = weights.config
    v1 = (config.n_embd, config.value_rank)
    unread = dict(zip(UNREAD, ((1, 1, config.n_embd), v1, v1[::-1]), strict=True))
    tensors: dict[str, Tensor] = {}
    for name in parameter_shapes(config):
        tensors[name] = weights.read(name, dtype)
        if name == "blocks.0.att.a0":
            for full, shape in unread.items():
                given = full in weights.tensors.shapes
                tensors[full] = weights.read(full, dtype) if given else torch.zeros(shape, dtype=dtype)
    with open(path, "wb") as file:  # torch would write the name of a path into the file, and this one is made up
        torch.save(tensors, file)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------

HF_NAMES = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
HF_MODULES = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
HF_PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
HF_GATES = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}


def hf_name(name: str) -> str:
    """What transformers calls the parameter that BlinkDL calls `name`."""
    if name in HF_NAMES:
        return HF_NAMES[name]
    _, layer, module, *rest = name.split(".")
    if module == "att":
        if gate := re.fullmatch(r"([wavg])([012])", rest[0]):
            rest = [f"{gate[1]}_lora.lora.{HF_GATES[gate[2]]}"]
        else:
            rest[0] = HF_PROJECTIONS.get(rest[0], rest[0])
    return ".".join(["model.layers", layer, HF_MODULES[module], *rest])


def hf_tensor(name: str, tensor: Tensor) -> Tensor:
    """A parameter as it lies in a Hugging Face file: gates as a Linear's weights, vectors without leading ones."""
    last = name.rsplit(".", 1)[-1]
    if re.fullmatch(r"[wavg][12]", last):
        return tensor.t().contiguous()
    mixed = last.startswith("x_") and ".att." in name  # these alone are [1, 1, C] there too
    return tensor.flatten() if tensor.dim() == 3 and not mixed else tensor


class HuggingFaceTensors:
    """The tensors of a Hugging Face file of an RWKV-7, by BlinkDL's names and in his shapes."""

    def __init__(self, file: Tensors) -> None:
        self._file = file
        self.shapes: dict[str, tuple[int, ...]] = {}
        found = file.shapes
        if len(found.get("model.embeddings.weight", ())) != 2:
            raise UserError("The folder's model.safetensors is not of an RWKV-7: give one that was exported as hf.")
        layers = {int(name.split(".")[2]) for name in found if re.match(r"model\.layers\.\d+\.", name)}
        config = ModelConfig(n_layer=max(layers, default=0) + 1, n_embd=64)
        names = {hf_name(name): name for name in parameter_shapes(_with_vocabulary(config))}
        self._names: dict[str, str] = {}
        for theirs, shape in found.items():
            ours = names.get(theirs, theirs)
            last = ours.rsplit(".", 1)[-1]
            if re.fullmatch(r"[wavg][12]", last):
                shape = shape[::-1]
            elif theirs in names and len(shape) == 1 and not re.search(r"\.(weight|bias)$", ours):
                shape = (1, 1, *shape)
            self.shapes[ours], self._names[ours] = shape, theirs

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        theirs = self._names[name]
        if not re.fullmatch(r"[wavg][12]", name.rsplit(".", 1)[-1]):
            return self._file.read_into(out, theirs, start)
        whole = torch.empty(self._file.shapes[theirs], dtype=out.dtype)  # of low rank, so small
        self._file.read_into(whole.view(-1), theirs)
        out.copy_(whole.t().reshape(-1)[start : start + out.numel()])


def _with_vocabulary(config: ModelConfig) -> ModelConfig:
    return ModelConfig(n_layer=config.n_layer, n_embd=config.n_embd, vocab_size=1, channel_mix="x070")


def _write_folder(weights: Weights, out: Path, dtype: torch.dtype) -> None:
    names = {hf_name(name): name for name in parameter_shapes(weights.config)}

    def tensor(theirs: str) -> Tensor:
        return hf_tensor(names[theirs], weights.read(names[theirs], dtype))

    shapes = {
        theirs: tuple(hf_tensor(ours, torch.empty(weights.tensors.shapes[ours], device="meta")).shape)
        for theirs, ours in names.items()
    }
    codec = load_codec(weights.tokenizer) if weights.tokenizer is not None else None
    with atomic_folder(out) as partial:
        write_one_by_one(partial / "model.safetensors", shapes, tensor, dtype, NOTE)
        write_text(partial / "config.json", json.dumps(hf_config(weights.config, codec, dtype), indent=2) + "\n")
        for file, text in HF_MODULE_FILES.items():
            write_text(partial / file, text)
        if weights.tokenizer is not None:
            shutil.copyfile(weights.tokenizer, partial / TOKENIZER_SUFFIX[1:])


# So that AutoModelForCausalLM finds the model in the rwkv7-hf package; with fla imported it needs neither.
HF_MODULE_FILES = {
    "configuration_rwkv7.py": "from rwkv7_hf import RWKV7Config\n\n__all__ = ['RWKV7Config']\n",
    "modeling_rwkv7.py": (
        "from rwkv7_hf import RWKV7ForCausalLM, RWKV7Model\n\n__all__ = ['RWKV7ForCausalLM', 'RWKV7Model']\n"
    ),
}


def hf_config(model: ModelConfig, codec: Codec | None, dtype: torch.dtype) -> dict:
    """The config.json of an x070 model, for rwkv7-hf and for fla."""
    tokens = (
        {} if codec is None else {f"{kind}_token_id": getattr(codec, f"{kind}_id") for kind in ("pad", "bos", "eos")}
    )
    return {
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_rwkv7.RWKV7Config",
            "AutoModel": "modeling_rwkv7.RWKV7Model",
            "AutoModelForCausalLM": "modeling_rwkv7.RWKV7ForCausalLM",
        },
        "vocab_size": model.vocab_size,
        "hidden_size": model.n_embd,
        "hidden_ratio": model.dim_ffn / model.n_embd,
        "intermediate_size": model.dim_ffn,
        "num_hidden_layers": model.n_layer,
        "head_dim": model.head_size,
        "num_heads": model.n_head,
        "value_dim": [model.n_embd] * model.n_layer,
        "decay_low_rank_dim": model.decay_rank,
        "gate_low_rank_dim": model.gate_rank,
        "a_low_rank_dim": model.iclr_rank,
        "v_low_rank_dim": model.value_rank,
        "hidden_act": "sqrelu",
        "norm_eps": 1e-5,
        "norm_bias": True,
        "norm_first": True,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **tokens,
    }
