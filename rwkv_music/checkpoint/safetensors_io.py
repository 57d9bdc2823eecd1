"""Writing safetensors files in one sequential pass, and reading slices of their tensors.

A file consists of the length of the header in eight bytes, the header as JSON (dtype, shape and byte range of each
tensor), and the bytes of the tensors. It contains nothing executable, so only the header has to be checked. The SHA-256
is computed while writing, without reading the file again. A GPU tensor is copied to the host in chunks, so saving does
not need a complete copy of the tensor in host memory.

Source: the format's specification, https://huggingface.co/docs/safetensors.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rwkv_music.errors import plural
from rwkv_music.files import open_file, parse_json

CHUNK = 2**24  # elements copied, hashed and written at a time (64 MiB of fp32)
LONGEST_HEADER = 2**27  # bytes
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class DamagedFile(ValueError):
    """An error for a damaged file. The message is a clause that describes the damage."""


@dataclass(frozen=True)
class Written:
    """Size and hash of a written file, for the manifest."""

    size_bytes: int
    sha256: str


def write_tensors(path: str | os.PathLike, tensors: dict[str, Tensor]) -> Written:
    """Write `tensors`, by name, as fp32 to `path`, and fsync the file. Raises OSError."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return write_one_by_one(path, shapes, lambda name: tensors[name])


def write_one_by_one(
    path: str | os.PathLike,
    shapes: dict[str, tuple[int, ...]],
    tensor: Callable[[str], Tensor],
    dtype: torch.dtype = torch.float32,
    metadata: dict[str, str] | None = None,
) -> Written:
    """Write tensors as `dtype` to `path`, and fsync the file. Raises OSError.

    `tensor` is a function that returns the tensor of a name. It is called for each name in `shapes`, in order, so that
    only one tensor has to be in memory.
    """
    type_name = next(name for name, known in TYPES.items() if known == dtype)
    header: dict = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": type_name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in shapes:
            for chunk in tensor(name).detach().reshape(-1).split(CHUNK):
                values = chunk.to("cpu", dtype).contiguous().view(torch.uint8).numpy()
                if values.nbytes:
                    digest.update(values)
                    file.write(values)
        file.flush()
        os.fsync(file.fileno())
    return Written(8 + len(text) + end, digest.hexdigest())


class TensorFile:
    """The tensors of a safetensors file, whose dtypes must be in `TYPES` (see `Tensors`).

    Raises DamagedFile if the header is invalid or does not match the size of the file, and OSError if the file cannot
    be read.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = Path(path)
        size = self._path.stat().st_size
        with open_file(self._path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise DamagedFile(f"{self._path.name} does not begin with a header")
            text = file.read(length)
        try:
            header = parse_json(text)
            header.pop("__metadata__", None)
            self.shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
            self._starts = {name: int(entry["data_offsets"][0]) for name, entry in header.items()}
            types = {name: entry["dtype"] for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise DamagedFile(f"{self._path.name} has an unreadable header ({error})") from error
        if others := sorted({str(kind) for kind in types.values()} - TYPES.keys()):
            raise DamagedFile(f"{self._path.name} has dtype {', '.join(others)}, not one of {', '.join(TYPES)}")
        self._types = {name: TYPES[kind] for name, kind in types.items()}
        self._data = 8 + length
        for name, shape in self.shapes.items():
            end = self._data + self._starts[name] + self._types[name].itemsize * math.prod(shape)
            if min((0, self._starts[name], *shape)) < 0 or end > size:
                raise DamagedFile(f"{self._path.name} ends before {name} does")

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """See `Tensors.read_into`. Raises DamagedFile if the tensor does not exist or is too short."""
        if name not in self.shapes or start < 0 or start + out.numel() > math.prod(self.shapes[name]):
            raise DamagedFile(
                f"{self._path.name} lacks {plural(out.numel(), 'element')} of {name} from element {start:,} on"
            )
        if not out.numel():
            return
        dtype = self._types[name]
        with open_file(self._path) as file:
            file.seek(self._data + self._starts[name] + dtype.itemsize * start)
            for chunk in out.split(CHUNK):
                values = np.fromfile(file, np.uint8, dtype.itemsize * chunk.numel())
                if values.size != dtype.itemsize * chunk.numel():
                    raise DamagedFile(f"{self._path.name} ends before {name} does")
                chunk.copy_(torch.from_numpy(values).view(dtype))
