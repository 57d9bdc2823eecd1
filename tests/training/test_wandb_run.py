"""The curves in Weights & Biases: really, without a network, where its package is installed; a sentence where not."""

import sys

import pytest

from rwkv_music.errors import UserError
from rwkv_music.training.metrics import Curves
from rwkv_music.training.wandb_run import NAME, WandbRun, check_wandb


def test_without_the_package_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'rwkv-music\\[wandb\\]'"):
        check_wandb()


def test_a_run_that_goes_on_keeps_its_name_and_writes_all_points(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (1, 3):
        run = WandbRun(tmp_path, {"lr": 0.015625})
        curves = Curves(tmp_path, first, enabled=True, wandb=run)
        curves.scalars(first, {"train/loss": 2.5 + first, "val/loss": None})
        curves.scalars(first - 1, {"train/loss": 6.25 + first})  # back, as after a spike
        curves.close()
        run.finish()
    name = (tmp_path / NAME).read_text().strip()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2
    for file, values in zip(files, ((b"3.5", b"7.25"), (b"5.5", b"9.25")), strict=True):
        content = file.read_bytes()  # of records in a row; values are JSON
        assert all(text in content for text in (b"train/loss", b"0.015625", *values)) and b"val/loss" not in content
