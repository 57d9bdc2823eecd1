"""Wrong values of every option of every command: one sentence, or success; no traceback and no hang.

The options come from the parsers, so a new option is tested without a change here. No model is loaded: the commands get
paths that do not exist, and must check their other options first or not at all.
"""

import argparse
import functools
import os

import pytest

from rwkv_music import __main__ as command_line
from rwkv_music.errors import UserError
from rwkv_music.prepare import corpus, pipeline
from rwkv_music.training import arguments as training_arguments
from tests.test_files import special_file

HUGE = "9" * 20
VALUES = ("word", "-1", "0", HUGE, "nan", "inf", "-inf", "1e999", "", " ", os.fsdecode(b"\xff\xfe"), "1:2:3", "x=1")
KINDS = ("fifo", "socket", "folder", "link loop", "file")
REQUIRED = {  # arguments of a run that ends before a model is loaded
    "corpus": ["nobody", "--out", "out"],
    "prepare": ["midi", "--out", "out"],
    "generate": ["nowhere", "--out", "out.mid"],
    "play": ["nowhere"],
    "mirex": ["nowhere", "--prompt", "nowhere.json", "--out", "out.json"],
    "evaluate": ["nowhere", "--data", "nowhere"],
    "export": ["nowhere", "--out", "out"],
    "doctor": [],
    "train.py": ["--data", "nowhere", "--out", "out", "--deepspeed_config", "nowhere.json"],
}


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command; of train.py, by keeping the one that `parse` makes."""
    if command != "train.py":
        parser = command_line._parser()
        [subparsers] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        return subparsers.choices[command]
    made = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, _: made.append(parser) or next(iter(())))
        training_arguments.parse([])
    return made[0]


def outcome(command: str, parser: argparse.ArgumentParser, arguments: list[str], capsys) -> str | None:
    """Run a command up to its first error, and return the error; None if there is none."""
    try:
        options = parser.parse_args(arguments)
        options.run(options) if command != "train.py" else training_arguments.configure(options)
    except SystemExit as end:
        assert end.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]
    except UserError as error:
        assert "\n" not in str(error) and str(error).endswith("."), error
        return str(error)
    return None


def cases(parser: argparse.ArgumentParser, tmp_path):
    """Yield (option, value): every option with every wrong value, and options with paths with special files."""
    paths = [str(special_file(tmp_path / kind.replace(" ", "_"), kind)) for kind in KINDS[:-1]]
    (tmp_path / "file").write_text("x")
    for action in parser._actions:
        if action.nargs == 0 or action.dest == "help":
            continue
        for value in (*VALUES, *paths, str(tmp_path / "file"), str(tmp_path / "file" / "x")):
            yield action, value


def end(*_: object) -> None:
    raise UserError("All options have been checked.")


def names(action: argparse.Action, value: str, error: str) -> bool:
    """Whether an error names the option or its value."""
    words = {
        action.dest,
        action.dest.replace("_", "-"),
        action.dest.replace("_", " "),
        action.metavar,
        *action.option_strings,
    }
    return (
        any(str(word).lower() in error.lower() for word in words) or repr(value) in error or (value and value in error)
    )


@pytest.mark.parametrize("command", REQUIRED)
def test_wrong_values_of_every_option(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rwkv_music.commands.doctor.checks", lambda: [])
    monkeypatch.setattr(corpus, "_all_sources", functools.cache(corpus._all_sources))  # it takes a tenth of a second
    monkeypatch.setattr(pipeline, "_tokenize", end)
    (tmp_path / "midi").mkdir()
    (tmp_path / "midi" / "a.mid").write_text("x")
    parser, required = parser_of(command), REQUIRED[command]
    usual = outcome(command, parser, required, capsys)
    wrong = []
    for action, value in cases(parser, tmp_path):
        given = [f"{action.option_strings[-1]}={value}", *required] if action.option_strings else [value, *required[1:]]
        if action.option_strings and action.option_strings[-1] in required:
            place = required.index(action.option_strings[-1])
            given = [*required[:place], given[0], *required[place + 2 :]]
        try:
            error = outcome(command, parser, given, capsys)
        except Exception as failure:
            wrong.append((given, repr(failure)))
        else:
            if error not in (None, usual) and not names(action, value, error):
                wrong.append((given, error))
    assert not wrong, "\n".join(f"{given}: {error}" for given, error in wrong)
