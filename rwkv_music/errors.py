"""Exceptions for mistakes that a user can fix, and helpers to word them."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT = 1  # file descriptor


class UserError(Exception):
    """A usage error or a system fault. The message is one sentence: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


class SharedError(UserError):
    """An error that every rank raises with the same message, so that only one rank needs to print it."""


class OutputClosed(UserError):
    """The reader of standard output, such as `head`, has closed it."""


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


@contextmanager
def checked_output() -> Iterator[None]:
    """Flush standard output when the block ends or exits, and raise UserError if it cannot be written.

    After that error, further output is discarded. An OSError about another file is raised unchanged.
    """
    try:
        try:
            yield
        except SystemExit:  # --help and --version also write
            _flush_output()
            raise
        _flush_output()
    except OSError as error:
        try:
            os.write(STDOUT, b"\n")  # fails again if standard output is the cause
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        else:
            raise error
        if isinstance(error, BrokenPipeError):
            raise OutputClosed("The program that reads standard output has ended: let it read to the end.") from error
        raise UserError(describe_os_error(error, "writing to standard output")) from error


def _flush_output() -> None:
    if sys.stdout is not None:  # None if the process was started without one
        sys.stdout.flush()


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
