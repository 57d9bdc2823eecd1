"""The processes that read a rank's rows: the rows of the thread, and an end on every path."""

import os
import signal

import pytest
import torch

from rwkv_music.config import DataConfig
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.training import loop as loop_module
from rwkv_music.training import reader_processes
from rwkv_music.training.reader_processes import CORES_OF_RANK, MAX_PROCESSES, ReaderProcesses, useful_processes
from tests.training.conftest import SMALL, train

START_SECONDS = 120  # a busy host needs many seconds to import torch
MIX = {"task": "mix", "completion_weight": 0.3, "infill_weight": 0.5, "augment": "all"}


class StartedProcesses(ReaderProcesses):
    """Processes whose rows are used from the first step on."""

    def __enter__(self) -> ReaderProcesses:
        super().__enter__()
        for reader in self._readers:
            assert reader.connection.poll(START_SECONDS)
        return self


@pytest.fixture
def config(bach_data) -> DataConfig:
    return DataConfig(data=str(bach_data), ctx_len=256, seed=2, **MIX)


def test_they_read_the_same_rows_and_end_with_their_pipes(config):
    dataset = MusicDataset.of(config, "train")
    with ReaderProcesses(dataset, config, 2) as readers:
        assert readers.read([range(4)]) is None  # they still import torch
        own = [reader.process for reader in readers._readers]
        for process in own:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
                os.kill(process.pid, number)
        assert all(reader.connection.poll(START_SECONDS) for reader in readers._readers)
        for parts in ([range(3), range(3, 8)], [range(0)], [range(1)], [range(10**12, 10**12 + 5)]):
            found = readers.read(parts)
            for batch, part in zip(found, parts, strict=True):
                expected = dataset.batch(part.start, part.stop)
                assert batch.max_length == expected.max_length and batch.edges is None
                for name in ("input_ids", "targets", "cu_seqlens", "positions"):
                    actual, wanted = getattr(batch, name), getattr(expected, name)
                    assert actual.dtype == wanted.dtype and torch.equal(actual, wanted)
        assert readers.read([range(-1, 1)]) is None  # rows that cannot be read
        assert readers.read([range(1)]) is not None
        for reader in readers._readers:
            reader.connection.close()
            reader.process.join(START_SECONDS)
        assert [process.exitcode for process in own] == [0, 0]


def test_the_rank_reads_on_after_a_process_is_killed(config, capsys):
    with StartedProcesses(MusicDataset.of(config, "train"), config, 1) as readers:
        readers._readers[0].process.kill()
        assert readers.read([range(4)]) is None and readers.read([range(4)]) is None
    assert capsys.readouterr().err.count("a process that reads rows has ended") == 1


def test_a_run_computes_the_same_losses_and_leaves_no_process(bach_data, tmp_path, monkeypatch):
    arguments = ["--data", bach_data, *SMALL, "--steps", 3, "--val_every", 0, "--sample_every", 0]
    arguments += [word for name, value in MIX.items() for word in (f"--{name}", value)]
    without = train(tmp_path / "without", *arguments)
    started, answers, read = [], [], ReaderProcesses.read

    def counted(self: ReaderProcesses, parts: list[range]):
        started.append(self._readers[0].process)
        answers.append(read(self, parts))
        return answers[-1]

    monkeypatch.setattr(loop_module, "useful_processes", lambda dataset, device: 1)
    monkeypatch.setattr(loop_module, "ReaderProcesses", StartedProcesses)
    monkeypatch.setattr(ReaderProcesses, "read", counted)
    found = train(tmp_path / "with", *arguments)
    assert found.curve() == without.curve() and len(found.curve()) == 3
    assert len(answers) >= 3 and None not in answers
    assert not started[0].is_alive()


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "settings", "expected"),
    [
        ("cuda", CORES_OF_RANK + 1, 1, MIX, 1),
        ("cuda", 2 * CORES_OF_RANK + 5, 2, MIX, 2),
        ("cuda", CORES_OF_RANK, 1, MIX, 0),
        ("cuda", 2, 4, MIX, 0),
        ("cuda", 64, 1, {"augment": "transpose"}, MAX_PROCESSES),
        ("cuda", 64, 1, {}, 0),
        ("cpu", 64, 1, MIX, 0),
    ],
)
def test_they_are_used_for_rows_in_python_on_gpus_with_free_cores(
    device, cores, ranks, settings, expected, bach_data, monkeypatch
):
    monkeypatch.setattr(reader_processes, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    dataset = MusicDataset(bach_data, "train", 256, **settings)
    assert useful_processes(dataset, torch.device(device)) == expected
