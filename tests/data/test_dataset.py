"""Batches: every target once per pass, the same for any number of ranks, with documents kept apart."""

import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.binidx import HEADER, MAGIC, POINTER, SIZE, UINT16_CODE, VERSION, BinIdx, BinIdxWriter
from rwkv_music.data.dataset import Batch, MusicDataset, check_tokenizer_file, make_batch, read_dataset_json
from rwkv_music.errors import UserError
from tests.damaged_json import DAMAGED_JSON


def make(folder: Path, sizes: list[int]) -> list[np.ndarray]:
    """Write a dataset folder whose token ids count up from 1, so that every token is unique; pad_id is 0."""
    documents = np.split(np.arange(1, sum(sizes) + 1), np.cumsum(sizes)[:-1])
    for split, chosen in (("train", documents), ("val", documents)):
        with BinIdxWriter(folder / split) as writer:
            for document in chosen:
                writer.add(document)
    tokenizer = {"name": "multitrack", "fingerprint": "f" * 64, "vocab_size": 65536}
    tokenizer |= {"pad_id": 0, "bos_id": 1, "eos_id": 2}
    facts = {"splits": {split: {"pieces": len(sizes)} for split in ("train", "val")}, "sha256": {"tokenizer.json": ""}}
    (folder / "dataset.json").write_text(json.dumps({"tokenizer": tokenizer, **facts}))
    return documents


def check(batch: Batch, documents: list[np.ndarray]) -> None:
    """Check every documented property of a batch, token by token."""
    first = {int(document[0]) for document in documents}
    last = {int(document[-1]) for document in documents}
    B, T = batch.input_ids.shape
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    boundaries = batch.cu_seqlens.tolist()
    assert boundaries[0] == 0 and boundaries[-1] == B * T
    assert all(a < b for a, b in zip(boundaries, boundaries[1:], strict=False))
    starts = set(boundaries)
    for position, (token, target) in enumerate(
        zip(batch.input_ids.flatten().tolist(), batch.targets.flatten().tolist(), strict=True)
    ):
        if position % T == 0 or token in first:
            assert position in starts
        elif token != 0:
            assert position not in starts
        if token == 0 or token in last:
            assert target == IGNORE_INDEX
        else:
            assert target == token + 1
    assert batch.n_targets == int((batch.targets != IGNORE_INDEX).sum())


@pytest.mark.parametrize("ctx_len", [1, 4, 7, 16, 30, 31, 32, 100])
def test_every_target_comes_once_per_pass(tmp_path, ctx_len):
    documents = make(tmp_path, [5, 1, 9, 2, 14])
    data = MusicDataset(tmp_path, "train", ctx_len, seed=3)
    assert (data.n_tokens, data.n_documents, data.n_targets) == (31, 5, 26)
    expected = sorted(int(token) for document in documents for token in document[1:])
    for number in range(3):
        batch = data.batch(number * data.n_samples, (number + 1) * data.n_samples)
        check(batch, documents)
        assert sorted(batch.targets[batch.targets != IGNORE_INDEX].tolist()) == expected
        assert batch.n_targets == data.n_targets


def test_order_depends_on_pass_and_seed(tmp_path):
    make(tmp_path, [1000])
    data = MusicDataset(tmp_path, "train", 10, seed=0)
    W = data.n_samples
    orders = [[next(data.windows_of(number * W + i)) for i in range(W)] for number in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(W))
    assert orders[0] != orders[1]
    assert orders[0] != [next(MusicDataset(tmp_path, "train", 10, seed=1).windows_of(i)) for i in range(W)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_together_read_the_same_step(bach_data, world_size):
    """The parts read by the ranks are the whole step, at any position of the counter."""
    start, rows = 1234, 6
    whole = MusicDataset(bach_data, "train", 64, seed=1).batch(start, start + rows)
    each = rows // world_size
    ranks = [MusicDataset(bach_data, "train", 64, seed=1) for _ in range(world_size)]
    parts = [data.batch(start + r * each, start + (r + 1) * each) for r, data in enumerate(ranks)]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert sum(part.n_targets for part in parts) == whole.n_targets
    assert torch.equal(ranks[0].sample(start).input_ids, whole.input_ids[:1])
    none = ranks[0].batch(start, start)  # the share of a rank that gets no row
    assert none.input_ids.shape == (1, 64) and none.n_targets == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_validation_yields_every_target_once(tmp_path, world_size, batch_size):
    documents = make(tmp_path, [40, 3, 58])
    data = MusicDataset(tmp_path, "val", 8)
    ranks = [list(data.validation_batches(batch_size, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    targets = []
    for batches in ranks:
        for batch in batches:
            check(batch, documents)
            assert batch.input_ids.shape == (batch_size, 8)
            targets += batch.targets[batch.targets != IGNORE_INDEX].tolist()
    assert sorted(targets) == sorted(int(token) for document in documents for token in document[1:])


def test_validation_is_in_order(tmp_path):
    make(tmp_path, [100])
    batches = list(MusicDataset(tmp_path, "val", 10).validation_batches(2, rank=1, world_size=2))
    assert [batch.input_ids[:, 0].tolist() for batch in batches] == [[21, 31], [61, 71], [0, 0]]
    assert batches[-1].n_targets == 0


def test_real_pieces_start_with_bos_and_end_with_eos(bach_data):
    tokens = BinIdx(bach_data / "train")
    data = MusicDataset(bach_data, "train", 256)
    bos, eos = (read_dataset_json(bach_data)["tokenizer"][key] for key in ("bos_id", "eos_id"))
    assert data.n_targets == data.n_tokens - len(tokens)
    batch = data.batch(0, data.n_samples)
    assert (batch.targets == eos).sum() == len(tokens)  # the end of every piece is a target
    assert not (batch.targets == bos).any()  # the start is not
    assert (batch.input_ids == bos).sum() == len(tokens)
    starts = batch.input_ids.flatten()[batch.cu_seqlens[:-1].long()]
    assert (starts == bos).sum() == len(tokens)


def test_invalid_input_raises_user_error(tmp_path, bach_data):
    with pytest.raises(UserError, match="not a dataset folder"):
        MusicDataset(tmp_path / "missing", "train", 8)
    with pytest.raises(UserError, match="at least 1"):
        MusicDataset(bach_data, "train", 0)
    with pytest.raises(UserError, match="tokenizer of .*0{12}"):
        MusicDataset(bach_data, "train", 8, fingerprint="0" * 64)
    assert MusicDataset(bach_data, "train", 8, fingerprint=read_dataset_json(bach_data)["tokenizer"]["fingerprint"])
    make(tmp_path, [3])
    with BinIdxWriter(tmp_path / "val"):
        pass
    with pytest.raises(UserError, match="larger --val-fraction"):
        MusicDataset(tmp_path, "val", 8)
    whole = json.loads((tmp_path / "dataset.json").read_text())
    for key, value in (("vocab_size", "9"), ("vocab_size", True), ("pad_id", None), ("fingerprint", 1)):
        (tmp_path / "dataset.json").write_text(json.dumps(whole | {"tokenizer": whole["tokenizer"] | {key: value}}))
        with pytest.raises(UserError, match=f"dataset.json cannot be read .tokenizer.{key} is not an? .*prepare"):
            MusicDataset(tmp_path, "train", 8)
    for key in whole:
        (tmp_path / "dataset.json").write_text(json.dumps({**whole, key: []}))
        with pytest.raises(UserError, match=f"dataset.json cannot be read .{key} is not an object"):
            MusicDataset(tmp_path, "train", 8)


@pytest.mark.parametrize("content", DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_damaged_dataset_json_raises_user_error(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match="dataset.json cannot be read .*prepare the data again"):
        read_dataset_json(tmp_path)


def test_modified_tokenizer_file_raises_user_error(bach_data, tmp_path):
    shutil.copy(bach_data / "dataset.json", tmp_path)
    with pytest.raises(UserError, match="no tokenizer.json"):
        check_tokenizer_file(tmp_path)
    content = (bach_data / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    check_tokenizer_file(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content.replace(b"Pitch", b"pitch", 1))
    with pytest.raises(UserError, match="tokenizer.json .*SHA-256"):
        check_tokenizer_file(tmp_path)


def test_a_tokenizer_of_an_earlier_version_raises_user_error(bach_data, tmp_path):
    content = (bach_data / "tokenizer.json").read_bytes().replace(b'"multitrack"', b'"remi"')
    (tmp_path / "tokenizer.json").write_bytes(content)
    facts = json.loads((bach_data / "dataset.json").read_text())
    facts["sha256"]["tokenizer.json"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="tokenizer.json names the tokenizer 'remi'.* again with multitrack"):
        check_tokenizer_file(tmp_path)


def test_reading_works_without_the_music_extra(bach_data, tmp_path):
    """Batches and the vocabulary can be read without music21 and matplotlib."""
    program = f"""
import sys
for name in ("music21", "matplotlib"):
    sys.modules[name] = None  # importing it fails
from rwkv_music.data.binidx import BinIdx
from rwkv_music.tokenizers.registry import load_codec
from rwkv_music.data.dataset import MusicDataset
batch = MusicDataset({str(bach_data)!r}, "train", 32).batch(0, 2)
codec = load_codec({str(bach_data / "tokenizer.json")!r})
ids = BinIdx({str(bach_data / "train")!r})[0]
codec.save({str(tmp_path / "tokenizer.json")!r})
assert codec.vocab_size > 1000 and len(codec.bar_starts(ids)) > 4 and codec.count_notes(ids) > 100
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
    assert (tmp_path / "tokenizer.json").read_bytes() == (bach_data / "tokenizer.json").read_bytes()


def test_memory_does_not_grow_with_the_number_of_windows(tmp_path):
    """A sparse file of 2 GB: any window is found directly and in less than 1 MiB of memory."""
    n_tokens = 10**9
    with open(tmp_path / "train.bin", "wb") as file:
        file.truncate(2 * n_tokens)
    with open(tmp_path / "train.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, UINT16_CODE, 1, 2))
        np.array([n_tokens], SIZE).tofile(file)
        np.array([0, 0, 1], POINTER).tofile(file)
    tokenizer = {"name": "multitrack", "fingerprint": "f" * 64, "vocab_size": 65536, "pad_id": 0}
    facts = {"splits": {split: {"pieces": 1} for split in ("train", "val")}, "sha256": {"tokenizer.json": ""}}
    (tmp_path / "dataset.json").write_text(json.dumps({"tokenizer": tokenizer, **facts}))
    tracemalloc.start()
    data = MusicDataset(tmp_path, "train", 1, seed=1)
    windows = {next(data.windows_of(sample)) for sample in (*range(500), 10**9 - 2, 3 * 10**9)}
    batch = data.batch(10**9 - 10, 10**9 + 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.n_samples == n_tokens - 1 and len(windows) > 500 and max(windows) > 9 * 10**8
    assert batch.n_targets == 20 and peak < 2**20


def threads() -> set[int]:
    """Return the IDs of this process's threads. Unlike their number, they show a thread that starts while one ends."""
    return {thread.id for thread in psutil.Process().threads()}


def test_dividing_a_long_row_starts_no_threads():
    """Dividing a row starts no threads of torch, which would take cores from the threads that compute."""
    tokens = np.arange(2**18)[None]
    whole = make_batch(tokens, tokens.copy(), [np.zeros(1, np.int64)])
    group = SimpleNamespace(size=lambda: 2, rank=lambda: 1)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as reader:
            reader.submit(int).result()
            running = threads()
            part = reader.submit(whole.part, group).result()
            assert threads() <= running
            assert torch.equal(part.input_ids, whole.input_ids[:, 2**17 :]) and part.n_targets == 2**17
            reader.submit(lambda: whole.targets >= 0).result()  # an operator that starts such threads
            assert threads() - running
    finally:
        torch.set_num_threads(threads_before)
