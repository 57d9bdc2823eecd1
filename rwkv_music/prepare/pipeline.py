"""Convert MIDI files and scores, in folders and archives, to a dataset folder.

    train.bin train.idx val.bin val.idx                 tokens, one document per piece (see binidx.py)
    train.bars.bin train.bars.idx val.bars.bin ...      for each document, the number of tokens before the first
                                                        bar, then the number of tokens in each bar except the
                                                        last; their `np.cumsum` is `Piece.bar_starts`
    tokenizer.json                                      the codec (see codec.py)
    dataset.json                                        counts, options, versions, SHA-256 of the files
    pieces.jsonl                                        one line per document, in order; for `lost`, see codec.py
    rejected.jsonl                                      one line per rejected file, with the reason
    report.html                                         statistics of the corpus (see report.py)

Notable choices:
- The same files give the same bytes with any number of workers and after any number of interruptions, except for the
  date and the command line in report.html. The result for every file goes to a prepare log beside the dataset (see
  prepare_log.py). When the log is complete, the dataset is written from it and gets its final name. Then the log is
  deleted. Before that, both are on the disk, and they have about the same size.
- The split of a piece depends on the seed and on a hash of its music, that is, of the intervals between its notes in
  time and pitch. A piece therefore keeps its split when files are added, moved or renamed. The only exception is a
  piece that `_choose_val` moves so that no split is empty. Louder, slower or transposed copies of a piece are in the
  same split. Of several files with the same bytes, only the first is used.
- A file is rejected if it cannot be read, has no notes, is too large or too long, takes more than five seconds of CPU
  time (a score: five minutes) or more than 4 GiB of memory, or crashes its worker. Other files are not affected. Before
  a slow or crashing file is rejected, it is tried once more, alone (see workers.py), so that the result does not depend
  on the load of the computer.
- Memory holds a few dozen bytes per file, for the index that finds files with the same bytes.
"""

import hashlib
import json
import os
import shutil
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import mido
import numpy as np

import rwkv_music
from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.errors import UserError, explained, plural
from rwkv_music.files import file_sha256, replace_folder
from rwkv_music.midi.events import RejectedMidi, parse_midi
from rwkv_music.midi.stats import RECORD, compute_stats
from rwkv_music.prepare.file_tags import FileTags, metadata_text
from rwkv_music.prepare.filters import Filters
from rwkv_music.prepare.prepare_log import PrepareLog
from rwkv_music.prepare.report import CorpusReport
from rwkv_music.prepare.scores import HANG_LIMIT_S, SCORE_LIMIT_S, midi_of, score_format
from rwkv_music.prepare.sources import Source, Sources, Unreadable, read_file
from rwkv_music.prepare.workers import Failure, check_workers, map_in_order
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.registry import DEFAULT_TOKENIZER, make_codec
from rwkv_music.tokenizers.tags import MAX_VALUES, UNKNOWN, tag_text

FORMAT = "rwkv-music dataset"
FORMAT_VERSION = 1
SPLITS = ("train", "val")
PARTS = [f"{split}{kind}" for split in SPLITS for kind in (".bin", ".idx", ".bars.bin", ".bars.idx")]
PARTS.append("tokenizer.json")
LISTINGS = ["pieces.jsonl", "rejected.jsonl"]  # contain paths, so they depend on the location of the files
REPORT = "report.html"
FILE_LIMIT_S = 5.0  # CPU time per file; twice as much when a file is tried again, alone
WORKER_MEMORY_BYTES = 4 << 30
CHECKPOINT_S = 2.0
LONGEST_BAR_TOKENS = 0xFFFF
SHOWN_PIECES, SHOWN_BARS = 20, 16  # piano rolls in the report, and their bars
NO_FILTERS = Filters()


def prepare(
    paths: Sequence[str | os.PathLike],  # files, folders (searched recursively) and archives (see sources.py)
    out: str | os.PathLike,  # a new or empty folder, or a dataset, which is replaced when the new one is complete
    tokenizer: str = DEFAULT_TOKENIZER,
    workers: int | None = None,  # number of worker processes; the number of available cores if None
    val_fraction: float = 0.1,  # expected fraction of pieces in `val`, in [0, 1); see `_choose_val`
    seed: int = 0,  # determines, with the music, which pieces are in `val`
    filters: Filters = NO_FILTERS,
    metadata: str | os.PathLike | None = None,  # a table of facts about the files (see file_tags.py)
    metadata_key: str | None = None,  # the column of the table that identifies files; None: "file", "path" and "md5"
    tags: Sequence[str] = (),  # the columns of the table and of parquet files that become tags
    tag_min: int = 1,  # a value becomes a tag if at least this many training pieces have it
    where: Mapping[str, Collection[str]] | None = None,  # keep only pieces with one of these values in each column
    tag_folders: bool = False,  # whether the names of `paths` are tags of their files, in the column `collection`
    unique: bool = False,  # keep only one of the pieces with the same music, in any format, key, tempo or loudness
    column: str | None = None,  # the column of parquet files that has the music; None: the only column of bytes
    resume: bool = False,  # continue an interrupted run with the same settings, if there is one
    command: str = "",  # the command line, which the report shows with the date
) -> dict:
    """Write the dataset folder `out` from every MIDI file and score under `paths`. Return the content of dataset.json.

    Raises UserError if an option is invalid, if no file can be used, or if `out` contains anything but a dataset or
    cannot be written. An interrupted run leaves its prepare log, from which `resume` continues.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"The validation fraction is {val_fraction}: choose at least 0 and less than 1.")
    check_workers(workers)
    # The name of the log folder is derived from the name of `out`, but "." has no name.
    out = Path(os.path.abspath(out))
    _check_replaceable(out)
    if tag_min < 1:
        raise UserError(f"--tag-min is {tag_min}: choose at least 1.")
    sources = Sources(paths, column)
    folders = sources.paths if tag_folders else ()
    file_tags = FileTags(metadata, tags, folders, where, metadata_key, sources.columns)
    sources.metadata = {column for column in sources.columns if tag_text(column) in file_tags.needed}
    columns = {"tags": {column: [] for column in file_tags.columns}} if file_tags.columns else {}
    codec = make_codec(tokenizer, **columns)
    settings = {
        "rwkv_music": rwkv_music.__version__,
        "record_bytes": RECORD.itemsize,  # because a log with other statistics cannot be read
        "paths": [os.path.abspath(path) for path in sources.paths],
        "tokenizer": codec.fingerprint,
        "filters": filters.as_options(),
        "column": column,
        "metadata": sorted(sources.metadata) or None,
    }
    unfinished = out.with_name(f".{out.name}.unfinished")
    with explained(f"writing the dataset {out} (--resume continues this run)"):
        with PrepareLog(unfinished, settings, resume) as prepare_log:
            _tokenize(sources, codec, filters, workers, prepare_log)
            if not prepare_log.n_pieces:
                reasons = _Index(prepare_log, file_tags, unique).reasons
                shutil.rmtree(unfinished)
                raise UserError(
                    f"Of {plural(prepare_log.n_sources, 'file')}, none could be used ({_listed(reasons)}): check that "
                    f"the paths contain music{', and check the filters' if filters.as_options() else ''}."
                )
            dataset = unfinished / "dataset"
            shutil.rmtree(dataset, ignore_errors=True)
            dataset.mkdir()
            facts = _write_dataset(
                dataset,
                prepare_log,
                codec,
                file_tags,
                tag_min,
                unique,
                val_fraction,
                seed,
                {
                    "filters": filters.as_options(),
                    **({"where": {column: sorted(values) for column, values in where.items()}} if where else {}),
                    **({"unique": True} if unique else {}),
                },
                sources.passed_over,
                command,
            )
            replace_folder(dataset, out)
        shutil.rmtree(unfinished)
    return facts


def _check_replaceable(out: Path) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a new folder for the dataset.")
    with explained(f"reading {out}"):
        names = {entry.name for entry in os.scandir(out)}
    others = names - {"dataset.json", REPORT, *PARTS, *LISTINGS}
    if names and (others or "dataset.json" not in names):
        found = f" ({', '.join(sorted(others)[:3])})" if others else ""
        raise UserError(f"{out} contains files that do not belong to a dataset{found}: choose a new or empty folder.")


def _tokenize(sources: Sources, codec: Codec, filters: Filters, workers: int | None, prepare_log: PrepareLog) -> None:
    """Process every source that is not yet in the prepare log, and add its result to the log."""
    started: deque[dict] = deque()  # what is known about the sources in progress
    n_done = prepare_log.n_sources

    def items() -> Iterator[tuple[str, bytes | Failure | None]]:
        rest = iter(sources)
        for line in islice(prepare_log.lines(), n_done):
            source = next(rest, None)
            if source is None or source.name != line["file"]:
                raise UserError(
                    f"Files were added or removed since the unfinished run: expected {line['file']}, found "
                    f"{source.name if source else 'no more files'}; start over without --resume."
                )
        for source in rest:
            metadata = {column: metadata_text(value) for column, value in source.metadata.items()}
            started.append({"file": source.name} | ({"metadata": metadata} if metadata else {}))
            yield source.name, _read(source)

    answers = map_in_order(
        _make_reader,
        (codec.name, codec.options, filters),
        items(),
        workers,
        _limit_s,
        WORKER_MEMORY_BYTES,
        HANG_LIMIT_S,
    )
    checkpoint_due = time.monotonic() + CHECKPOINT_S
    with progress_bar(None, "prepare", round(sources.expected), initial=n_done, unit=" files") as bar:
        for answer in answers:
            known = started.popleft()
            if isinstance(answer, Failure):
                prepare_log.add({**known, "reason": answer.reason})
            else:
                line, *piece = answer
                prepare_log.add({**known, **line}, *piece)
            bar.total = max(round(sources.expected), prepare_log.n_sources)
            bar.update()
            if time.monotonic() > checkpoint_due:
                prepare_log.checkpoint()
                checkpoint_due = time.monotonic() + CHECKPOINT_S
    prepare_log.checkpoint()


def _limit_s(item: tuple[str, bytes | Failure | None]) -> float:
    """Return the limit of CPU time for a source, given by its name and content (None for a plain file)."""
    name, data = item
    return SCORE_LIMIT_S if score_format(name, data if isinstance(data, bytes) else b"") else FILE_LIMIT_S


def _read(source: Source) -> bytes | Failure | None:
    """Return the content of an archive member or of one piece of a file, or a Failure if it cannot be read.

    Return None for a plain file, which the worker reads itself.
    """
    try:
        return source.read() if source.read else None
    except Unreadable as error:
        return Failure(error.reason)


# The arguments of `PrepareLog.add`: a JSON object and, if the source is not rejected, the arrays of the piece.
Answer = tuple[dict] | tuple[dict, np.ndarray, np.ndarray, np.ndarray]


def _make_reader(
    name: str, options: dict, filters: Filters
) -> Callable[[tuple[str, bytes | Failure | None]], Answer | Failure]:
    """Return the function that a worker process calls for each file. It converts the file to an `Answer`."""
    codec = make_codec(name, **options)

    def read(item: tuple[str, bytes | Failure | None]) -> Answer | Failure:
        path, data = item
        if isinstance(data, Failure):
            return data
        try:
            data = read_file(path) if data is None else data
            midi = parse_midi(midi_of(path, data))
            stats = compute_stats(midi)
            measured = filters.measure(midi, stats)
            measures = {"measures": {name: _rounded(value) for name, value in measured.items()}} if measured else {}
            if reason := filters.reason(measured, stats):
                return ({"reason": reason} | measures,)
            piece = codec.encode_piece(midi)
        except (RejectedMidi, Unreadable) as error:
            return Failure(error.reason)
        bars = np.diff(piece.bar_starts, prepend=0)
        if bars.max() > LONGEST_BAR_TOKENS:
            return Failure(f"a bar of more than {LONGEST_BAR_TOKENS:,} tokens")
        line = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "music": stats.key,
            "seconds": round(stats.seconds, 3),
            "n_tokens": len(piece.ids),
            "n_bars": len(bars),
            "n_notes": codec.count_notes(piece.ids),
            "n_parts": int(stats.part_notes.sum()),
            "lost": piece.lost,
            **measures,
        }
        return line, piece.ids, bars.astype(np.uint16), stats.record()

    return read


def _rounded(value: float | np.ndarray) -> list | float | None:
    """Return a measure as a JSON value. NaN becomes None."""
    if isinstance(value, np.ndarray):
        return [_rounded(number) for number in value.tolist()]
    return None if np.isnan(value) else round(value, 3)


def _write_dataset(
    folder: Path,
    prepare_log: PrepareLog,
    codec: Codec,
    file_tags: FileTags,
    tag_min: int,
    unique: bool,
    val_fraction: float,
    seed: int,
    options: dict,  # further options for dataset.json
    passed_over: Counter[str],
    command: str,
) -> dict:
    """Write all files of a dataset to `folder` from a complete prepare log. Return the content of dataset.json."""
    index = _Index(prepare_log, file_tags, unique)
    if not index.sources:
        raise UserError(
            f"Of {plural(prepare_log.n_pieces, 'piece')}, none meets the conditions ({_listed(index.reasons)}): "
            "correct --where and repeat the command with --resume."
        )
    in_val = _choose_val(index.music, val_fraction, seed)
    kept = index.first_copy == np.arange(len(index.first_copy))
    # The distinct pieces in the order of their keys. The keys are hashes, so the first pieces are a random sample.
    distinct = np.flatnonzero(kept)[np.unique(index.music[kept], axis=0, return_index=True)[1]]
    shown = set(distinct[:SHOWN_PIECES].tolist())
    if file_tags.columns:
        codec = _with_tag_values(codec, prepare_log, kept & ~in_val, file_tags, tag_min)
    tag_table: dict[str, Counter] = {column: Counter() for column in codec.tags}  # the number of pieces of each value
    tag_counts = {column: Counter(values=len(values), pieces=0, rare=0) for column, values in codec.tags.items()}
    counts = {split: Counter(pieces=0, tokens=0, bars=0, notes=0) for split in SPLITS}
    reasons = Counter(index.reasons)
    lost: dict[str, Counter] = {}
    report = CorpusReport(codec.name)
    with ExitStack() as stack:
        documents = {split: stack.enter_context(BinIdxWriter(folder / split)) for split in SPLITS}
        bars = {split: stack.enter_context(BinIdxWriter(folder / f"{split}.bars")) for split in SPLITS}
        listed = stack.enter_context(open(folder / "pieces.jsonl", "w", encoding="utf-8"))
        rejected = stack.enter_context(open(folder / "rejected.jsonl", "w", encoding="utf-8"))
        pieces = prepare_log.pieces()
        number = 0
        for line in prepare_log.lines():
            if "reason" not in line:
                tokens, piece_bars, record = next(pieces)
            if reason := line.get("reason") or file_tags.excluded(line):
                measures = {"measures": line["measures"]} if "measures" in line else {}
                rejected.write(json.dumps({"file": line["file"], "reason": reason, **measures}) + "\n")
                report.reject(line["file"], reason)
                continue
            first = index.first_copy[number]
            if first != number:
                reasons["duplicate"] += 1
                report.reject(line["file"], "duplicate")
                of = prepare_log.line(index.sources[first])["file"]
                rejected.write(json.dumps({"file": line["file"], "reason": "duplicate", "of": of}) + "\n")
            else:
                split = SPLITS[int(in_val[number])]
                if codec.tags:
                    given = file_tags.of(line)
                    known = {column: value for column, value in given.items() if value in codec.tags[column]}
                    for column in given:
                        tag_counts[column]["pieces" if column in known else "rare"] += 1
                    for column, value in known.items():
                        tag_table[column][value] += 1
                    # Set every column: the log was written before the values were known, when the tokens for unknown
                    # values had other ids.
                    tokens = codec.with_tags(tokens, {column: known.get(column, UNKNOWN) for column in codec.tags})
                    line |= {"tags": known}
                documents[split].add(tokens)
                bars[split].add(piece_bars)
                counts[split].update(pieces=1, tokens=len(tokens), bars=len(piece_bars), notes=line["n_notes"])
                for reason, n in line.get("lost", {}).items():  # missing in a log of an earlier version
                    lost.setdefault(reason, Counter(pieces=0, number=0)).update(pieces=1, number=n)
                report.add(split, record, len(tokens), len(piece_bars))
                line = {"split": split, **line}
                if number in shown:
                    report.add_roll(line, _first_bars(codec, tokens, piece_bars))
                listed.write(json.dumps(line) + "\n")
            number += 1
    codec.save(folder / "tokenizer.json")
    facts = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rwkv_music": rwkv_music.__version__,
        "tokenizer": {
            "name": codec.name,
            "fingerprint": codec.fingerprint,
            "vocab_size": codec.vocab_size,
            "pad_id": codec.pad_id,
            "bos_id": codec.bos_id,
            "eos_id": codec.eos_id,
        },
        "options": {
            "val_fraction": val_fraction,
            "seed": seed,
            **options,
        },
        "files": prepare_log.n_sources,
        "passed_over": dict(sorted(passed_over.items())),
        "rejected": dict(sorted(reasons.items())),
        "lost": {reason: dict(lost[reason]) for reason in sorted(lost)},
        **(
            {
                "tags": {
                    "columns": {column: dict(counts) for column, counts in tag_counts.items()},
                    "unused": file_tags.unused,
                    "min": tag_min,
                    "table": {column: dict(counts.most_common()) for column, counts in tag_table.items()},
                }
            }
            if codec.tags
            else {}
        ),
        "distinct_music": len(distinct),
        "splits": {split: dict(counts[split]) for split in SPLITS},
        "sha256": {name: file_sha256(folder / name) for name in PARTS},
    }
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(report.html(facts, command), encoding="utf-8", errors="backslashreplace")
    return facts


def _first_bars(codec: Codec, tokens: np.ndarray, bars: np.ndarray) -> mido.MidiFile:
    """Decode the first SHOWN_BARS bars of a piece.

    `tokens`, uint16 [n], are its tokens, and `bars`, uint16 [bars], is its document in *.bars.*.
    """
    starts = np.cumsum(bars, dtype=np.int64)
    piece = Piece(tokens, starts, codec.bar_lines(tokens, starts))
    excerpt = codec.first_bars(piece, min(SHOWN_BARS, len(starts)))
    return codec.decode(excerpt.ids, excerpt.bar_lines)


def _with_tag_values(
    codec: Codec, prepare_log: PrepareLog, chosen: np.ndarray, file_tags: FileTags, tag_min: int
) -> Codec:
    """Return `codec` with a tag for each value that at least `tag_min` pieces have in a column of tags.

    Each column has at most its MAX_VALUES most frequent values. `chosen`, bool [n], selects the pieces to count. Raises
    UserError if the table of tags matches no file of the log.
    """
    counts: dict[str, Counter] = {column: Counter() for column in file_tags.columns}
    number = 0
    for line in prepare_log.lines():
        tags = file_tags.of(line)
        if "reason" in line or file_tags.excluded(line):
            continue
        if chosen[number]:
            for column, value in tags.items():
                counts[column][value] += 1
        number += 1
    file_tags.check_use(prepare_log.line(0)["file"])
    values = {}
    for column, count in counts.items():
        by_frequency = sorted(count.items(), key=lambda item: (-item[1], item[0]))
        values[column] = sorted(value for value, n in by_frequency[:MAX_VALUES] if n >= tag_min)
    return make_codec(codec.name, **{**codec.options, "tags": values})


class _Index:
    """Facts about the pieces of a prepare log that are neither rejected nor excluded, in order.

    `music`, uint64 [n, 2], is the key of each piece's music (`MidiStats.key`).
    """

    def __init__(self, prepare_log: PrepareLog, file_tags: FileTags, unique: bool):
        sources, files, music = array("q"), array("Q"), array("Q")
        self.reasons: Counter = Counter()  # the number of rejected files for each reason
        for number, line in enumerate(prepare_log.lines()):
            if reason := line.get("reason") or file_tags.excluded(line):
                self.reasons[reason] += 1
                continue
            sources.append(number)
            files.extend(_halves(line["sha256"]))
            music.extend(_halves(line["music"]))
        self.sources = sources  # int64 [n], the number of each piece's source in the log
        self.music = np.frombuffer(music, np.uint64).reshape(-1, 2) if music else np.empty((0, 2), np.uint64)
        same = self.music if unique or not files else np.frombuffer(files, np.uint64).reshape(-1, 2)
        _, first, which = np.unique(same, axis=0, return_index=True, return_inverse=True)
        # int64 [n]: for each piece, the index of the first piece with the same bytes (with `unique`, the same music).
        self.first_copy = first[which.ravel()]


def _halves(digest: str) -> tuple[int, int]:
    """Return the first 128 bits of a hexadecimal digest as two integers."""
    return int(digest[:16], 16), int(digest[16:32], 16)


def _choose_val(music: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Return which pieces go to `val`, bool [n]. This depends on the keys of their music, uint64 [n, 2], and the seed.

    Adding pieces does not change the split of the others. The only exception is a piece that was moved because a split
    would have been empty. If all pieces have the same music, they go to `train`.
    """
    draws = np.array([_draw(seed, key.tobytes()) for key in music])
    chosen = draws < val_fraction
    if val_fraction > 0 and not chosen.any():
        chosen = draws == draws.min()
    if chosen.all():
        chosen = draws < draws.max()  # after the previous condition, so that a single piece goes to train
    return chosen


def _draw(seed: int, key: bytes) -> float:
    """Return a pseudo-random number in [0, 1) that is exact in float64."""
    return int(hashlib.sha256(f"{seed}:".encode() + key).hexdigest()[:13], 16) / 16.0**13


def _listed(reasons: Counter) -> str:
    shown = [f"{count:,} {reason}" for reason, count in reasons.most_common(3)]
    return ", ".join(shown + ["..."] * (len(reasons) > 3))
