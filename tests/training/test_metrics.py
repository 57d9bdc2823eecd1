"""Throughput, utilization, traces and curves."""

import gzip
import json
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from rwkv_music.errors import UserError
from rwkv_music.training.metrics import (
    Curves,
    Stopwatch,
    Trace,
    model_flop_utilization,
    peak_flops,
)


def test_mfu_is_six_flop_a_matrix_parameter_and_token():
    assert model_flop_utilization(100_000_000, 500_000, 600e12) == pytest.approx(0.5)


def test_the_stopwatch_counts_neither_pauses_nor_earlier_laps():
    watch = Stopwatch()
    watch.tokens = 1000
    time.sleep(0.05)
    watch.pause()
    time.sleep(0.3)
    watch.resume()
    assert 1000 / 0.2 < watch.lap() < 1000 / 0.05
    assert watch.lap() == 0


def test_the_cpu_has_a_measured_peak():
    flops, source = peak_flops(torch.device("cpu"))
    assert 1e8 < flops < 1e14 and "measured" in source


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 836),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 64GB HBM2", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA B200X", None),
    ],
)
def test_each_chip_has_its_own_peak(name, tera, monkeypatch):
    """A chip without a known rate (None) is measured; here the measurement is only noticed."""

    class Measured(Exception):
        pass

    def measure(*_arguments):
        raise Measured

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "Generator", measure)
    if tera is None:
        with pytest.raises(Measured):
            peak_flops(torch.device("cuda"))
    else:
        assert peak_flops(torch.device("cuda")) == (tera * 1e12, f"{name}, published rate")


def test_a_trace_is_written_after_the_steps_that_it_is_of(tmp_path):
    trace = Trace(tmp_path, rank=3, steps=2, device=torch.device("cpu"))
    told = []
    for _ in range(15):
        torch.ones(10).sum()
        told.append(trace.step() and trace.write())
    path = tmp_path / "profile" / "rank_03.json.gz"
    assert [i for i, value in enumerate(told, 1) if value] == [12]
    assert "2 steps" in told[11] and str(path) in told[11]
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "aten::ones" for event in events) == 2


@pytest.mark.parametrize("steps, traced", [(8, 0), (10, 0), (11, 1), (13, 3)])
def test_a_trace_that_the_end_cuts_short_is_written_as_far_as_it_got(steps, traced, tmp_path):
    trace = Trace(tmp_path, rank=0, steps=5, device=torch.device("cpu"))
    for i in range(1, steps + 1):
        torch.ones(10).sum()
        said = trace.write() if trace.step(last=i == steps) else None
        assert said is None or i == steps
    path = tmp_path / "profile" / "rank_00.json.gz"
    assert path.exists() == bool(traced)
    if traced:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert sum(event.get("name") == "aten::ones" for event in events) == traced and "rank_00.json.gz" in said
    else:
        assert f"only {steps}: no trace" in said


# In a process of its own: what its threads print is looked at.
VANISHED = """
import os, shutil, sys, threading, time
from rwkv_music.errors import UserError
from rwkv_music.training.metrics import Curves

curves = Curves(sys.argv[1], 1, enabled=True)
curves.scalars(1, {"train/loss": 1.0})
time.sleep(0.5)
shutil.rmtree(sys.argv[1])
try:
    for step in range(2, 2000):
        curves.scalars(step, {"train/loss": 1.0})
    curves.close()
except UserError as error:
    print(error)
other = threading.Thread(target=lambda: os.close(10**6))
other.start()
other.join()
"""


def test_a_disk_that_vanishes_is_told_in_one_sentence(tmp_path):
    command = [sys.executable, "-c", VANISHED, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "while writing TensorBoard's event file" in done.stdout or "while closing TensorBoard's" in done.stdout
    assert "_AsyncWriterThread" not in done.stderr and "tensorboard" not in done.stderr
    assert "OSError" in done.stderr  # any other thread's error is still shown


def test_closed_curves_have_all_that_was_written(tmp_path):
    curves = Curves(tmp_path, 1, enabled=True)
    curves.scalars(1, {"train/loss": 1.0, "train/none": None})
    curves.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [1.0]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="opening TensorBoard's event file"):
        Curves(tmp_path / "file", 1, enabled=True)


def test_hyperparameters_are_a_row_of_the_hparams_tab(tmp_path):
    """As TensorBoard's own plugin reads it: beside the run's curves, in no run of its own."""
    for run, lr in (("a", 0.5), ("b", 0.25)):
        curves = Curves(tmp_path / run, 1, enabled=True)
        curves.scalars(7, {"val/loss": 3.0 + lr})
        curves.hyperparameters(7, {"lr": lr, "schedule": "cosine", "n_layer": 2}, ("val/loss",), ("schedule",))
        curves.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.parent != tmp_path]
    for run, lr in (("a", 0.5), ("b", 0.25)):
        events = EventAccumulator(str(tmp_path / run)).Reload()
        contents = events.PluginTagToContent("hparams")
        start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
        assert (start.hparams["lr"].number_value, start.hparams["schedule"].string_value) == (lr, "cosine")
        metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
        experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
        assert {info.name: info.differs for info in experiment.hparam_infos} == {
            "lr": False,
            "schedule": True,  # TensorBoard shows it first
            "n_layer": False,
        }
        [metric] = experiment.metric_infos
        assert events.Scalars(metric.name.tag)[-1].value == 3.0 + lr
