"""`corpus`: write the scores of a corpus as .mid files."""

import argparse

from rwkv_music.commands import common


def add(commands) -> None:
    command = commands.add_parser("corpus", help="write real scores and free game music as .mid files")
    command.add_argument(
        "name",
        metavar="NAME",
        help="corpus of music21, such as bach or palestrina, or Debian package, such as freedoom; an unknown name "
        "prints the list",
    )
    command.add_argument(
        "--out",
        required=True,
        type=common.path,
        metavar="DIR",
        help="output folder (for a package, DIR/NAME); scores that it already holds are skipped",
    )
    command.add_argument("--workers", type=int, metavar="N", help="number of processes (default: number of cores)")
    command.add_argument("--limit", type=int, metavar="N", help="write the first N scores only")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.prepare.corpus import write_corpus

    report = write_corpus(options.name, options.out, workers=options.workers, limit=options.limit)
    print(f"{report.folder}: {report.written:,} files written, {report.kept:,} existing scores kept")
    for source, reason in report.failed:
        print(f"skipped: {source}: {reason}")
    return 0
