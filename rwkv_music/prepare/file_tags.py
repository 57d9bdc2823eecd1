"""Look up the tags of MIDI files in a CSV and in the names of the folders and archives that `prepare` reads.

The CSV is in UTF-8 and separates its values by commas. Its column `file` names MIDI files. Every other column holds one
kind of tag:

    file,composer,genre
    bwv1.6.mid,Bach,chorale

The value of `file` is the name of a MIDI file, or the last part of its path, such as `chorales/bwv1.6.mid`. A line
applies to every MIDI file whose path ends with this value. If several lines match a MIDI file, the one with the longest
value applies. An empty tag, or the tag `none`, means that the tag is unknown.
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
    """The tags of MIDI files.

    `table` is the path of the CSV, or None. `folders` are paths of folders and archives. The name of each one is the
    tag `collection` of the MIDI files inside it. `columns` lists the kinds of tags: the columns of the CSV, and
    `collection` if there are `folders`. Raises UserError if the CSV cannot be read or used.
    """

    def __init__(self, table: str | os.PathLike | None, folders: Sequence[str] = ()):
        self._table, self._folders = table, folders
        self._lines: dict[str, dict[str, str]] = {}  # the tags of each line, by its value of FILE
        self._used: set[str] = set()
        self.columns: list[str] = [COLLECTION] if folders else []
        if table is not None:
            with explained(f"reading {table}"):
                self._read()
        if len(self.columns) > MAX_COLUMNS:
            raise UserError(f"{table} gives {len(self.columns)} columns of tags: keep at most {MAX_COLUMNS} of them.")

    @property
    def unused(self) -> int:
        """The number of lines that matched none of the files given to `of` so far."""
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
                f"No line of {self._table} matches a MIDI file: correct its column {FILE}, which needs names such as "
                f"{os.path.basename(example)} or ends of paths, and repeat the command with --resume."
            )

    def _read(self) -> None:
        try:
            with io.TextIOWrapper(open_file(self._table), "utf-8-sig", newline="") as file:
                lines = csv.DictReader(file, strict=True)
                names = [name for name in map(tag_text, lines.fieldnames or ()) if name]
                self._check_columns(names)
                self.columns += [name for name in names if name != FILE]
                columns = {name: tag_text(name) for name in lines.fieldnames if tag_text(name)}
                for line in lines:
                    tags = {name: tag_text(line[column] or "") for column, name in columns.items() if name != FILE}
                    [name] = [line[column] for column, name in columns.items() if name == FILE]
                    key = _normalized(name or "")
                    where = f"Line {lines.line_num} of {self._table}"
                    if None in line:
                        raise UserError(f"{where} has more values than there are columns: quote values with commas.")
                    if not key:
                        raise UserError(f"{where} has no value in the column {FILE}: add one, or remove the line.")
                    if key in self._lines:
                        raise UserError(f"{where} has the same {FILE} as an earlier line, {key}: remove one of them.")
                    self._lines[key] = tags
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self._table} is not a CSV in UTF-8 ({error}): save it as one.") from error

    def _check_columns(self, names: list[str]) -> None:
        """Raise UserError if the columns `names` of the table cannot be used."""
        if not names:
            raise UserError(
                f"{self._table} names no columns: write their names in its first line, as in {FILE},composer."
            )
        if FILE not in names or len(names) < 2:
            raise UserError(
                f"{self._table} has the columns {', '.join(names)}: it needs {FILE} and at least one column of tags, "
                "separated by commas."
            )
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{self._table} has more than one column {name}: rename or remove all but one.")
            if name in self.columns:
                raise UserError(f"{self._table} has a column {name}, which --tag-folders adds: rename it.")
            if "=" in name:
                raise UserError(f"{self._table} has a column {name}: rename it without the equals sign.")


def _normalized(path: str) -> str:
    """Return a path in the form in which paths are compared: slashes, no leading `./`, Unicode form NFC."""
    path = unicodedata.normalize("NFC", path.strip().replace("\\", "/"))
    while path.startswith("./"):
        path = path[2:]
    return path


def _name(folder: str) -> str:
    """Return the name of a folder, or of an archive without its suffix."""
    path = Path(os.path.abspath(folder))
    suffix = next((s for s in ARCHIVE_SUFFIXES if path.name.lower().endswith(s) and not path.is_dir()), "")
    return path.name[: len(path.name) - len(suffix)]
