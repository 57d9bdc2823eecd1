"""Music to train on: scores from music21's built-in corpus, and the multi-track music of packages.py.

The scores are written as .mid, one file per piece, with the same bytes in every run. Bar lines are where the score has
them. music21's MIDI export counts bars from the first note, which shifts every bar line of music that starts with an
upbeat. Here an upbeat is a short bar of its own, and the two halves of a bar that a repeat sign divides become one bar.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import mido

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path
from rwkv_music.prepare.packages import PACKAGES, write_package
from rwkv_music.prepare.workers import Failure, check_workers, map_in_order
from rwkv_music.progress import progress_bar

if TYPE_CHECKING:
    from music21.stream import Part, Score

NOT_SCORES = {".rntxt"}  # Roman-numeral analyses, which annotate music but contain none
SCORE_LIMIT_S = 300.0  # of CPU time; a file of a hundred tunes takes 30 s
HANG_LIMIT_S = 3600.0
FINEST_BEAT = 32


@dataclass(frozen=True)
class CorpusReport:
    """The result of `write_corpus`."""

    folder: Path  # contains the files
    written: int  # number of new .mid files
    kept: int  # number of sources whose files already existed
    failed: list[tuple[str, str]]  # (source, reason) for each piece that could not be read or written


def write_corpus(
    name: str, out: str | os.PathLike, workers: int | None = None, limit: int | None = None
) -> CorpusReport:
    """Write the scores in music21's corpus folder `name` ("bach") to the folder `out` as .mid files.

    For a Debian package (a key of PACKAGES), write its music and its license to `out`/`name`. Existing files with the
    expected names are kept. With `limit`, only the first sources in order of names are used.
    Raises UserError if there is no such corpus, music21 or the package is missing, or `out` cannot be written.
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
        # The first of several pieces is written last: if it exists, all of them exist.
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
    try:
        from music21 import common, corpus
    except ImportError as error:
        raise UserError("The corpus needs music21, which is not installed: `pip install music21`.") from error
    root = common.getCorpusFilePath()
    paths = (path.relative_to(root) for path in corpus.getCorePaths() if path.suffix not in NOT_SCORES)
    return sorted(path for path in paths if len(path.parts) > 1)


def _sources(name: str) -> list[tuple[str, str]]:
    """Return (path inside music21's corpus folder, stem of the .mid file) of every score in folder `name`."""
    paths = [path for path in _all_sources() if path.parts[0] == name]
    if not paths:
        raise UserError(f"There is no corpus {name!r}: choose one of {', '.join(corpus_names())}.")
    stems = ["-".join((*path.parts[1:-1], path.stem)) for path in paths]
    # Scores that exist in two formats get the format in their names.
    several = {stem for stem, count in Counter(stems).items() if count > 1}
    return [
        (path.as_posix(), f"{stem}-{path.suffix[1:]}" if stem in several else stem)
        for path, stem in zip(paths, stems, strict=True)
    ]


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number:04d}.mid"


def _make_writer(out: str) -> Callable[[tuple[str, str]], tuple[int, list[tuple[str, str]]] | OSError]:
    """Return the function of a worker: it writes a job's pieces and returns (files written, failures) or an OSError."""
    from music21.common import getCorpusFilePath
    from music21.converter import Converter
    from music21.stream import Opus

    root = getCorpusFilePath()

    def write(job: tuple[str, str]) -> tuple[int, list[tuple[str, str]]] | OSError:
        source, stem = job
        # Without these flags music21 reads and writes pickles in the shared temporary folder.
        converter = Converter()
        converter.parseFile(root / source, forceSource=True, storePickle=False)
        parsed = converter.stream
        if isinstance(parsed, Opus):
            pieces = [(_numbered(stem, i), score) for i, score in enumerate(parsed.scores, start=1)]
        else:
            pieces = [(f"{stem}.mid", parsed)]
        written, failed = 0, []
        for file_name, score in reversed(pieces):
            try:
                midi = to_midi(score)
                with atomic_path(Path(out) / file_name) as partial:
                    midi.save(partial)
                written += 1
            except OSError as error:
                return error  # a fault of the disk, which would also fail the next piece
            except Exception as error:  # music21 raises many types for bad scores
                failed.append((f"{source} ({file_name})", f"{type(error).__name__}: {error}"))
        return written, failed

    return write


def to_midi(score: "Score") -> mido.MidiFile:
    """Convert a music21 score to MIDI with expanded repeats, and with time signatures that match its bar lines.

    The score is modified: it loses its time signatures, and its repeats if they are inconsistent.
    """
    from music21.midi.translate import streamToMidiFile
    from music21.repeat import Expander
    from music21.stream import Measure

    changes = []
    parts = [part for part in score.parts if part.getElementsByClass(Measure)]
    if parts:
        if any(Expander(part).isExpandable() is False for part in parts):
            _remove_repeats(score)  # inconsistent repeats: play the music once
        changes = list(_changes(_measures(parts[0].expandRepeats())))
    if changes:
        # music21 would write the time signatures at other positions, and fails if one object is at two positions.
        for stream in score.recurse(streamsOnly=True, includeSelf=True):
            stream.removeByClass("TimeSignature")
    midi = mido.MidiFile(file=io.BytesIO(streamToMidiFile(score).writestr()))
    if changes:
        _set_time_signatures(midi, changes)
    return midi


def _remove_repeats(score: "Score") -> None:
    from music21.bar import Repeat
    from music21.repeat import RepeatMark
    from music21.spanner import RepeatBracket
    from music21.stream import Measure

    for stream in score.recurse(streamsOnly=True, includeSelf=True):
        if isinstance(stream, Measure):
            if isinstance(stream.leftBarline, Repeat):
                stream.leftBarline = None
            if isinstance(stream.rightBarline, Repeat):
                stream.rightBarline = None
        stream.removeByClass([RepeatMark, RepeatBracket])


def _measures(part: "Part") -> list[tuple[Fraction, Fraction, tuple[int, int] | None]]:
    """Return (start, length, time signature in force) of each measure of nonzero length, in quarter notes."""
    from music21.stream import Measure

    found = []
    measures = list(part.getElementsByClass(Measure))
    signature = None
    for measure, following in zip_longest(measures, measures[1:]):
        if measure.timeSignature is not None:
            signature = measure.timeSignature.numerator, measure.timeSignature.denominator
        start = Fraction(measure.offset)
        length = Fraction(following.offset) - start if following else Fraction(measure.duration.quarterLength)
        if length > 0:
            found.append((start, length, signature))
    return found


def _changes(measures: list[tuple[Fraction, Fraction, tuple[int, int] | None]]) -> Iterator[tuple[Fraction, int, int]]:
    """Yield (start, numerator, denominator) of the time-signature changes that put the bar lines at the measures."""
    current = None
    i = 0
    while i < len(measures):
        start, length, signature = measures[i]
        whole = Fraction(4 * signature[0], signature[1]) if signature else None
        i += 1
        if whole and length < whole and i < len(measures) and length + measures[i][1] == whole:
            # Two halves of one bar, divided by a repeat sign.
            length, i = whole, i + 1
        is_last = i == len(measures)
        if whole and (length == whole or (is_last and length < whole)):
            new = signature
        else:
            new = _signature_of(length)
        if new and new != current:
            current = new
            yield start, *new


def _signature_of(length: Fraction) -> tuple[int, int] | None:
    """Return the time signature with the longest beat for a bar of `length` quarter notes, None if there is none."""
    beat = 4
    while beat <= FINEST_BEAT:
        if (length * beat / 4).denominator == 1:
            return int(length * beat / 4), beat
        beat *= 2
    return None


def _set_time_signatures(midi: mido.MidiFile, changes: list[tuple[Fraction, int, int]]) -> None:
    """Replace the time signatures of `midi` with `changes`, on its first track."""
    for i, track in enumerate(midi.tracks):
        events = []
        now = 0
        for message in track:
            now += message.time
            if message.type != "time_signature":
                events.append((now, message))
        if i == 0:
            events += [
                (
                    round(start * midi.ticks_per_beat),
                    mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator),
                )
                for start, numerator, denominator in changes
            ]
        # The sort is stable, and end_of_track stays last regardless of its tick.
        events.sort(key=lambda event: (event[1].type == "end_of_track", event[0]))
        now = 0
        track.clear()
        for tick, message in events:
            track.append(message.copy(time=max(tick - now, 0)))
            now = max(tick, now)
