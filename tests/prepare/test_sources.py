"""Sources: folders and archives, damaged members, and size limits."""

import io
import os
import socket
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
import zstandard

from rwkv_music import errors
from rwkv_music.errors import UserError
from rwkv_music.prepare import sources as sources_module
from rwkv_music.prepare.sources import Sources, Unreadable, read_file


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], mode="w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def contents(sources: Sources, folder: Path) -> dict[str, bytes | str]:
    found = {}
    for source in sources:
        try:
            data = source.read() if source.read else read_file(source.name)
        except Unreadable as error:
            data = error.reason
        found[os.path.relpath(source.name, folder)] = data
    return found


def test_folders_are_searched_recursively(tmp_path):
    for name in ("b.mid", "a/c.MID", "a/.hidden.midi", "a/d.midi.txt", "e.Midi", "a.mid/f.mid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.mid").symlink_to(tmp_path / "b.mid")
    (tmp_path / "gone.mid").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path)
    sources = Sources([tmp_path, tmp_path / "a", tmp_path])
    found = contents(sources, tmp_path)
    assert list(found) == ["a.mid/f.mid", "a/.hidden.midi", "a/c.MID", "b.mid", "e.Midi", "gone.mid", "link.mid"]
    assert found["b.mid"] == found["link.mid"] == b"b.mid"
    assert found["gone.mid"] == "cannot be opened (No such file or directory)"
    assert sources.expected == len(found)
    assert contents(sources, tmp_path) == found  # sources can be iterated repeatedly


def test_other_files_are_counted_in_folders_and_archives(tmp_path):
    files = {"a.mid": b"one", "b.TXT": b"words", "c/d.txt": b"", "README": b"", "e.zip": b""}
    zipped(tmp_path / "a.zip", files | {"f/": b""})
    with tarfile.open(tarred(tmp_path / "b.tar", files, "w"), "a") as archive:
        kinds = {"link.mid": tarfile.SYMTYPE, "hard.mid": tarfile.LNKTYPE, "pipe.mid": tarfile.FIFOTYPE}
        for name, kind in {**kinds, "folder.mid": tarfile.DIRTYPE, "link.txt": tarfile.SYMTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.mid"
            archive.addfile(member)
    (tmp_path / "c.doc").write_text("")
    sources = Sources([tmp_path])
    for _ in range(2):
        found = contents(sources, tmp_path)
        assert found == {
            "a.zip/a.mid": b"one",
            "b.tar/a.mid": b"one",
            **dict.fromkeys([f"b.tar/{name}" for name in kinds], "not a regular file"),
        }
        assert sources.passed_over == {".txt": 5, "": 2, ".zip": 2, ".doc": 1}


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".TGZ", ".tar"])
def test_archives_are_read_in_place(tmp_path, suffix):
    files = {"z.mid": b"one", "sub/a.MIDI": b"two" * 1000, "sub/readme.txt": b"no", "b.mid": b""}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "plain.mid").write_bytes(b"plain")
    archive = tmp_path / "in" / f"lakh{suffix}"
    if suffix == ".zip":
        zipped(archive, files)
    else:
        tarred(archive, files, "w" if suffix == ".tar" else "w:gz")
    # As a path or inside a folder; members are in the archive's order.
    for paths, expected in (([tmp_path / "in"], 4), ([archive], 3)):
        sources = Sources(paths)
        found = contents(sources, tmp_path / "in")
        names = [f"lakh{suffix}/{name}" for name in ("z.mid", "sub/a.MIDI", "b.mid")]
        assert [name for name in found if name != "plain.mid"] == names
        assert [found[name] for name in names] == [b"one", b"two" * 1000, b""]
        assert len(found) == expected and round(sources.expected) == expected


def test_damaged_archive_costs_only_its_damaged_members(tmp_path):
    files = {f"{i}.mid": os.urandom(20_000) for i in range(9)}
    whole = tarred(tmp_path / "cut.tar.gz", files).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 no more")
    (tmp_path / "no.tar").write_bytes(b"words " * 500)
    broken = bytearray(zipped(tmp_path / "broken.zip", files).read_bytes())
    broken[len(broken) // 2] ^= 255
    (tmp_path / "broken.zip").write_bytes(bytes(broken))
    found = contents(Sources([tmp_path]), tmp_path)
    assert found["no.zip"] == found["no.tar"] == "damaged archive"
    in_zip = [value for name, value in found.items() if name.startswith("broken.zip/")]
    assert len(in_zip) == 9 and in_zip.count("damaged archive") == 1
    in_tar = [value for name, value in found.items() if name.startswith("cut.tar.gz/")]
    assert 3 <= len(in_tar) <= 5 and "damaged archive" in [*in_tar, found.get("cut.tar.gz")]


def test_file_sizes_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "LARGEST_BYTES", 1 << 20)
    big = bytes((1 << 20) + 1)
    zipped(tmp_path / "bomb.zip", {"a.mid": big, "b.mid": b"small"})
    tarred(tmp_path / "bomb.tar.gz", {"a.mid": big, "b.mid": b"small"})
    (tmp_path / "c.mid").write_bytes(big)
    assert contents(Sources([tmp_path]), tmp_path) == {
        "bomb.tar.gz/a.mid": "larger than 1 MiB",
        "bomb.tar.gz/b.mid": b"small",
        "bomb.zip/a.mid": "larger than 1 MiB",
        "bomb.zip/b.mid": b"small",
        "c.mid": "larger than 1 MiB",
    }


def test_special_files_are_rejected_without_being_opened(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"one")
    for suffix in (".mid", ".zip", ".tar.gz", ".tar", ".tar.zst", ".parquet", ".abc"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mid"))
    found = contents(Sources([tmp_path]), tmp_path)
    assert found.pop("a.mid") == b"one"
    assert len(found) == 15 and set(found.values()) == {"not a regular file"}
    with pytest.raises(UserError, match="pipe.zip is neither a folder nor"):
        Sources([tmp_path / "pipe.zip"])


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_of_any_size_take_little_memory(tmp_path, kind):
    path = tarred(tmp_path / "big.tar.gz", {"a.mid": b"one"})
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.addfile(tarfile.TarInfo("a.mid"))
        header = tarfile.TarInfo("header")
        header.type, header.size = kind, 3 << 30
        archive.fileobj.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(32):
            archive.fileobj.write(bytes(1 << 20))
    tracemalloc.start()
    found = contents(Sources([path]), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"big.tar.gz/a.mid": b"", "big.tar.gz": "damaged archive"}
    assert peak < 8 << 20


def test_sparse_map_of_any_length_takes_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "LARGEST_TAR_HEADER", 1 << 16)
    path = tmp_path / "sparse.tar.gz"
    member = tarfile.TarInfo("a.mid")
    member.size = 64 << 20
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as archive:
        archive.fileobj.write(member.tobuf(tarfile.PAX_FORMAT))
        archive.fileobj.write(b"9999999\n" + b"0\n" * (1 << 19))
    tracemalloc.start()
    assert contents(Sources([path]), tmp_path) == {"sparse.tar.gz": "damaged archive"}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_tar_archives_of_any_compression_are_read(tmp_path, suffix):
    path = tarred(tmp_path / "a.tar", {"a.mid": b"one"}, f"w:{suffix}")
    assert contents(Sources([path]), tmp_path) == {"a.tar/a.mid": b"one"}
    whole = bytearray(tarred(tmp_path / "a.tar", {"a.mid": os.urandom(9999), "b.mid": b""}, f"w:{suffix}").read_bytes())
    whole[-60:] = bytes(60)
    path.write_bytes(bytes(whole))
    assert "damaged archive" in contents(Sources([path]), tmp_path).values()


def zstd(data: bytes) -> bytes:
    """Return `data` in two frames, after a frame to skip, as parallel compressors write them."""
    half = len(data) // 2
    compress = zstandard.ZstdCompressor().compress
    return b"\x50\x2a\x4d\x18\x04\0\0\0skip" + compress(data[:half]) + compress(data[half:])


def test_zstandard_archives_are_streamed(tmp_path):
    files = {f"{i}.mid": os.urandom(1 << 20) for i in range(24)}
    plain = tarred(tmp_path / "plain", files, "w").read_bytes()
    (tmp_path / "a.tar.zst").write_bytes(zstd(plain))
    (tmp_path / "b.tar").write_bytes(zstd(plain[: len(plain) // 2])[:-9])
    sources = Sources([tmp_path])
    tracemalloc.start()
    for source, (name, data) in zip(sources, files.items(), strict=False):
        assert source.name == f"{tmp_path}/a.tar.zst/{name}" and source.read() == data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    damaged = [name for name, data in contents(sources, tmp_path).items() if data == "damaged archive"]
    assert damaged and all(name.startswith("b.tar") for name in damaged)


def parquet(path: Path, rows: list[bytes | str | None], column: str = "music", **columns: list) -> Path:
    pq.write_table(pyarrow.table({column: rows, **columns}), path, row_group_size=5)
    return path


def test_rows_of_a_parquet_file_are_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "LARGEST_BYTES", 1 << 10)
    songs = [b"one", None, b"x" * 2000, b"X:1\nK:C\nC\nX:2\nK:C\nD\n", *(bytes([i]) for i in range(9))]
    (tmp_path / "in").mkdir()
    parquet(tmp_path / "in" / "a.parquet", songs, title=["words"] * len(songs))
    pq.write_table(pyarrow.table({"n": [1], "title": ["words"]}), tmp_path / "in" / "b.parquet")
    (tmp_path / "in" / "c.parquet").write_bytes(b"PAR1 no more")
    sources = Sources([tmp_path / "in"])
    assert sources.expected == 14
    found = contents(sources, tmp_path / "in")
    assert list(found.items())[:5] == [
        ("a.parquet/1", b"one"),
        ("a.parquet/2", b""),
        ("a.parquet/3", "larger than 0 MiB"),
        ("a.parquet/4/1", b"X:1\nK:C\nC\n"),
        ("a.parquet/4/2", b"X:2\nK:C\nD\n"),
    ]
    assert found["a.parquet/13"] == b"\x08" and found["c.parquet"] == "damaged archive" and len(found) == 15
    assert sources.passed_over == {".parquet": 1} and round(sources.expected) == 15


def test_column_of_a_parquet_file(tmp_path):
    path = parquet(tmp_path / "a.parquet", [b"one"], other=[b"two"], title=["X:1"], n=[1])
    with pytest.raises(UserError, match="a.parquet has several columns.*music, other, title with --column"):
        Sources([path])
    with pytest.raises(UserError, match="a.parquet has no column n of bytes"):
        Sources([path], "n")
    with pytest.raises(UserError, match="b.parquet has no column of bytes or text: leave the file out"):
        Sources([path, parquet(tmp_path / "b.parquet", [], n=pyarrow.array([], "int64"), column="m")], "other")
    for column, data in (("other", b"two"), ("title", b"X:1")):
        assert contents(Sources([path], column), tmp_path) == {"a.parquet/1": data}


def test_parquet_takes_little_memory_for_any_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    songs = [b"MThd" + os.urandom(1 << 16) for _ in range(256)]
    pq.write_table(pyarrow.table({"music": songs}), path, write_batch_size=16)  # one row group
    del songs
    pyarrow.default_memory_pool().release_unused()
    before, peak, n = pyarrow.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for source in Sources([path]):
        n += len(source.read())
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n > 16 << 20 and peak < 12 << 20


@pytest.mark.parametrize(
    ("name", "needed"), [("a.tar.zst", "zstandard"), ("a.tar", "zstandard"), ("a.parquet", "pyarrow")]
)
def test_missing_packages_are_named(name, needed, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    (tmp_path / name).write_bytes(zstd(b"words"))
    with pytest.raises(UserError, match=f"{name} needs {needed}, .*pip install 'rwkv-music"):
        list(Sources([tmp_path]))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: None, "There is no file or folder"),
        (lambda path: path.mkdir(), "There is no music"),
        (lambda path: path.write_text(""), "neither a folder nor a file with music"),
    ],
)
def test_missing_and_unusable_paths_raise_user_error(tmp_path, make, match):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=match):
        Sources([tmp_path / "in"])
