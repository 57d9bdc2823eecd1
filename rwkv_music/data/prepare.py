"""Folders of .mid files to a dataset folder: tokens of two splits, the tokenizer, the counts, and what was left out.

    train.bin train.idx val.bin val.idx    the tokens, one document a piece (see binidx.py)
    tokenizer.json                         the codec (see codecs.py)
    dataset.json                           counts, options, versions, sha256 of the parts
    pieces.jsonl                           one line for each document, in order: its file, split, tokens and notes
    rejected.jsonl                         one line for each file left out, and why

Notable choices:
- The same files give the same bytes, whatever the number of workers: pieces are written in the order of their paths.
- A piece goes to `val` by a hash of its own bytes and the seed, so adding, moving or renaming files never moves a piece
  from one split to the other. Files with the same bytes are one piece, so none is on both sides.
- A file that cannot be read, hangs or kills its reader costs that file alone.
- The folder is built beside its place and renamed when it is whole. While it is built it takes its size twice.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import rwkv_music
from rwkv_music.data.binidx import BinIdx, BinIdxWriter, bin_path, idx_path
from rwkv_music.data.codecs import Codec, RejectedMidi, make_codec
from rwkv_music.data.workers import Failure, map_in_order
from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_folder

SUFFIXES = (".mid", ".midi")
FORMAT = "rwkv-music dataset"
FORMAT_VERSION = 1
PARTS = ["train.bin", "train.idx", "val.bin", "val.idx", "tokenizer.json"]
LISTINGS = ["pieces.jsonl", "rejected.jsonl"]  # they name files, so they differ where the same files lie elsewhere
FILE_LIMIT_S = 60.0


def prepare(
    folders: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    tokenizer: str = "remi",
    workers: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> dict:
    """Write the dataset folder `out` from every .mid and .midi file under `folders`; return what dataset.json says.

    Args:
        folders: searched through all their subfolders, any case of the suffix.
        out: replaced only if it is a dataset folder already, and only by a whole one.
        tokenizer: the name of a codec.
        workers: how many processes read files; one for each core when None.
        val_fraction: the expected share of pieces in `val`, 0 <= val_fraction < 1; unless it is 0, each split has at
            least one piece when there are two or more.
        seed: another seed, another split.

    Raises:
        UserError: there is nothing to read or none of it can be used, `out` is in use for something else, or it cannot
            be written. Nothing is left behind then.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"The validation fraction is {val_fraction}: choose one from 0 up to, but not including, 1.")
    # An absolute path has a name and a parent to build beside, which "." has not.
    out = Path(os.path.abspath(out))
    _check_replaceable(out)
    paths = find_midi(folders)
    codec = make_codec(tokenizer)
    with explained(f"writing the dataset {out}"), atomic_folder(out) as partial:
        with open(partial / "rejected.jsonl", "w", encoding="utf-8") as file, BinIdxWriter(partial / "all") as writer:
            pieces, reasons = _tokenize(paths, codec, workers, writer, file.write)
        if not pieces:
            raise UserError(
                f"None of the {len(paths):,} MIDI files could be used ({_listed(reasons)}): check that they hold music."
            )
        in_val = _choose_val([piece.sha256 for piece in pieces], val_fraction, seed)
        _divide(partial / "all", {partial / "train": ~in_val, partial / "val": in_val})
        with open(partial / "pieces.jsonl", "w", encoding="utf-8") as file:
            for piece, is_val in zip(pieces, in_val, strict=True):
                file.write(json.dumps({"split": "val" if is_val else "train", **asdict(piece)}) + "\n")
        codec.save(partial / "tokenizer.json")
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
            "options": {"val_fraction": val_fraction, "seed": seed},
            "files": len(paths),
            "rejected": dict(sorted(reasons.items())),
            "splits": {
                "train": _count([piece for piece, is_val in zip(pieces, in_val, strict=True) if not is_val]),
                "val": _count([piece for piece, is_val in zip(pieces, in_val, strict=True) if is_val]),
            },
            "sha256": {name: _sha256_of(partial / name) for name in PARTS},
        }
        (partial / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def find_midi(folders: Sequence[str | os.PathLike]) -> list[str]:
    """Every .mid and .midi file under `folders`, sorted; a `UserError` if a folder is missing or there is none."""
    paths = set()
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"There is no folder {folder}: check the path.")
        with explained(f"searching {folder}"):
            for parent, _, names in os.walk(folder, onerror=_raise):
                paths.update(os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES))
    if not paths:
        listed = ", ".join(str(folder) for folder in folders)
        raise UserError(f"There is no .mid or .midi file under {listed}: name a folder that holds MIDI files.")
    return sorted(paths)


@dataclass(frozen=True)
class Piece:
    file: str
    sha256: str  # of the file's bytes
    n_tokens: int
    n_notes: int


def _check_replaceable(out: Path) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a new folder for the dataset.")
    with explained(f"looking into {out}"):
        names = {entry.name for entry in os.scandir(out)}
    others = names - {"dataset.json", *PARTS, *LISTINGS}
    if names and (others or "dataset.json" not in names):
        found = f" ({', '.join(sorted(others)[:3])})" if others else ""
        raise UserError(f"{out} holds something that is not a dataset{found}: choose a new or an empty folder.")


def _tokenize(
    paths: list[str], codec: Codec, workers: int | None, writer: BinIdxWriter, reject: Callable[[str], object]
) -> tuple[list[Piece], Counter]:
    """Write every usable file's tokens, and a line to `reject` for every other one; count the reasons."""
    pieces: list[Piece] = []
    reasons: Counter = Counter()
    first_with: dict[str, str] = {}
    answers = map_in_order(_make_reader, (codec.name, codec.options), paths, workers, FILE_LIMIT_S)
    bar = tqdm(zip(paths, answers, strict=True), "prepare", len(paths), unit=" files", disable=None)
    for path, answer in bar:
        line = {"file": path}
        if isinstance(answer, Failure):
            line["reason"] = answer.reason
        elif answer[0] in first_with:
            line |= {"reason": "duplicate", "of": first_with[answer[0]]}
        else:
            digest, ids, n_notes = answer
            first_with[digest] = path
            pieces.append(Piece(path, digest, len(ids), n_notes))
            writer.add(ids)
            bar.set_postfix(tokens=writer.n_tokens, rejected=sum(reasons.values()), refresh=False)
            continue
        reasons[line["reason"]] += 1
        reject(json.dumps(line) + "\n")
    return pieces, reasons


def _make_reader(name: str, options: dict) -> Callable[[str], tuple[str, np.ndarray, int] | Failure]:
    """What a worker process does with a path: (sha256 of the file, its ids, how many notes), or why not."""
    codec = make_codec(name, **options)

    def read(path: str) -> tuple[str, np.ndarray, int] | Failure:
        try:
            data = Path(path).read_bytes()
            ids = codec.encode(data)
        except OSError as error:
            return Failure(f"cannot be opened ({error.strerror})")
        except RejectedMidi as error:
            return Failure(error.reason)
        return hashlib.sha256(data).hexdigest(), ids, codec.count_notes(ids)

    return read


def _choose_val(digests: list[str], val_fraction: float, seed: int) -> np.ndarray:
    """bool [pieces]: which pieces are for validation, each decided by its own digest and the seed."""
    draws = np.array([int(hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()[:13], 16) for digest in digests])
    draws = draws / 16.0**13  # in [0, 1), exact in a float64
    chosen = draws < val_fraction
    if val_fraction > 0:
        chosen[draws.argmin()] = True
        chosen[draws.argmax()] = False  # last, so that a single piece is for training
    return chosen


def _divide(source: Path, parts: dict[Path, np.ndarray]) -> None:
    """Move the documents of one token file to several, each named with a bool [documents] of those it takes."""
    documents = BinIdx(source)
    for prefix, chosen in parts.items():
        with BinIdxWriter(prefix) as writer:
            for i in np.flatnonzero(chosen):
                writer.add(documents[i])
    bin_path(source).unlink()
    idx_path(source).unlink()


def _count(pieces: list[Piece]) -> dict[str, int]:
    return {
        "pieces": len(pieces),
        "tokens": sum(piece.n_tokens for piece in pieces),
        "notes": sum(piece.n_notes for piece in pieces),
    }


def _listed(reasons: Counter) -> str:
    shown = [f"{count:,} {reason}" for reason, count in reasons.most_common(3)]
    return ", ".join(shown + ["..."] * (len(reasons) > 3))


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error
