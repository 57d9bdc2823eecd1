"""Multi-track music from Debian packages, under free licenses. It is copied as .mid files, together with the license.

A package that is not installed is downloaded with apt-get and unpacked with dpkg-deb into a temporary folder. This does
not require root. Doom's WAD files are archives. Their entries ("lumps") that are MIDI files are copied. Lumps in Doom's
own MUS format would be skipped, but these packages have none.
"""

import gzip
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path

COPYRIGHT_FILES = re.compile(r"(copyright|credits|readme\.txt)(\.gz)?", re.IGNORECASE)  # in usr/share/doc/PACKAGE
LICENSE = "LICENSE"  # the file beside the music
DIRECTORY_ENTRY = struct.Struct("<ii8s")  # of a WAD file: position, size and name of a lump


@dataclass(frozen=True)
class Package:
    """A Debian package with music.

    `places` are pairs of a folder, relative to the root of the file system, and a pattern of the files in it. Packages
    can share a folder, so a pattern must match only files of this package.
    """

    places: tuple[tuple[str, str], ...]
    license: str


PACKAGES = {
    "freedm": Package((("usr/share/games/doom", "freedm.wad"),), "BSD-3-Clause"),
    "freedoom": Package((("usr/share/games/doom", "freedoom?.wad"),), "BSD-3-Clause"),
    "mma": Package((("usr/share/doc/mma/examples", "**/*.mid"), ("usr/share/mma/lib", "**/*.mid")), "GPL-2.0-or-later"),
    "openttd-openmsx": Package((("usr/share/games/openttd/baseset/openmsx", "*.mid"),), "GPL-2.0-only"),
    "planetblupi-music-midi": Package((("usr/share/planetblupi/music", "*.mid"),), "GPL-3.0-or-later"),
    "simutrans-data": Package((("usr/share/games/simutrans/music", "*.mid"),), "Artistic-1.0"),
}


def write_package(
    name: str, out: Path, limit: int | None = None, root: Path = Path("/")
) -> tuple[int, int, list[tuple[str, str]]]:
    """Write the music of the package `name` (a key of PACKAGES) and its license to the folder `out`/`name`.

    If the package is installed below `root`, its files are copied from there. Existing pieces are kept. With `limit`,
    only the first `limit` pieces in order of names are used. Return (number of pieces written, number of pieces kept,
    (source, reason) of each damaged file). Raises UserError if the package is not installed and cannot be downloaded,
    or if `out` cannot be written.
    """
    written, kept, failed = 0, 0, []
    with _unpacked(name, root) as unpacked, explained(f"writing the music of {name} to {out}"):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / LICENSE) as partial:
            partial.write_text(_license(name, unpacked), encoding="utf-8")
        for file_name, path in _files(name, unpacked):
            try:
                pieces = dict(_pieces(file_name, path.read_bytes()))
            except (struct.error, ValueError) as error:
                failed.append((file_name, str(error)))
                continue
            for piece_name, data in sorted(pieces.items()):
                if limit is not None and written + kept == limit:
                    break
                if (folder / piece_name).exists():
                    kept += 1
                    continue
                with atomic_path(folder / piece_name) as partial:
                    partial.write_bytes(data)
                written += 1
    return written, kept, failed


def _files(name: str, root: Path) -> list[tuple[str, Path]]:
    """Return (name, path) of every file of a package that contains music.

    The name is the path relative to the folder, with "-" as the separator.
    """
    found = []
    for folder, pattern in PACKAGES[name].places:
        files = sorted(path for path in (root / folder).glob(pattern) if path.is_file())
        found += [("-".join(path.relative_to(root / folder).parts), path) for path in files]
    return found


def _pieces(file_name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of the pieces in a file: a MIDI file is one piece, and a WAD file has several."""
    if not file_name.endswith(".wad"):
        yield file_name, data
        return
    for lump, content in midi_lumps(data):
        yield f"{file_name.removesuffix('.wad')}-{lump}.mid", content


def midi_lumps(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the MIDI files in a WAD file. Raises ValueError or struct.error if it is damaged.

    Source: the unofficial Doom specifications by Matthew S. Fell (1994), chapter 2.
    """
    magic, n_lumps, directory = struct.unpack_from("<4sii", data)
    if magic not in (b"IWAD", b"PWAD"):
        raise ValueError("not a WAD file")
    if n_lumps < 0 or directory < 0:
        raise ValueError("damaged WAD file")
    for i in range(n_lumps):
        start, size, name = DIRECTORY_ENTRY.unpack_from(data, directory + i * DIRECTORY_ENTRY.size)
        if data.startswith(b"MThd", max(start, 0)):
            yield re.sub(r"\W", "_", name.split(b"\0")[0].decode("latin-1")), data[start : start + size]


def _license(name: str, root: Path) -> str:
    """Return the text of the license file: the names of package and license, and the full copyright and credits."""
    texts = [f"The MIDI files in this folder come from the Debian package {name}. License: {PACKAGES[name].license}.\n"]
    for path in sorted((root / "usr/share/doc" / name).glob("*")):
        if COPYRIGHT_FILES.fullmatch(path.name):
            data = path.read_bytes()
            texts.append((gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace"))
    return "\n".join(texts)


@contextmanager
def _unpacked(name: str, root: Path) -> Iterator[Path]:
    """Yield a folder with the files of a package: `root` if it is installed there, or else a temporary folder."""
    if _files(name, root):
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        _run(name, folder, "apt-get", "download", name)
        archive = next(Path(folder).glob("*.deb"))
        _run(name, folder, "dpkg-deb", "--extract", str(archive), folder)
        if not _files(name, Path(folder)):
            raise UserError(
                f"The package {archive.name} has no music in the expected folders: install an earlier version."
            )
        yield Path(folder)


def _run(name: str, folder: str, *command: str) -> None:
    """Run a program of Debian's package manager in `folder`. Raises UserError if it fails or does not exist."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(
            f"The Debian package {name} cannot be downloaded and unpacked, because this system has no {command[0]}: "
            f"run this command on Debian or Ubuntu, and copy the folder {name} from there to this system."
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("E: ")
        raise UserError(
            f"`{command[0]}` could not get the package {name} ({reason}): run `apt-get install {name}` as root, then "
            "this command again."
        )
