"""Sources of music, in a fixed order: MIDI files and scores in folders, and in archives, which are not unpacked.

Memory holds only the names in the folder that is being read and in the folders above it, the table of contents of a zip
archive, and the content of one file. Only regular files are opened: a named pipe would block, and a device can be
endless.
"""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from rwkv_music.errors import UserError, check_installed, explained
from rwkv_music.files import NOT_REGULAR, open_file
from rwkv_music.prepare.scores import MIDI_SUFFIXES, SCORE_SUFFIXES, SPLIT_SUFFIXES, score_format, split_pieces

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MUSIC_SUFFIXES = (*MIDI_SUFFIXES, *SCORE_SUFFIXES)
ZSTD_SUFFIX = ".tar.zst"
TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ZSTD_SUFFIX, ".tar")
PARQUET_SUFFIX = ".parquet"
ARCHIVE_SUFFIXES = (".zip", *TAR_SUFFIXES, PARQUET_SUFFIX)
PARQUET_ROWS = 16  # rows read at once
PARQUET_BUFFER = 1 << 20  # bytes
LARGEST_BYTES = 64 << 20
LARGEST_TAR_HEADER = 1 << 20  # bytes of the headers before a member, which tarfile reads into memory
DAMAGED_ARCHIVE = "damaged archive"


class Unreadable(Exception):
    """An error for a source that cannot be read. `reason` is short and the same in every run."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Source:
    """One MIDI file, or one piece of a score. `read` is None for a plain file, which any process can read by `name`.

    Otherwise `read` returns the content or raises `Unreadable`. It must be called before the next source is taken from
    the iterator.
    """

    # The path of the file. For a member of an archive, the path of the archive is followed by the path of the member.
    # If a file contains several pieces, its path is followed by the number of the piece, from 1: `tunes.abc/1`.
    name: str
    read: Callable[[], bytes] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # for a row of a parquet file, its values in other columns


class Sources:
    """The music (MUSIC_SUFFIXES) in files, folders and archives.

    The contents of a folder come in the order of their names, those of an archive in the order in which they are
    stored. Folders are searched recursively, also for archives. Suffixes are case-insensitive. A path inside another
    one is not read twice. Each row of a parquet file counts as a file with music. Raises UserError if a path is missing
    or cannot contain music, if there is no music, or if a package that is needed to read a file is not installed.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        column: str | None = None,  # the column of parquet files that has the music; None: the only column of bytes
    ):
        self._column = column
        self.columns: set[str] = set()  # the other columns of the parquet files
        self.metadata: set[str] = set()  # those of `columns` that are read into `Source.metadata`
        self.paths = _outermost([os.fspath(path) for path in paths])
        # The estimated number of sources. It is corrected while tar archives and files with several pieces are read.
        self.expected = 0.0
        self.passed_over: Counter[str] = Counter()  # number of files without music in the last iteration, by suffix
        has_any = False
        for path in self.paths:
            for file in self._files(path):
                n = self._count(file)
                has_any |= n is not None
                self.expected += n or 0
        if not has_any:
            listed, suffixes = ", ".join(str(path) for path in paths), ", ".join(MUSIC_SUFFIXES)
            raise UserError(f"There is no music ({suffixes}) under {listed}: choose a folder or archive with music.")

    def __iter__(self) -> Iterator[Source]:
        for source in self._undivided():
            if source.name.lower().endswith(SCORE_SUFFIXES):
                _check_music21(source.name)
            if source.name.lower().endswith(SPLIT_SUFFIXES):
                try:
                    data = source.read() if source.read else read_file(source.name)
                except Unreadable as error:
                    yield Source(source.name, partial(_fail, error.reason, error))
                else:
                    yield from self._pieces(source.name, data)
            else:
                yield source

    def _pieces(self, name: str, data: bytes, metadata: dict[str, Any] | None = None) -> Iterator[Source]:
        """Yield the pieces of the file `name` with the content `data`."""
        pieces = split_pieces(name, data)
        self.expected += len(pieces) - 1
        for number, piece in enumerate(pieces, start=1):
            yield Source(f"{name}/{number}" if len(pieces) > 1 else name, partial(bytes, piece), metadata or {})

    def _undivided(self) -> Iterator[Source]:
        self.passed_over.clear()
        for path in self.paths:
            for file in self._files(path, self.passed_over):
                suffixed = file.lower()
                if suffixed.endswith(TAR_SUFFIXES):
                    yield from self._in_tar(file)
                elif suffixed.endswith(".zip"):
                    yield from _in_zip(file, self.passed_over)
                elif suffixed.endswith(PARQUET_SUFFIX):
                    yield from self._in_parquet(file)
                else:
                    yield Source(file)

    def _files(self, path: str, passed_over: Counter[str] | None = None) -> Iterator[str]:
        """Yield the music and archives in the folder `path`, or the file `path`. Count other files in `passed_over`."""
        if os.path.isdir(path):
            with explained(f"searching {path}"):
                yield from _walk(path, passed_over)
        elif os.path.isfile(path) and path.lower().endswith((*MUSIC_SUFFIXES, *ARCHIVE_SUFFIXES)):
            yield path
        elif os.path.exists(path):
            raise UserError(
                f"{path} is neither a folder nor a file with music: choose a folder, an archive "
                f"({', '.join(ARCHIVE_SUFFIXES)}) or music ({', '.join(MUSIC_SUFFIXES)})."
            )
        else:
            raise UserError(f"There is no file or folder {path}: check the path.")

    def _in_tar(self, path: str) -> Iterator[Source]:
        seen, counted = 0, 0.0
        try:
            with _open_regular(path) as raw, _BoundedReader(_decompressed(raw), LARGEST_TAR_HEADER) as content:
                tar = tarfile.TarFile(fileobj=content)
                size = max(os.fstat(raw.fileno()).st_size, 1)
                while member := tar.next():
                    content.left = LARGEST_BYTES + LARGEST_TAR_HEADER
                    if not member.isdir() and member.name.lower().endswith(MUSIC_SUFFIXES):
                        seen += 1
                        expected = seen * max(size / max(raw.tell(), 1), 1.0)
                        self.expected += expected - counted
                        counted = expected
                        read = partial(_read_limited, member.size, tar.extractfile, member)
                        yield Source(f"{path}/{member.name}", read if member.isfile() else _reject_special_file)
                    elif not member.isdir():
                        self.passed_over[_suffix(member.name)] += 1
                    tar.members.clear()  # because tarfile keeps every member that it has read
                    content.left = LARGEST_TAR_HEADER
        except UserError:
            raise
        except Exception as error:  # the errors of tarfile and the decompressors share no base class
            yield _damaged(path, error)
        self.expected += seen - counted

    def _in_parquet(self, path: str) -> Iterator[Source]:
        """Yield the rows of a parquet file, numbered from 1."""
        row = 0
        try:
            with _parquet(path) as file:
                column = self._column_of(path, file)
                if column is None:
                    self.passed_over[PARQUET_SUFFIX] += 1
                    return
                columns = [column, *sorted(self.metadata.intersection(file.schema_arrow.names))]
                for batch in file.iter_batches(PARQUET_ROWS, columns=columns, use_threads=False):
                    for values in batch.to_pylist():
                        row += 1
                        value = values.pop(column)
                        data = value.encode() if isinstance(value, str) else value or b""
                        yield from self._in_row(f"{path}/{row}", data, values)
        except UserError:
            raise
        except Exception as error:  # pyarrow raises many types for damaged files
            yield _damaged(path, error)

    def _in_row(self, name: str, data: bytes, metadata: dict[str, Any]) -> Iterator[Source]:
        if len(data) > LARGEST_BYTES:
            yield Source(name, _reject_size, metadata)
        elif score_format(name, data):
            _check_music21(name)
            yield from self._pieces(name, data, metadata)
        else:
            yield Source(name, partial(bytes, data), metadata)

    def _column_of(self, path: str, file: "ParquetFile") -> str | None:
        """Return the column of a parquet file that has the music, or None if there is no column of bytes.

        Raises UserError if the file does not have the given column, or if none is given and several contain bytes.
        """
        kinds = {field.name: str(field.type).removeprefix("large_") for field in file.schema_arrow}
        of_bytes = [name for name, kind in kinds.items() if kind == "binary"]
        usable = [*of_bytes, *(name for name, kind in kinds.items() if kind == "string")]
        if self._column is None and len(of_bytes) <= 1:
            return of_bytes[0] if of_bytes else None
        if not usable:
            raise UserError(f"{path} has no column of bytes or text: leave the file out.")
        if self._column not in usable:
            found = "several columns of bytes" if self._column is None else f"no column {self._column} of bytes or text"
            raise UserError(f"{path} has {found}: choose one of {', '.join(usable)} with --column.")
        return self._column

    def _count(self, file: str) -> int | None:
        """Return the number of files with music in a file or archive.

        Return 0 for a tar archive, which has no table of contents, and None for a parquet file without music. Raises
        UserError if a package that is needed to read the file is not installed.
        """
        suffixed = file.lower()
        if suffixed.endswith(PARQUET_SUFFIX):
            check_installed("pyarrow", "parquet", file)
            try:
                with _parquet(file) as table:
                    column = self._column_of(file, table)
                    if column is None:
                        return None
                    self.columns.update(set(table.schema_arrow.names) - {column})
                    return table.metadata.num_rows
            except UserError:
                raise
            except Exception:  # the error is reported when the file is read
                return 1
        if suffixed.endswith(ZSTD_SUFFIX):
            check_installed("zstandard", "zstandard", file)
        if suffixed.endswith(SCORE_SUFFIXES):
            _check_music21(file)
        if suffixed.endswith(TAR_SUFFIXES):
            return 0
        return sum(1 for _ in _in_zip(file)) if suffixed.endswith(".zip") else 1


@contextmanager
def _parquet(path: str) -> "Iterator[ParquetFile]":
    """Open a parquet file so that memory holds only the rows being read."""
    from pyarrow.parquet import ParquetFile

    with _open_regular(path) as raw, ParquetFile(raw, buffer_size=PARQUET_BUFFER, pre_buffer=False) as file:
        yield file


def _check_music21(file: str) -> None:
    check_installed("music21", "music", file)


class _BoundedReader:
    """A binary file from which at most `left` more bytes can be read. Beyond that, `read` raises tarfile.ReadError.

    This is necessary because a damaged archive can declare headers of any size (pax records, GNU long names, sparse
    maps), which tarfile would read into memory.
    """

    def __init__(self, file: BinaryIO, left: int):
        self._file, self.left = file, left
        self.seek, self.tell = file.seek, file.tell

    def __enter__(self) -> "_BoundedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise tarfile.ReadError(f"a header of more than {LARGEST_TAR_HEADER:,} bytes")
        self.left -= size
        return self._file.read(size)


def _decompressed(file: BinaryIO) -> BinaryIO:
    """Return a file with the content of `file`, decompressed if it is compressed with gzip, bzip2, xz or Zstandard."""
    start = file.read(6)
    file.seek(0)
    for magics, decompressor in DECOMPRESSORS.items():
        if start.startswith(magics):
            return decompressor(file)
    return file


def _zstd(file: BinaryIO) -> BinaryIO:
    check_installed("zstandard", "zstandard", file.name)
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)


DECOMPRESSORS = {
    (b"\x1f\x8b",): gzip.open,
    (b"BZh",): bz2.open,
    (b"\xfd7zXZ\0",): lzma.open,
    # The second number marks a skippable frame, with which parallel compressors start a file.
    (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"): _zstd,
}


def _open_regular(path: str) -> BinaryIO:
    """Open a file for reading. Raises Unreadable if it cannot be opened or is a pipe, a device or a socket."""
    try:
        return open_file(path)
    except OSError as error:
        if error.strerror == NOT_REGULAR:
            _reject_special_file()
        raise Unreadable(f"cannot be opened ({error.strerror})") from error


def _reject_special_file() -> NoReturn:
    raise Unreadable(NOT_REGULAR.lower())


def _reject_size() -> NoReturn:
    raise Unreadable(f"larger than {LARGEST_BYTES >> 20} MiB")


def _in_zip(path: str, passed_over: Counter[str] | None = None) -> Iterator[Source]:
    try:
        with _open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if member.filename.lower().endswith(MUSIC_SUFFIXES):
                    read = partial(_read_limited, member.file_size, archive.open, member)
                    yield Source(f"{path}/{member.filename}", read)
                elif passed_over is not None:
                    passed_over[_suffix(member.filename)] += 1
    except Exception as error:  # zipfile has no common base class of its errors
        yield _damaged(path, error)


def _damaged(path: str, error: Exception) -> Source:
    """Return a source that stands for the unreadable rest of an archive. Its `read` raises Unreadable."""
    return Source(path, partial(_fail, error.reason if isinstance(error, Unreadable) else DAMAGED_ARCHIVE, error))


def _suffix(name: str) -> str:
    """Return the suffix of a file's name in lower case, "" if it has none."""
    return os.path.splitext(name)[1].lower()


def _read_limited(size: int, open_member: Callable[..., BinaryIO], member: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    """Return the content of an archive member. Raises Unreadable if it is damaged or has more than LARGEST_BYTES."""
    if size > LARGEST_BYTES:
        _reject_size()
    try:
        with open_member(member) as file:
            return file.read(size + 1)  # one byte more, because zipfile verifies the checksum at the end of the member
    # zipfile raises RuntimeError for encryption, and its subclass NotImplementedError for unknown compression.
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise Unreadable(
            DAMAGED_ARCHIVE if not isinstance(error, RuntimeError) else "encrypted or unknown compression"
        ) from error
    except Exception as error:  # zlib.error, lzma.LZMAError and others share no base class
        raise Unreadable(DAMAGED_ARCHIVE) from error


def _fail(reason: str, error: Exception) -> bytes:
    raise Unreadable(reason) from error


def read_file(path: str) -> bytes:
    """Return the content of a plain file. Raises Unreadable if it cannot be read or is too large."""
    with _open_regular(path) as file:
        try:
            data = file.read(LARGEST_BYTES + 1)
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from error
    if len(data) > LARGEST_BYTES:
        _reject_size()
    return data


def _walk(folder: str, passed_over: Counter[str] | None) -> Iterator[str]:
    """Yield the music and the archives in `folder`, in name order. Follow links to files, but not links to folders."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name + os.sep)
            elif entry.name.lower().endswith((*MUSIC_SUFFIXES, *ARCHIVE_SUFFIXES)) and not entry.is_dir():
                names.append(entry.name)
            elif passed_over is not None:
                passed_over[_suffix(entry.name)] += 1
    names.sort()
    for name in names:
        if name.endswith(os.sep):
            yield from _walk(os.path.join(folder, name[: -len(os.sep)]), passed_over)
        else:
            yield os.path.join(folder, name)


def _outermost(paths: list[str]) -> list[str]:
    """Return `paths` in order, without duplicates and without paths that are inside other ones."""
    real = [os.path.realpath(path) for path in paths]
    return [
        path
        for i, path in enumerate(paths)
        if not any(
            (other == real[i] and j < i) or real[i].startswith(os.path.join(other, "")) for j, other in enumerate(real)
        )
    ]
