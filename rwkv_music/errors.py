"""Exceptions for mistakes that a user can fix, and helpers to word them."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

STDOUT = 1  # file descriptor


class UserError(Exception):
    """A usage error or a system fault. The message is one sentence: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


class SharedError(UserError):
    """An error that every rank raises with the same message, so that only one rank needs to print it."""


class OutputClosed(UserError):
    """The error raised if the program that reads standard output, such as `head`, has ended."""


def describe_os_error(error: OSError, doing: str) -> str:
    """Return one sentence for an operating-system error raised while `doing` ("writing the dataset to DATA")."""
    where = f" ({error.filename})" if error.filename and str(error.filename) not in doing else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full while {doing}{where}: free some space or choose another folder, then try again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Permission denied while {doing}{where}: choose a writable folder, or change its permissions."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"A file is in the way while {doing}{where}: choose another folder."
    return f"{error.strerror or error} while {doing}{where}: check the path and the disk, then try again."


def check_installed(module: str, extra: str, what: str) -> None:
    """Raise UserError if `module` is not installed. The optional dependencies `extra` of this package include it.

    `what` is the subject of the message: it names what needs the module.
    """
    if find_spec(module) is None:
        raise UserError(f"{what} needs {module}, which is not installed: run `pip install 'rwkv-music[{extra}]'`.")


@contextmanager
def checked_output(continues: bool = False) -> Iterator[None]:
    """A context that flushes standard output when the block ends, and reports a failed write to it in one sentence.

    After the first failure, further output is discarded. The sentence is raised as a UserError. If `continues` is true,
    the sentence is printed to stderr instead, and the block continues without output. OSErrors of other files are
    unaffected.
    """
    original = sys.stdout
    if original is None:  # the process was started with standard output closed
        sys.stdout = output = open(os.devnull, "w")
    elif isinstance(original, io.TextIOWrapper) and _descriptor(original) == STDOUT:
        original.flush()
        sys.stdout = output = io.TextIOWrapper(
            io.BufferedWriter(_StandardOutput(continues)), original.encoding, original.errors,
            line_buffering=original.line_buffering, write_through=original.write_through,
        )  # fmt: skip
    else:  # a caller has redirected standard output
        output = original
    try:
        yield
    except SystemExit:  # --help and --version also write
        output.flush()
        raise
    except BaseException:
        with suppress(UserError):  # the first error counts
            output.flush()
        raise
    else:
        output.flush()
    finally:
        sys.stdout = original


class _StandardOutput(io.FileIO):
    """Standard output without a buffer, so that its write errors can be distinguished from those of other files."""

    def __init__(self, continues: bool) -> None:
        super().__init__(STDOUT, "wb", closefd=False)
        self._continues = continues

    def write(self, data: bytes | memoryview) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, STDOUT)
            os.close(nowhere)
            if self._continues:
                sentence = f"Standard output cannot be written ({error.strerror}): further output is discarded."
                print(sentence, file=sys.stderr, flush=True)
                return memoryview(data).nbytes
            if isinstance(error, BrokenPipeError):
                raise OutputClosed(
                    "The program that reads standard output ended too early: let it read all of the output."
                ) from error
            raise UserError(describe_os_error(error, "writing to standard output")) from error


def _descriptor(file: io.TextIOWrapper) -> int | None:
    """Return the file descriptor of a text file; None if it has none."""
    try:
        return file.fileno()
    except (OSError, ValueError):  # ValueError: the file is closed
        return None


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Convert an `OSError` raised in the block to a `UserError` that names the operation."""
    try:
        yield
    except OSError as error:
        raise UserError(describe_os_error(error, doing)) from error


def plural(n: int, noun: str) -> str:
    """Return a count with its noun: "1 rank", "1,024 ranks"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"
