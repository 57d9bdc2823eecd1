"""Music to train on: scores from music21's built-in corpus, and multi-track music from Debian packages (packages.py).

The scores are converted to .mid files (scores.py), one per piece, with the same bytes in every run.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rwkv_music.errors import UserError, check_installed, explained
from rwkv_music.files import atomic_path
from rwkv_music.midi.events import RejectedMidi
from rwkv_music.prepare.packages import PACKAGES, write_package
from rwkv_music.prepare.scores import HANG_LIMIT_S, SCORE_LIMIT_S, score_format, score_to_midi, split_pieces
from rwkv_music.prepare.workers import Failure, check_workers, map_in_order
from rwkv_music.progress import progress_bar

NOT_SCORES = {".rntxt"}  # Roman-numeral analyses, which annotate music but contain none


@dataclass(frozen=True)
class CorpusReport:
    """The result of `write_corpus`."""

    folder: Path  # contains the files
    written: int  # number of new .mid files
    kept: int  # number of scores, or of pieces of a package, that were skipped because their files already existed
    failed: list[tuple[str, str]]  # (source, reason) for each score, piece or file that could not be read


def write_corpus(
    name: str, out: str | os.PathLike, workers: int | None = None, limit: int | None = None
) -> CorpusReport:
    """Write the scores in music21's corpus folder `name` ("bach") to the folder `out` as .mid files.

    If `name` is a Debian package (a key of PACKAGES), write its music and its license to `out`/`name`. Existing files
    with the expected names are kept. With `limit`, only the first `limit` scores, or pieces of a package, in order of
    their names are used. Raises UserError if there is no such corpus, if music21 is missing, if the package is not
    installed and cannot be downloaded, if `out` cannot be written, or if a number is out of range.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The limit is {limit} scores: choose at least 1.")
    check_workers(workers)
    out = Path(out)
    if name in PACKAGES:
        return CorpusReport(out / name, *write_package(name, out, limit))
    sources = _sources(name)[:limit]
    with explained(f"writing the corpus to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        # If a source has several pieces, the first one is written last. If its file exists, the source needs no more
        # work.
        pending = [
            (source, stem)
            for source, stem in sources
            if not (out / f"{stem}.mid").exists() and not (out / _numbered(stem, 1)).exists()
        ]
        answers = map_in_order(_make_writer, (str(out),), pending, workers, SCORE_LIMIT_S, hang_s=HANG_LIMIT_S)
        written, failed = 0, []
        bar = progress_bar(zip(pending, answers, strict=True), f"corpus {name}", len(pending), unit=" scores")
        for (source, _), answer in bar:
            if isinstance(answer, OSError):
                raise answer
            if isinstance(answer, Failure):
                failed.append((source, answer.reason))
            else:
                written += answer[0]
                failed += answer[1]
    return CorpusReport(out, written, len(sources) - len(pending), failed)


def corpus_names() -> list[str]:
    """Return the names of the folders with scores in music21's corpus, and of the packages with music."""
    return sorted({path.parts[0] for path in _all_sources()} | set(PACKAGES))


def _all_sources() -> list[Path]:
    """Return the path of every score that music21 ships, relative to its corpus folder, sorted."""
    check_installed("music21", "music", "The corpus")
    from music21 import common, corpus

    root = common.getCorpusFilePath()
    paths = (path.relative_to(root) for path in corpus.getCorePaths() if path.suffix not in NOT_SCORES)
    return sorted(path for path in paths if len(path.parts) > 1)


def _sources(name: str) -> list[tuple[str, str]]:
    """Return (path inside music21's corpus folder, stem of the .mid file) of every score in folder `name`."""
    paths = [path for path in _all_sources() if path.parts[0] == name]
    if not paths:
        raise UserError(f"There is no corpus {name!r}: choose one of {', '.join(corpus_names())}.")
    stems = ["-".join((*path.parts[1:-1], path.stem)) for path in paths]
    # If a score exists in two formats, the names of its files contain the format.
    several = {stem for stem, count in Counter(stems).items() if count > 1}
    return [
        (path.as_posix(), f"{stem}-{path.suffix[1:]}" if stem in several else stem)
        for path, stem in zip(paths, stems, strict=True)
    ]


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number:04d}.mid"


def _make_writer(out: str) -> Callable[[tuple[str, str]], tuple[int, list[tuple[str, str]]] | OSError]:
    """Return the function that a worker process calls for each job.

    That function writes the pieces of a source. It returns the number of files written and the failures, or an OSError
    if a file cannot be written.
    """
    from music21.common import getCorpusFilePath

    root = getCorpusFilePath()

    def write(job: tuple[str, str]) -> tuple[int, list[tuple[str, str]]] | OSError:
        source, stem = job
        data = (root / source).read_bytes()
        form = score_format(source, data)
        pieces = split_pieces(source, data)
        names = [f"{stem}.mid"] if len(pieces) == 1 else [_numbered(stem, i) for i in range(1, len(pieces) + 1)]
        written, failed = 0, []
        for file_name, piece in reversed(list(zip(names, pieces, strict=True))):
            try:
                midi = score_to_midi(form, piece)
                with atomic_path(Path(out) / file_name) as partial:
                    partial.write_bytes(midi)
                written += 1
            except OSError as error:
                return error  # writing failed, and would also fail for the next piece
            except RejectedMidi as error:
                cause = f": {error.__cause__}" if error.__cause__ else ""
                failed.append((f"{source} ({file_name})", f"{error.reason}{cause}"))
        return written, failed

    return write
