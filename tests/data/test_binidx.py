"""Token files: the Megatron layout, memory-mapped reading, atomic writing, and damaged files."""

import struct

import numpy as np
import pytest

from rwkv_music.data.binidx import BinIdx, BinIdxWriter
from rwkv_music.errors import UserError


def documents(n: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 65536, size, dtype=np.uint16) for size in rng.integers(1, 50, n)]


def write(prefix, documents) -> None:
    with BinIdxWriter(prefix) as writer:
        for document in documents:
            writer.add(document)


def test_documents_are_read_back(tmp_path):
    written = documents()
    write(tmp_path / "a.b", written)  # a dot in the prefix is not a suffix
    read = BinIdx(tmp_path / "a.b")
    assert len(read) == len(written)
    for i, document in enumerate(written):
        np.testing.assert_array_equal(read[i], document)
    stream = np.concatenate(written)
    assert read.n_tokens == len(stream)
    assert read.offsets.dtype == np.int64
    np.testing.assert_array_equal(read.offsets, np.cumsum([0, *map(len, written)]))
    np.testing.assert_array_equal(read.tokens(3, 60), stream[3:60])
    with pytest.raises(IndexError):
        read[len(written)]
    with pytest.raises(IndexError):
        read.tokens(0, len(stream) + 1)


def test_layout_is_megatron_binidx(tmp_path):
    """The bytes that the reader of RWKV-LM expects, packed without this package."""
    written = documents(3)
    write(tmp_path / "x", written)
    index = (tmp_path / "x.idx").read_bytes()
    sizes = [len(document) for document in written]
    starts = [0, 2 * sizes[0], 2 * (sizes[0] + sizes[1])]
    assert index == (
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
        + struct.pack("<3i", *sizes) + struct.pack("<3q", *starts) + struct.pack("<4q", 0, 1, 2, 3)
    )  # fmt: skip
    assert (tmp_path / "x.bin").read_bytes() == b"".join(struct.pack(f"<{len(d)}H", *d.tolist()) for d in written)


def test_index_longer_than_one_write(tmp_path, monkeypatch):
    monkeypatch.setattr("rwkv_music.data.binidx.DOCUMENTS_PER_WRITE", 4)
    written = documents(11)
    write(tmp_path / "x", written)
    np.testing.assert_array_equal(BinIdx(tmp_path / "x")[10], written[10])


def test_no_documents(tmp_path):
    write(tmp_path / "x", [])
    read = BinIdx(tmp_path / "x")
    assert len(read) == read.n_tokens == 0
    assert len(read.tokens(0, 0)) == 0


def test_document_of_several_sequences(tmp_path):
    tokens = np.arange(6, dtype="<u2")
    (tmp_path / "x.bin").write_bytes(tokens.tobytes())
    (tmp_path / "x.idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 3) + struct.pack("<3i3q3q", 1, 2, 3, 0, 2, 6, 0, 2, 3)
    )
    assert [document.tolist() for document in (BinIdx(tmp_path / "x")[0], BinIdx(tmp_path / "x")[1])] == [
        [0, 1, 2],
        [3, 4, 5],
    ]


@pytest.mark.parametrize("bad", [[], [[1, 2]], [0.5], [-1], [65536]])
def test_invalid_document_raises(tmp_path, bad):
    with pytest.raises(ValueError), BinIdxWriter(tmp_path / "x") as writer:
        writer.add(np.array(bad))
    assert list(tmp_path.iterdir()) == []


def test_files_appear_when_the_writer_closes(tmp_path):
    with BinIdxWriter(tmp_path / "x") as writer:
        writer.add(np.array([1, 2]))
        assert not (tmp_path / "x.bin").exists() and not (tmp_path / "x.idx").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


def cut(path, n=1):
    path.write_bytes(path.read_bytes()[:-n])


def patch(path, position, new):
    data = bytearray(path.read_bytes())
    data[position : position + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: cut(folder / "x.bin", 2), "x.bin .*bytes"),
        (lambda folder: cut(folder / "x.idx"), "x.idx .*bytes"),
        (lambda folder: (folder / "x.idx").write_bytes(b"MMIDIDX\x00\x00\x01"), "inside its header"),
        (lambda folder: (folder / "x.idx").write_bytes(b"hello"), "not a binidx index"),
        (lambda folder: (folder / "x.idx").unlink(), "No such file"),
        (lambda folder: (folder / "x.bin").unlink(), "No such file"),
        (lambda folder: patch(folder / "x.idx", 9, b"\x02"), "version 2"),
        (lambda folder: patch(folder / "x.idx", 17, b"\x04"), "dtype code 4"),
        (lambda folder: patch(folder / "x.idx", 34, struct.pack("<i", 0)), "empty document"),
        (lambda folder: patch(folder / "x.idx", 34 + 5 * 4, struct.pack("<q", 2)), "contiguous"),
        (lambda folder: patch(folder / "x.idx", 34 + 5 * 12, struct.pack("<q", 1)), "do not cover"),
    ],
)
def test_damaged_files_raise_user_error(tmp_path, damage, match):
    write(tmp_path / "x", documents())
    damage(tmp_path)
    with pytest.raises(UserError, match=match):
        BinIdx(tmp_path / "x")
