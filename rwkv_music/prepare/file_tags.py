"""Tags of pieces, from a table, from parquet files, and from the names of folders and archives.

The table is a .csv file, a .tsv file or a file with one JSON object per line (.jsonl, .ndjson), in UTF-8. It can have
any columns. Some of them identify files, by default those in KEYS:

    file,composer,genre,license
    bwv1.6.mid,Bach,chorale,CC0

A file is identified by its name, by the end of its path, such as `chorales/bwv1.6.mid`, or by the MD5 of its content. A
line applies to every file that it identifies. If several lines identify a file, the one with the longest path applies,
and a path has precedence over an MD5. An empty value, or the value `none`, means that nothing is known.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkv_music.errors import UserError, explained
from rwkv_music.files import open_file, parse_json
from rwkv_music.prepare.sources import ARCHIVE_SUFFIXES, MUSIC_SUFFIXES
from rwkv_music.tokenizers.tags import MAX_COLUMNS, UNKNOWN, tag_text

KEYS = ("file", "path", "md5")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
COLLECTION = "collection"
MD5 = re.compile(r"[0-9a-fA-F]{32}")
LONGEST_VALUE = 1 << 27  # characters; the csv module's default of 131,072 is too low for some lyrics


class FileTags:
    """The tags of pieces, and the conditions (`--where`) that a piece must meet to be kept.

    Columns and values are normalized by `tag_text` before they are compared. The attribute `columns` lists the columns
    that become tags: the chosen ones, and COLLECTION if there are `folders`. Raises UserError if the table cannot be
    read, if no option uses a column of the table, if a column is missing, or if too many columns are chosen.
    """

    def __init__(
        self,
        table: str | os.PathLike | None = None,
        chosen: Sequence[str] = (),  # columns of the table or of parquet files that become tags
        folders: Sequence[str] = (),  # paths; the files in each get its name as their tag in the column COLLECTION
        where: Mapping[str, Collection[str]] | None = None,  # by column: the accepted values of a piece
        key: str | None = None,  # the column that identifies files, instead of KEYS
        elsewhere: Collection[str] = (),  # columns of parquet files
    ):
        self._table, self._folders, self._keys = table, folders, (tag_text(key),) if key else KEYS
        self._where = {tag_text(column): {*map(tag_text, values)} for column, values in (where or {}).items()}
        self.columns = [COLLECTION] * bool(folders) + [tag_text(column) for column in chosen]
        # All columns to look up, except COLLECTION.
        self.needed = [column for column in {**dict.fromkeys(self.columns), **self._where} if column]
        if folders:
            self.needed.remove(COLLECTION)
        self._lines: dict[str, int] = {}  # line numbers by path or MD5
        self._values: list[tuple[str, ...]] = []  # for each line, its values in the columns `needed`
        self._used = bytearray()  # for each line, whether it matched a file
        self._check_columns()
        found = {tag_text(column) for column in elsewhere}
        if table is not None:
            with explained(f"reading {table}"):
                found |= self._read()
        missing = [column for column in self.needed if column not in found]
        if missing:
            option = "--tags" if missing[0] in self.columns else "--where"
            problem = f"which {table} does not have" if table is not None else "but there is no table"
            remedy = f"choose from {', '.join(sorted(found)[:40])}" if found else "give one with --metadata"
            raise UserError(f"{option} names the column {missing[0]}, {problem}: {remedy}.")

    @property
    def unused(self) -> int:
        """The number of lines that have not yet matched a piece in a call of `of` or `excluded`."""
        return len(self._used) - sum(self._used)

    def of(self, line: Mapping[str, Any]) -> dict[str, str]:
        """Return the known tags of a piece, by column. `line` is the piece's entry in the prepare log."""
        known = self._known(line)
        return {column: known[column] for column in self.columns if column in known}

    def excluded(self, line: Mapping[str, Any]) -> str | None:
        """Return why the conditions exclude a piece, or None if they do not.

        `line` is the piece's entry in the prepare log.
        """
        known = self._known(line) if self._where else {}
        for column, values in self._where.items():
            if known.get(column, UNKNOWN) not in values:
                return f"other {column}"
        return None

    def check_use(self, example: str) -> None:
        """Raise UserError if no line of the table has matched a piece. `example` is the name of a source."""
        if self._table is not None and not any(self._used):
            raise UserError(
                f"No line of {self._table} matches a file: write names such as {os.path.basename(example)}, ends of "
                f"paths or MD5s into the column {' or '.join(self._keys)}, or name another column with "
                "--metadata-key, and repeat the command with --resume."
            )

    def _known(self, line: Mapping[str, Any]) -> dict[str, str]:
        """Return what is known about a piece, by column."""
        file = line["file"]
        known = {tag_text(column): tag_text(value) for column, value in line.get("metadata", {}).items()}
        for folder in self._folders:
            if file == folder or file.startswith(os.path.join(folder, "")):
                known[COLLECTION] = tag_text(_name(folder))
        number = self._line_of(file, line.get("md5", ""))
        if number is not None:
            self._used[number] = 1
            known |= {column: value for column, value in zip(self.needed, self._values[number], strict=True) if value}
        return {column: value for column, value in known.items() if value not in ("", UNKNOWN)}

    def _line_of(self, file: str, md5: str) -> int | None:
        path = _normalized(os.path.abspath(file))
        while self._lines:
            parts = path.split("/")
            for i in range(len(parts)):
                number = self._lines.get("/".join(parts[i:]))
                if number is not None:
                    return number
            if not parts[-1].isdecimal():
                return self._lines.get(md5)
            path = path.rpartition("/")[0]  # drop a piece's number (tunes.abc/1): the rest is the path of its file
        return None

    def _check_columns(self) -> None:
        for column in self.columns:
            if self.columns.count(column) > 1:
                if self._folders and column == COLLECTION:
                    raise UserError(f"--tag-folders adds the column {column}: remove it from --tags.")
                raise UserError(f"--tags names the column {column} twice: name it once.")
            if not column:
                raise UserError("--tags contains an empty column name: remove the superfluous comma.")
            if "=" in column:
                raise UserError(f"--tags names the column {column!r}: rename it without the equals sign.")
        if len(self.columns) > MAX_COLUMNS:
            names = "--tags and --tag-folders name" if self._folders else "--tags names"
            raise UserError(f"{names} {len(self.columns)} columns: choose at most {MAX_COLUMNS} of them.")
        if self._table is not None and not self.needed:
            raise UserError(
                f"Nothing uses {self._table}: choose the columns that become tags with --tags, or use --where."
            )

    def _read(self) -> set[str]:
        """Read the table. Return its columns."""
        columns: set[str] = set()
        is_json = str(self._table).lower().endswith(JSON_LINES)
        rows = self._json_rows(columns) if is_json else self._csv_rows(columns)
        shared: dict[tuple, tuple] = {}  # equal values are stored once
        try:
            for where, row in rows:
                values = tuple(tag_text(row.get(column, "")) for column in self.needed)
                values = shared.setdefault(values, values)
                number = len(self._values)
                self._values.append(values)
                for key in self._keys:
                    name = _normalized(row.get(key, ""))
                    name = name.lower() if MD5.fullmatch(name) else name
                    if name and self._values[self._lines.setdefault(name, number)] != values:
                        raise UserError(
                            f"{where} of {self._table} has the {key} of an earlier line, {name}, but other values: "
                            "remove one of the two lines, or name another column with --metadata-key."
                        )
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self._table} is not a table in UTF-8 ({error}): save it as one.") from error
        if not columns.intersection(self._keys):
            keys, names = " or ".join(self._keys), ", ".join(sorted(columns)[:40]) or "none"
            raise UserError(
                f"{self._table} has no column {keys} (its columns: {names}): name the column that identifies the files "
                "with --metadata-key."
            )
        self._used = bytearray(len(self._values))
        return columns

    def _csv_rows(self, columns: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the number of each line, as "Line 2", and its values by column. Add the columns to `columns`."""
        delimiter = DELIMITERS.get(Path(self._table).suffix.lower())
        if delimiter is None:
            suffixes = ", ".join([*DELIMITERS, *JSON_LINES])
            raise UserError(
                f"{self._table} is not a table that can be read: choose a file with one of these suffixes: {suffixes}."
            )
        csv.field_size_limit(LONGEST_VALUE)
        with io.TextIOWrapper(open_file(self._table), "utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            names = [tag_text(name) for name in next(lines, [])]
            columns.update(filter(None, names))
            for name in {*self.needed, *self._keys}:
                if names.count(name) > 1:
                    raise UserError(f"{self._table} has more than one column {name}: rename or remove all but one.")
            for values in lines:
                where = f"Line {lines.line_num}"
                if len(values) > len(names):
                    raise UserError(
                        f"{where} of {self._table} has more values than there are columns: quote values that contain "
                        "the separator."
                    )
                if values:
                    yield where, {name: value for name, value in zip(names, values, strict=False) if name}

    def _json_rows(self, columns: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the number of each line, as "Line 2", and its values by column. Add the columns to `columns`."""
        with open_file(self._table) as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    row = parse_json(text)
                except ValueError as error:
                    raise UserError(
                        f"Line {number} of {self._table} is not a JSON object ({error}): correct it."
                    ) from error
                row = {tag_text(name): metadata_text(value) for name, value in row.items()}
                columns.update(row)
                yield f"Line {number}", row


def metadata_text(value: Any) -> str:
    """Return a string, number or Boolean of a table as text; for a list, its first value. Other values become ""."""
    if isinstance(value, list):
        value = next(iter(value), None)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int, float)) else ""


def _normalized(path: str) -> str:
    """Return a path in a form for comparison: with slashes, without leading `./`, in Unicode form NFC."""
    path = unicodedata.normalize("NFC", path.strip().replace("\\", "/"))
    while path.startswith("./"):
        path = path[2:]
    return path


def _name(folder: str) -> str:
    """Return the name of a folder, or of an archive or file without its suffix."""
    path = Path(os.path.abspath(folder))
    suffixes = () if path.is_dir() else (*ARCHIVE_SUFFIXES, *MUSIC_SUFFIXES)
    return path.name[: len(path.name) - max(len(s) if path.name.lower().endswith(s) else 0 for s in ("", *suffixes))]
