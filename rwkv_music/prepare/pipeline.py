"""Folders and archives of .mid files to a dataset folder: tokens of two splits, the tokenizer, and what became of what.

    train.bin train.idx val.bin val.idx                 the tokens, one document a piece (see binidx.py)
    train.bars.bin train.bars.idx val.bars.bin ...      each document's bars, as steps from one's first token to the
                                                        next one's: `np.cumsum` of a document is its `Piece.bar_starts`
    tokenizer.json                                      the codec (see codec.py)
    dataset.json                                        counts, options, versions, sha256 of the parts
    pieces.jsonl                                        one line for each document, in order
    rejected.jsonl                                      one line for each file left out, and why
    report.html                                         the corpus at a glance (see report.py)

Notable choices:
- The same files give the same bytes, whatever the number of workers, and however often the work was interrupted. Every
  outcome goes to a prepare_log beside the dataset (see prepare_log.py); when all are there, the dataset is made from it in one
  pass, and takes its place whole. While it is made it takes its size twice.
- A piece goes to `val` by a hash of its music and the seed: its notes' intervals, in time and pitch. So adding, moving
  or renaming files never moves a piece to the other side, and copies, louder, slower or transposed, are on one side
  without anything having to remember them. Files with the same bytes are one piece.
- A file that cannot be read, takes over five seconds or kills its reader costs that file alone.
- Memory holds a few dozen bytes for each file, for the index that finds files with the same bytes.
"""

import hashlib
import json
import os
import shutil
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import rwkv_music
from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.errors import UserError, explained
from rwkv_music.files import file_sha256, replace_folder
from rwkv_music.midi.events import RejectedMidi
from rwkv_music.midi.stats import Filters, compute_stats
from rwkv_music.prepare.prepare_log import PrepareLog
from rwkv_music.prepare.report import CorpusReport
from rwkv_music.prepare.sources import Source, Sources, Unreadable, read_file
from rwkv_music.prepare.workers import Failure, map_in_order
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import make_codec
from rwkv_music.tokenizers.remi import Remi

FORMAT = "rwkv-music dataset"
FORMAT_VERSION = 1
SPLITS = ("train", "val")
PARTS = [f"{split}{kind}" for split in SPLITS for kind in (".bin", ".idx", ".bars.bin", ".bars.idx")]
PARTS.append("tokenizer.json")
LISTINGS = ["pieces.jsonl", "rejected.jsonl"]  # they name files, so they differ where the same files lie elsewhere
REPORT = "report.html"
FILE_LIMIT_S = 5.0
WORKER_MEMORY_BYTES = 4 << 30
CHECKPOINT_S = 2.0
LONGEST_BAR_TOKENS = 0xFFFF
NO_FILTERS = Filters()


def prepare(
    paths: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    tokenizer: str = "remi",
    options: dict[str, int] | None = None,
    bpe_vocab_size: int | None = None,
    workers: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    filters: Filters = NO_FILTERS,
    resume: bool = False,
) -> dict:
    """Write the dataset folder `out` from every .mid and .midi file under `paths`; return what dataset.json says.

    Args:
        paths: folders, searched through all their subfolders, and archives (see sources.py).
        out: replaced only if it is a dataset folder already, and only by a whole one.
        tokenizer: the name of a codec.
        options: what it is made with.
        bpe_vocab_size: `remi` alone: with byte pairs, learned from the training split, up to so many tokens.
        workers: how many processes read files; one for each core when None.
        val_fraction: the expected share of pieces in `val`, 0 <= val_fraction < 1; unless it is 0, each split has at
            least one piece when there are two or more of different music.
        seed: another seed, another split.
        filters: which pieces to keep.
        resume: go on where an earlier run with the same settings was interrupted, if there is one.

    Raises:
        UserError: there is nothing to read or none of it can be used, `out` is in use for something else, or it cannot
            be written. A run that was interrupted, by whatever it was, leaves its prepare_log for `resume`.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"The validation fraction is {val_fraction}: choose one from 0 up to, but not including, 1.")
    # An absolute path has a name and a parent to build beside, which "." has not.
    out = Path(os.path.abspath(out))
    _check_replaceable(out)
    codec = make_codec(tokenizer, **(options or {}))
    if bpe_vocab_size is not None:
        if not isinstance(codec, Remi):
            raise UserError(f"The tokenizer {tokenizer} has no byte pairs: leave them out, or choose remi.")
        codec.check_byte_pairs(bpe_vocab_size)
    sources = Sources(paths)
    settings = {
        "rwkv_music": rwkv_music.__version__,
        "paths": [os.path.abspath(path) for path in sources.paths],
        "tokenizer": codec.fingerprint,
        "filters": filters.as_options(),
    }
    unfinished = out.with_name(f".{out.name}.unfinished")
    with explained(f"writing the dataset {out} (with --resume it goes on from here)"):
        with PrepareLog(unfinished, settings, resume) as prepare_log:
            _tokenize(sources, codec, filters, workers, prepare_log)
            if not prepare_log.n_pieces:
                reasons = _Index(prepare_log).reasons
                shutil.rmtree(unfinished)
                raise UserError(
                    f"None of the {prepare_log.n_sources:,} MIDI files could be used ({_listed(reasons)}): check that they "
                    f"hold music{', and the filters' if filters.as_options() else ''}."
                )
            dataset = unfinished / "dataset"
            shutil.rmtree(dataset, ignore_errors=True)
            dataset.mkdir()
            facts = _write_dataset(dataset, prepare_log, codec, bpe_vocab_size, val_fraction, seed, filters)
            replace_folder(dataset, out)
        shutil.rmtree(unfinished)
    return facts


def _check_replaceable(out: Path) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a new folder for the dataset.")
    with explained(f"looking into {out}"):
        names = {entry.name for entry in os.scandir(out)}
    others = names - {"dataset.json", REPORT, *PARTS, *LISTINGS}
    if names and (others or "dataset.json" not in names):
        found = f" ({', '.join(sorted(others)[:3])})" if others else ""
        raise UserError(f"{out} holds something that is not a dataset{found}: choose a new or an empty folder.")


def _tokenize(sources: Sources, codec: Codec, filters: Filters, workers: int | None, prepare_log: PrepareLog) -> None:
    """Bring every source's outcome into the prepare_log, after those that are there already."""
    names: deque[str] = deque()  # of the files under way
    n_done = prepare_log.n_sources

    def items() -> Iterator[tuple[str, bytes | Failure | None]]:
        rest = iter(sources)
        for _, line in islice(prepare_log.lines(), n_done):
            source = next(rest, None)
            if source is None or source.name != line["file"]:
                raise UserError(
                    f"Files have come or gone since the unfinished run, which read {line['file']} where now "
                    f"{source.name if source else 'nothing'} is: leave out --resume to begin anew."
                )
        for source in rest:
            names.append(source.name)
            yield source.name, _read(source)

    answers = map_in_order(
        _make_reader, (codec.name, codec.options, filters), items(), workers, FILE_LIMIT_S, WORKER_MEMORY_BYTES
    )
    checkpoint_due = time.monotonic() + CHECKPOINT_S
    with tqdm(total=round(sources.expected), desc="prepare", initial=n_done, unit=" files", disable=None) as bar:
        for answer in answers:
            file = names.popleft()
            if isinstance(answer, Failure):
                prepare_log.add_rejected({"file": file, "reason": answer.reason})
            else:
                line, tokens, bars, record = answer
                prepare_log.add_piece({"file": file, **line}, tokens, bars, record)
            bar.total = max(round(sources.expected), prepare_log.n_sources)
            bar.update()
            if time.monotonic() > checkpoint_due:
                prepare_log.checkpoint()
                checkpoint_due = time.monotonic() + CHECKPOINT_S
    prepare_log.checkpoint()


def _read(source: Source) -> bytes | Failure | None:
    """What of `source` a worker process cannot read by itself."""
    try:
        return source.read() if source.read else None
    except Unreadable as error:
        return Failure(error.reason)


Answer = tuple[dict, np.ndarray, np.ndarray, np.ndarray]


def _make_reader(
    name: str, options: dict, filters: Filters
) -> Callable[[tuple[str, bytes | Failure | None]], Answer | Failure]:
    """What a worker process does with a file: what the prepare_log takes in, or why it cannot."""
    codec = make_codec(name, **options)

    def read(item: tuple[str, bytes | Failure | None]) -> Answer | Failure:
        path, data = item
        if isinstance(data, Failure):
            return data
        try:
            data = read_file(path) if data is None else data
            stats = compute_stats(data)
            reason = filters.reason(stats)
            if reason:
                return Failure(reason)
            piece = codec.encode_piece(data)
        except (RejectedMidi, Unreadable) as error:
            return Failure(error.reason)
        bars = np.diff(piece.bar_starts, prepend=0)
        if bars.max() > LONGEST_BAR_TOKENS:
            return Failure(f"a bar of more than {LONGEST_BAR_TOKENS:,} tokens")
        line = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "music": stats.key,
            "seconds": round(stats.seconds, 3),
            "n_tokens": len(piece.ids),
            "n_bars": len(bars),
            "n_notes": codec.count_notes(piece.ids),
        }
        return line, piece.ids, bars.astype(np.uint16), stats.record()

    return read


def _write_dataset(
    folder: Path,
    prepare_log: PrepareLog,
    codec: Codec,
    bpe_vocab_size: int | None,
    val_fraction: float,
    seed: int,
    filters: Filters,
) -> dict:
    """Write everything that a dataset folder holds into `folder`, from a prepare_log that names every source."""
    index = _Index(prepare_log)
    in_val = _choose_val(index.music, val_fraction, seed)
    kept = index.first_copy == np.arange(len(index.first_copy))
    if bpe_vocab_size is not None:
        codec = _with_byte_pairs(codec, prepare_log, kept & ~in_val, bpe_vocab_size)
    counts = {split: Counter(pieces=0, tokens=0, bars=0, notes=0) for split in SPLITS}
    reasons = Counter(index.reasons)
    report = CorpusReport(codec.name)
    with ExitStack() as stack:
        documents = {split: stack.enter_context(BinIdxWriter(folder / split)) for split in SPLITS}
        bars = {split: stack.enter_context(BinIdxWriter(folder / f"{split}.bars")) for split in SPLITS}
        listed = stack.enter_context(open(folder / "pieces.jsonl", "w", encoding="utf-8"))
        rejected = stack.enter_context(open(folder / "rejected.jsonl", "w", encoding="utf-8"))
        pieces = prepare_log.pieces()
        number = 0
        for _, line in prepare_log.lines():
            if "reason" in line:
                rejected.write(json.dumps(line) + "\n")
                continue
            tokens, piece_bars, record = next(pieces)
            first = index.first_copy[number]
            if first != number:
                reasons["duplicate"] += 1
                of = prepare_log.line_at(index.line_starts[first])["file"]
                rejected.write(json.dumps({"file": line["file"], "reason": "duplicate", "of": of}) + "\n")
            else:
                split = SPLITS[int(in_val[number])]
                if bpe_vocab_size is not None:
                    piece = codec.apply_merges(tokens)
                    tokens, piece_bars = piece.ids, np.diff(piece.bar_starts, prepend=0).astype(np.uint16)
                    line |= {"n_tokens": len(tokens)}
                documents[split].add(tokens)
                bars[split].add(piece_bars)
                counts[split].update(pieces=1, tokens=len(tokens), bars=len(piece_bars), notes=line["n_notes"])
                report.add(split, record, len(tokens), len(piece_bars))
                listed.write(json.dumps({"split": split, **line}) + "\n")
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
            "filters": filters.as_options(),
            "bpe_vocab_size": bpe_vocab_size,
        },
        "files": prepare_log.n_sources,
        "rejected": dict(sorted(reasons.items())),
        "distinct_music": len(np.unique(index.music[kept], axis=0)),
        "splits": {split: dict(counts[split]) for split in SPLITS},
        "sha256": {name: file_sha256(folder / name) for name in PARTS},
    }
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(report.html(facts), encoding="utf-8")
    return facts


def _with_byte_pairs(codec: Remi, prepare_log: PrepareLog, chosen: np.ndarray, vocab_size: int) -> Remi:
    """`codec` with byte pairs learned from the chosen ones of a prepare_log's pieces, bool [n]."""

    def documents() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for is_chosen, (tokens, bars, _) in zip(chosen, prepare_log.pieces(), strict=True):
            if is_chosen:
                yield tokens, np.cumsum(bars, dtype=np.int64)

    return codec.with_merges(documents, int(chosen.sum()), vocab_size)


class _Index:
    """What must be known of all pieces at once.

    Attributes (n pieces, in order):
        line_starts: int64 [n], where each one's line starts in the prepare_log's log.
        first_copy: int64 [n], the first piece with the same bytes: its own number, unless it is a duplicate.
        music: uint64 [n, 2], the key of each one's music.
        reasons: how many files were left out for each reason.
    """

    def __init__(self, prepare_log: PrepareLog):
        line_starts, files, music = array("q"), array("Q"), array("Q")
        self.reasons: Counter = Counter()
        for start, line in prepare_log.lines():
            if "reason" in line:
                self.reasons[line["reason"]] += 1
                continue
            line_starts.append(start)
            files.extend(_halves(line["sha256"]))
            music.extend(_halves(line["music"]))
        self.line_starts = np.frombuffer(line_starts, np.int64) if line_starts else np.empty(0, np.int64)
        self.music = np.frombuffer(music, np.uint64).reshape(-1, 2) if music else np.empty((0, 2), np.uint64)
        _, first, which = np.unique(
            np.frombuffer(files, np.uint64).reshape(-1, 2) if files else self.music,
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        self.first_copy = first[which.ravel()]


def _halves(digest: str) -> tuple[int, int]:
    """The first 128 bits of a hexadecimal digest."""
    return int(digest[:16], 16), int(digest[16:32], 16)


def _choose_val(music: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """bool [n]: which pieces are for validation, decided by the key of their music, uint64 [n, 2], and the seed."""
    draws = np.array([_draw(seed, key.tobytes()) for key in music])
    chosen = draws < val_fraction
    if val_fraction > 0:
        chosen[draws == draws.min()] = True
        chosen[draws == draws.max()] = False  # last, so that a single piece is for training
    return chosen


def _draw(seed: int, key: bytes) -> float:
    """A number in [0, 1), exact in a float64."""
    return int(hashlib.sha256(f"{seed}:".encode() + key).hexdigest()[:13], 16) / 16.0**13


def _listed(reasons: Counter) -> str:
    shown = [f"{count:,} {reason}" for reason, count in reasons.most_common(3)]
    return ", ".join(shown + ["..."] * (len(reasons) > 3))
