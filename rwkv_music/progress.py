"""Progress bars: redrawn on a terminal, a line every 30 seconds in a log file."""

import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

LINE_S = 30.0


def progress_bar(
    iterable: Iterable | None = None,
    description: str | None = None,
    total: int | None = None,
    *,
    unit: str = "it",
    initial: int = 0,
    disable: bool = False,
    file: TextIO | None = None,  # stderr if None
    delay_s: float = LINE_S,  # seconds until the first line in a log file
) -> tqdm:
    """Return a `tqdm` over `iterable`, or one to be updated by its caller if `iterable` is None.

    If `file` is not a terminal, a line is written every `LINE_S` seconds and at the end.
    """
    file = file or sys.stderr
    options: dict[str, Any] = {"unit": unit, "initial": initial, "disable": disable}
    if file.isatty():
        return tqdm(iterable, description, total, file=file, dynamic_ncols=True, **options)
    return _LogBar(
        iterable, description, total, file=_Lines(file), delay=delay_s, mininterval=LINE_S, miniters=1, **options
    )


class _LogBar(tqdm):
    """A progress bar that writes its state at most once in `LINE_S` seconds, however often it is refreshed."""

    _due_s = 0.0

    def refresh(self, *arguments: Any, **options: Any) -> bool | None:
        if time.monotonic() < self._due_s:
            return None
        self._due_s = time.monotonic() + LINE_S
        return super().refresh(*arguments, **options)


class _Lines:
    """A wrapper of a text file that writes each state of a bar as a new line instead of overwriting the last line."""

    def __init__(self, file: TextIO):
        self._file = file
        self.flush, self.isatty = file.flush, file.isatty
        self.encoding = getattr(file, "encoding", None)

    def write(self, text: str) -> None:
        if line := text.strip():
            self._file.write(line + "\n")
