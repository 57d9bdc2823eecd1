"""The tags of MIDI files: from a CSV, and from the names of the folders and archives that `prepare` reads.

The CSV is UTF-8, with commas. Its column `file` names MIDI files, and each other column is a column of tags:

    file,composer,genre
    bwv1.6.mid,Bach,chorale

A line belongs to every file whose path ends with its `file`: a name, or a name after some of its folders. If several
lines fit a file, the longest `file` counts. An empty value, and `none`, are unknown values.
"""

import csv
import io
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from rwkv_music.errors import UserError, explained
from rwkv_music.files import open_file
from rwkv_music.prepare.sources import ARCHIVE_SUFFIXES
from rwkv_music.tokenizers.tags import MAX_COLUMNS, UNKNOWN, tag_text

FILE = "file"
COLLECTION = "collection"


class FileTags:
    """The tags of files, by the lines of `table` and, as the column `collection`, by the one of `folders` they are in.

    `columns` is empty without both. Raises UserError if the table cannot be read.
    """

    def __init__(self, table: str | os.PathLike | None, folders: Sequence[str] = ()):
        self._table, self._folders = table, folders
        self._lines: dict[str, dict[str, str]] = {}  # tags by file
        self._used: set[str] = set()
        self.columns: list[str] = [COLLECTION] if folders else []
        if table is not None:
            with explained(f"reading {table}"):
                self._read()
        if len(self.columns) > MAX_COLUMNS:
            raise UserError(f"{table} gives {len(self.columns)} columns of tags: keep {MAX_COLUMNS} at most.")

    @property
    def unused(self) -> int:
        """The number of lines that fit none of the files so far."""
        return len(self._lines) - len(self._used)

    def of(self, file: str) -> dict[str, str]:
        """Return the known tags of a file, by column. `file` is the name of a source (see sources.py)."""
        tags = {}
        for folder in self._folders:
            if file == folder or file.startswith(os.path.join(folder, "")):
                tags[COLLECTION] = tag_text(_name(folder))
        folders = _normalized(os.path.abspath(file)).split("/")
        for i in range(len(folders)):
            key = "/".join(folders[i:])
            if key in self._lines:
                self._used.add(key)
                tags |= self._lines[key]
                break
        return {column: value for column, value in tags.items() if value not in ("", UNKNOWN)}

    def check_use(self, example: str) -> None:
        """Raise UserError if no line of the table has been used. `example` is the name of a source."""
        if self._table is not None and not self._used:
            raise UserError(
                f"No line of {self._table} fits a MIDI file: its column {FILE} needs names or ends of paths such as "
                f"{os.path.basename(example)}; correct it and repeat the command with --resume."
            )

    def _read(self) -> None:
        try:
            with io.TextIOWrapper(open_file(self._table), "utf-8-sig", newline="") as file:
                lines = csv.DictReader(file, strict=True)
                columns = {name: tag_text(name) for name in lines.fieldnames or () if tag_text(name)}
                names = list(columns.values())
                if FILE not in names or len(names) < 2:
                    raise UserError(
                        f"{self._table} has the columns {', '.join(names) or 'of an empty file'}: it needs {FILE} and "
                        "at least one column of tags, separated by commas."
                    )
                self.columns += [name for name in names if name != FILE]
                repeated = [name for name in self.columns if self.columns.count(name) > 1 or "=" in name]
                if len(lines.fieldnames) != len(set(lines.fieldnames)) or repeated or names.count(FILE) > 1:
                    raise UserError(
                        f"{self._table} cannot have the column {(repeated or names)[0]} twice, with --tag-folders if "
                        f"it is {COLLECTION}, or with an equals sign: rename it."
                    )
                for line in lines:
                    tags = {name: tag_text(line[column] or "") for column, name in columns.items() if name != FILE}
                    [name] = [line[column] for column, name in columns.items() if name == FILE]
                    key = _normalized(name or "")
                    if None in line or not key or key in self._lines:
                        problem = "too many values" if None in line else f"the {FILE} of an earlier line" * bool(key)
                        raise UserError(
                            f"Line {lines.line_num} of {self._table} has {problem or f'no {FILE}'}: correct it."
                        )
                    self._lines[key] = tags
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self._table} is not a CSV in UTF-8 ({error}): save it as one.") from error


def _normalized(path: str) -> str:
    """Return a path as it is compared: with slashes, without a leading `./`, in the Unicode form of most systems."""
    path = unicodedata.normalize("NFC", path.strip().replace("\\", "/"))
    while path.startswith("./"):
        path = path[2:]
    return path


def _name(folder: str) -> str:
    """Return the name of a folder, or of an archive without its suffix."""
    path = Path(os.path.abspath(folder))
    suffix = next((s for s in ARCHIVE_SUFFIXES if path.name.lower().endswith(s) and not path.is_dir()), "")
    return path.name[: len(path.name) - len(suffix)]
