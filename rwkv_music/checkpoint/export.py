"""Export of weights as a BlinkDL `.pth`, as a `.safetensors` with the same names, or as a folder for `transformers`.

The source is anything that `open_weights` opens. Tensors are converted one at a time, without a GPU or DeepSpeed.

Notable choices:
- The default dtype is bf16, as in published RWKV files. The fp32 master weights are rounded to bf16 only at export.
  Weights that were imported as bf16 and not trained are therefore exported unchanged.
- The output is deterministic: it does not depend on the number of ranks or the ZeRO stage of the run.
- A `.pth` includes v0, v1 and v2 of layer 0, because BlinkDL's trainer requires them. They are copied from the file
  with which the run started, or are zero if that file does not have them.

Source: BlinkDL's RWKV-LM (names, shapes, dtypes). The module `huggingface` defines the format for `transformers`.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from rwkv_music.checkpoint.huggingface import HF_MODULE_FILES, HF_WEIGHTS, hf_config, hf_name, hf_tensor
from rwkv_music.checkpoint.run_folder import TOKENIZER
from rwkv_music.checkpoint.safetensors_io import write_one_by_one
from rwkv_music.checkpoint.saved_tensors import load_weights
from rwkv_music.checkpoint.tensors import UNREAD, Weights, parameter_shapes
from rwkv_music.checkpoint.tuning import BaseNote
from rwkv_music.checkpoint.weights import checkpoint_of, open_weights, tokenizer_beside
from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path, output_folder, write_text
from rwkv_music.tokenizers.registry import load_codec

FORMATS = ("pth", "safetensors", "hf")
TUNED_FORMATS = ("state", "lora")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
METADATA = {"format": "pt"}  # transformers requires this entry in the header of a safetensors file


def export(
    source: str | os.PathLike, out: str | os.PathLike, format: str = "pth", dtype: torch.dtype = torch.bfloat16
) -> Weights:
    """Write the weights of `source` to `out` atomically, as a file or, for "hf", a folder. Return the exported weights.

    The tokenizer is written beside the weights, because the tokens have no meaning without it.
    Raises UserError if `source` cannot be opened, if `out` cannot be written, or if the format is "hf" and
    `transformers` does not support the model.
    """
    out = Path(out)
    weights = open_weights(source)
    if out.exists() and out.is_dir() != (format == "hf"):
        raise UserError(f"{out} is an existing {'file' if format == 'hf' else 'folder'}: choose another --out.")
    if format == "hf" and weights.config.channel_mix != "x070":
        raise UserError(
            f"{weights.source} is an RWKV v8, for which transformers has no model: export it as pth or safetensors."
        )
    if format == "hf" and weights.config.head_size != 64:
        raise UserError(
            f"{weights.source} has a head_size of {weights.config.head_size}, but the transformers model normalizes "
            f"heads correctly for 64 only: export it as pth or safetensors."
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
                write_one_by_one(partial, shapes, lambda name: weights.read(name, dtype), dtype, METADATA)
        if weights.tokenizer is not None:
            with atomic_path(tokenizer_beside(out)) as partial:
                shutil.copyfile(weights.tokenizer, partial)
    return weights


def export_trained(run: str | os.PathLike, out: str | os.PathLike, format: str) -> BaseNote:
    """Write only the trained parameters of `run`, a tuned run or checkpoint, atomically. Return the note on its base.

    The format "state" is a .pth of initial states, which RWKV-Runner reads. The format "lora" is a folder for peft.
    Raises UserError if the run was not trained with the `--tune` that `format` names, or if a file cannot be read or
    written.
    """
    checkpoint, out = checkpoint_of(run), Path(out)
    train = RunConfig.load(checkpoint / "config.json").train
    if train.tune != format:
        raise UserError(f"{run} was trained with --tune {train.tune}, so it has no {format}: drop --format {format}.")
    trained = load_weights(checkpoint)
    with explained(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "state":
            with atomic_path(out) as partial, open(partial, "wb") as file:
                torch.save(trained, file)
        else:
            from rwkv_music.checkpoint.adapters import save_adapter  # needs peft, an optional library

            save_adapter(trained, train, out)
    return BaseNote.read(checkpoint)


def _write_pth(weights: Weights, path: Path, dtype: torch.dtype) -> None:
    config = weights.config
    v1 = (config.n_embd, config.value_rank)
    unread = dict(zip(UNREAD, ((1, 1, config.n_embd), v1, v1[::-1]), strict=True))
    tensors: dict[str, Tensor] = {}
    for name in parameter_shapes(config):
        tensors[name] = weights.read(name, dtype)
        if name == "blocks.0.att.a0":  # in BlinkDL's files, the tensors in `UNREAD` follow this one
            for full, shape in unread.items():
                given = full in weights.shapes
                tensors[full] = weights.read(full, dtype) if given else torch.zeros(shape, dtype=dtype)
    with open(path, "wb") as file:  # if given a path, torch would store the name of the file, which is temporary here
        torch.save(tensors, file)


def _write_folder(weights: Weights, out: Path, dtype: torch.dtype) -> None:
    names = {hf_name(name): name for name in parameter_shapes(weights.config)}

    def tensor(theirs: str) -> Tensor:
        return hf_tensor(names[theirs], weights.read(names[theirs], dtype))

    shapes = {
        theirs: tuple(hf_tensor(ours, torch.empty(weights.shapes[ours], device="meta")).shape)
        for theirs, ours in names.items()
    }
    codec = load_codec(weights.tokenizer) if weights.tokenizer is not None else None
    with output_folder(out) as partial:
        write_one_by_one(partial / HF_WEIGHTS, shapes, tensor, dtype, METADATA)
        write_text(partial / "config.json", json.dumps(hf_config(weights.config, codec, dtype), indent=2) + "\n")
        for file, text in HF_MODULE_FILES.items():
            write_text(partial / file, text)
        if weights.tokenizer is not None:
            shutil.copyfile(weights.tokenizer, partial / TOKENIZER)
