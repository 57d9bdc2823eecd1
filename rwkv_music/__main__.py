"""The command line `python -m rwkv_music COMMAND`: everything except training, which is `train.py`.

`commands/` has a module for each command. The exit status is 0 for success, 1 for a failure, 2 for invalid usage, and
130 after Ctrl-C. Errors are one sentence on stderr. Commands import what they need when they run, so that help and
usage errors appear without loading torch.
"""

import argparse
import io
import sys
from functools import partial

import rwkv_music
from rwkv_music.commands import corpus, doctor, evaluate, export, generate, mirex, play, prepare
from rwkv_music.errors import OutputClosed, UserError, checked_output
from rwkv_music.openmp import share_cores

COMMANDS = (corpus, prepare, generate, play, mirex, evaluate, export, doctor)  # in the order of the help


def main(arguments: list[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # escape bytes of a path that are not text, as stderr does
    share_cores()
    name = "rwkv_music"
    try:
        with checked_output():
            options = _parser().parse_args(arguments)
            name = f"rwkv_music {options.command}"
            return options.run(options) or 0
    except OutputClosed:
        return 1
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_music",
        description="Prepare data, generate music, and evaluate or export RWKV v8 models trained with train.py.",
    )
    parser.add_argument("--version", action="version", version=f"rwkv_music {rwkv_music.__version__}")
    exact = partial(argparse.ArgumentParser, allow_abbrev=False)  # a misspelt option is an error
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=exact)
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
