"""Tuning: a base whose weights stay as they are, and the little beside them that trains.

`--tune state` learns one initial state of the recurrence a layer, `--tune lora` low-rank adapters of the large
matrices, `--tune time,ln,...` some of the model's own parts. This module says what trains, knows a base when it sees
it, and puts both together again.

Notable choices:
- A checkpoint holds what trained and its optimizer's moments, nothing of the base: a few MB for a state. `base.json`
  beside them says where the base was and what its frozen weights hash to.
- The hash is of the weights, by name and rounded to bf16, not of a file: a run, and what was exported from it in any
  format, are the same base.
- The initial states are parameters `blocks.N.att.time_state` [H, N, N] (value axis, key axis), the name and the layout
  that RWKV's other trainers and players give them. Every document of a batch starts from them as the sampler cuts it,
  at a piece's beginning or in its middle: so a state tells of the style, not of how pieces begin.
- An adapter is part of the matrix it adapts: with B A added to the weight before the product, the fused halves and
  the player run as they are, in the rounding that full fine-tuning has too.

Sources: LoRA, arXiv 2106.09685; state tuning, BlinkDL's RWKV-LM and RWKV-PEFT.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_music.checkpoint.weights import UNREAD, Tensors, Weights, open_tensors, open_weights, parameter_shapes
from rwkv_music.config import ModelConfig, RunConfig, TrainConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path, write_text
from rwkv_music.model_v8 import RWKV

BASE = "base.json"  # of a tuned run and of each of its checkpoints


# ---- what trains -----------------------------------------------------------------------------------------------------


def part_of(name: str) -> set[str]:
    """The parts, as `--tune` names them, that the parameter `name` belongs to. The norm over the heads is of two."""
    parts = {"ln"} if ".ln" in f".{name}" else set()
    if ".att." in name:
        parts.add("time")
    elif ".ffn." in name:
        parts.add("enn" if ".enn." in name else "ffn")
    elif name.startswith(("emb.", "head.")):
        parts.add(name.partition(".")[0])
    return parts


def is_frozen(name: str, tune: str) -> bool:
    """Whether `tune` leaves the base's parameter `name` as it is."""
    return tune != "all" and not part_of(name) & set(tune.split(","))


def freeze(model: RWKV, train: TrainConfig) -> None:
    """Freeze what `train.tune` does not name."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name, train.tune))


def add_trained(model: RWKV, train: TrainConfig, seed: int) -> None:
    """Give a model with its base's weights, all frozen, what `train.tune` trains beside them; it changes nothing yet.

    Raises UserError if that needs what is not installed.
    """
    if train.tune == "state":
        add_states(model)
    elif train.tune == "lora":
        from rwkv_music.checkpoint.adapters import add_adapters

        torch.manual_seed(seed)  # the same adapters whether or not the weights were drawn here before
        add_adapters(model, train)


def add_states(model: RWKV) -> None:
    """Register an initial state a layer, zeros, in the model's dtype and on its device."""
    c, like = model.config, model.emb.weight
    for block in model.blocks:
        zeros = torch.zeros(c.n_head, c.head_size, c.head_size, dtype=like.dtype, device=like.device)
        block.att.time_state = nn.Parameter(zeros)


# ---- the base --------------------------------------------------------------------------------------------------------


class Base:
    """The weights that a tuned run leaves as they are, of which so far only names and shapes were read.

    Args:
        weights: where they are read from. A v7's may be the base of a v8: DeepEmbed's tables are then ones.
        config: the tuned model's shape.
        tune: as in TrainConfig, not "all".

    Attributes:
        shapes: of the frozen parameters, by the model's names.
    """

    def __init__(self, weights: Weights, config: ModelConfig, tune: str) -> None:
        self.weights = weights
        self.shapes = {name: shape for name, shape in parameter_shapes(config).items() if is_frozen(name, tune)}

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (1-D, any float dtype) with the elements of frozen parameter `name` from `start` on.

        Raises UserError if the file is damaged there.
        """
        if name not in self.weights.tensors.shapes and name.endswith(".enn.weight"):
            out.fill_(1.0)
        else:
            self.weights.read_into(out, name, start)

    def sha256(self) -> str:
        """What a base is known by: SHA-256 over its frozen weights in the order of their names, rounded to bf16."""
        digest = hashlib.sha256()
        for name in sorted(self.shapes):
            rounded = torch.empty(self.shapes[name], dtype=torch.bfloat16)
            self.read_into(rounded.view(-1), name)
            digest.update(f"{name} {list(rounded.shape)}\n".encode())
            digest.update(rounded.view(-1).view(torch.int16).numpy())
        return digest.hexdigest()

    def check(self, expected: str, tuned: str | os.PathLike) -> None:
        """Raises UserError if these are not the frozen weights that `tuned` was trained on."""
        found = self.sha256()
        if found != expected:
            raise UserError(
                f"{self.weights.source} is not the base that {tuned} was tuned on (its weights have another SHA-256, "
                f"{found[:12]}, not {expected[:12]}): name the base it was tuned on."
            )


@dataclass(frozen=True)
class BaseNote:
    """What base.json says: where the base was when the run started, and the SHA-256 of its frozen weights."""

    init: str
    sha256: str

    def write(self, folder: Path) -> None:
        write_text(folder / BASE, json.dumps(asdict(self)) + "\n")

    @staticmethod
    def read(folder: Path) -> "BaseNote":
        """Raises UserError if `folder` has no such file or a damaged one."""
        path = folder / BASE
        with explained(f"reading {path}"):
            text = path.read_text(encoding="utf-8")
        try:
            tree = json.loads(text)
            return BaseNote(str(tree["init"]), str(tree["sha256"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it from a copy.") from error


# ---- together again --------------------------------------------------------------------------------------------------


class TunedTensors:
    """All weights of a tuned model, by its own names: the base's, with what was trained in their place or in them.

    What lies beside them, the initial states, is left out: see `tuned_states`.

    Args:
        checkpoint: a tuned run's.
        trained: its tensors.

    Raises UserError if the base is not where it was, or is another.
    """

    def __init__(self, checkpoint: Path, trained: Tensors) -> None:
        config = RunConfig.load(checkpoint / "config.json")
        note = BaseNote.read(checkpoint)
        if not Path(note.init).exists():
            raise UserError(f"{checkpoint} was tuned on {note.init}, which is not there any more: bring it back.")
        self._base = Base(open_weights(note.init), config.model, config.train.tune)
        self._base.check(note.sha256, checkpoint)
        self._trained, self._scale = trained, config.train.lora_alpha / config.train.lora_rank
        theirs = self._base.weights.tensors.shapes
        self.shapes = parameter_shapes(config.model) | {name: theirs[name] for name in UNREAD if name in theirs}

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


def read_whole(tensors: Tensors | Base, name: str) -> Tensor:
    """A tensor, float32."""
    out = torch.empty(tensors.shapes[name])
    tensors.read_into(out.view(-1), name)
    return out


def refuse_a_state(checkpoint: Path) -> None:
    """Raises UserError for a checkpoint of a tuned state, where weights are asked for: it has none to give."""
    if RunConfig.load(checkpoint / "config.json").train.tune == "state":
        raise UserError(
            f"{checkpoint} holds an initial state, to be used with the weights of {BaseNote.read(checkpoint).init}: "
            f"give those here. `generate --state` takes the state, `export --format state` writes it."
        )


def tuned_states(path: str | os.PathLike, model: str | os.PathLike) -> dict[str, Tensor]:
    """The initial states at `path`, by their names, float32.

    Args:
        path: a state-tuned run, one of its checkpoints, or a file of nothing but states, which names no base.
        model: the weights that they are to be used with, anything that `open_weights` opens.

    Raises UserError for what holds no states, or those of another base.
    """
    from rwkv_music.checkpoint.reading import checkpoint_of, load_weights

    path = Path(path)
    if not path.is_dir():
        with explained(f"reading {path}"):
            file = open_tensors(path)
            return {name: read_whole(file, name) for name in file.shapes}
    checkpoint = checkpoint_of(path)
    config = RunConfig.load(checkpoint / "config.json")
    if config.train.tune != "state":
        raise UserError(f"{path} has tuned no state: give a run that was trained with --tune state.")
    Base(open_weights(model, verify=False), config.model, "state").check(BaseNote.read(checkpoint).sha256, path)
    return dict(load_weights(checkpoint))


def export_trained(run: str | os.PathLike, out: str | os.PathLike, format: str) -> BaseNote:
    """Write what a tuned run trained, alone, for other programs; whole or not at all. Returns what its base was.

    Args:
        run: the run, or one of its checkpoints.
        format: "state", a .pth of the initial states as RWKV-Runner reads it; "lora", a folder that peft loads.

    Raises UserError for a run that tuned something else, and for what cannot be read or written.
    """
    from rwkv_music.checkpoint.reading import checkpoint_of, load_weights

    checkpoint, out = checkpoint_of(run), Path(out)
    train = RunConfig.load(checkpoint / "config.json").train
    if train.tune != format:
        raise UserError(f"{run} was trained with --tune {train.tune}, so it has no {format}: drop --format {format}.")
    trained = dict(load_weights(checkpoint))
    with explained(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "state":
            with atomic_path(out) as partial, open(partial, "wb") as file:
                torch.save(trained, file)
        else:
            from rwkv_music.checkpoint.adapters import save_adapter

            save_adapter(trained, train, out)
    return BaseNote.read(checkpoint)


def take_states(model: RWKV, states: dict[str, Tensor], source: str | os.PathLike) -> None:
    """Make `states`, by the names of the initial states, those that `model` starts from.

    Raises UserError if they are of a model of another shape.
    """
    c = model.config
    wanted = {f"blocks.{layer}.att.time_state" for layer in range(c.n_layer)}
    shape = (c.n_head, c.head_size, c.head_size)
    if states.keys() != wanted or any(tuple(state.shape) != shape for state in states.values()):
        raise UserError(
            f"{source} does not hold the states of a model of {c.n_layer} layers x {c.n_embd}: "
            f"give a state that was tuned on this model."
        )
    add_states(model)
    for layer, block in enumerate(model.blocks):
        block.att.time_state.requires_grad_(False).copy_(states[f"blocks.{layer}.att.time_state"])
