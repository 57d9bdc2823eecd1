"""launch/elastic.py: two machines on the loopback interface, one of which is lost and returns."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, read_progress
from tests.training.conftest import PROJECT, SMALL, Run, command, environment, train
from tests.training.test_checkpoint import wait_for

STEPS = 200
JOB = [*SMALL, "--steps", str(STEPS), "--val_every", "0", "--save_every", "10", "--keep", "3", "--batch_size", "5"]
# Over so many steps a higher rate would carry the rounding of sums past any bound; and without an epsilon AdamW makes
# whole steps of the rounding in gradients that are zero.
JOB += ["--lr", "2e-4", "--adam_eps", "1e-8"]


class Machine:
    """One of two, with one rank; what it says goes to a file."""

    def __init__(self, number: int, line: list[str], shared: dict[str, str], log: Path) -> None:
        self.log = log
        launcher = [sys.executable, str(PROJECT / "launch" / "elastic.py"), "1", "1", *line[1:]]
        with open(log, "a") as out:
            self.launcher = subprocess.Popen(
                launcher, env={**shared, "NODES": "2", "NODE_RANK": str(number)}, stdout=out, stderr=out
            )

    def ranks(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.launcher.pid)], capture_output=True, text=True).stdout
        return [int(process) for process in found.split()]

    def is_lost(self) -> None:
        """Everything on it stops at once."""
        for process in (*self.ranks(), self.launcher.pid):
            os.kill(process, signal.SIGKILL)
        self.launcher.wait()

    def end(self) -> int:
        return self.launcher.wait(120)


def newest(run: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in checkpoints(run)), default=0)


@pytest.fixture
def fp32(tmp_path) -> Path:
    (tmp_path / "fp32.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    return tmp_path / "fp32.json"


@pytest.mark.parametrize("file", ["node.py", "elastic.py", "workstation.sh", "slurm.sh"])
def test_each_says_what_it_takes(file):
    path = PROJECT / "launch" / file
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    program = [sys.executable] if path.suffix == ".py" else ["bash"]
    done = subprocess.run([*program, str(path), "--help"], env=outside, capture_output=True, text=True)
    assert done.returncode == (2 if file == "slurm.sh" else 0), done.stderr
    assert f"launch/{file} " in done.stdout and "#" not in done.stdout.split("usage:")[0]
    assert ("submit this file with sbatch" in done.stderr) == (file == "slurm.sh")


def test_the_ranks_of_a_machine_share_its_cores():
    line = [
        sys.executable,
        str(PROJECT / "launch" / "node.py"),
        "2",
        "-c",
        "import os; print(os.environ['OMP_NUM_THREADS'])",
    ]
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for given, threads in (({}, max(1, len(os.sched_getaffinity(0)) // 2)), ({"OMP_NUM_THREADS": "7"}, 7)):
        done = subprocess.run(line, env=own | given, capture_output=True, text=True)
        assert done.stdout.split() == [str(threads)] * 2


@pytest.mark.parametrize("fewest, nodes", [("3", "2"), ("0", "2"), ("some", "2"), ("2", None)])
def test_a_number_of_machines_that_cannot_be(fewest, nodes):
    shared = {name: value for name, value in environment().items() if name != "NODES"}
    line = [sys.executable, str(PROJECT / "launch" / "elastic.py"), fewest, "1", "train.py", "--out", "run"]
    done = subprocess.run(line, env=shared | ({"NODES": nodes} if nodes else {}), capture_output=True, text=True)
    assert done.returncode == 1
    remedy = f"give a number of machines from 1 to {nodes or 1} (NODES)."
    assert done.stderr == f"launch/elastic.py: --elastic {fewest}: {remedy}\n"


def test_a_machine_is_lost_and_taken_back(bach_data, fp32, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *JOB, "--elastic", 1, config=fp32)
    shared, logs = environment(), [tmp_path / "0.log", tmp_path / "1.log"]
    first, second = (Machine(number, line, shared, logs[number]) for number in (0, 1))
    wait_for(lambda: newest(tmp_path / "run") >= 20)
    second.is_lost()
    lost_at = newest(tmp_path / "run")
    wait_for(lambda: newest(tmp_path / "run") > lost_at + 10, 60)  # the other goes on
    second = Machine(1, line, shared, logs[1])
    assert (first.end(), second.end()) == (0, 0), [log.read_text()[-3000:] for log in logs]
    said = logs[0].read_text()
    assert re.findall(r"tokens a step: (\d) ranks?", said) == ["2", "1", "2"], said[-3000:]
    assert "a machine has come: the ranks save and stop, and all meet" in said and "Traceback" not in said
    last = read_progress(checkpoints(tmp_path / "run")[-1])
    assert (last.step, last.samples) == (STEPS, 5 * STEPS)  # as many rows in every step
    unbroken = train(tmp_path / "unbroken", "--data", bach_data, *JOB, config=fp32)
    differences = np.abs(np.subtract(Run(tmp_path / "run", 0, "").curve(), unbroken.curve()))
    assert len(differences) == STEPS and differences.max() < 1e-3, differences


def test_a_machine_that_is_asked_to_stop_leaves_with_a_checkpoint_and_the_others_go_on(bach_data, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *JOB, "--save_every", 0, "--elastic", 1)
    shared, logs = environment(), [tmp_path / "0.log", tmp_path / "1.log"]
    first, second = (Machine(number, line, shared, logs[number]) for number in (0, 1))
    wait_for(lambda: logs[0].exists() and "loss" in logs[0].read_text(errors="replace"))
    second.launcher.send_signal(signal.SIGTERM)
    assert second.end() == 75
    left_at = newest(tmp_path / "run")
    assert 0 < left_at < STEPS and first.end() == 0 and newest(tmp_path / "run") == STEPS
    assert f"step_{left_at:08d}, step {left_at}" in logs[0].read_text()
