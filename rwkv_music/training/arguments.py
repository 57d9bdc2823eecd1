"""The command line of train.py: one flag per setting.

Settings that are not given come from the run that is resumed. In a new run, the model's shape comes from the preset or
the --init file, and all other settings have their defaults.
"""

import argparse
import dataclasses
import math
import os
from dataclasses import asdict

from rwkv_music.checkpoint.run_folder import find_checkpoint
from rwkv_music.config import (
    PRESETS,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    add_arguments,
    from_arguments,
    not_empty,
)
from rwkv_music.errors import UserError

# Settings that a resumed run does not inherit.
OF_ONE_COMMAND = ("out", "resume", "stop_after", "elastic")

# Defaults with --tune. The values of an initial state start at zero and become large, so they need a high learning
# rate. Of the rates that benchmarks/tuning.py tries, those around 1 give the lowest loss.
TUNING_DEFAULTS = {"state": {"lr": 1.0, "lr_final": 0.1, "warmup_steps": 10}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train an RWKV v8 model on a prepared dataset. If the run folder already contains a checkpoint, "
        "training resumes from it. Settings that are not given again keep their values.",
        allow_abbrev=False,
    )
    sizes = ", ".join(f"{name} {preset['n_layer']} x {preset['n_embd']}" for name, preset in PRESETS.items())
    parser.add_argument(
        "--deepspeed_config",
        required=True,
        type=not_empty,
        metavar="FILE",
        help="DeepSpeed JSON file, for example ds_configs/zero2.json",
    )
    parser.add_argument("--preset", choices=PRESETS, help=f"model size, layers x width: {sizes} (default: tiny)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it; unused
    add_arguments(parser, DataConfig)
    of_a_state = {
        name: f"{getattr(TrainConfig, name)}; {value} with --tune state"
        for name, value in TUNING_DEFAULTS["state"].items()
    }
    add_arguments(parser, TrainConfig, required=("out",), defaults=of_a_state)
    of_the_preset = dict.fromkeys(PRESETS["tiny"], "the preset's")
    add_arguments(parser, ModelConfig, skip=("vocab_size",), defaults=of_the_preset)
    return parser.parse_args(arguments)


def configure(arguments: argparse.Namespace) -> RunConfig:
    """Return the complete configuration. Flags override the settings of the resumed run, or of the preset and --init.

    The paths of the dataset and of the initial weights become absolute, so that a later command can resume the run, or
    load a tuned run with its base, from any working directory. Raises UserError if the settings contradict each other.
    """
    train = from_arguments(TrainConfig, arguments, **TUNING_DEFAULTS.get(getattr(arguments, "tune", "all"), {}))
    model, data = PRESETS[arguments.preset or "tiny"], {}
    checkpoint = find_checkpoint(train.out, train.resume)
    if checkpoint:
        started = RunConfig.load(checkpoint / "config.json")
        model = model if arguments.preset else asdict(started.model)
        data = asdict(started.data)
        kept = {name: value for name, value in asdict(started.train).items() if name not in OF_ONE_COMMAND}
        other = _absolute(train.init) not in ("", _absolute(started.train.init))
        if other and started.train.tune == "all":  # the base of a tuned run may have moved
            raise UserError(
                f"{checkpoint} belongs to a run that started {_with(started.train.init)}, not with {train.init}: "
                f"drop --init to resume it, or choose another --out."
            )
        train = from_arguments(TrainConfig, arguments, **kept)
    elif train.init:
        from rwkv_music.training.init_weights import shape_of_init  # not at the top: torch delays --help by seconds

        model = shape_of_init(train.init, arguments)
    if "data" in arguments:
        arguments = argparse.Namespace(**{**vars(arguments), "data": datasets(arguments.data)})
    model, data = from_arguments(ModelConfig, arguments, **model), from_arguments(DataConfig, arguments, **data)
    if isinstance(data.data, str):  # a single folder; those of a mixture are absolute already
        data = dataclasses.replace(data, data=_absolute(data.data))
    config = RunConfig(model, data, dataclasses.replace(train, init=_absolute(train.init)))
    if train.tune != "all" and not train.init:
        raise UserError(f"--tune {train.tune} needs the weights of a trained model: add --init BASE.")
    if train.tune == "state" and config.data.tbptt:
        raise UserError(
            "--tbptt passes states between windows, but --tune state learns the initial state: drop one of the two "
            "options."
        )
    if not config.data.data:
        raise UserError("No dataset is given: add --data DATA, a folder made by `python -m rwkv_music prepare`.")
    return config


def datasets(values: list[str]) -> str | dict[str, float]:
    """Return the setting `data` for the values of --data, each DIR or DIR:WEIGHT; DIR alone has the weight 1.

    A value that is the path of an existing folder is a DIR, even if it ends in a colon and a number.
    """
    weights: dict[str, float] = {}
    known: dict[str, str] = {}  # the value that named a folder, by the folder's real path
    for value in values:
        folder, _, weight = value.rpartition(":")
        if not folder or os.path.isdir(value):
            folder, weight = value, "1"
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise UserError(
                f"--data {value} is not a folder, and {weight!r} is not a weight: give DIR:WEIGHT with a positive "
                f"number."
            )
        if other := known.get(os.path.realpath(folder)):
            raise UserError(f"--data {other} and --data {value} are the same dataset: give it once, with one weight.")
        known[os.path.realpath(folder)] = value
        weights[os.path.abspath(folder)] = number
    return weights if len(weights) > 1 else folder


def _absolute(path: str) -> str:
    """Return the absolute form of a path; "" stays ""."""
    return os.path.abspath(path) if path else ""


def _with(init: str) -> str:
    return f"with {init}" if init else "from scratch"
