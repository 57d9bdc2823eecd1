"""Configuration of a run: dataclasses for the model's shape, the data and the training.

Each field contains its own help text. The fields define the command line (`add_arguments`), config.json in the run
folder and TensorBoard's HParams tab. The only other configuration is the DeepSpeed JSON file.
"""

import argparse
import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from rwkv_music.errors import UserError
from rwkv_music.files import check_types, read_json, write_text

IGNORE_INDEX = -100  # target that the loss ignores, as in torch's cross_entropy
RECOMPUTE = ("none", "selective", "block")  # in order of increasing recomputation
PARTS = ("emb", "time", "ffn", "enn", "ln", "head")  # parts of the model that `--tune` can select
LORA_TARGETS = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")


LARGEST = 10**12  # default upper limit of a setting, so that no calculation overflows
LARGEST_SIZE = 2**20  # upper limit of widths and of the ranks of low-rank matrices
MOST_LAYERS = 2**10
MOST_BARS = 10_000  # in a completion or in an excerpt with holes
MOST_MINUTES = 366 * 24 * 60
LONGEST_NAME = 255  # maximum length of a file name in bytes
METAVARS = {int: "N", float: "X", str: "TEXT"}


def setting(
    default: Any, text: str, choices: tuple | None = None, metavar: str | None = None, repeatable: bool = False
) -> Any:
    """Declare a dataclass field. The help text `text` includes units but not the default value.

    The option of a `repeatable` field has a list as its value.
    """
    metadata = {"help": text, "choices": choices, "metavar": metavar, "repeatable": repeatable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model: RWKV v8, or v7 with --channel_mix x070."""

    n_layer: int = setting(12, "number of layers")
    n_embd: int = setting(768, "width C; a multiple of head_size")
    vocab_size: int = setting(0, "number of tokens in the vocabulary; 0: that of the dataset")
    head_size: int = setting(64, "width N of a head")
    dim_ffn: int = setting(0, "hidden width of channel mixing; 0: 4 C")
    channel_mix: str = setting(
        "x080", "version of channel mixing. x080: RWKV v8, with DeepEmbed; x070: RWKV v7, without it", ("x080", "x070")
    )
    decay_rank: int = setting(0, "rank of the decay gate w; 0: chosen by width")
    iclr_rank: int = setting(0, "rank of the in-context learning rate gate a; 0: chosen by width")
    value_rank: int = setting(0, "rank of the value residual gate v; 0: chosen by width")
    gate_rank: int = setting(0, "rank of the output gate g; 0: chosen by width")

    def __post_init__(self) -> None:
        _check(self, at_least={"n_layer": 1}, at_most=MOST_LAYERS)
        _check(self, at_least={"n_embd": 1, "head_size": 1}, at_most=LARGEST_SIZE)
        _check(self, at_least={"vocab_size": 0, "dim_ffn": 0}, at_most=16 * LARGEST_SIZE)
        ranks = {"decay_rank": 0, "iclr_rank": 0, "value_rank": 0, "gate_rank": 0}
        _check(self, at_least=ranks, at_most=LARGEST_SIZE)
        if self.n_embd % self.head_size:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of head_size {self.head_size}: choose a multiple.")
        # As in RWKV-LM's train_temp, ranks are proportional to the square root of the width, in steps of 32.
        defaults = {
            "dim_ffn": 4 * self.n_embd,
            "decay_rank": _rank(2.5, self.n_embd),
            "iclr_rank": _rank(2.5, self.n_embd),
            "value_rank": _rank(1.7, self.n_embd),
            "gate_rank": _rank(5.0, self.n_embd),
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_size


def _check(config: Any, at_least: dict[str, int], at_most: float = LARGEST, below: float = math.inf) -> None:
    for name, least in at_least.items():
        value = getattr(config, name)
        if not (least <= value <= at_most and value < below):  # true for NaN
            bound = f"a value from {least} to {at_most}" if at_most < LARGEST or value > at_most else f"{least} or more"
            bound = bound if below == math.inf else f"a value of at least {least} and less than {below}"
            raise UserError(f"{name} is {value}: choose {bound}.")


def _check_text(config: Any) -> None:
    """Raise UserError for file names that are too long to exist, and for text that is not UTF-8.

    TensorBoard cannot store text that is not UTF-8. Python represents the invalid bytes of a path by lone surrogates,
    which cannot be encoded as UTF-8.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for text in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            if text.encode(errors="replace").decode() != text:
                raise UserError(f"{field.name} is {ascii(text)}, which is not UTF-8: rename it or choose another.")
            if name_too_long(text):
                raise UserError(f"{field.name} has a name longer than {LONGEST_NAME} bytes: choose a shorter one.")


def name_too_long(path: str) -> bool:
    """Return whether a name in `path` is longer than file systems allow. `Path.exists` would raise OSError for it."""
    return max(map(len, os.fsencode(path).split(b"/"))) > LONGEST_NAME


def not_empty(text: str) -> str:
    """Return `text`; reject an empty argument, which often comes from an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def _check_words(name: str, value: str, known: tuple[str, ...], what: str) -> None:
    words = value.split(",")
    for word in words:
        if word not in known:
            raise UserError(f"{name} '{value}' has the unknown name '{word}': give {what} of {', '.join(known)}.")
        if words.count(word) > 1:
            raise UserError(f"{name} '{value}' repeats the name '{word}': give each name once.")


def _rank(factor: float, n_embd: int) -> int:
    return max(32, round(factor * n_embd**0.5 / 32) * 32)


PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 3, "n_embd": 128},
    "0.1b": {"n_layer": 12, "n_embd": 768},
    "0.4b": {"n_layer": 24, "n_embd": 1024},
    "1.5b": {"n_layer": 24, "n_embd": 2048},
    "7b": {"n_layer": 32, "n_embd": 4096},
}


# Former names of settings, accepted on command lines and in config.json files for one release.
RENAMED = {"carry": "tbptt"}


@dataclass(frozen=True)
class DataConfig:
    """The dataset, and how it is cut into batches."""

    data: str | dict = setting(  # a folder, or the weights of several folders
        "",
        "dataset folder, made by `python -m rwkv_music prepare`. Give this option several times, as DIR:WEIGHT or DIR "
        "(weight 1), to draw the rows from several datasets in proportion to their weights",
        metavar="DIR",
        repeatable=True,
    )
    ctx_len: int = setting(1024, "tokens per row")
    seed: int = setting(
        0,
        "seed of the order, augmentation and holes of the training rows, of newly initialized weights, and of the "
        "samples of --sample_every",
    )
    task: str = setting(
        "pretrain",
        "training task. pretrain: predict every next token; completion: predict only the bars that follow "
        "--context_bars bars; infill: predict an excerpt from which some bars and parts are removed, then the removed "
        "bars and parts (needs the tokenizer multitrack); mix: a mixture of the three, see --completion_weight and "
        "--infill_weight",
        ("pretrain", "completion", "infill", "mix"),
    )
    completion_weight: float = setting(
        0.5,
        "fraction of completion rows, for --task mix; rows that are neither completion nor infill rows are pretrain "
        "rows",
    )
    infill_weight: float = setting(0.0, "fraction of infill rows, for --task mix")
    infill_bars: int = setting(24, "maximum number of bars of an excerpt, for --task infill and mix")
    context_bars: int = setting(4, "given bars before a completion, for --task completion and mix")
    completion_bars: int = setting(4, "bars of a completion, which the model predicts, for --task completion and mix")
    augment: str = setting(
        "none",
        "random augmentation of the training data. transpose: key; all: key, loudness and tempo",
        ("none", "transpose", "all"),
    )
    tbptt: int = setting(
        0,
        "truncated backpropagation through time over persistent document streams. Each row reads whole pieces in "
        "order, and the recurrent state passes from one window of ctx_len tokens to the next. An optimizer step covers "
        "N windows, and gradients flow through all of them. 0: independent windows",
    )

    def __post_init__(self) -> None:
        _check_text(self)
        for folder, weight in self.weights.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (is_number and 0 < weight < math.inf):
                raise UserError(f"The weight of the dataset {folder} is {weight}: choose a positive number.")
        _check(self, at_least={"ctx_len": 1, "seed": 0, "context_bars": 1, "completion_bars": 1}, at_most=2**32)
        _check(self, at_least={"completion_weight": 0, "infill_weight": 0}, at_most=1)
        _check(self, at_least={"infill_bars": 2}, at_most=MOST_BARS)
        if self.task == "mix" and self.completion_weight + self.infill_weight > 1:
            raise UserError(
                f"completion_weight {self.completion_weight} and infill_weight {self.infill_weight} add up to more "
                "than 1: choose smaller ones."
            )
        _check(self, at_least={"tbptt": 0}, at_most=2**20)
        if self.tbptt and self.task != "pretrain":
            raise UserError(
                f"--tbptt reads whole pieces, but the rows of --task {self.task} are excerpts: drop one of the two."
            )
        if self.tbptt and len(self.weights) > 1:
            raise UserError(
                f"--tbptt reads the pieces of one dataset in order, but --data names {len(self.weights)} datasets: "
                f"drop --tbptt, or prepare all pieces as one dataset."
            )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each dataset folder, in the order of the command line."""
        return self.data if isinstance(self.data, dict) else {self.data: 1.0}

    @property
    def description(self) -> str:
        """The dataset folder, or all folders with their weights."""
        if isinstance(self.data, str):
            return self.data
        return ", ".join(f"{folder}:{weight:g}" for folder, weight in self.data.items())

    @property
    def infills(self) -> bool:
        """Whether some rows are excerpts with holes."""
        return self.task == "infill" or (self.task == "mix" and self.infill_weight > 0)


@dataclass(frozen=True)
class TrainConfig:
    """Training, checkpoints and logging."""

    out: str = setting("", "run folder; training resumes if it already holds a checkpoint", metavar="DIR")
    steps: int = setting(1000, "total number of optimizer steps")
    batch_size: int = setting(16, "rows per optimizer step, over all ranks and accumulation steps")
    micro_batch_size: int = setting(0, "rows per forward pass of one rank; 0: batch_size / ranks")
    context_parallel: int = setting(
        1,
        "context parallelism: N consecutive ranks divide the tokens of each micro-batch evenly, so rows can be N times "
        "as long. The number of ranks must be a multiple of N. For micro_batch_size, N ranks count as one",
    )
    optimizer: str = setting(
        "adamw",
        "optimizer. adamw: AdamW for all parameters; muon: Muon for the large matrices of the blocks, AdamW for all "
        "others, with the same learning rate and weight decay",
        ("adamw", "muon"),
    )
    lr: float = setting(6e-4, "peak learning rate")
    lr_final: float = setting(6e-5, "learning rate at the last step")
    warmup_steps: int = setting(100, "optimizer steps of linear warm-up")
    schedule: str = setting(
        "cosine",
        "learning rate schedule after the warm-up. cosine: cosine decay; wsd: constant, then decay",
        ("cosine", "wsd"),
    )
    decay_fraction: float = setting(
        0.2, "fraction of the run, at its end, in which the learning rate decays, for --schedule wsd"
    )
    weight_decay: float = setting(0.001, "weight decay of the large matrices")
    beta1: float = setting(0.9, "AdamW beta1")
    beta2: float = setting(0.99, "AdamW beta2")
    adam_eps: float = setting(1e-18, "AdamW epsilon")
    recompute: str = setting(
        "auto",
        "activation checkpointing: the activations that the backward pass recomputes to save memory. none: only cheap "
        "element-wise ones; selective: also the hidden layer of channel mixing; block: all except the block inputs; "
        "auto: the first of these whose estimated memory fits the GPU",
        ("auto", *RECOMPUTE),
    )
    fast: str = setting(
        "auto",
        "faster replacements for DeepSpeed's internals. auto: used if the installed DeepSpeed is the tested version, "
        "unmodified; off: not used",
        ("auto", "off"),
    )
    grad_clip: float = setting(1.0, "maximum gradient norm; 0: no clipping")
    stop_after: int = setting(
        0, "save and stop after this step; the learning-rate schedule is unchanged; 0: run to the end"
    )
    log_every: int = setting(10, "optimizer steps between points of the training curves")
    val_every: int = setting(200, "optimizer steps between validations; the last step is also validated; 0: none")
    val_rows: int = setting(0, "rows per validation of a dataset; 0: the whole validation split")
    patience: int = setting(
        0, "end the run when the last N validations have not lowered the best validation loss; 0: never"
    )
    save_every: int = setting(
        500,
        "optimizer steps between checkpoints; 0: no such checkpoints. A checkpoint is always saved after the last "
        "step and after each new lowest validation loss",
    )
    save_minutes: float = setting(
        0.0, "also save a checkpoint when the last one is X minutes old; 0: no such checkpoints"
    )
    save_mode: str = setting(
        "overlapped",
        "mode of writing checkpoints. overlapped: while training continues, from a copy that each rank makes in host "
        "memory. The copy takes 12 bytes per parameter of the rank's optimizer, or 8 bytes per parameter that Muon "
        "updates. blocking: while training waits, without a copy",
        ("overlapped", "blocking"),
    )
    keep: int = setting(
        0,
        "number of newest checkpoints to keep; older ones are deleted, except the one with the lowest validation loss; "
        "0: keep all",
    )
    elastic: int = setting(
        0,
        "smallest number of nodes with which a run continues after the loss of a node; needs launch/slurm.sh or "
        "launch/workstation.sh. The rows of a step are divided among the remaining ranks as evenly as possible. "
        "0: stop if a node is lost",
    )
    hang_minutes: float = setting(
        30.0,
        "minutes that a rank may spend in one phase of a step (reading, computing, saving). After this time the run "
        "prints stack traces and exits. 0: no limit",
    )
    max_skipped_steps: int = setting(
        10, "largest number of consecutive steps skipped because of non-finite gradients; one more ends the run"
    )
    on_spike: str = setting(
        "ignore",
        "reaction to a loss spike. ignore: continue; rollback: return to the last checkpoint before the spike and "
        "continue with other rows",
        ("ignore", "rollback"),
    )
    profile: int = setting(
        0,
        "number of optimizer steps to trace, after ten other steps; the trace is written to RUN/profile, for Perfetto "
        "or chrome://tracing; 0: none",
    )
    sample_every: int = setting(
        0,
        "optimizer steps between samples (a completion and, if trained to fill in, a fill); the last step is also "
        "sampled; 0: none",
    )
    sample_context_bars: int = setting(4, "given bars of a sampled completion")
    sample_bars: int = setting(8, "generated bars of a sampled completion")
    init: str = setting(
        "",
        "initial weights: a .pth (BlinkDL's RWKV), a .safetensors, an exported hf folder, a run or a checkpoint. When "
        "a run resumes, it reads this path again only if the run is tuned",
        metavar="PATH",
    )
    tune: str = setting(
        "all",
        "what to train; every choice except `all` requires --init. all: every weight; state: one initial state per "
        f"layer; lora: low-rank adapters; or a comma-separated list of parts of the model: {','.join(PARTS)}",
        metavar="WHAT",
    )
    lora_rank: int = setting(16, "rank of the adapters, for --tune lora")
    lora_alpha: float = setting(
        32.0, "scale of the adapters, which are multiplied by lora_alpha / lora_rank, for --tune lora"
    )
    lora_targets: str = setting(
        ",".join(LORA_TARGETS),
        f"matrices that get an adapter, for --tune lora: a comma-separated list of {','.join(LORA_TARGETS)}",
        metavar="LIST",
    )
    log: str = setting(
        "tensorboard",
        "destination of the curves. tensorboard: event files in the run folder; wandb: also Weights & Biases",
        ("tensorboard", "wandb"),
    )
    resume: str = setting(
        "auto",
        "where to start. auto: from the newest valid checkpoint in the run folder, if any; none: from scratch; or the "
        "path of a checkpoint to start from, if the run folder has no checkpoints",
        metavar="FROM",
    )

    def __post_init__(self) -> None:
        _check_text(self)
        _check(self, at_least={"steps": 1, "batch_size": 1, "micro_batch_size": 0, "warmup_steps": 0, "log_every": 1})
        _check(
            self,
            at_least={
                "val_every": 0,
                "save_every": 0,
                "sample_every": 0,
                "stop_after": 0,
                "val_rows": 0,
                "profile": 0,
                "patience": 0,
            },
        )
        _check(self, at_least={"sample_context_bars": 1, "sample_bars": 1}, at_most=MOST_BARS)
        _check(self, at_least={"grad_clip": 0, "weight_decay": 0})
        _check(self, at_least={"keep": 0, "max_skipped_steps": 0, "elastic": 0})
        _check(self, at_least={"context_parallel": 1}, at_most=2**20)
        _check(self, at_least={"save_minutes": 0, "hang_minutes": 0}, at_most=MOST_MINUTES)
        _check(self, at_least={"lr": 0, "lr_final": 0, "adam_eps": 0})
        _check(self, at_least={"decay_fraction": 0}, at_most=1)
        _check(self, at_least={"beta1": 0, "beta2": 0}, below=1)
        _check(self, at_least={"lora_rank": 1}, at_most=LARGEST_SIZE)
        _check(self, at_least={"lora_alpha": 0})
        if self.tune not in ("all", "state", "lora"):
            _check_words("tune", self.tune, PARTS, "all, state, lora, or a list")
        if self.optimizer == "muon" and not {"all", "time", "ffn"} & set(self.tune.split(",")):
            raise UserError(
                f"--optimizer muon updates the large matrices of the blocks, none of which --tune {self.tune} trains: "
                f"use --optimizer adamw."
            )
        _check_words("lora_targets", self.lora_targets, LORA_TARGETS, "a list")


@dataclass(frozen=True)
class RunConfig:
    """The complete configuration of a run, stored as config.json."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig

    def save(self, path: str | Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: str | Path) -> "RunConfig":
        """Read a config.json of this version or an earlier one. Raises UserError if it is missing or damaged."""
        path = Path(path)
        if not path.exists():
            raise UserError(f"There is no {path.name} in {path.parent}: give a run folder made by train.py.")
        remedy = "restore it or start a new run"
        sections = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
        tree = read_json(path, remedy, dict.fromkeys(sections, dict))
        tree["data"] = {RENAMED.get(name, name): value for name, value in tree["data"].items()}
        try:
            for section, config in sections.items():
                types = get_type_hints(config)
                known = {name: types[name] for name in tree[section] if name in types}
                check_types(tree[section], known, f"{section}.")
            return RunConfig(**{section: config(**tree[section]) for section, config in sections.items()})
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path} cannot be read ({error}): {remedy}.") from error
        except UserError as error:  # a value out of range
            raise UserError(f"{path} is damaged: {error}") from error


def add_arguments(
    parser: argparse.ArgumentParser,
    config: type,
    skip: tuple[str, ...] = (),  # fields without an option
    required: tuple[str, ...] = (),  # fields whose option is required
    defaults: dict[str, str] | None = None,  # descriptions of defaults that differ from the dataclass's, by field
) -> None:
    """Add an option `--name` for each field of a dataclass. Options not given are absent from the namespace."""
    group = parser.add_argument_group(config.__doc__.splitlines()[0].rstrip("."))
    types = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        default = (defaults or {}).get(field.name, field.default)
        text = field.metadata["help"] + (f" (default: {default})" if default != "" else "")
        choices, type_ = field.metadata["choices"], types[field.name]
        former = {f"--{old}": argparse.SUPPRESS for old, new in RENAMED.items() if new == field.name}
        for flag, help_text in {f"--{field.name}": text, **former}.items():
            group.add_argument(
                flag,
                dest=field.name,
                action="append" if field.metadata["repeatable"] else "store",
                type=type_ if type_ in (int, float) else not_empty,
                choices=choices,
                required=field.name in required,
                default=argparse.SUPPRESS,
                help=help_text,
                metavar=None if choices else field.metadata["metavar"] or METAVARS[type_],
            )


def from_arguments(config: type, arguments: argparse.Namespace, **defaults: Any) -> Any:
    """Build a `config`. Options that were given override `defaults`, which override the dataclass's own defaults."""
    names = {field.name for field in dataclasses.fields(config)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return config(**{**defaults, **given})
