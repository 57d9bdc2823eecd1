"""`play`: serve a web page on which a model continues, fills in and accompanies MIDI files."""

import argparse

from rwkv_music.commands import common
from rwkv_music.errors import UserError


def add(commands) -> None:
    command = common.add_command(
        commands, "play", "open a page in the browser where a model continues, fills in and accompanies a .mid file"
    )
    command.add_argument(
        "models",
        nargs="*",
        type=common.path,
        metavar="MODEL",
        help="run folder, checkpoint, or exported weights with their tokenizer file; give two to compare them blind "
        "(default: the included model)",
    )
    command.add_argument(
        "--follow",
        action="store_true",
        help="load each new checkpoint of a run that is still training (default: the best one, at the start only)",
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any other than the default lets other computers use the page (default: 127.0.0.1)",
    )
    common.add_number(command, "--port", 8765, "N", "port to listen on; 0: a free one")
    command.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from rwkv_music.play.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"The page needs {error.name}: run `pip install 'rwkv-music[play]'`.") from None
    serve(
        options.models,
        host=options.host,
        port=options.port,
        follow=options.follow,
        browser=not options.no_browser,
    )
    return 0
