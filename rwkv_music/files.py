"""Files: opening regular files, atomic writes, SHA-256, and reading JSON objects.

Use `open_file` and `read_file` for a path that a user gives: `open` would wait for the other end of a FIFO.

Files and folders are written under a temporary name and then renamed. `atomic_path` flushes the file to the disk before
it renames it. `atomic_folder` does not flush the files in the folder.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rwkv_music.errors import UserError, explained

JSON_KINDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    str | dict: "a string or an object",
}
NOT_REGULAR = "Not a regular file"
LONGEST_INTEGER = 20  # maximum number of characters in a 64-bit integer


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading bytes. Raises OSError if `path` is a folder, a FIFO, a socket or a device."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return open(path, "rb")


def read_file(path: str | os.PathLike) -> bytes:
    """Return the content of a file. Raises OSError as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def check_output_file(path: str | os.PathLike) -> None:
    """Raise UserError if `path` is a folder, a device, a FIFO or a socket, which an output file must not replace.

    Without this check, root could replace /dev/null.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: choose another output file.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file: choose another output file.")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`. Rename it to `path` if the block succeeds; remove it if the block raises.

    Raises UserError as `check_output_file` does, before the block runs.
    """
    path = Path(path)
    check_output_file(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")  # writers may look at the suffix
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder beside `path`. It replaces `path` if the block succeeds, and is removed otherwise."""
    path = Path(os.path.abspath(path))
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"  # `with_name` would fail for "/"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder like `atomic_folder`, but do not replace a folder that contains other files.

    Raises UserError, and replaces nothing, if the folder at `path` has files that are not in the new one.
    """
    with atomic_folder(path) as partial:
        yield partial
        others = sorted(set(os.listdir(path) if os.path.isdir(path) else ()) - set(os.listdir(partial)))
        if others:
            raise UserError(f"{path} contains other files ({', '.join(others[:3])}): choose a new or empty folder.")


def replace_folder(whole: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename the folder `whole` to `path` on the same disk, then remove the folder that was at `path`, if any."""
    path = Path(path)
    if path.exists():
        previous = path.with_name(f".{path.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(path, previous)
        os.replace(whole, path)
        shutil.rmtree(previous)
    else:
        os.replace(whole, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike, remedy: str, types: dict | None = None) -> dict[str, Any]:
    """Return the JSON object in the file `path`; `types` is as in `parse_json`.

    Raises UserError if the file cannot be read or is damaged. `remedy` is the end of the message.
    """
    with explained(f"reading {path}"):
        content = read_file(path)
    try:
        return parse_json(content, types)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}.") from error


def parse_json(content: bytes, types: dict | None = None) -> dict[str, Any]:
    """Return the JSON object in `content`, which is UTF-8.

    `types` gives the required entries and their types (see `check_types`). Raises ValueError, and no other exception,
    for any other content, including JSON that is nested too deeply and integers of more than 20 characters.
    """
    try:
        tree = json.loads(content.decode("utf-8"), parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("it is not a JSON object")
    check_types(tree, types or {})
    return tree


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"it has an integer of {len(digits):,} digits")
    return int(digits)


def check_types(tree: dict, types: dict, where: str = "") -> None:
    """Raise ValueError unless `tree` has all entries in `types`, with the right types.

    `types` maps each name to a key of JSON_KINDS or, for a nested object, to a dict like itself. Where the type is
    float, an integer is also accepted. `where` precedes the names in messages, for example "data.".
    """
    for name, expected in types.items():
        nested = expected if isinstance(expected, dict) else {}
        kind = dict if isinstance(expected, dict) else expected
        if name not in tree:
            raise ValueError(f"no {where}{name}")
        value = tree[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):  # a bool is an int
            raise ValueError(f"{where}{name} is not {JSON_KINDS[kind]}")
        check_types(value, nested, f"{where}{name}.")


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(path: str | os.PathLike) -> None:
    """Flush a folder's entries to the disk, so that new and renamed files in it survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
