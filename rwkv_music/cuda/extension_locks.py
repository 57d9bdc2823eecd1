"""The locks under which torch compiles C++ extensions, DeepSpeed's among them.

Who compiles an extension first makes a file `lock` in its folder and removes it at the end; who finds one there waits
until it is gone. A process that is killed while it compiles (memory, a time limit, a machine that goes down) leaves it
for good, and then every later start waits for ever, without a word.

Notable choices:
- Nothing in the file says whose it is, and where nodes share a home its maker may be on another one. So a lock is told
  to be abandoned by its age alone, and is never removed from here.
- A younger one is waited for as torch would wait, but it is said which.
- Our own kernels' lock is not among them: the system releases it (see cuda/build.py).

Source: torch/utils/file_baton.py and torch/utils/cpp_extension.py of torch 2.13.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rwkv_music.cuda.build import cache_folder
from rwkv_music.errors import UserError, explained

ABANDONED_MINUTES = 10  # DeepSpeed's optimizer for offload compiles in under 2
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Lock:
    """A lock file, and for how many seconds it had been there when it was found."""

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
    """Where this Python's torch keeps compiled extensions, each in a folder of its own; it is made if need be.

    Raises UserError if it cannot be.
    """
    from torch.utils.cpp_extension import _get_build_directory  # here, because its import takes a good while

    with explained("making torch's folder of compiled extensions"):
        return Path(_get_build_directory("", verbose=False))


def find_lock(folder: Path, extension: str) -> Lock | None:
    """The lock of one extension in `folder`, an `extensions_folder`, if it has one."""
    path = folder / extension / "lock"
    try:
        return Lock(path, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def find_locks(folder: Path) -> list[Lock]:
    """Those of all extensions in `folder` but our own."""
    own = cache_folder()
    names = sorted(path.parent.name for path in folder.glob("*/lock") if path.parent != own)
    return [lock for name in names if (lock := find_lock(folder, name))]


def wait_for(extensions: Iterable[str], say: Callable[[str], None]) -> None:
    """Wait until none of `extensions` is locked.

    Args:
        say: is given a sentence for each one that is.

    Raises:
        UserError: a lock is abandoned, or has become so in the meantime.
    """
    folder = extensions_folder()
    for extension in extensions:
        told = False
        while lock := find_lock(folder, extension):
            if lock.abandoned:
                raise UserError(
                    f"A compilation of {extension} was cut short and left its lock, which DeepSpeed would wait for "
                    f"without end: if no process on any node is compiling it, remove {lock.path} and start again."
                )
            if not told:
                say(
                    f"Waiting for another process to compile {extension}; if none does, one was cut short: "
                    f"remove {lock.path} to go on."
                )
                told = True
            time.sleep(LOOK_SECONDS)
