"""Tuning of a base model (`--tune`): select the trained parameters, identify the base, and merge both into one model.

`--tune state` trains one initial WKV state per layer. `--tune lora` trains low-rank adapters of the large matrices.
`--tune time,ln,...` trains some parts of the model itself. All other weights are frozen.

Notable choices:
- A checkpoint contains only the trained parameters and their moments. For initial states, these are a few MB.
- The base is identified by a hash of its frozen weights, rounded to bf16, and not by a hash of a file. A run and all
  files exported from it, in any format, therefore count as the same base.
- Initial states are parameters `blocks.L.att.time_state` [H, N, N] (value axis, key axis), the name and layout that
  other RWKV programs use. Every document of a batch starts from them, even a document that is cut from the middle of a
  piece, because a state encodes a style and not the beginning of a piece.
- The product B A of an adapter is added to the weight before a matrix product uses the weight. The fused sublayers and
  the decoder therefore run unchanged, with the same rounding as in full fine-tuning.

Sources: LoRA, arXiv 2106.09685; state tuning, BlinkDL's RWKV-LM and RWKV-PEFT.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_music.checkpoint.run_folder import BASE
from rwkv_music.checkpoint.tensors import UNREAD, Tensors, Weights, parameter_shapes, read_whole
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.errors import UserError, plural
from rwkv_music.files import read_json, write_text
from rwkv_music.model_v8 import RWKV

# ---- what trains -----------------------------------------------------------------------------------------------------


def part_of(name: str) -> set[str]:
    """Return the parts of the model to which parameter `name` belongs, as `--tune` names them.

    `ln_x` belongs to both "ln" and "time".
    """
    parts = {"ln"} if ".ln" in f".{name}" else set()
    if ".att." in name:
        parts.add("time")
    elif ".ffn." in name:
        parts.add("enn" if ".enn." in name else "ffn")
    elif name.startswith(("emb.", "head.")):
        parts.add(name.partition(".")[0])
    return parts


def is_frozen(name: str, tune: str) -> bool:
    """Return whether a run with `--tune TUNE` freezes parameter `name` of the base."""
    return tune != "all" and not part_of(name) & set(tune.split(","))


def freeze(model: RWKV, train: TrainConfig) -> None:
    """Set requires_grad of every parameter according to `train.tune`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name, train.tune))


def add_trained(model: RWKV, train: TrainConfig, seed: int) -> None:
    """Add the new parameters of `--tune state` or `--tune lora` to a model that is otherwise frozen.

    The added parameters do not change the output of the model before they are trained. Raises UserError if a required
    library is not installed.
    """
    if train.tune == "state":
        add_states(model)
    elif train.tune == "lora":
        from rwkv_music.checkpoint.adapters import add_adapters  # needs peft, an optional library

        torch.manual_seed(seed)  # so that the adapters do not depend on random numbers drawn earlier in the process
        add_adapters(model, train)


def add_states(model: RWKV) -> None:
    """Add a zero initial state to every layer, as parameters with the dtype and on the device of the model."""
    c, like = model.config, model.emb.weight
    for block in model.blocks:
        zeros = torch.zeros(c.n_head, c.head_size, c.head_size, dtype=like.dtype, device=like.device)
        block.att.time_state = nn.Parameter(zeros)


def set_states(model: RWKV, states: dict[str, Tensor], source: str | os.PathLike) -> None:
    """Use `states`, by parameter name, as the model's initial states.

    Raises UserError, which names `source`, if the states belong to a model of another shape.
    """
    c = model.config
    names = {f"blocks.{layer}.att.time_state" for layer in range(c.n_layer)}
    shape = (c.n_head, c.head_size, c.head_size)
    if states.keys() != names or any(tuple(state.shape) != shape for state in states.values()):
        raise UserError(
            f"{source} does not hold the states of a model of {plural(c.n_layer, 'layer')} x {c.n_embd}: "
            f"give a state that was tuned on this model."
        )
    add_states(model)
    for layer, block in enumerate(model.blocks):
        block.att.time_state.requires_grad_(False).copy_(states[f"blocks.{layer}.att.time_state"])


# ---- the base --------------------------------------------------------------------------------------------------------


class Base:
    """The frozen weights of a tuned run, read on demand.

    Args:
        weights: the opened base model. If it is a v7 and the tuned model is a v8, all DeepEmbed entries are 1.
        config: the shape of the tuned model.
        tune: as in TrainConfig, but not "all".
    """

    def __init__(self, weights: Weights, config: ModelConfig, tune: str) -> None:
        self.weights = weights
        self.shapes = {name: shape for name, shape in parameter_shapes(config).items() if is_frozen(name, tune)}

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """See `Tensors.read_into`. `name` is a frozen parameter. Raises UserError if the file is damaged."""
        if name not in self.weights.shapes and name.endswith(".enn.weight"):
            out.fill_(1.0)
        else:
            self.weights.read_into(out, name, start)

    def sha256(self) -> str:
        """Return the SHA-256 of the frozen weights, rounded to bf16, in the order of their names."""
        digest = hashlib.sha256()
        for name in sorted(self.shapes):
            rounded = read_whole(self, name, torch.bfloat16)
            digest.update(f"{name} {list(rounded.shape)}\n".encode())
            digest.update(rounded.view(-1).view(torch.int16).numpy())
        return digest.hexdigest()

    def check(self, expected: str, tuned: str | os.PathLike) -> None:
        """Raise UserError if these are not the frozen weights that the run `tuned` was trained on."""
        found = self.sha256()
        if found != expected:
            raise UserError(
                f"{self.weights.source} is not the base that {tuned} was tuned on (the SHA-256 of its weights is "
                f"{found[:12]}, not {expected[:12]}): name the base that it was tuned on."
            )


@dataclass(frozen=True)
class BaseNote:
    """The content of base.json."""

    init: str  # path of the base when the run started
    sha256: str  # see `Base.sha256`

    def write(self, folder: Path) -> None:
        write_text(folder / BASE, json.dumps(asdict(self)) + "\n")

    @staticmethod
    def read(folder: Path) -> "BaseNote":
        """Read the base.json of `folder`. Raises UserError if it is missing or damaged."""
        tree = read_json(folder / BASE, "restore it from a copy", {"init": str, "sha256": str})
        return BaseNote(tree["init"], tree["sha256"])


class TunedTensors:
    """All parameters of a tuned model: those of the base, with trained parts replaced and adapters merged.

    Initial states are not included: see `weights.tuned_states`. `trained` is the checkpoint of the tuned run.
    """

    def __init__(self, base: Base, trained: Tensors, model: ModelConfig, train: TrainConfig) -> None:
        self._base, self._trained, self._scale = base, trained, train.lora_alpha / train.lora_rank
        available = base.weights.shapes
        self.shapes = parameter_shapes(model) | {name: available[name] for name in UNREAD if name in available}

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        matrix = name.removesuffix(".weight")
        down, up = (f"{matrix}.lora_{side}.default.weight" for side in "AB")
        if name in self._trained.shapes:
            self._trained.read_into(out, name, start)
        elif down in self._trained.shapes:
            whole = read_whole(self._base, name)
            whole.addmm_(read_whole(self._trained, up), read_whole(self._trained, down), alpha=self._scale)
            out.copy_(whole.view(-1)[start : start + out.numel()])
        else:
            self._base.read_into(out, name, start)
