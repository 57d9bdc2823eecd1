"""Token files in the Megatron "binidx" layout, which RWKV-LM and json2binidx read and write.

Two files share a prefix. `PREFIX.bin` holds the tokens of all documents, one after another, as little-endian uint16
without a header. `PREFIX.idx` holds the position of each document. All its fields are little-endian:

    9 bytes   magic "MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     dtype code, 8 = uint16
    uint64    S, the number of sequences
    uint64    D + 1, the number of entries in doc_idx; D is the number of documents
    int32     sizes [S], in tokens
    int64     pointers [S], in bytes into PREFIX.bin
    int64     doc_idx [D + 1]: document i is the sequences doc_idx[i] .. doc_idx[i + 1] - 1

The writer makes each document one sequence, so doc_idx is 0..S. The reader also accepts documents of several sequences.
The writer keeps only four bytes per document in memory. The reader memory-maps the tokens.

Source: NVIDIA/Megatron-LM `indexed_dataset.py` and BlinkDL/RWKV-LM `RWKV-v7/train_temp/src/binidx.py` for the layout.
"""

import os
import struct
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rwkv_music.errors import UserError, explained, plural
from rwkv_music.files import atomic_path, open_file

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
UINT16_CODE = 8
HEADER = struct.Struct("<9sQBQQ")

TOKEN = np.dtype("<u2")
SIZE = np.dtype("<i4")
POINTER = np.dtype("<i8")

DOCUMENTS_PER_WRITE = 1 << 16


def bin_path(prefix: str | os.PathLike) -> Path:
    return Path(f"{os.fspath(prefix)}.bin")


def idx_path(prefix: str | os.PathLike) -> Path:
    return Path(f"{os.fspath(prefix)}.idx")


class BinIdxWriter:
    """A writer of `PREFIX.bin` and `PREFIX.idx`. Use it in a `with` block, and call `add` for each document.

    If the block succeeds, both files get their final names, the index last. If the block raises, neither file remains.
    """

    def __init__(self, prefix: str | os.PathLike):
        self.prefix = Path(prefix)
        self.n_tokens = 0
        self._sizes = array("i")

    @property
    def n_documents(self) -> int:
        return len(self._sizes)

    def __enter__(self) -> "BinIdxWriter":
        # The stack closes in reverse order: the token file is closed and renamed before the index.
        with ExitStack() as stack:
            self._idx_partial = stack.enter_context(atomic_path(idx_path(self.prefix)))
            bin_partial = stack.enter_context(atomic_path(bin_path(self.prefix)))
            self._bin = stack.enter_context(open(bin_partial, "wb"))
            self._files = stack.pop_all()
        return self

    def add(self, tokens: np.ndarray) -> None:
        """Append one document: [n] integers in 0..65535, n >= 1. Raises ValueError for any other array."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or len(tokens) == 0 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"a document is a non-empty 1-D integer array, not {tokens.dtype} of shape {tokens.shape}")
        if tokens.dtype != TOKEN and (tokens.min() < 0 or tokens.max() > 0xFFFF):
            raise ValueError(f"token ids {tokens.min()}..{tokens.max()} do not fit uint16 (0..65535)")
        self._bin.write(tokens.astype(TOKEN, copy=False).tobytes())
        self._sizes.append(len(tokens))
        self.n_tokens += len(tokens)

    def __exit__(self, *raised) -> None:
        if raised[0] is not None:
            self._files.__exit__(*raised)
            return
        with self._files, open(self._idx_partial, "wb") as file:
            self._write_index(file)

    def _write_index(self, file: BinaryIO) -> None:
        n = self.n_documents
        file.write(HEADER.pack(MAGIC, VERSION, UINT16_CODE, n, n + 1))
        sizes = np.frombuffer(self._sizes, dtype=np.intc) if n else np.empty(0, np.intc)
        sizes.astype(SIZE, copy=False).tofile(file)
        address = 0
        for start in range(0, n, DOCUMENTS_PER_WRITE):
            nbytes = sizes[start : start + DOCUMENTS_PER_WRITE].astype(POINTER) * TOKEN.itemsize
            ends = address + np.cumsum(nbytes)
            (ends - nbytes).astype(POINTER).tofile(file)
            address = int(ends[-1])
        for start in range(0, n + 1, DOCUMENTS_PER_WRITE):
            np.arange(start, min(start + DOCUMENTS_PER_WRITE, n + 1), dtype=POINTER).tofile(file)


class BinIdx:
    """A memory-mapped reader of `PREFIX.bin` and `PREFIX.idx`.

    `len(binidx)` is the number of documents; `binidx[i]` is one document's tokens as a read-only uint16 view. Raises
    UserError if a file is missing, truncated, or of another format or token width.
    """

    def __init__(self, prefix: str | os.PathLike):
        self.prefix = Path(prefix)
        self.offsets = _read_offsets(idx_path(prefix))  # int64 [D + 1]: where each document starts, then n_tokens
        self.n_tokens = int(self.offsets[-1])
        path = bin_path(prefix)
        with explained(f"reading {path}"):
            nbytes = path.stat().st_size
            if nbytes != self.n_tokens * TOKEN.itemsize:
                raise UserError(
                    f"{path} has {plural(nbytes, 'byte')} but its index describes {self.n_tokens * TOKEN.itemsize:,}: "
                    "copy both files again, or prepare the data again."
                )
            # An empty file cannot be mapped.
            self._stream = np.memmap(path, TOKEN, mode="r") if nbytes else np.empty(0, TOKEN)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        return self._stream[self.offsets[i] : self.offsets[i + 1]]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return tokens start..stop - 1 of the concatenated documents, as a read-only uint16 view [stop - start]."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self.n_tokens}")
        return self._stream[start:stop]


def _read_offsets(path: Path) -> np.ndarray:
    """Return the index of each document's first token, and the number of tokens: int64 [D + 1]."""
    damaged = f"{path} is a damaged binidx index"
    remedy = "copy it again, or prepare the data again."
    with explained(f"reading {path}"), open_file(path) as file:
        header = file.read(HEADER.size)
        if not header.startswith(MAGIC):
            raise UserError(f"{path} is not a binidx index (it does not start with MMIDIDX): {remedy}")
        if len(header) < HEADER.size:
            raise UserError(f"{damaged} (truncated inside its header): {remedy}")
        _, version, code, n_sequences, n_doc_idx = HEADER.unpack(header)
        if version != VERSION:
            raise UserError(
                f"{path} is binidx version {version}, but only version {VERSION} is supported: convert the file."
            )
        if code != UINT16_CODE:
            raise UserError(
                f"{path} has tokens of dtype code {code}, but only {UINT16_CODE} (uint16) is supported: convert them."
            )
        promised = HEADER.size + n_sequences * (SIZE.itemsize + POINTER.itemsize) + n_doc_idx * POINTER.itemsize
        nbytes = os.fstat(file.fileno()).st_size
        if nbytes != promised:
            raise UserError(f"{damaged} ({plural(nbytes, 'byte')}, but its header describes {promised:,}): {remedy}")
        sizes = np.fromfile(file, SIZE, n_sequences)
        pointers = np.fromfile(file, POINTER, n_sequences)
        doc_idx = np.fromfile(file, POINTER, n_doc_idx)
    starts = np.zeros(n_sequences + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    if (sizes < 1).any():
        raise UserError(f"{path} has an empty document: prepare the data again without it.")
    if not np.array_equal(pointers, starts[:-1] * TOKEN.itemsize):
        raise UserError(f"{damaged} (its sequences are not contiguous in the .bin file): {remedy}")
    if n_doc_idx == 0 or doc_idx[0] != 0 or doc_idx[-1] != n_sequences or (np.diff(doc_idx) < 1).any():
        raise UserError(f"{damaged} (its documents do not cover its sequences): {remedy}")
    return starts[doc_idx]
