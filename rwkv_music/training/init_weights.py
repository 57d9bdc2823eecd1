"""What a run begins with: the model on this rank before its first step, from nothing, a file or a checkpoint.

A model is made without memory first, and its parts get theirs one after the other. Under ZeRO-3 each part is shared out
among the ranks before the next one is made, so that no rank ever holds the whole model; what comes from a file is then
read by each rank into its own fp32 master weights, slice by slice.

Notable choices:
- Random weights are drawn part by part in one order under every stage: the stage changes nothing about them.
- What a file has no answer for is fresh: the tables of another vocabulary, and DeepEmbed's ones for a v7 file.
"""

import argparse
import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

from rwkv_music.checkpoint.tensors import Weights, parameter_shapes
from rwkv_music.checkpoint.tuning import Base
from rwkv_music.checkpoint.weights import open_weights
from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.errors import SharedError, UserError
from rwkv_music.model_v8 import RWKV, Block
from rwkv_music.tokenizers.registry import load_codec
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams
from rwkv_music.training.loading import damaged_files

if TYPE_CHECKING:  # the command line asks for a file's shape before DeepSpeed is there
    import deepspeed

    from rwkv_music.training.deepspeed_engine.engine import Plan


def shape_of_init(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the ModelConfig of the weights at `path`, but for the vocabulary, which is the dataset's.

    Raises UserError for weights that cannot be opened, and for a flag that asks for another shape.
    """
    weights = open_weights(path, verify=False)
    shape = dataclasses.asdict(weights.config) | {"vocab_size": 0}
    asked = {name: value for name, value in vars(arguments).items() if name in shape}
    flags = {name: f"--{name}" for name in asked}
    if arguments.preset:
        flags = dict.fromkeys(PRESETS[arguments.preset], f"--preset {arguments.preset}") | flags
        asked = PRESETS[arguments.preset] | asked
    for name, value in asked.items():
        if name == "channel_mix" and value == "x080":  # with DeepEmbed at one a v7 computes what it did
            continue
        if value != shape[name]:
            raise UserError(f"{weights.source} has {name} {shape[name]}, not {value}: drop {flags[name]}.")
    return shape


@dataclass(frozen=True)
class Initial:
    """Weights that a run begins with.

    Attributes:
        weights: where they are read from.
        fresh: the parameters of the run's model that they have no answer for.
        told: what a user should know of `fresh`; "" if there is none.
    """

    weights: Weights
    fresh: frozenset[str]
    told: str

    def verify(self) -> None:
        """Raise UserError, on all ranks the same, if the weights are a checkpoint's and not as they were written."""
        if self.weights.step is not None and (wrong := damaged_files(self.weights.source)):
            raise SharedError(f"{self.weights.source} is damaged ({wrong}): name another with --init.")

    def fill(self, engine: "deepspeed.DeepSpeedEngine") -> None:
        """Set the master weights that this rank holds, and the engine's weights by them; every rank calls it.

        Raises UserError, on all ranks the same, if the file is damaged.
        """
        from rwkv_music.training.deepspeed_engine import zero_shards

        def read() -> None:
            masters = zero_shards.master_partitions(engine)
            for piece in zero_shards.pieces(engine):
                values = piece.of(masters[piece.partition]).view(-1)
                if piece.name.endswith(".enn.weight") and piece.name in self.fresh:
                    values.fill_(1.0)
                elif piece.name in self.weights.tensors.shapes and piece.name not in self.fresh:
                    self.weights.read_into(values, piece.name, piece.start)

        raise_on_any_rank(f"reading {self.weights.source}", read)
        zero_shards.weights_from_masters(engine)


def open_base(initial: Initial, config: ModelConfig, tune: str) -> Base:
    """What a tuned run leaves of `initial` as it is. Raises UserError where that would be weights drawn at random."""
    base = Base(initial.weights, config, tune)
    fresh = [name for name in base.shapes if name in initial.fresh]
    if any(name in initial.weights.tensors.shapes for name in fresh):
        raise UserError(
            f"{initial.weights.source} has no {', '.join(fresh[:3])} for this data ({initial.told}), and --tune {tune} "
            f"would leave them random: tune emb,head,enn and what else is to learn, or prepare the data with the "
            f"base's tokenizer."
        )
    return base


def fill_frozen(engine: "deepspeed.DeepSpeedEngine", base: Base) -> None:
    """Set what this rank holds of the frozen weights. Before the master weights are set: that makes all known to all.

    Raises UserError, on all ranks the same, if the file is damaged.
    """
    module = engine.module.model if isinstance(engine.module, FlatParams) else engine.module

    def read() -> None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                continue
            values, start = parameter.data.view(-1), 0
            if hasattr(parameter, "ds_id"):  # ZeRO-3 has shared it out
                share = parameter.partition_numel()
                start = share * dist.get_rank(parameter.ds_process_group)
                values = parameter.ds_tensor.data.view(-1)[: max(0, min(share, parameter.ds_numel - start))]
            if len(values):
                base.read_into(values, name.replace(".base_layer.", "."), start)

    raise_on_any_rank(f"reading {base.weights.source}", read)


def open_initial(path: str, config: ModelConfig, fingerprint: str) -> Initial:
    """The weights at `path` for a model of `config`, on data of the codec with that `fingerprint`.

    Raises UserError for weights that cannot be opened.
    """
    weights = open_weights(path, verify=False)  # the ranks share the work of verifying a checkpoint
    names = parameter_shapes(config)
    tables = [name for name in names if name in ("emb.weight", "head.weight") or name.endswith(".enn.weight")]
    fresh, told = [], ""
    if weights.config.vocab_size != config.vocab_size:
        fresh = tables
        told = f"its vocabulary is {weights.config.vocab_size:,} tokens and the data's {config.vocab_size:,}"
    elif weights.tokenizer is not None and load_codec(weights.tokenizer).fingerprint != fingerprint:
        fresh, told = tables, "its tokens have other meanings than the data's"
    if fresh:
        told = f"fresh {'emb, head and enn' if config.channel_mix == 'x080' else 'emb and head'}, as {told}"
    elif weights.config.channel_mix != config.channel_mix:
        fresh = [name for name in names if name.endswith(".enn.weight")]
        told = "enn all ones, as it is a v7"
    return Initial(weights, frozenset(fresh), told)


def allocate(model: RWKV, device: torch.device, plan: "Plan", fresh: frozenset[str] | None = None) -> None:
    """Give a model that was made on the meta device its memory on `device`; under ZeRO-3 this rank's share of it.

    Every rank calls it, with torch's random state alike. Under ZeRO-3 blocks of which all trains get `Zero3FlatParams`.

    Args:
        fresh: the parameters that nothing will be read into; None for all. Those that are drawn at random are drawn
            here, what will be read is zero until then.
    """
    deepspeed_config = plan.deepspeed
    zero = deepspeed_config["zero_optimization"]
    share = zero["stage"] == 3
    flat = None
    quantised = zero.get("zero_quantized_weights") or zero.get("zero_quantized_gradients")
    if share and not quantised and all(p.requires_grad for p in model.parameters()):
        flat = model.zero3_flat_params = Zero3FlatParams(model, model.parameter_groups(plan.train.weight_decay))
    bf16 = deepspeed_config.get("bf16", {}).get("enabled", False)
    tables = {model.emb: "emb.weight", model.head: "head.weight"}
    first = None  # of the parameters that are shared out; it knows how the others are to be
    for part in model.parts():
        drawn = fresh is None or tables.get(part) in fresh
        if share and bf16 and not drawn:
            part.bfloat16()
        part.to_empty(device=device)
        if drawn:
            with flat.viewed(part) if flat is not None and isinstance(part, Block) else nullcontext():
                model.init_part(part)
        else:
            for parameter in part.parameters():
                parameter.data.zero_()
        if share and bf16:
            part.bfloat16()
        if share:
            first = _share_out(part, deepspeed_config, first)


def _share_out(
    part: torch.nn.Module, deepspeed_config: dict[str, Any], first: torch.nn.Parameter | None
) -> torch.nn.Parameter:
    """Leave this rank its share of the parameters of `part`, which are of the type that the engine computes with."""
    import deepspeed

    if first is None:
        deepspeed.zero.Init(module=part, config_dict_or_path=deepspeed_config)
        return next(part.parameters())
    first.convert_to_zero_parameters(param_list=list(part.parameters()))
    return first
