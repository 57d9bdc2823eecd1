"""`prepare`: tokenize MIDI files and scores into a dataset."""

import argparse
import shlex
import sys

from rwkv_music.commands import common
from rwkv_music.errors import plural
from rwkv_music.prepare.filters import MEASURES, Filters
from rwkv_music.tokenizers.registry import DEFAULT_TOKENIZER, TOKENIZERS


def add(commands) -> None:
    command = common.add_command(commands, "prepare", "tokenize MIDI files and scores into a dataset")
    command.add_argument(
        "paths",
        nargs="+",
        type=common.path,
        metavar="PATH",
        help="folder to search for MIDI files, scores (MusicXML, ABC, kern) and archives (.zip, .tar, .tar.gz, "
        ".tar.zst, .parquet), or one such file",
    )
    command.add_argument(
        "--out", required=True, type=common.path, metavar="DATA", help="dataset folder; an existing dataset is replaced"
    )
    command.add_argument(
        "--tokenizer", choices=TOKENIZERS, default=DEFAULT_TOKENIZER, help=f"tokenizer (default: {DEFAULT_TOKENIZER})"
    )
    command.add_argument("--workers", type=int, metavar="N", help="number of processes (default: number of cores)")
    command.add_argument(
        "--column",
        metavar="NAME",
        help="column that contains the music in .parquet files (default: the only column of bytes)",
    )
    command.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")
    command.add_argument(
        "--metadata",
        type=common.path,
        metavar="FILE",
        help="table of facts about the pieces: a .csv, .tsv, .jsonl or .ndjson whose column `file`, `path` or `md5` "
        "identifies files",
    )
    command.add_argument(
        "--metadata-key",
        metavar="COLUMN",
        help="column of the table that identifies files by name, path or MD5 (default: file, path and md5)",
    )
    command.add_argument(
        "--tags",
        type=_columns,
        default=(),
        metavar="COLUMNS",
        help="columns of the table, or of .parquet files, that become tags, such as composer,genre; multitrack only",
    )
    common.add_number(
        command, "--tag-min", 1, "N", "minimum number of training pieces in which a value must occur to become a tag"
    )
    command.add_argument(
        "--tag-folders",
        action="store_true",
        help="add the tag `collection`: the name of the PATH that contains the piece; multitrack only",
    )
    common.add_number(
        command,
        "--val-fraction",
        0.1,
        "F",
        "fraction of the pieces held out for validation, but at least one piece; 0: none",
    )
    common.add_number(
        command,
        "--seed",
        0,
        "N",
        "seed of the split into training and validation pieces; when files are added, pieces stay in their split (only "
        "a piece that was alone in its split may move)",
    )
    filters = command.add_argument_group(
        "filters", "keep only the pieces that match; MIN or MAX may be omitted, and a value equal to a bound matches"
    )
    for measure in MEASURES:
        filters.add_argument(measure.option, type=_bounds, metavar="MIN:MAX", help=measure.text)
    filters.add_argument(
        "--programs",
        type=_programs,
        metavar="LIST",
        help="pieces that use only these General MIDI programs, 0 to 127, and 128 for drums, such as 0-7,40",
    )
    filters.add_argument(
        "--where",
        type=_condition,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="pieces with this value in a column of the table or of .parquet files, such as license=CC0; repeat it to "
        "allow other values or to add another column",
    )
    filters.add_argument(
        "--unique",
        action="store_true",
        help="only one of several pieces with the same music, even if format, key, tempo or loudness differ",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.prepare.pipeline import prepare

    bounds = {measure.name: getattr(options, measure.name) for measure in MEASURES}
    where: dict[str, list[str]] = {}
    for column, value in options.where:
        where.setdefault(column, []).append(value)
    try:
        facts = prepare(
            options.paths,
            options.out,
            tokenizer=options.tokenizer,
            workers=options.workers,
            val_fraction=options.val_fraction,
            seed=options.seed,
            filters=Filters({name: value for name, value in bounds.items() if value is not None}, options.programs),
            metadata=options.metadata,
            metadata_key=options.metadata_key,
            tags=options.tags,
            tag_min=options.tag_min,
            where=where,
            unique=options.unique,
            tag_folders=options.tag_folders,
            column=options.column,
            resume=options.resume,
            command=shlex.join(["python", "-m", "rwkv_music", *sys.argv[1:]]),
        )
    except KeyboardInterrupt:
        print("Repeat the command with --resume to continue.", file=sys.stderr)
        raise
    for split, counts in facts["splits"].items():
        print(f"{split}: {', '.join(plural(counts[f'{noun}s'], noun) for noun in ('piece', 'token', 'note'))}")
    for reason, count in facts["rejected"].items():
        print(f"rejected: {count:,} ({reason})")
    for suffix, count in facts["passed_over"].items():
        print(f"not music: {count:,} {f'({suffix})' if suffix else '(no suffix)'}")
    for what, counts in facts["lost"].items():
        print(f"lost by the tokenizer: {what} ({counts['number']:,}, in {plural(counts['pieces'], 'piece')})")
    for column, counts in facts.get("tags", {}).get("columns", {}).items():
        print(
            f"tag {column}: {plural(counts['values'], 'value')} in {plural(counts['pieces'], 'piece')}; "
            f"{plural(counts['rare'], 'piece')} with values that are too rare"
        )
    if facts.get("tags", {}).get("unused"):
        print(f"metadata: {plural(facts['tags']['unused'], 'line')} of {options.metadata} without a matching piece")
    print(f"dataset: {options.out} (every file is listed in pieces.jsonl or rejected.jsonl; overview: report.html)")
    return 0


def _bounds(text: str) -> tuple[float, float]:
    """Parse "2:60", "2:" or ":60" as (minimum, maximum)."""
    least, colon, most = text.partition(":")
    try:
        if not colon:
            raise ValueError("a single number")
        return float(least or 0), float(most or "inf")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, such as 10:600, 10: or :600") from None


def _columns(text: str) -> tuple[str, ...]:
    """Parse "composer,genre" as ("composer", "genre")."""
    return tuple(name.strip() for name in text.split(","))


def _condition(text: str) -> tuple[str, str]:
    """Parse "license=CC0" as ("license", "CC0")."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE, such as license=CC0")
    return column, value


def _programs(text: str) -> tuple[int, ...]:
    """Parse "0-2,40" as (0, 1, 2, 40)."""
    numbers: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of programs, such as 0-7,40") from None
    return tuple(sorted(numbers))
