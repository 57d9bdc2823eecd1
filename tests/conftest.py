"""Real music for the tests: twelve Bach chorales, written and prepared once per session."""

from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
import torch

from rwkv_music.prepare.corpus import write_corpus
from rwkv_music.prepare.pipeline import prepare

# The tests' tensors are small: on a busy machine, waiting for a second thread costs more than the thread saves.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files that take minutes to the front, so that the processes of `make test` end at about one time."""
    slow = ("slurm", "launch", "training")

    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(slow) if item.nodeid.startswith(f"tests/{name}/")), len(slow))

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Kill the processes that a failed test has started, because they would slow down the tests after it."""
    before = set(psutil.Process().children(recursive=True))
    try:
        return (yield)
    except BaseException:
        for process in set(psutil.Process().children(recursive=True)) - before:
            process.kill()
        raise


@pytest.fixture(scope="session")
def bach_midi(tmp_path_factory) -> Path:
    """Return a folder of twelve chorales as .mid files."""
    folder = tmp_path_factory.mktemp("bach_midi")
    report = write_corpus("bach", folder, workers=1, limit=12)
    assert report.written == 12, report
    return folder


@pytest.fixture(scope="session")
def bach_data(bach_midi, tmp_path_factory) -> Path:
    """Return the same chorales as a dataset folder; tests must not write to it."""
    folder = tmp_path_factory.mktemp("bach") / "data"
    prepare([bach_midi], folder, workers=1, val_fraction=0.2)
    return folder


@pytest.fixture(scope="session")
def few_data(bach_midi, tmp_path_factory) -> Path:
    """Return five of the chorales as a dataset folder with the same tokenizer; tests must not write to it."""
    folder = tmp_path_factory.mktemp("few") / "few"
    prepare(sorted(bach_midi.glob("*.mid"))[:5], folder, workers=1, val_fraction=0.2)
    return folder


@pytest.fixture(scope="session")
def bach_data_midi_llm(bach_midi, tmp_path_factory) -> Path:
    """The same with the tokenizer midi-llm."""
    folder = tmp_path_factory.mktemp("bach_midi_llm") / "data"
    prepare([bach_midi], folder, tokenizer="midi-llm", workers=1, val_fraction=0.2)
    return folder
