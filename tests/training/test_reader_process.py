"""The process that reads a rank's rows: the rows of the thread, and an end on every path."""

import os
import signal

import pytest
import torch

from rwkv_music.config import DataConfig
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.training import loop as loop_module
from rwkv_music.training import reader_process
from rwkv_music.training.reader_process import CORES_PER_RANK, ReaderProcess, is_useful
from tests.training.conftest import SMALL, train

START_SECONDS = 120  # a busy host needs many seconds to import torch
MIX = {"task": "mix", "completion_weight": 0.3, "infill_weight": 0.5, "augment": "all"}


class StartedProcess(ReaderProcess):
    """A process whose rows are used from the first step on."""

    def __enter__(self) -> ReaderProcess:
        super().__enter__()
        assert self._connection.poll(START_SECONDS)
        return self


@pytest.fixture
def config(bach_data) -> DataConfig:
    return DataConfig(data=str(bach_data), ctx_len=256, seed=2, **MIX)


def test_it_reads_the_same_rows_and_ends_with_its_pipe(config):
    dataset = MusicDataset.of(config, "train")
    with ReaderProcess(config) as process:
        assert process.read([range(4)]) is None  # it still imports torch
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
            os.kill(process._process.pid, number)
        assert process._connection.poll(START_SECONDS)
        for parts in ([range(3), range(3, 8)], [range(0)], [range(10**12, 10**12 + 5)]):
            found = process.read(parts)
            for batch, part in zip(found, parts, strict=True):
                expected = dataset.batch(part.start, part.stop)
                assert batch.max_length == expected.max_length and batch.edges is None
                for name in ("input_ids", "targets", "cu_seqlens", "positions"):
                    own, wanted = getattr(batch, name), getattr(expected, name)
                    assert own.dtype == wanted.dtype and torch.equal(own, wanted)
        assert process.read([range(-1, 1)]) is None  # rows that cannot be read
        assert process.read([range(1)]) is not None
        process._connection.close()
        process._process.join(START_SECONDS)
        assert process._process.exitcode == 0


def test_the_rank_reads_on_after_the_process_is_killed(config, capsys):
    with StartedProcess(config) as process:
        process._process.kill()
        assert process.read([range(4)]) is None and process.read([range(4)]) is None
    assert capsys.readouterr().err.count("the process that reads rows has ended") == 1


def test_a_run_computes_the_same_losses_and_leaves_no_process(bach_data, tmp_path, monkeypatch):
    arguments = ["--data", bach_data, *SMALL, "--steps", 3, "--val_every", 0, "--sample_every", 0]
    arguments += [word for name, value in MIX.items() for word in (f"--{name}", value)]
    without = train(tmp_path / "without", *arguments)
    started, answers, read = [], [], ReaderProcess.read

    def is_useful(dataset: MusicDataset, device: torch.device) -> bool:
        return True

    def counted(self: ReaderProcess, parts: list[range]):
        started.append(self._process)
        answers.append(read(self, parts))
        return answers[-1]

    monkeypatch.setattr(loop_module, "is_useful", is_useful)
    monkeypatch.setattr(loop_module, "ReaderProcess", StartedProcess)
    monkeypatch.setattr(ReaderProcess, "read", counted)
    found = train(tmp_path / "with", *arguments)
    assert found.curve() == without.curve() and len(found.curve()) == 3
    assert len(answers) >= 3 and None not in answers
    assert not started[0].is_alive()


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "settings", "expected"),
    [
        ("cuda", CORES_PER_RANK, 1, MIX, True),
        ("cuda", 2 * CORES_PER_RANK, 2, MIX, True),
        ("cuda", 2 * CORES_PER_RANK - 1, 2, MIX, False),
        ("cuda", 64, 1, {"augment": "transpose"}, True),
        ("cuda", 64, 1, {}, False),
        ("cpu", 64, 1, MIX, False),
    ],
)
def test_it_is_used_for_rows_in_python_on_gpus_with_enough_cores(
    device, cores, ranks, settings, expected, bach_data, monkeypatch
):
    monkeypatch.setattr(reader_process, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert is_useful(MusicDataset(bach_data, "train", 256, **settings), torch.device(device)) == expected
