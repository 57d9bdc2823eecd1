"""Tensor files: compatibility with the safetensors package, slices, and damaged files."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from rwkv_music.checkpoint import safetensors_io
from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile, write_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    strided = torch.randn(6, 4).t()
    return {"a": torch.randn(5, 3), "b.c": strided, "bf16": torch.randn(7).bfloat16(), "empty": torch.empty(0)}


def test_the_safetensors_package_reads_written_files(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_io, "CHUNK", 4)
    written = write_tensors(tmp_path / "x.safetensors", some_tensors())
    content = (tmp_path / "x.safetensors").read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (written.size_bytes, written.sha256)
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor.float()) for name, tensor in some_tensors().items())


def test_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_io, "CHUNK", 4)
    tensors = some_tensors()
    write_tensors(tmp_path / "x", tensors)
    file = TensorFile(tmp_path / "x")
    for start, length in ((0, 15), (3, 7), (14, 1), (5, 0)):
        out = torch.empty(length)
        file.read_into(out, "a", start)
        assert torch.equal(out, tensors["a"].view(-1)[start : start + length])
    for name, start, length in (("a", 10, 6), ("a", -1, 2), ("nowhere", 0, 1)):
        with pytest.raises(DamagedFile, match=name):
            file.read_into(torch.empty(length), name, start)


def header(tree: object, data: int = 8) -> bytes:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 100,
        header(b"not json"),
        header([1, 2]),
        header({"a": 1}),
        header({"a": {**ENTRY, "dtype": "I64"}}),
        header({"a": {**ENTRY, "shape": [-2]}}),
        header({"a": {**ENTRY, "shape": [3]}}),
        header({"a": {**ENTRY, "data_offsets": [8, 16]}}),
        header({"a": {**ENTRY, "data_offsets": [-8, 0]}}),
    ],
)
def test_invalid_files_are_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedFile):
        TensorFile(tmp_path / "x")
