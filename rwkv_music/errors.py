"""The one exception that a user may cause: a sentence that says what is wrong, where, and what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the caller's or a fault of the machine, told in one sentence with its remedy.

    The command line prints the sentence and exits with status 1; no traceback is shown.
    """


class SharedError(UserError):
    """One that every rank raises alike, so that the first one says it for all."""


def describe_os_error(error: OSError, doing: str) -> str:
    """One sentence for an operating-system error met while `doing` ("writing the dataset to DATA")."""
    where = f" ({error.filename})" if error.filename and str(error.filename) not in doing else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full while {doing}{where}: free some space or choose another folder, then try again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Permission denied while {doing}{where}: choose a folder you may write to, or change its permissions."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"A file is in the way while {doing}{where}: choose another folder."
    return f"{error.strerror or error} while {doing}{where}: check the path and the disk, then try again."


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an `OSError` raised inside the block into a `UserError` that says what was being done."""
    try:
        yield
    except OSError as error:
        raise UserError(describe_os_error(error, doing)) from error


def plural(n: int, noun: str) -> str:
    """Return `n` and the noun in the matching number: "1 rank", "2 ranks"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"
