"""The write-ahead log of `prepare`: the result for every source, in order, so that an interrupted run can resume.

The log is a SQLite database with two tables:

    settings   one row of JSON. A run with other settings cannot resume from this log.
    sources    one row per source: JSON with the counts of a piece, or with the reason why the source was rejected. For
               a piece, the row also has its tokens (uint16), bars (uint16, see `PrepareLog.add`) and midi.stats.RECORD.

A checkpoint commits all rows that were added since the previous checkpoint. After a crash or a kill, the log is in the
state of the last checkpoint.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.files import parse_json
from rwkv_music.midi.stats import RECORD

DATABASE = "log.sqlite"
TOKEN = np.dtype("<u2")
# Until the database is closed, the lock prevents other processes from opening it.
OPEN = """
    PRAGMA locking_mode = EXCLUSIVE;
    BEGIN EXCLUSIVE;
    CREATE TABLE IF NOT EXISTS settings (json TEXT);
    CREATE TABLE IF NOT EXISTS sources (number INTEGER PRIMARY KEY, json TEXT, tokens BLOB, bars BLOB, record BLOB);
    COMMIT;
"""


class PrepareLog:
    """A prepare log. Use it in a `with` block. Only one process can open it at a time.

    Entering the block empties the log, unless `resume` is set. The end of the block commits the added sources, and so
    does KeyboardInterrupt. After any other exception, the sources since the last checkpoint are lost. Raises UserError
    if another process has the log open, if the log cannot be read or written, or if `resume` is set and the log was
    written with other `settings` (JSON values).
    """

    def __init__(self, folder: str | os.PathLike, settings: dict, resume: bool):
        self.folder, self.settings, self.resume = Path(folder), settings, resume

    def __enter__(self) -> "PrepareLog":
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._database = sqlite3.connect(self.folder / DATABASE, timeout=0)
            try:
                self._database.executescript(OPEN)
                if not self.resume:
                    self._database.execute("DELETE FROM settings")
                    self._database.execute("DELETE FROM sources")
                self._check_settings()
                counts = self._database.execute("SELECT count(*), count(tokens) FROM sources")
                self.n_sources, self.n_pieces = counts.fetchone()
                self._database.commit()
            except BaseException:
                self._database.close()
                raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        with self._explained(), closing(self._database):
            if kind is None or kind is KeyboardInterrupt:
                self.checkpoint()
            elif isinstance(error, sqlite3.Error):
                raise error

    def add(self, line: dict, *piece: np.ndarray) -> None:
        """Add the result for a source. `line` is a JSON object. It has a "reason" if the source was rejected.

        `piece` is empty for a rejected source. Otherwise it consists of three arrays: the tokens, uint16 [n]; the bars,
        uint16 [bars], in the format of the dataset (see pipeline.py); and one midi.stats.RECORD.
        """
        blobs = [array.tobytes() for array in piece] or [None] * 3
        row = (self.n_sources, json.dumps(line), *blobs)
        self._database.execute("INSERT INTO sources VALUES (?, ?, ?, ?, ?)", row)
        self.n_sources += 1
        self.n_pieces += bool(piece)

    def checkpoint(self) -> None:
        """Commit all added sources to the disk."""
        self._database.commit()

    def lines(self) -> Iterator[dict]:
        """Yield the JSON object of each source, in order."""
        for (text,) in self._database.execute("SELECT json FROM sources ORDER BY number"):
            yield _object(text)

    def line(self, number: int) -> dict:
        """Return the JSON object of source `number`."""
        [text] = self._database.execute("SELECT json FROM sources WHERE number = ?", (number,)).fetchone()
        return _object(text)

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the arrays (tokens, bars, record) of each piece, in the order in which `add` received them."""
        query = "SELECT tokens, bars, record FROM sources WHERE tokens IS NOT NULL ORDER BY number"
        for blobs in self._database.execute(query):
            yield tuple(map(np.frombuffer, blobs, (TOKEN, TOKEN, RECORD)))

    def _check_settings(self) -> None:
        settings = json.loads(json.dumps(self.settings))
        row = self._database.execute("SELECT json FROM settings").fetchone()
        if row is None:
            self._database.execute("INSERT INTO settings VALUES (?)", (json.dumps(settings),))
            return
        logged = _object(row[0])
        different = sorted(key for key in {*logged, *settings} if logged.get(key) != settings.get(key))
        if different:
            raise UserError(
                f"The unfinished run in {self.folder} has other settings ({', '.join(different)}): use the same "
                "settings, or start over without --resume."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A context that converts errors of SQLite to `UserError`."""
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise UserError(
                    f"Another process is using {self.folder}: wait for that process to end, or choose another --out."
                ) from error
            raise UserError(
                f"{self.folder / DATABASE} cannot be read or written ({error}): free some space and try again with "
                "--resume, or start over without --resume."
            ) from error


def _object(text: str) -> dict:
    """Return the JSON object in a row. Raises sqlite3.DatabaseError if the row is damaged."""
    try:
        return parse_json(str(text).encode("utf-8", "replace"))
    except ValueError as error:
        raise sqlite3.DatabaseError(f"a damaged row: {error}") from error
