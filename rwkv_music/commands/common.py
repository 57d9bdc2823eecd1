"""Arguments that several commands share, and functions that load the models named by these arguments."""

import argparse
from pathlib import Path

from rwkv_music.config import LONGEST_NAME, name_too_long, not_empty
from rwkv_music.errors import UserError, explained


def path(text: str) -> Path:
    """Parse a path argument."""
    not_empty(text)
    if name_too_long(text):
        raise argparse.ArgumentTypeError(f"the path has a name longer than {LONGEST_NAME} bytes")
    return Path(text)


def add_command(commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command. `text` starts with a verb and describes the command in the list of commands and in --help."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def add_number(command: argparse.ArgumentParser, flag: str, default: float, metavar: str, text: str) -> None:
    """Add an option whose type is that of its default."""
    help_text = f"{text} (default: {default:g})"
    command.add_argument(flag, type=type(default), default=default, metavar=metavar, help=help_text)


def add_model(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the arguments of `load`: MODEL, --checkpoint and --state.

    If MODEL is not required, its default is the included model, SHIPPED_MODEL.
    """
    command.add_argument(
        "model",
        type=path,
        metavar="MODEL",
        nargs=None if required else "?",
        help="run folder, checkpoint, or exported weights with their tokenizer file"
        + ("" if required else " (default: the included model)"),
    )
    add_checkpoint(command)
    add_state(command)


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        type=_checkpoint,
        metavar="best|last|STEP",
        help="which checkpoint of a run to use. best: the one with the lowest validation loss, or the newest one if "
        "there was no validation; last: the newest one; STEP: the one of this optimizer step (default: best)",
    )


def _checkpoint(text: str) -> str:
    """Parse best, last, or a step."""
    if text not in ("best", "last") and not (text.isascii() and text.isdecimal() and len(text) <= 8):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, last or the number of a step")
    return text


def add_state(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--state",
        type=path,
        metavar="STATE",
        help="tuned initial state: a run that tuned this model with --tune state, or a .pth or .safetensors file of a "
        "state",
    )


def check_model(source: Path) -> None:
    """Raise UserError if `source` does not exist. Call this before slow imports."""
    if not source.exists():
        raise UserError(f"There is no {source}: give a run folder, a checkpoint or exported weights.")


def choose_weights(source: Path, which: str | None) -> tuple[Path, str]:
    """Return the path of the weights to use, and their description for messages.

    In a run folder, `which` ("best", "last" or a step; None means "best") selects the checkpoint. The description names
    its step and the reason for the choice, such as "step 200 (the last one)". Exported weights are described by their
    file name. Raises UserError as `chosen_checkpoint` does, and if `which` is given for exported weights.
    """
    from rwkv_music.checkpoint.run_folder import read_progress
    from rwkv_music.checkpoint.weights import chosen_checkpoint, is_exported

    if is_exported(source):
        if which is not None:
            raise UserError(f"{source} holds exported weights, not checkpoints: drop --checkpoint {which}.")
        return source, source.name
    with explained(f"reading {source}"):
        checkpoint, reason = chosen_checkpoint(source, which)
    step = f"step {read_progress(checkpoint).step:,}"
    return checkpoint, f"{step} ({reason})" if reason else step


def load(source: Path, which: str | None, state: Path | None):
    """Load a run, a checkpoint or exported weights, and set the tuned state if one is given.

    Return (model, codec, configuration, description of the weights). For exported weights, the configuration is None.
    """
    from rwkv_music.checkpoint.weights import find_codec, is_exported, load_pretrained

    if not is_exported(source):
        return load_run(source, which, state)
    choose_weights(source, which)
    codec = find_codec(source)
    model = load_pretrained(source).requires_grad_(False)
    _set_state(model, source, state)
    return model, codec, None, source.name


def load_run(run_folder: Path, which: str | None, state: Path | None):
    """Load a run or a checkpoint, on the GPU if the machine has one, and set the tuned state if one is given.

    Return (model, codec, configuration, description of the checkpoint).
    """
    import torch

    from rwkv_music.checkpoint.weights import load_model

    checkpoint, described = choose_weights(run_folder, which)
    model, codec, config, _ = load_model(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    _set_state(model, checkpoint, state)
    return model, codec, config, described


def _set_state(model, source: Path, state: Path | None) -> None:
    if state is not None:
        from rwkv_music.checkpoint.tuning import set_states
        from rwkv_music.checkpoint.weights import tuned_states

        set_states(model, tuned_states(state, source), state)
