"""The lock files under which torch compiles C++ extensions, including DeepSpeed's.

The first process that compiles an extension creates a file `lock` in the extension's folder, and removes the file at
the end. Other processes wait until the file is gone. If the process is killed while it compiles (out of memory, time
limit, host failure), the file remains, and every later start waits forever without a message.

The file does not identify the process that created it, and that process may run on another node that shares the home
directory. A lock therefore counts as abandoned if it is older than ABANDONED_MINUTES. This module never removes a lock.

Source: torch/utils/file_baton.py and torch/utils/cpp_extension.py of torch 2.13.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rwkv_music.cuda.build import cache_folder
from rwkv_music.errors import UserError, explained

ABANDONED_MINUTES = 10  # DeepSpeed's optimizer for offload compiles in less than 2
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Lock:
    """A lock file, and its age in seconds when it was found."""

    path: Path
    age_seconds: float

    @property
    def extension(self) -> str:
        return self.path.parent.name

    @property
    def abandoned(self) -> bool:
        return self.age_seconds > 60 * ABANDONED_MINUTES

    def __str__(self) -> str:
        minutes = self.age_seconds / 60
        return f"{self.extension}, locked for " + (f"{minutes:,.0f} min" if minutes >= 2 else f"{60 * minutes:.0f} s")


def extensions_folder() -> Path:
    """Return torch's folder of compiled extensions, which has one subfolder per extension. Create it if necessary.

    Raises UserError if the folder cannot be created.
    """
    from torch.utils.cpp_extension import _get_build_directory  # imported here because it is slow to import

    with explained("creating torch's folder of compiled extensions"):
        return Path(_get_build_directory("", verbose=False))


def find_lock(folder: Path, extension: str) -> Lock | None:
    """Return the lock of one extension in `folder` (see `extensions_folder`), or None."""
    path = folder / extension / "lock"
    try:
        return Lock(path, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def find_locks(folder: Path) -> list[Lock]:
    """Return the locks of all extensions in `folder`, except the lock of build.py, which the system always releases."""
    own = cache_folder()
    names = sorted(path.parent.name for path in folder.glob("*/lock") if path.parent != own)
    return [lock for name in names if (lock := find_lock(folder, name))]


def wait_for(extensions: Iterable[str], say: Callable[[str], None]) -> None:
    """Wait until none of `extensions` is locked. Call `say` with a message for each extension that is locked.

    Raises UserError if a lock is abandoned, or becomes abandoned while this function waits.
    """
    folder = extensions_folder()
    for extension in extensions:
        announced = False
        while lock := find_lock(folder, extension):
            if lock.abandoned:
                raise UserError(
                    f"A compilation of {extension} was interrupted and left its lock behind. DeepSpeed would wait for "
                    f"the lock forever: if no process on any node is compiling {extension}, remove {lock.path} and "
                    "start again."
                )
            if not announced:
                say(
                    f"Waiting for another process to compile {extension}. If there is no such process, a compilation "
                    f"was interrupted: remove {lock.path} to continue."
                )
                announced = True
            time.sleep(POLL_SECONDS)
