"""The README's figures are those of benchmarks/results, and its marked examples run as they are printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_music import export
from tests.training.conftest import PROJECT, environment, train

README = PROJECT / "README.md"


def test_figures_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    import readme

    text = README.read_text(encoding="utf-8")
    assert readme.with_figures(text) == text, "run `python benchmarks/readme.py`"
    for path in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (PROJECT / path).exists(), path
    sys.modules.pop("readme")


EXAMPLES = re.findall(
    r"<!-- run by tests/test_readme.py -->\n+```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S
)


@pytest.fixture(scope="module")
def users_folder(bach_midi, bach_data, tmp_path_factory) -> Path:
    """What a user has who reads on: the repository's files, data, a small run, a file of weights, a piece."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("train.py", "ds_configs", "rwkv_music"):
        (folder / name).symlink_to(PROJECT / name)
    for name in ("data", "runs"):
        (folder / name).mkdir()
    (folder / "data" / "mine").symlink_to(bach_data)
    shutil.copyfile(sorted(bach_midi.glob("*.mid"))[0], folder / "opening.mid")
    small = "--n_layer 1 --n_embd 64 --ctx_len 64 --batch_size 4 --steps 1 --val_every 0 --channel_mix x070".split()
    train(folder / "runs" / "mine", "--data", bach_data, *small)
    export(folder / "runs" / "mine", folder / "rwkv7.pth")
    return folder


def test_there_are_examples_of_both_kinds():
    assert sorted(language for language, _ in EXAMPLES) == ["bash", "python", "python"]


@pytest.mark.parametrize("language, text", EXAMPLES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(EXAMPLES)])
def test_an_example_runs_as_it_is_printed(language, text, users_folder):
    before = set(users_folder.iterdir())
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(users_folder)}
    done = subprocess.run(
        command, cwd=users_folder, env={**environment(), **paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    made = {path.name for path in set(users_folder.iterdir()) - before}
    if "complete(" in text:
        assert made == {"completed.mid"}
    elif language == "bash":
        assert {"tuned.pth", "tuned.safetensors", "tuned_hf"} <= made
        assert (users_folder / "runs" / "tuned" / "checkpoints" / "step_00000003").is_dir()
