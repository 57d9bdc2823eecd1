"""Every setting of a run, as three dataclasses: the model's shape, the data's cut, the training's course.

A field's metadata is its help text; the command line is made from the fields (`add_arguments`), the summary prints
them, and a run folder keeps them as config.json. Nothing else configures a run but the DeepSpeed file.
"""

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from rwkv_music.errors import UserError
from rwkv_music.files import write_text

# Parts of the model by the names that `--tune` has for them.
IGNORE_INDEX = -100  # target that no loss counts, as in torch's cross_entropy
RECOMPUTE = ("none", "selective", "block")  # from the least to the most
PARTS = ("emb", "time", "ffn", "enn", "ln", "head")
LORA_TARGETS = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")


def setting(default: Any, text: str, choices: tuple | None = None) -> Any:
    """A dataclass field with a default, a line of help (units included), and its choices if there are only some."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an RWKV v8 (or, with `channel_mix="x070"`, v7) model."""

    n_layer: int = setting(12, "layers")
    n_embd: int = setting(768, "width C, a multiple of head_size")
    vocab_size: int = setting(0, "tokens in the vocabulary; the dataset's own when left 0")
    head_size: int = setting(64, "width of a head N")
    dim_ffn: int = setting(0, "width inside channel mixing; 4 C when left 0")
    channel_mix: str = setting("x080", "x080: v8 with DeepEmbed; x070: v7, without it", ("x080", "x070"))
    decay_rank: int = setting(0, "rank of the decay gate w; from the width when left 0")
    iclr_rank: int = setting(0, "rank of the in-context learning rate gate a; from the width when left 0")
    value_rank: int = setting(0, "rank of the value residual gate v; from the width when left 0")
    gate_rank: int = setting(0, "rank of the output gate g; from the width when left 0")

    def __post_init__(self) -> None:
        _check(self, at_least={"n_layer": 1, "n_embd": 1, "head_size": 1, "vocab_size": 0, "dim_ffn": 0})
        _check(self, at_least={"decay_rank": 0, "iclr_rank": 0, "value_rank": 0, "gate_rank": 0})
        if self.n_embd % self.head_size:
            raise UserError(
                f"n_embd {self.n_embd} is not a multiple of head_size {self.head_size}: choose a width that is."
            )
        # The ranks that RWKV-LM's train_temp suggests: proportional to the root of the width, in steps of 32.
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


def _check(config: Any, at_least: dict[str, int], at_most: float = math.inf, below: float = math.inf) -> None:
    for name, least in at_least.items():
        value = getattr(config, name)
        if not (least <= value <= at_most and value < below and math.isfinite(value)):
            bound = f"{least} or more" if at_most == math.inf else f"one from {least} to {at_most}"
            bound = bound if below == math.inf else f"one from {least} to below {below}"
            raise UserError(f"{name} is {value}: choose {bound}.")


def _check_words(name: str, value: str, known: tuple[str, ...], what: str) -> None:
    words = value.split(",")
    if wrong := [word for word in words if word not in known] or [w for w in words if words.count(w) > 1]:
        raise UserError(f"{name} has '{wrong[0]}' in '{value}': give {what}, each once, of {', '.join(known)}.")


def _rank(factor: float, n_embd: int) -> int:
    return max(32, round(factor * n_embd**0.5 / 32) * 32)


PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 3, "n_embd": 128},
    "0.1b": {"n_layer": 12, "n_embd": 768},
    "0.4b": {"n_layer": 24, "n_embd": 1024},
    "1.5b": {"n_layer": 24, "n_embd": 2048},
    "7b": {"n_layer": 32, "n_embd": 4096},
}


# Former names of settings, which command lines and config.json files may still use for one release.
RENAMED = {"carry": "tbptt"}


@dataclass(frozen=True)
class DataConfig:
    """Which tokens, and how they are cut into batches."""

    data: str = setting("", "dataset folder made by `python -m rwkv_music prepare`")
    ctx_len: int = setting(1024, "tokens in a row")
    seed: int = setting(0, "seed of the shuffle, the weights and the samples")
    task: str = setting(
        "pretrain",
        "what a row asks. pretrain: every next token; completion: some bars from those before them, the loss counting "
        "on them alone; mix: both",
        ("pretrain", "completion", "mix"),
    )
    completion_weight: float = setting(0.5, "mix: fraction of the rows that are completions")
    context_bars: int = setting(4, "completion, mix: bars given")
    completion_bars: int = setting(4, "completion, mix: bars to complete")
    augment: str = setting(
        "none",
        "variations of the training data. transpose: into another key; all: in loudness and tempo too",
        ("none", "transpose", "all"),
    )
    tbptt: int = setting(
        0,
        "read pieces whole and in order, states carried from window to window of ctx_len tokens; gradients are cut "
        "every this many windows, which make one step; 0 for windows by themselves",
    )

    def __post_init__(self) -> None:
        _check(self, at_least={"ctx_len": 1, "seed": 0, "context_bars": 1, "completion_bars": 1}, at_most=2**32)
        _check(self, at_least={"completion_weight": 0}, at_most=1)
        _check(self, at_least={"tbptt": 0}, at_most=2**20)
        if self.tbptt and self.task != "pretrain":
            raise UserError(
                f"--tbptt reads whole pieces, but the rows of --task {self.task} are parts of them: "
                f"leave one of the two out."
            )


@dataclass(frozen=True)
class TrainConfig:
    """The course of a run."""

    out: str = setting("", "run folder: config.json, checkpoints, TensorBoard event files, samples")
    steps: int = setting(1000, "optimizer steps in all")
    batch_size: int = setting(16, "rows in an optimizer step, over all ranks and accumulation")
    micro_batch_size: int = setting(0, "rows a rank takes at once; batch_size / ranks when left 0")
    lr: float = setting(6e-4, "highest learning rate")
    lr_final: float = setting(6e-5, "learning rate at the last step")
    warmup_steps: int = setting(100, "optimizer steps of linear warm-up")
    schedule: str = setting("cosine", "cosine, or wsd: warm-up, stable, then decay", ("cosine", "wsd"))
    decay_fraction: float = setting(0.2, "wsd: fraction of the steps that decays")
    weight_decay: float = setting(0.001, "AdamW's decay, on the large matrices alone")
    beta1: float = setting(0.9, "AdamW's beta1")
    beta2: float = setting(0.99, "AdamW's beta2")
    adam_eps: float = setting(1e-18, "AdamW's epsilon")
    recompute: str = setting(
        "auto",
        "what the backward pass computes again to save memory. none: only what is cheap; selective: the wide inside "
        "of channel mixing too; block: all of a block but its input; auto: the least of these that fits into the GPU, "
        "by estimate",
        ("auto", *RECOMPUTE),
    )
    fast: str = setting(
        "auto",
        "auto: use faster replacements of DeepSpeed internals if the installed DeepSpeed is the tested version; off: use "
        "DeepSpeed's own code paths only",
        ("auto", "off"),
    )
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 for none")
    stop_after: int = setting(0, "stop here with a checkpoint, the schedule unchanged; 0 for at the end")
    log_every: int = setting(10, "optimizer steps between two points of the training curves")
    val_every: int = setting(200, "optimizer steps between two validations; 0 for none")
    val_rows: int = setting(0, "rows in a validation; the whole split when left 0")
    save_every: int = setting(
        500, "optimizer steps between two checkpoints; the last step is always saved, 0 for it alone"
    )
    save_minutes: float = setting(0.0, "minutes after which a checkpoint is due as well; 0 for by steps alone")
    save_mode: str = setting(
        "overlapped",
        "overlapped: a copy in the host's memory, 12 bytes for each parameter that a rank's optimizer holds, is "
        "written while the training goes on; blocking: no copy, the training waits",
        ("overlapped", "blocking"),
    )
    keep: int = setting(0, "checkpoints to keep, the newest; older ones are deleted; 0 for all")
    elastic: int = setting(
        0,
        "fewest machines to go on with when others are lost, until they return (launch/*.sh); the rows of a step are "
        "then shared out as evenly as they go; 0 for all or none",
    )
    hang_minutes: float = setting(
        30.0, "minutes that a rank may be in one step before the run is ended and its stacks are shown; 0 for ever"
    )
    max_skipped_steps: int = setting(10, "steps in a row that may be skipped because of a gradient that is not finite")
    on_spike: str = setting(
        "ignore",
        "when the loss spikes: ignore, or rollback to the last checkpoint before it and go on with other rows",
        ("ignore", "rollback"),
    )
    profile: int = setting(
        0, "optimizer steps to trace, after ten others, into RUN/profile for Perfetto or chrome://tracing; 0 for none"
    )
    sample_every: int = setting(0, "optimizer steps between two sampled completions; 0 for none")
    sample_context_bars: int = setting(4, "bars of the prompt of a sampled completion")
    sample_bars: int = setting(4, "bars of a sampled completion")
    init: str = setting(
        "",
        "weights to begin with, read by a run's first start alone: a .pth of BlinkDL's, a .safetensors, a run or a "
        "checkpoint",
    )
    tune: str = setting(
        "all",
        "what trains; all but `all` need --init. all: every weight; state: an initial state a layer; lora: low-rank "
        f"adapters; or parts of the model, some of {','.join(PARTS)}",
    )
    lora_rank: int = setting(16, "lora: rank of the adapters")
    lora_alpha: float = setting(32.0, "lora: an adapter is multiplied by this over its rank")
    lora_targets: str = setting(
        ",".join(LORA_TARGETS), f"lora: the matrices that get an adapter, some of {','.join(LORA_TARGETS)}"
    )
    log: str = setting(
        "tensorboard",
        "where the curves go: to TensorBoard's files in the run folder, or with wandb to Weights & Biases as well",
        ("tensorboard", "wandb"),
    )
    resume: str = setting(
        "auto", "auto: the run folder's last checkpoint if there is one; none: start afresh; or a checkpoint's path"
    )

    def __post_init__(self) -> None:
        _check(self, at_least={"steps": 1, "batch_size": 1, "micro_batch_size": 0, "warmup_steps": 0, "log_every": 1})
        _check(
            self,
            at_least={"val_every": 0, "save_every": 0, "sample_every": 0, "stop_after": 0, "val_rows": 0, "profile": 0},
        )
        _check(self, at_least={"sample_context_bars": 1, "sample_bars": 1, "grad_clip": 0, "weight_decay": 0})
        _check(self, at_least={"save_minutes": 0, "keep": 0, "hang_minutes": 0, "max_skipped_steps": 0, "elastic": 0})
        _check(self, at_least={"lr": 0, "lr_final": 0, "adam_eps": 0})
        _check(self, at_least={"decay_fraction": 0}, at_most=1)
        _check(self, at_least={"beta1": 0, "beta2": 0}, below=1)
        _check(self, at_least={"lora_rank": 1, "lora_alpha": 0})
        if self.tune not in ("all", "state", "lora"):
            _check_words("tune", self.tune, PARTS, "all, state, lora, or parts")
        _check_words("lora_targets", self.lora_targets, LORA_TARGETS, "matrices")


@dataclass(frozen=True)
class RunConfig:
    """All of a run; what config.json holds."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig

    def save(self, path: str | Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: str | Path) -> "RunConfig":
        """Read a config.json. Raises UserError for one that is missing, damaged or of another version."""
        path = Path(path)
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            data = {RENAMED.get(name, name): value for name, value in tree["data"].items()}
            return RunConfig(ModelConfig(**tree["model"]), DataConfig(**data), TrainConfig(**tree["train"]))
        except FileNotFoundError:
            raise UserError(f"There is no {path.name} in {path.parent}: give a run folder made by train.py.") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it or start a new run.") from error


def add_arguments(
    parser: argparse.ArgumentParser,
    config: type,
    skip: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    defaults: dict[str, str] | None = None,
) -> None:
    """Add one `--name` option for each field of a dataclass. Options that are not given stay out of the namespace.

    Args:
        defaults: what the help says of a field's default, where there is more to say than the dataclass knows.
    """
    group = parser.add_argument_group(config.__doc__.splitlines()[0].rstrip("."))
    types = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        told = (defaults or {}).get(field.name, field.default)
        default = f" (default: {told})" if told != "" else ""
        choices = field.metadata["choices"]
        former = [f"--{old}" for old, new in RENAMED.items() if new == field.name]
        group.add_argument(
            f"--{field.name}",
            *former,
            dest=field.name,
            type=types[field.name],
            choices=choices,
            required=field.name in required,
            default=argparse.SUPPRESS,
            help=field.metadata["help"] + default,
            metavar=None if choices else types[field.name].__name__.upper(),
        )


def from_arguments(config: type, arguments: argparse.Namespace, **defaults: Any) -> Any:
    """Build a dataclass from the options that were given, then `defaults`, then its own defaults."""
    names = {field.name for field in dataclasses.fields(config)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return config(**{**defaults, **given})
