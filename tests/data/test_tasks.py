"""The completion task on real scores, and mixing both tasks with one sample counter."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_music.config import IGNORE_INDEX, DataConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import Batch, MusicDataset
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import load_codec

TASKS = ("pretrain", "completion", "mix")


@pytest.fixture(scope="module", params=["bach_data", "bach_data_midi_llm", "bach_data"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def codec(folder) -> Codec:
    return load_codec(folder / "tokenizer.json")


def unpack(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (input_ids, targets) of each document of a batch of one row."""
    bounds = batch.cu_seqlens[1:-1].long()
    parts = (batch.input_ids[0].tensor_split(bounds), batch.targets[0].tensor_split(bounds))
    return [(ids.numpy(), targets.numpy()) for ids, targets in zip(*parts, strict=True)]


def test_targets_are_the_bars_after_the_context(folder, codec):
    """Compare every window of every piece with bars counted in this test."""
    data = MusicDataset(folder, "val", 4096, task="completion", context_bars=3, completion_bars=2)
    tokens, bars = BinIdx(folder / "val"), BinIdx(folder / "val.bars")
    expected = []
    for i in range(len(tokens)):
        ids = tokens[i].astype(np.int64)
        starts = np.append(np.cumsum(bars[i].astype(np.int64)), len(ids))
        for bar in range(len(starts) - 5):
            expected.append((ids[starts[bar] : starts[bar + 3]], ids[starts[bar + 3] : starts[bar + 5] + 1], bar))
    rows = data.tasks["completion"]
    assert rows.n_windows == len(expected)
    for window, (context, completion, bar) in enumerate(expected):
        row = rows.row(window, window)
        ids, targets = row.input_ids, row.targets
        assert ids[0] == codec.bos_id
        counted = targets != IGNORE_INDEX
        assert np.array_equal(targets[counted], completion)
        assert counted[-len(completion) :].all()  # contiguous, at the end
        assert np.array_equal(ids[1:][~counted[:-1]][-4:], context[-4:] if len(context) >= 4 else ids[1:][-4:])
        if bar == 0:
            assert np.array_equal(ids[1 : len(context) + 1], context)
    [batch] = data.validation_batches(len(expected))  # of the windows whose completions do not overlap
    for (_, targets), (_, completion, _) in zip(unpack(batch), expected[::2], strict=False):
        assert np.array_equal(targets[targets != IGNORE_INDEX], completion)
    assert batch.n_targets == len(batch.positions) == sum(len(completion) for _, completion, _ in expected[::2])


def test_window_inside_a_piece_starts_like_a_piece(bach_data):
    """Its first bar has a tempo, and its first part a program, in the order used at the start of a piece."""
    codec = load_codec(bach_data / "tokenizer.json")
    data = MusicDataset(bach_data, "val", 4096, task="completion", context_bars=2, completion_bars=1)
    for window in range(1, data.tasks["completion"].n_windows):
        row = data.tasks["completion"].row(window, 0)
        names = [codec.vocabulary[i].split("_")[0] for i in row.input_ids]
        assert names[:4] == ["BOS", "Bar", "TimeSig", "Tempo"]
        first = names.index("Part")
        assert names[first : first + 4] == ["Part", "Program", "Position", "Pitch"]


def test_long_windows_lose_context_bars_first(folder, codec):
    wide = MusicDataset(folder, "val", 4096, task="completion", context_bars=4, completion_bars=2)
    narrow = MusicDataset(folder, "val", 90, task="completion", context_bars=4, completion_bars=2)
    wide, narrow = wide.tasks["completion"], narrow.tasks["completion"]
    assert wide.n_windows == narrow.n_windows
    cut = 0
    for window in range(wide.n_windows):
        whole, row = wide.row(window, 0), narrow.row(window, 0)
        assert len(row.input_ids) == len(row.targets) <= 90
        # Without any context, the completion of multitrack names its tempo and programs.
        is_named = np.isin(codec.token_properties.kinds, ["Tempo", "Program"]) & (codec.name == "multitrack")
        expected, found = (
            targets[(targets != IGNORE_INDEX) & ~is_named[targets]] for targets in (whole.targets, row.targets)
        )
        assert np.array_equal(found, expected[: len(found)]) and len(found) > 0
        assert len(found) == len(expected) or len(row.input_ids) == 90
        cut += len(row.input_ids) < len(whole.input_ids)
    assert cut > 0


def test_short_pieces_have_one_window_or_none(folder):
    n_bars = np.diff(BinIdx(folder / "train.bars").offsets)
    for context, completion in ((1, 1), (int(n_bars.min()), 5), (int(n_bars.max()) - 1, 50)):
        data = MusicDataset(folder, "train", 64, task="completion", context_bars=context, completion_bars=completion)
        n_windows = data.tasks["completion"].n_windows
        assert n_windows == sum(max(n - context - completion + 1, int(n > context)) for n in n_bars.tolist())
    with pytest.raises(UserError, match="fewer --context_bars"):
        MusicDataset(folder, "train", 64, task="completion", context_bars=int(n_bars.max()), completion_bars=1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("world_sizes", [(1,), (2,), (3,), (8,), (8, 3, 1), (1, 2, 8)], ids=str)
def test_every_sample_comes_once_for_any_world_size(bach_data, task, world_sizes):
    """The number of ranks changes during the pass; each rank reads its own part of each step."""
    data = MusicDataset(bach_data, "train", 200, seed=5, task=task, completion_weight=0.25)
    seen: Counter = Counter()
    sample, n_samples = 0, 2 * data.n_samples
    for i, world in enumerate(world_sizes):
        stop = n_samples * (i + 1) // len(world_sizes)
        while sample < stop:
            for rank in range(world):
                seen.update(data.task_of(s) for s in range(sample + 2 * rank, min(sample + 2 * rank + 2, n_samples)))
            sample += 2 * world
        sample = min(sample, n_samples)
    assert set(seen.values()) == {1}
    by_task = {name: sorted(number for task, number in seen if task == name) for name in data.tasks}
    for name, numbers in by_task.items():
        assert numbers == list(range(len(numbers))) and len(numbers) >= 2 * data.n_rows(name)
    if task != "mix":
        assert len(by_task[task]) == 2 * data.n_rows(task)


def test_every_window_of_next_token_prediction_comes_once_per_pass(bach_data):
    data = MusicDataset(bach_data, "train", 200, seed=5)
    first, second = ([next(data.windows_of(p * data.n_samples + i)) for i in range(data.n_samples)] for p in range(2))
    assert sorted(first) == sorted(second) == list(range(data.n_samples)) and first != second


@pytest.mark.parametrize("task", ["completion", "infill"])
def test_a_row_holds_as_many_windows_as_fit(bach_data, task):
    """The windows are consecutive in the order of the pass, each is a document, and a pass uses most of them."""
    data = MusicDataset(bach_data, "train", 700, seed=5, task=task, context_bars=2, completion_bars=1)
    rows, used, unfilled = data.tasks[task], set(), 0
    for sample in range(data.n_samples):
        row = data.row(sample)
        assert 0 < len(row.input_ids) == len(row.targets) <= 700
        windows = list(islice(data.windows_of(sample), len(row.starts)))
        used.update(windows)
        unfilled += 700 - len(row.input_ids)
        if task == "completion":
            parts = [rows.row(window, 0) for window in windows]
            assert np.array_equal(row.input_ids, np.concatenate([part.input_ids for part in parts])[:700])
            assert np.array_equal(row.targets, np.concatenate([part.targets for part in parts])[:700])
    assert unfilled < 0.2 * 700 * data.n_samples
    assert len(used) > 0.65 * rows.n_windows
    assert data.batch(0, 3).input_ids.shape == (3, 700)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.25, 1 / 3, 0.9, 1.0])
def test_mix_has_the_set_share_of_completions(bach_data, weight):
    data = MusicDataset(bach_data, "train", 100, task="mix", completion_weight=weight)
    chosen = np.array([data.task_of(10**12 + i)[0] == "completion" for i in range(2000)])
    assert abs(chosen.mean() - weight) < 1e-3
    assert abs(chosen[:20].sum() - 20 * weight) <= 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("augment", ["none", "all"])
def test_batch_consists_of_its_samples(folder, task, augment):
    """Batches of any size have the same rows, and every documented property of a batch holds."""
    config = DataConfig(data=str(folder), ctx_len=150, seed=2, task=task, augment=augment, context_bars=2)
    data, again = MusicDataset.of(config, "train"), MusicDataset.of(config, "train")
    whole = data.batch(100, 106)
    parts = [again.batch(start, start + 2) for start in (104, 102, 100)][::-1]
    for name in ("input_ids", "targets"):
        joined = torch.cat([getattr(part, name).flatten() for part in parts])
        assert torch.equal(joined, getattr(whole, name).flatten())
    assert torch.equal(whole.positions, (whole.targets.flatten() != IGNORE_INDEX).nonzero().squeeze(1))
    bounds = whole.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == whole.input_ids.numel() and (np.diff(bounds) > 0).all()
    assert whole.max_length == np.diff(bounds).max()


def test_augmentation_changes_notes_but_not_target_positions(folder):
    plain = MusicDataset(folder, "train", 150)
    varied = MusicDataset(folder, "train", 150, augment="transpose")
    a, b = plain.batch(0, 40), varied.batch(0, 40)
    assert torch.equal(a.cu_seqlens, b.cu_seqlens) and torch.equal(a.positions, b.positions)
    assert not torch.equal(a.input_ids, b.input_ids)
    inside = a.targets[:, :-1] != IGNORE_INDEX  # the target of a token is the next token
    assert torch.equal(b.targets[:, :-1][inside], b.input_ids[:, 1:][inside])
    val = MusicDataset(folder, "val", 150, augment="all")
    assert all(
        torch.equal(x.input_ids, y.input_ids)
        for x, y in zip(val.validation_batches(4), MusicDataset(folder, "val", 150).validation_batches(4), strict=True)
    )


def test_validation_of_completions_is_divided_between_ranks(bach_data):
    data = MusicDataset(bach_data, "val", 200, task="completion")
    one = sum(batch.n_targets for batch in data.validation_batches(4))
    ranks = [list(data.validation_batches(2, rank, 3)) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sum(batch.n_targets for batches in ranks for batch in batches) == one


def test_dataset_without_bar_files_raises_user_error(tmp_path, bach_data):
    for path in bach_data.iterdir():
        if ".bars." not in path.name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match="bars.idx.*--task pretrain"):
        MusicDataset(tmp_path, "train", 64, task="mix")
    MusicDataset(tmp_path, "train", 64)
