"""benchmarks/scaling.py: hidden and exposed communication, the order of jobs, and a measurement on two CPU ranks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SHAPE = "--n_layer 1 --n_embd 64 --ctx_len 32 --vocab 64 --measured 2".split()
TINY = ["--preset", "tiny", "--gpus", "1", "2", *SHAPE]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))


def scaling(*arguments: object) -> subprocess.CompletedProcess:
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}
    line = [sys.executable, str(PROJECT / "benchmarks" / "scaling.py"), *map(str, arguments)]
    return subprocess.run(line, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)


def test_communication_is_hidden_while_other_kernels_compute(benchmarks):
    from step import Kernel, communication, covered

    def kernels(kind: str, *spans: tuple[float, float]) -> list[Kernel]:
        return [Kernel(kind, kind, start, end) for start, end in spans]

    # Two collectives overlap (10 to 40), one is separate (60 to 70); the computing kernels have gaps, in two streams.
    sent = kernels("communication", (20, 40), (10, 30), (60, 70))
    computing = kernels("matrix products", (0, 15), (35, 50), (5, 12)) + kernels("recurrence", (48, 55), (62, 63))
    copies = kernels("copies and fills", (15, 35), (80, 90))
    assert covered(sent) == 40 and covered(computing) == 36 and covered([]) == 0
    assert covered(sent + computing + copies) == 75
    expected = {"whole_ms": 20, "hidden_ms": (5 + 5 + 1) / 2, "exposed_ms": (20 + 9) / 2}
    assert communication(sent + computing + copies, 2) == expected
    assert communication(computing, 2) == {"whole_ms": 0, "hidden_ms": 0, "exposed_ms": 0}


def test_order_of_jobs_and_speed_up_over_one_gpu(benchmarks):
    from scaling import Job, add_ratios, jobs

    wanted = jobs(["0.1b"], ["zero1", "zero3"], ["strong", "weak"], [1, 2, 8])
    assert [(job.scaling, job.gpus) for job in wanted] == [("weak", n) for n in (1, 1, 8, 2, 8, 2)] + [
        ("strong", n) for n in (8, 2, 8, 2)
    ]
    assert jobs(None, ["zero3"], ["weak"], [1, 4])[-1] == Job("7b", "zero2", 4, "weak")
    assert jobs(["0.1b"], ["zero2_offload"], ["weak"], [1])[0].needs_the_host and not wanted[0].needs_the_host
    rows = [{"preset": "0.1b", "file": "zero1", "gpus": n, "tokens_per_second": rate} for n, rate in ((8, 70), (1, 10))]
    rows += [{"preset": "0.1b", "file": "zero3", "gpus": 1, "failed": "out of memory"}]
    rows += [{"preset": "0.1b", "file": "zero3", "gpus": 8, "tokens_per_second": 5}]
    add_ratios(rows)
    assert [row.get("times_one_gpu") for row in rows] == [7, 1, None, None]


def test_a_measurement_on_two_ranks(tmp_path):
    """Weak and strong scaling; then --add measures one more file and keeps the existing rows."""
    done = scaling(*TINY, "--file", "zero2", "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert result["left_out"] == [] and len(result["rows"]) == 3 and (tmp_path / "scaling.png").stat().st_size > 10_000
    rows = {(row["scaling"], row["gpus"]): row for row in result["rows"]}
    one, weak, strong = rows["weak", 1], rows["weak", 2], rows["strong", 2]
    assert [row["batch"] for row in (one, weak, strong)] == [[8, 32], [16, 32], [8, 32]]
    assert [row["ranks"] for row in (one, weak, strong)] == [1, 2, 2]
    assert weak["optimizer_bytes"] == pytest.approx(one["optimizer_bytes"] / 2, rel=0.01)
    assert weak["times_one_gpu"] == weak["tokens_per_second"] / one["tokens_per_second"] > 0
    assert one["peak_gib"] is None and "communication" not in weak  # measured on GPUs only

    added = scaling(*TINY, "--file", "zero2", "zero3", "--gpus", 1, "--folder", tmp_path, "--add")
    assert added.returncode == 0 and "zero2" not in added.stdout.split("tokens/s")[0]
    assert len(json.loads((tmp_path / "scaling.json").read_text())["rows"]) == 4


def test_failed_row_gives_the_cause_and_the_others_run(tmp_path):
    done = scaling(*TINY, "--file", "zero2", "--scaling", "weak", "--folder", tmp_path, "--micro_batch_size", 5)
    assert done.returncode == 1
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert len(rows) == 2 and all(
        "batch_size" in row["failed"] and "choose a multiple" in row["failed"] for row in rows
    )


def test_jobs_past_the_deadline_are_stopped_or_not_started(benchmarks, monkeypatch):
    import scaling

    monkeypatch.setattr(scaling, "FIRST_GUESS_S", 2)
    wanted = [scaling.Job("tiny", file, 1, "weak") for file in ("zero1", "zero2", "zero3")]
    started, noted = time.monotonic(), []
    more = [*SHAPE, "--measured", "1000000"]
    scaling.measure(wanted, ["0"], started + 3, more, lambda job, row: noted.append(row))
    assert noted == [] and 2 < time.monotonic() - started < 15
