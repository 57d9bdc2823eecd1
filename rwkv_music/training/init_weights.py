"""Initial weights that come from a file or from another run.

Each rank reads its slices of the file into its own fp32 master weights. In two cases, some parameters are not taken
from the file. If the file's vocabulary or tokenizer differs from the data's, emb and head are initialized anew, and
DeepEmbed's tables are set to ones. If the file contains a v7 model and the run trains a v8 model, only DeepEmbed's
tables are set to ones.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from rwkv_music.checkpoint.tensors import Weights, parameter_shapes
from rwkv_music.checkpoint.tuning import Base
from rwkv_music.checkpoint.weights import open_weights
from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.registry import load_codec


def shape_of_init(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the ModelConfig fields of the weights at `path`. Raises UserError if a flag requests another shape."""
    weights = open_weights(path, verify=False)
    shape = dataclasses.asdict(weights.config) | {"vocab_size": 0}  # the vocabulary is the dataset's
    requested = {name: value for name, value in vars(arguments).items() if name in shape}
    flags = {name: f"--{name}" for name in requested}
    if arguments.preset:
        flags = dict.fromkeys(PRESETS[arguments.preset], f"--preset {arguments.preset}") | flags
        requested = PRESETS[arguments.preset] | requested
    for name, value in requested.items():
        if name == "channel_mix" and value == "x080":  # a v7 can become a v8: factors of 1 do not change the output
            continue
        if value != shape[name]:
            raise UserError(f"{weights.source} has {name} {shape[name]}, not {value}: drop {flags[name]}.")
    return shape


@dataclass(frozen=True)
class InitialWeights:
    """Weights that a run starts from."""

    weights: Weights
    fresh: frozenset[str]  # parameters of the run's model that `weights` does not provide
    note: str  # a clause that explains `fresh` to the user; "" if `fresh` is empty


def open_initial(path: str, config: ModelConfig, fingerprint: str) -> InitialWeights:
    """Open the weights at `path` for a model of `config`. `fingerprint` identifies the data's tokenizer."""
    weights = open_weights(path, verify=False)  # the ranks share the verification of a checkpoint
    names = parameter_shapes(config)
    tables = [name for name in names if name in ("emb.weight", "head.weight") or name.endswith(".enn.weight")]
    fresh, note = [], ""
    if weights.config.vocab_size != config.vocab_size:
        fresh = tables
        note = f"its vocabulary has {weights.config.vocab_size:,} tokens and the data's {config.vocab_size:,}"
    elif weights.tokenizer is not None and load_codec(weights.tokenizer).fingerprint != fingerprint:
        fresh, note = tables, "its tokenizer is not the data's"
    if fresh:
        new = "emb, head and enn" if config.channel_mix == "x080" else "emb and head"
        note = f"{new} are initialized anew because {note}"
    elif weights.config.channel_mix != config.channel_mix:
        fresh = [name for name in names if name.endswith(".enn.weight")]
        note = "enn is initialized to ones because the weights are those of a v7 model"
    return InitialWeights(weights, frozenset(fresh), note)


def open_base(initial: InitialWeights, config: ModelConfig, tune: str) -> Base:
    """Return the weights of `initial` that a tuned run freezes. Raises UserError if any of them would be random."""
    base = Base(initial.weights, config, tune)
    fresh = [name for name in base.shapes if name in initial.fresh]
    if any(name in initial.weights.tensors.shapes for name in fresh):
        raise UserError(
            f"{initial.weights.source} has no {', '.join(fresh[:3])} for this data ({initial.note}), and --tune {tune} "
            f"would leave them random: tune emb,head,enn as well, or prepare the data with the base's tokenizer."
        )
    return base
