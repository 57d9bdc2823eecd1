"""Music of Debian packages: made-up package trees and WAD files, without a network."""

import gzip
import os
import struct
from pathlib import Path

import pytest

from rwkv_music.__main__ import main
from rwkv_music.errors import UserError
from rwkv_music.prepare.corpus import write_corpus
from rwkv_music.prepare.packages import PACKAGES, midi_lumps, write_package

MIDI = b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk\0\0\0\4\0\xff\x2f\0"
DOOM = "usr/share/games/doom"


def wad(*lumps: tuple[bytes, bytes]) -> bytes:
    """Return a WAD file with the given (name, content) of its lumps."""
    start, contents, directory = 12, b"", b""
    for name, content in lumps:
        directory += struct.pack("<ii8s", start + len(contents), len(content), name)
        contents += content
    return struct.pack("<4sii", b"IWAD", len(lumps), start + len(contents)) + contents + directory


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_lumps_that_are_midi_files():
    lumps = ((b"D_E1M1", MIDI), (b"MAP01", b""), (b"D_MUS", b"MUS\x1a.."), (b"D_..\\/A", MIDI + b"x"))
    assert list(midi_lumps(wad(*lumps))) == [("D_E1M1", MIDI), ("D_____A", MIDI + b"x")]


@pytest.mark.parametrize("data", [b"", b"PK\3\4 not a WAD", wad((b"D_E1M1", MIDI))[:-5], b"IWAD" + b"\xff" * 8])
def test_damaged_wad(tmp_path, data):
    root = tree(tmp_path / "root", {f"{DOOM}/freedoom1.wad": data, f"{DOOM}/freedoom2.wad": wad((b"D_RUNNIN", MIDI))})
    written, kept, failed = write_package("freedoom", tmp_path / "out", root=root)
    assert (written, kept) == (1, 0)
    assert [name for name, _ in failed] == ["freedoom1.wad"]


def test_installed_package(tmp_path):
    """Only the package's own files are copied, and its license, copyright and credits are written beside them."""
    doc = "usr/share/doc/freedoom"
    root = tree(
        tmp_path / "root",
        {
            f"{DOOM}/doom.wad": wad((b"D_NOTFREE", MIDI)),
            f"{DOOM}/freedoom1.wad": wad((b"D_E1M2", MIDI), (b"D_E1M1", MIDI)),
            f"{doc}/copyright": "© the contributors\n".encode(),
            f"{doc}/CREDITS.gz": gzip.compress(b"composed by somebody\n"),
            f"{doc}/manual.pdf.gz": gzip.compress(b"%PDF"),
        },
    )
    assert write_package("freedoom", tmp_path, limit=1, root=root) == (1, 0, [])
    assert write_package("freedoom", tmp_path, root=root) == (1, 1, [])
    assert {path.name for path in (tmp_path / "freedoom").iterdir()} == {
        "LICENSE",
        "freedoom1-D_E1M1.mid",
        "freedoom1-D_E1M2.mid",
    }
    license_text = (tmp_path / "freedoom" / "LICENSE").read_text(encoding="utf-8")
    assert all(text in license_text for text in ("BSD-3-Clause", "© the contributors", "composed by somebody"))
    assert "PDF" not in license_text


def test_files_of_one_name_in_several_folders(tmp_path):
    examples = "usr/share/doc/mma/examples"
    names = [f"{examples}/delay/solo.mid", f"{examples}/solo/solo.mid", "usr/share/mma/lib/pflib/rock1.mid"]
    root = tree(tmp_path / "root", dict.fromkeys(names, MIDI))
    assert write_package("mma", tmp_path, root=root) == (3, 0, [])
    music = sorted(path.name for path in (tmp_path / "mma").glob("*.mid"))
    assert music == ["delay-solo.mid", "pflib-rock1.mid", "solo-solo.mid"]


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder with the only programs that subprocesses find."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_missing_package_is_downloaded(tmp_path, programs):
    """apt-get leaves an archive in its working folder, and dpkg-deb extracts it there."""
    tree(tmp_path / "archive", {"usr/share/planetblupi/music/music000.mid": MIDI})
    program(programs, "apt-get", '[ "$*" = "download planetblupi-music-midi" ] && : > "$2_1.14_all.deb"')
    copy = f'/bin/cp -r {tmp_path}/archive/usr "$3"'
    program(programs, "dpkg-deb", f'[ -f "$2" ] && {copy}')
    assert write_package("planetblupi-music-midi", tmp_path, root=tmp_path / "empty") == (1, 0, [])
    assert (tmp_path / "planetblupi-music-midi" / "music000.mid").read_bytes() == MIDI


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (None, "no apt-get: run this command on Debian or Ubuntu, and copy the folder mma "),
        ("echo 'E: Unable to locate package mma' >&2; exit 100", r"\(Unable to locate package mma\): .*install mma`"),
        ("exit 3", r"\(status 3\): .*install mma`"),
    ],
)
def test_package_that_cannot_be_downloaded(tmp_path, programs, script, expected):
    if script:
        program(programs, "apt-get", script)
    with pytest.raises(UserError, match=expected):
        write_package("mma", tmp_path / "out", root=tmp_path)
    assert not (tmp_path / "out").exists()


def test_package_without_its_music(tmp_path, programs):
    program(programs, "apt-get", ': > "$2_2_all.deb"')
    program(programs, "dpkg-deb", "")
    with pytest.raises(UserError, match="mma_2_all.deb has no music"):
        write_package("mma", tmp_path / "out", root=tmp_path)


def test_corpus_writes_packages_to_their_own_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rwkv_music.prepare.corpus.write_package", lambda name, out, limit: (2, 1, [(name, "bad")]))
    report = write_corpus("freedm", os.fspath(tmp_path), limit=3)
    assert (report.folder, report.written, report.kept) == (tmp_path / "freedm", 2, 1)
    assert report.failed == [("freedm", "bad")]
    assert main(["corpus", "freedm", "--out", os.fspath(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/freedm: 2 files written, 1 existing file kept\n")
    assert {"freedm", "freedoom", "mma", "openttd-openmsx", "planetblupi-music-midi", "simutrans-data"} == set(PACKAGES)
