"""`corpus`: write the music of a corpus or of a Debian package as .mid files."""

import argparse

from rwkv_music.commands import common
from rwkv_music.errors import plural


def add(commands) -> None:
    command = common.add_command(
        commands, "corpus", "write scores of music21's corpora, or music of free games, as .mid files"
    )
    command.add_argument(
        "name",
        metavar="NAME",
        help="one of music21's corpora, such as bach or palestrina, or a Debian package, such as freedoom; an unknown "
        "name, such as list, prints all names",
    )
    command.add_argument(
        "--out",
        required=True,
        type=common.path,
        metavar="DIR",
        help="output folder; the files of a package are written to DIR/NAME; existing files are kept",
    )
    command.add_argument("--workers", type=int, metavar="N", help="number of processes (default: number of cores)")
    command.add_argument("--limit", type=int, metavar="N", help="write only the first N scores (default: all)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.prepare.corpus import write_corpus

    report = write_corpus(options.name, options.out, workers=options.workers, limit=options.limit)
    written, kept = plural(report.written, "file"), plural(report.kept, "existing file")
    print(f"{report.folder}: {written} written, {kept} kept")
    for source, reason in report.failed:
        print(f"skipped: {source}: {reason}")
    return 0
