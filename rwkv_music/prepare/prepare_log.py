"""What `prepare` has done so far, on the disk: every source's outcome, in order, so that a run that was killed goes on.

    settings.json   what was asked for; a run with other settings does not go on with this one
    log.jsonl       a line for each source: a piece and its counts, or why it was left out
    tokens.bin      the pieces' tokens, uint16, one after another
    bars.bin        the pieces' bars, uint16, likewise (see `PrepareLog.add_piece`)
    surveys.bin     a survey.RECORD for each piece

Nothing is changed once it is written. A checkpoint flushes tokens, bars and surveys to the disk before the log names
them; what they hold beyond the log's last whole line is cut off when the run goes on.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.stats import RECORD

TOKEN = np.dtype("<u2")
SETTINGS, LOG, TOKENS, BARS, SURVEYS = "settings.json", "log.jsonl", "tokens.bin", "bars.bin", "surveys.bin"


class PrepareLog:
    """An open prepare_log, in a `with` block; only one process can have it open.

    Args:
        folder: made if it is not there.
        settings: JSON values.
        resume: go on with what `folder` holds; otherwise it is emptied.

    Attributes:
        n_sources: how many the log names.
        n_pieces: how many of them are pieces.

    Raises:
        UserError: to go on, the settings must be the same; another process has it open.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict, resume: bool):
        self.folder, self.settings, self.resume = Path(folder), settings, resume
        self.n_sources = self.n_pieces = 0
        self._lines: list[bytes] = []

    def __enter__(self) -> "PrepareLog":
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._log = stack.enter_context(open(self.folder / LOG, "ab"))
            _lock(self._log, self.folder)
            n_tokens = n_bars = log_size = 0
            if self.resume and self._log.tell():
                self._check_settings()
                for end, line in self._whole_lines():
                    log_size = end
                    self.n_sources += 1
                    if "reason" not in line:
                        self.n_pieces += 1
                        n_tokens += line["n_tokens"]
                        n_bars += line["n_bars"]
            self._log.truncate(log_size)
            self._tokens = stack.enter_context(_cut(self.folder / TOKENS, n_tokens * TOKEN.itemsize))
            self._bars = stack.enter_context(_cut(self.folder / BARS, n_bars * TOKEN.itemsize))
            self._surveys = stack.enter_context(_cut(self.folder / SURVEYS, self.n_pieces * RECORD.itemsize))
            if not log_size:
                (self.folder / SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
            self._files = stack.pop_all()
        return self

    def __exit__(self, *raised) -> None:
        with self._files:
            if raised[0] is None or raised[0] is KeyboardInterrupt:
                self.checkpoint()

    def add_piece(self, line: dict, tokens: np.ndarray, bars: np.ndarray, survey_record: np.ndarray) -> None:
        """Take in a piece.

        Args:
            line: its JSON object, without a "reason"; "n_tokens" and "n_bars" are the lengths of the two that follow.
            tokens: uint16 [n_tokens].
            bars: uint16 [n_bars], where the first bar starts, then how much later each of the others does, in tokens.
            survey_record: one RECORD.
        """
        self._tokens.write(tokens.astype(TOKEN, copy=False).tobytes())
        self._bars.write(bars.astype(TOKEN, copy=False).tobytes())
        self._surveys.write(survey_record.tobytes())
        self.n_pieces += 1
        self._add(line)

    def add_rejected(self, line: dict) -> None:
        """Take in a source that was left out: its JSON object, with its "reason"."""
        self._add(line)

    def checkpoint(self) -> None:
        """Put everything on the disk, the log last."""
        for file in (self._tokens, self._bars, self._surveys):
            file.flush()
            os.fsync(file.fileno())
        self._log.write(b"".join(self._lines))
        self._log.flush()
        os.fsync(self._log.fileno())
        self._lines.clear()

    def lines(self) -> Iterator[tuple[int, dict]]:
        """(where it starts in the log, what it says) for each source, up to the last checkpoint."""
        start = 0
        for end, line in self._whole_lines():
            yield start, line
            start = end

    def line_at(self, start: int) -> dict:
        """The line that starts at a byte of the log."""
        with open(self.folder / LOG, "rb") as file:
            file.seek(start)
            return json.loads(file.readline())

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(tokens, bars, survey record) of each piece, in order, one at a time, as `add_piece` was given them."""
        with ExitStack() as stack:
            tokens, bars, surveys = (
                stack.enter_context(open(self.folder / name, "rb")) for name in (TOKENS, BARS, SURVEYS)
            )
            for _, line in self.lines():
                if "reason" not in line:
                    yield (
                        np.fromfile(tokens, TOKEN, line["n_tokens"]),
                        np.fromfile(bars, TOKEN, line["n_bars"]),
                        np.fromfile(surveys, RECORD, 1),
                    )

    def _add(self, line: dict) -> None:
        self._lines.append(json.dumps(line).encode() + b"\n")
        self.n_sources += 1

    def _whole_lines(self) -> Iterator[tuple[int, dict]]:
        """(where it ends, what it says) for each line up to the first that is not whole."""
        end = 0
        with open(self.folder / LOG, "rb") as file:
            for text in file:
                if not text.endswith(b"\n"):
                    return
                try:
                    line = json.loads(text)
                except ValueError:
                    return
                end += len(text)
                yield end, line

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS
        try:
            begun_with = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            begun_with = {}
        wanted = json.loads(json.dumps(self.settings))
        if begun_with != wanted:
            other = sorted(key for key in {*begun_with, *wanted} if begun_with.get(key) != wanted.get(key))
            raise UserError(
                f"The unfinished run in {self.folder} was begun with other settings ({', '.join(other)}): "
                "give the same ones, or leave out --resume to begin anew."
            )


def _cut(path: Path, nbytes: int) -> BinaryIO:
    """`path`, made if it is not there, cut to its first `nbytes` and open to append."""
    file = open(path, "ab")
    if file.tell() < nbytes:
        file.close()
        raise UserError(f"{path} is shorter than its log says: leave out --resume to begin anew.")
    file.truncate(nbytes)
    return file


def _lock(file: BinaryIO, folder: Path) -> None:
    """Keep other processes out for as long as `file` is open, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"Another process is preparing into {folder}: wait for it, or choose another --out.") from error
