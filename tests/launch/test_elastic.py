"""The launchers: their help, and launch/elastic.py on two simulated hosts, one of which is lost and joins again."""

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
# With a higher learning rate rounding differences of sums grow too large to compare over so many steps. With a smaller
# epsilon AdamW turns rounding noise in zero gradients into full-size updates.
JOB += ["--lr", "2e-4", "--adam_eps", "1e-8"]


class Host:
    """One of two simulated hosts, with one rank; its output goes to a file."""

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

    def kill(self) -> None:
        """Kill all its processes at once."""
        for process in (*self.ranks(), self.launcher.pid):
            os.kill(process, signal.SIGKILL)
        self.launcher.wait()

    def wait(self) -> int:
        return self.launcher.wait(120)


def newest(run: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in checkpoints(run)), default=0)


@pytest.fixture
def fp32(tmp_path) -> Path:
    (tmp_path / "fp32.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    return tmp_path / "fp32.json"


@pytest.mark.parametrize("file", ["node.py", "elastic.py", "workstation.sh", "slurm.sh"])
def test_launchers_print_their_help(file):
    path = PROJECT / "launch" / file
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    program = [sys.executable] if path.suffix == ".py" else ["bash"]
    done = subprocess.run([*program, str(path), "--help"], env=outside, capture_output=True, text=True)
    assert done.returncode == (2 if file == "slurm.sh" else 0), done.stderr
    assert f"launch/{file} " in done.stdout and "#" not in done.stdout.split("usage:")[0]
    assert ("sbatch" in done.stderr) == (file == "slurm.sh")


def test_ranks_of_a_host_share_its_cores():
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


@pytest.mark.parametrize("minimum, nodes", [("3", "2"), ("0", "2"), ("some", "2"), ("2", None)])
def test_an_invalid_minimum_of_hosts_is_reported(minimum, nodes):
    shared = {name: value for name, value in environment().items() if name != "NODES"}
    line = [sys.executable, str(PROJECT / "launch" / "elastic.py"), minimum, "1", "train.py", "--out", "run"]
    done = subprocess.run(line, env=shared | ({"NODES": nodes} if nodes else {}), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"--elastic {minimum} " in done.stderr and f"from 1 to {nodes or 1} (NODES)" in done.stderr


def test_a_lost_host_joins_again(bach_data, fp32, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *JOB, "--elastic", 1, config=fp32)
    shared, logs = environment(), [tmp_path / "0.log", tmp_path / "1.log"]
    first, second = (Host(number, line, shared, logs[number]) for number in (0, 1))
    wait_for(lambda: newest(tmp_path / "run") >= 20)
    second.kill()
    lost_at = newest(tmp_path / "run")
    wait_for(lambda: newest(tmp_path / "run") > lost_at + 10, 60)  # the other host continues
    second = Host(1, line, shared, logs[1])
    assert (first.wait(), second.wait()) == (0, 0), [log.read_text()[-3000:] for log in logs]
    output = logs[0].read_text()
    assert re.findall(r"tokens a step: (\d) ranks?", output) == ["2", "1", "2"], output[-3000:]
    assert "another host waits to join" in output and "Traceback" not in output
    last = read_progress(checkpoints(tmp_path / "run")[-1])
    assert (last.step, last.samples) == (STEPS, 5 * STEPS)  # the same number of rows in every step
    unbroken = train(tmp_path / "unbroken", "--data", bach_data, *JOB, config=fp32)
    differences = np.abs(np.subtract(Run(tmp_path / "run", 0, "").curve(), unbroken.curve()))
    assert len(differences) == STEPS and differences.max() < 1e-3, differences


def test_a_host_that_receives_sigterm_saves_and_leaves_while_the_other_continues(bach_data, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *JOB, "--save_every", 0, "--elastic", 1)
    shared, logs = environment(), [tmp_path / "0.log", tmp_path / "1.log"]
    first, second = (Host(number, line, shared, logs[number]) for number in (0, 1))
    wait_for(lambda: logs[0].exists() and "loss" in logs[0].read_text(errors="replace"))
    second.launcher.send_signal(signal.SIGTERM)
    assert second.wait() == 75
    left_at = newest(tmp_path / "run")
    assert 0 < left_at < STEPS and first.wait() == 0 and newest(tmp_path / "run") == STEPS
    assert f"step_{left_at:08d}, step {left_at}" in logs[0].read_text()
