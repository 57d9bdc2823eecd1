"""benchmarks/step.py on a CPU: its figures and its trace; and the short names of GPUs in file names."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.benchmarks.test_scaling import PROJECT, SHAPE, benchmarks  # noqa: F401


def test_figures_and_trace(tmp_path):
    line = [sys.executable, str(PROJECT / "benchmarks" / "step.py"), "--preset", "tiny", "--batch_size", "2", *SHAPE]
    line += ["--profile", "2", "--folder", str(tmp_path), "--write", str(tmp_path / "figures.json")]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(line, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["tokens_per_second"] == pytest.approx(2 * 32 / figures["step_ms"] * 1e3)
    assert figures["recompute"] == "none" and figures["ranks"] == 1
    events = json.loads(gzip.open(tmp_path / "profile" / "rank_00.json.gz").read())["traceEvents"]
    assert sum(event.get("name") == "ViewsBackward" for event in events) == 2 * 3  # one per flat parameter and step


@pytest.mark.parametrize(
    "name, short",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
    ],
)
def test_short_name_of_a_gpu(name, short, benchmarks, monkeypatch):  # noqa: F811
    import report

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert report.card() == short
