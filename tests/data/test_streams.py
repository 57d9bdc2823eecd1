"""Document streams (TBPTT): whole pieces in order, balanced streams, windows addressed by number."""

import numpy as np
import pytest
import torch

from rwkv_music.config import IGNORE_INDEX, DataConfig
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.errors import UserError
from tests.data.test_dataset import make

SIZES = [5, 1, 9, 2, 14, 40, 3, 3, 8]


def read_pass(streams: DocumentStreams, number: int) -> list[list[list[int]]]:
    """Reassemble the pieces of each stream in one pass from its windows."""
    pieces: list[list[list[int]]] = [[] for _ in range(streams.n_streams)]
    for window in range(number * streams.windows_per_pass, (number + 1) * streams.windows_per_pass):
        batch = streams.batch(window)
        B, T = batch.input_ids.shape
        bounds = batch.cu_seqlens.tolist()
        rows, documents = batch.edges.rows.tolist(), batch.edges.documents.tolist()
        assert [bounds[d + 1] for d in batch.edges.last.tolist()] == [(row + 1) * T for row in range(B)]
        assert [bounds[d] for d in documents] == [row * T for row in rows]
        flat, targets = batch.input_ids.flatten().tolist(), batch.targets.flatten().tolist()
        for document, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            tokens = [token for token in flat[start:stop] if token]
            if document not in documents:
                pieces[start // T].append([])
            pieces[start // T][-1] += tokens
            for at in range(start, stop):
                assert targets[at] in (IGNORE_INDEX, flat[at] + 1) and (flat[at] or targets[at] == IGNORE_INDEX)
    return [[piece for piece in stream if piece] for stream in pieces]


@pytest.mark.parametrize("ctx_len", [1, 4, 7, 100])
@pytest.mark.parametrize("n_streams", [1, 2, 4])
@pytest.mark.parametrize("windows_per_step", [1, 3])
def test_every_piece_is_read_once_per_pass_in_order(tmp_path, ctx_len, n_streams, windows_per_step):
    documents = [document.tolist() for document in make(tmp_path, SIZES)]
    dataset = MusicDataset(tmp_path, "train", ctx_len, seed=3)
    streams = DocumentStreams(dataset, n_streams, windows_per_step)
    assert streams.windows_per_pass % windows_per_step == 0
    for number in (0, 1, 5):
        assert sorted(piece for stream in read_pass(streams, number) for piece in stream) == sorted(documents)
        windows = range(number * streams.windows_per_pass, (number + 1) * streams.windows_per_pass)
        assert sum(streams.batch(window).n_targets for window in windows) == dataset.n_targets


def test_windows_and_streams_can_be_read_independently(tmp_path):
    make(tmp_path, SIZES)
    dataset = MusicDataset(tmp_path, "train", 7, seed=3)
    streams = DocumentStreams(dataset, 4)
    for window in range(3 * streams.windows_per_pass):
        whole = streams.batch(window)
        fresh = DocumentStreams(dataset, 4)
        parts = [fresh.batch(window, 0, 1), fresh.batch(window, 1, 4)]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        none = fresh.batch(window, 0, 0)
        assert none.input_ids.shape == (1, 7) and none.n_targets == len(none.edges.last) == 0
        assert parts[0].edges.rows.tolist() + [r + 1 for r in parts[1].edges.rows.tolist()] == whole.edges.rows.tolist()


def test_stream_lengths_differ_by_at_most_one_piece(tmp_path):
    sizes = np.random.default_rng(0).integers(1, 300, 200).tolist()
    make(tmp_path, sizes)
    streams = DocumentStreams(MusicDataset(tmp_path, "train", 16), 8)
    lengths = [sum(map(len, stream)) for stream in read_pass(streams, 0)]
    assert sum(lengths) == sum(sizes) and max(lengths) - min(lengths) <= max(sizes)
    assert streams.windows_per_pass <= sum(sizes) / 8 / 16 + 2  # little padding


def test_order_depends_on_pass_and_seed(tmp_path):
    make(tmp_path, [3] * 60)
    orders = [
        read_pass(DocumentStreams(MusicDataset(tmp_path, "train", 8, seed), 2), number)
        for seed in (0, 1)
        for number in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    again = DocumentStreams(MusicDataset(tmp_path, "train", 8, 0), 2)
    assert read_pass(again, 1) == orders[1]


def test_augmentation_transposes_the_whole_piece(bach_data):
    """All windows of a piece have one transposition, which differs between passes."""
    dataset = MusicDataset(bach_data, "train", 64, seed=1, augment="transpose")
    plain = MusicDataset(bach_data, "train", 64, seed=1)
    streams, expected = DocumentStreams(dataset, 1), DocumentStreams(plain, 1)
    steps = []
    for number in range(4):
        varied, pieces = ([np.array(p) for p in read_tokens(x, number)] for x in (streams, expected))
        for a, b in zip(varied, pieces, strict=True):
            moved = a != b
            assert len(set((a - b)[moved].tolist())) <= 1
            steps.append(int((a - b)[moved][0]) if moved.any() else 0)
    assert len(set(steps)) > 3


def read_tokens(streams: DocumentStreams, number: int) -> list[list[int]]:
    """Return the pieces of a single stream in one pass."""
    pieces: list[list[int]] = []
    for window in range(number * streams.windows_per_pass, (number + 1) * streams.windows_per_pass):
        batch = streams.batch(window)
        bounds = batch.cu_seqlens.tolist()
        for document, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if document not in batch.edges.documents.tolist():
                pieces.append([])
            pieces[-1] += batch.input_ids.flatten()[start:stop].tolist()
    return pieces


def test_validation_can_have_fewer_pieces_than_streams(tmp_path):
    documents = make(tmp_path, [9, 4])
    streams = DocumentStreams(MusicDataset(tmp_path, "val", 4), 5)
    assert sorted(piece for stream in read_pass(streams, 0) for piece in stream) == [d.tolist() for d in documents]


def test_invalid_settings_raise_user_error(tmp_path):
    make(tmp_path, [9, 4])
    with pytest.raises(UserError, match="--tbptt.* 2 .* 5 .*--batch_size"):
        DocumentStreams(MusicDataset(tmp_path, "train", 4), 5)
    with pytest.raises(UserError, match="--task completion"):
        DataConfig(tbptt=1, task="completion")
