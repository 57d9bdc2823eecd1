"""Mixtures of datasets: exact shares, the order of each dataset, and one dataset as without mixtures."""

import dataclasses
import hashlib
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from rwkv_music.config import DataConfig
from rwkv_music.data.dataset import Batch, MusicDataset
from rwkv_music.data.mixture import Mixture, parts_of
from rwkv_music.data.shares import assign
from rwkv_music.data.tasks import Row
from rwkv_music.errors import UserError
from tests.data.test_dataset import make

# Of the batches that one dataset gave before there were mixtures.
FIRST_BATCHES = "89b099cd1fbbaf85f20a5bf0baaab4031bd2f01758f425bf034c6984aef37acf"
TASKS = [
    {},
    {"augment": "transpose"},
    {"task": "completion", "context_bars": 2},
    {"task": "infill"},
    {"task": "mix", "completion_weight": 0.3, "infill_weight": 0.5, "augment": "all"},
]


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.input_ids, batch.targets, batch.cu_seqlens, batch.positions]


def equal(a: Row, b: Row) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Row))


@pytest.mark.parametrize("weights", ([2, 1], [1, 1], [0.7, 0.2, 0.1], [1, 2, 3, 4], [1000, 1]), ids=str)
def test_shares_are_exact(weights):
    """Those of the first n samples to less than one sample (more names: one less than names), then exactly."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = {str(i): weight / sum(exact) for i, weight in enumerate(exact)}
    period = int(np.lcm.reduce([share.denominator for share in shares.values()]))
    counts: Counter = Counter()
    for sample in range(2 * period):
        name, number = assign(sample, shares)
        assert number == counts[name]  # of the samples before, so no state is needed
        counts[name] += 1
        differences = [abs(counts[other] - (sample + 1) * share) for other, share in shares.items()]
        assert max(differences) < max(1, len(shares) - 1)
    assert all(counts[name] == 2 * period * share for name, share in shares.items())
    far = 10**12 * period
    for sample in range(period):
        name, number = assign(sample, shares)
        assert assign(far + sample, shares) == (name, far * shares[name] + number)


def test_one_dataset_gives_the_batches_it_always_gave(tmp_path):
    make(tmp_path, list(range(3, 60)))
    mixture, digest = Mixture(DataConfig(data=str(tmp_path), ctx_len=16, seed=5)), hashlib.sha256()
    for start in range(0, 240, 4):
        for tensor in tensors(mixture.batch(start, start + 4)):
            digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == FIRST_BATCHES


@pytest.mark.parametrize("settings", TASKS, ids=str)
def test_each_dataset_keeps_its_own_rows_and_order(settings, bach_data, few_data):
    config = DataConfig(data={str(bach_data): 2.0, str(few_data): 1.0}, ctx_len=200, seed=5, **settings)
    mixture = Mixture(config)
    counts = dict.fromkeys(mixture.datasets, 0)
    alone = {part.name: MusicDataset.of(part.config, "train") for part in mixture.parts}
    for sample in range(45):
        name = [few_data.name, bach_data.name, bach_data.name][sample % 3]
        row = mixture.row(sample)
        assert equal(row, alone[name].row(counts[name])), sample
        counts[name] += 1
    assert counts == {bach_data.name: 30, few_data.name: 15}
    whole, parts = mixture.batch(30, 36), [mixture.batch(start, start + 3) for start in (30, 33)]
    assert torch.equal(whole.input_ids, torch.cat([part.input_ids for part in parts]))
    assert mixture.batch(4, 4).n_targets == 0


def test_one_dataset_of_any_task_is_the_dataset(bach_data):
    config = DataConfig(data=str(bach_data), ctx_len=200, seed=5, **TASKS[-1])
    mixture, dataset = Mixture(config), MusicDataset.of(config, "train")
    for start in (0, 8, 10**12):
        batches = mixture.batch(start, start + 8), dataset.batch(start, start + 8)
        assert all(torch.equal(a, b) for a, b in zip(*map(tensors, batches), strict=True))


def test_every_row_of_each_dataset_comes_once_per_pass(tmp_path):
    for name, sizes in {"a": [20] * 9, "b": [15] * 4}.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name, sizes)
    config = DataConfig(data={str(tmp_path / "a"): 0.3, str(tmp_path / "b"): 0.7}, ctx_len=10, seed=1)
    mixture = Mixture(config)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    shares = {part.name: part.share for part in mixture.parts}
    for sample in range(200):
        seen[assign(sample, shares)[0]].append(int(mixture.row(sample).input_ids[0]))
    for name, first_tokens in seen.items():
        n = mixture.datasets[name].n_samples
        passes = [sorted(first_tokens[start : start + n]) for start in range(0, len(first_tokens) - n + 1, n)]
        assert len(passes) > 2 and all(len(set(one)) == n and one == passes[0] for one in passes)


def test_names_are_those_of_the_folders():
    folders = ("/x/data", "/y/data", "/z/my data", "/z/my_data")
    parts = parts_of(DataConfig(data=dict.fromkeys(folders, 1.0)))
    assert [part.name for part in parts] == ["data", "data_2", "my_data", "my_data_2"]
    assert [str(part.folder) for part in parts] == list(folders) and {part.share for part in parts} == {Fraction(1, 4)}
    assert [part.config for part in parts] == [DataConfig(data=folder) for folder in folders]


def test_datasets_that_do_not_fit_together(bach_data, bach_data_midi_llm):
    other = DataConfig(data={str(bach_data): 1.0, str(bach_data_midi_llm): 1.0}, ctx_len=64)
    with pytest.raises(UserError, match="The tokenizers of .* and .* differ: prepare both with the same --tokenizer"):
        Mixture(other)
    with pytest.raises(UserError, match="--data names 2 datasets: drop --tbptt"):
        DataConfig(data=dict.fromkeys("ab", 1.0), tbptt=1)
    for weight in (0, -1.0, float("nan"), float("inf"), True, "2", None):
        with pytest.raises(UserError, match=f"^The weight of the dataset b is {weight}: choose a positive number"):
            DataConfig(data={"a": 1.0, "b": weight})


def test_a_damaged_dataset_is_named(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        make(tmp_path / name, [30] * 4)
    mixture = Mixture(DataConfig(data={str(tmp_path / name): 1.0 for name in "ab"}, ctx_len=10))
    mixture.datasets["b"].vocab_size = 5
    with pytest.raises(UserError, match="/b/train.bin is damaged"):
        mixture.batch(0, 4)
