"""The launchers: their help, and launch/elastic.py on two simulated hosts, one of which is lost and joins again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, read_progress
from rwkv_music.system import start_time
from rwkv_music.training.signals import INTERRUPTED, SAME_SECONDS
from tests.training.conftest import PROJECT, TINY, Run, command, environment, train
from tests.training.test_checkpoint import wait_for

STEPS = 100
JOB = [*TINY, "--steps", str(STEPS), "--val_every", "0", "--save_every", "10", "--keep", "3", "--batch_size", "5"]
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

    def send(self, number: int) -> None:
        """Send a signal to the rank and to the guard, not to the launcher."""
        for process in self.ranks():
            os.kill(process, number)

    def kill(self) -> None:
        """Kill all its processes at once."""
        self.send(signal.SIGKILL)
        self.launcher.kill()
        self.launcher.wait()

    def wait(self) -> int:
        return self.launcher.wait(300)  # the rest of the run takes two minutes on a slow computer


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


@pytest.mark.parametrize(
    "ends, status",
    [
        ("0 0", 0),
        ("75 75", 75),
        ("130 130", 130),
        ("0 70", 70),
        ("1 0", 1),
        ("0 -9", 137),
        ("0 -15", 75),
    ],
)
def test_the_launcher_passes_exit_statuses_on(ends, status):
    rank = "import os, sys; end = int(sys.argv[1:][int(os.environ['RANK'])])"
    rank += "; sys.exit(end) if end >= 0 else os.kill(os.getpid(), -end)"
    line = [sys.executable, str(PROJECT / "launch" / "node.py"), "2", "-c", rank, *ends.split()]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert ("local rank 1 was killed by SIGKILL" in done.stderr) == (status == 137)


RANK = """
import os, pathlib, signal, sys, time
got, own = [], pathlib.Path(sys.argv[1], os.environ["RANK"])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: got.append(number))
own.write_text(f"{os.getpid()}\\n")
if sys.argv[2] == "hangs" and own.name == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
while not got or sys.argv[2] == "hangs":
    time.sleep(0.05)
time.sleep(0.5)
own.write_text(f"{os.getpid()}\\nsaved after {len(got)}")
sys.exit(75)
"""


class TwoRanks:
    """Two ranks that note their process IDs in `folder`, under launch/node.py."""

    def __init__(self, folder: Path, how: str = "") -> None:
        """Start them; `how` is "hangs" for ranks that do not end after a signal, one of them stopped by SIGSTOP."""
        self.folder = folder
        folder.mkdir()
        line = [sys.executable, str(PROJECT / "launch" / "node.py"), "2", "-c", RANK, str(folder), how]
        self.launcher = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)

    def notes(self) -> list[list[str]]:
        return [path.read_text().split("\n") for path in self.folder.iterdir()]

    def run(self) -> bool:
        return len(self.notes()) == 2 and all(len(note) == 2 for note in self.notes())

    def have_ended(self) -> bool:
        return all(start_time(int(process)) is None for process, _ in self.notes())


def test_ranks_receive_the_launchers_signals_once_and_outlive_it_only_to_save(tmp_path):
    """The ranks of a killed launcher, and of one whose terminal closes, receive SIGTERM."""
    statuses = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGKILL: -signal.SIGKILL}
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, launchers ignore SIGHUP
    try:
        started = {number: TwoRanks(tmp_path / number.name) for number in statuses}
    finally:
        signal.signal(signal.SIGHUP, inherited)
    for number, status in statuses.items():
        pair = started[number]
        wait_for(pair.run)
        pair.launcher.send_signal(number)
        assert pair.launcher.wait(60) == status
        wait_for(lambda pair=pair: [saved for _, saved in pair.notes()] == ["saved after 1"] * 2)


# launch/node.py, killed between the start of its first rank and that of its second.
KILLED_WHILE_STARTING = """
import os, signal, subprocess, sys
sys.path.insert(0, sys.argv.pop(1))
import node
popen = subprocess.Popen
def start(*line, **options):
    if options.get("env", {}).get("LOCAL_RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return popen(*line, **options)
subprocess.Popen = start
node.main(sys.argv[1:])
"""


def test_no_rank_outlives_a_launcher_that_is_killed_while_it_starts_them(tmp_path):
    line = [sys.executable, "-c", KILLED_WHILE_STARTING, str(PROJECT / "launch"), "2", "-c", RANK, str(tmp_path), ""]
    assert subprocess.run(line).returncode == -signal.SIGKILL
    wait_for(lambda: not running_with(str(tmp_path)), 60)


# A signal that arrives after the last rank has failed, before the launcher has noticed that.
LATE_SIGNAL = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import node
ranks = node.Ranks()
ranks.start(["-c", "raise SystemExit(7)"], 1, 0, 1)
ranks._processes[0].wait()
os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit(ranks.wait())
"""


def test_a_signal_after_the_end_of_the_ranks_does_not_change_their_status():
    assert subprocess.run([sys.executable, "-c", LATE_SIGNAL, str(PROJECT / "launch")]).returncode == 7


def test_a_host_that_waits_for_others_ends_at_a_signal(tmp_path):
    variables = {**environment(), "NODES": "2", "NODE_RANK": "0"}
    line = [sys.executable, str(PROJECT / "launch" / "elastic.py"), "2", "1", "-c", "", "--out", str(tmp_path)]
    for number, status in {signal.SIGTERM: 75, signal.SIGINT: INTERRUPTED}.items():
        launcher = subprocess.Popen(line, env=variables)
        wait_for(lambda: is_listening(int(variables["MASTER_PORT"])), 60)
        launcher.send_signal(number)
        assert launcher.wait(60) == status


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def running_with(argument: str) -> list[str]:
    """Return the numbers of the processes that have this argument."""
    return subprocess.run(["pgrep", "-f", argument], capture_output=True, text=True).stdout.split()


def test_ranks_that_hang_are_killed_within_ten_seconds(tmp_path):
    """By the second Ctrl-C, and when the launcher is killed; a process stopped by SIGSTOP reacts to SIGKILL only."""
    interrupted, killed = TwoRanks(tmp_path / "interrupted", "hangs"), TwoRanks(tmp_path / "killed", "hangs")
    for pair in (interrupted, killed):
        wait_for(pair.run)
    killed.launcher.kill()
    interrupted.launcher.send_signal(signal.SIGINT)
    time.sleep(SAME_SECONDS + 0.2)
    assert interrupted.launcher.poll() is None and not interrupted.have_ended()
    interrupted.launcher.send_signal(signal.SIGINT)
    assert interrupted.launcher.wait(10) == INTERRUPTED and interrupted.have_ended()
    assert "SIGKILL" not in interrupted.launcher.stderr.read()
    wait_for(killed.have_ended, 10)


@pytest.mark.parametrize("minimum, nodes", [("3", "2"), ("0", "2"), ("some", "2"), ("2", None)])
def test_an_invalid_minimum_of_hosts_is_reported(minimum, nodes, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "launch"))
    import elastic

    monkeypatch.delenv("NODES", raising=False)
    if nodes:
        monkeypatch.setenv("NODES", nodes)
    with pytest.raises(SystemExit, match=rf"--elastic {minimum} .* from 1 to {nodes or 1} \(NODES\)"):
        elastic.main([minimum, "1", "train.py", "--out", "run"])


@pytest.mark.parametrize(
    "host, port, status, error",
    [
        (None, "29500", 2, "MASTER_ADDR or MASTER_PORT is missing or invalid: set them "),
        ("127.0.0.1", None, 2, "MASTER_ADDR or MASTER_PORT is missing or invalid: set them "),
        ("127.0.0.1", "65536", 2, "MASTER_ADDR or MASTER_PORT is missing or invalid: set them "),
        ("no host", "29500", 2, "MASTER_ADDR no host is not a known host: set it "),
        ("a..b", "29500", 2, "MASTER_ADDR a..b is not a known host: set it "),
        ("127.0.0.1", "in use", 70, "cannot serve the rendezvous at 127.0.0.1:.* in use.*: .* MASTER_PORT to a free "),
        ("192.0.2.1", "29500", 70, "cannot serve the rendezvous at 192.0.2.1:29500 .*: check that MASTER_ADDR "),
    ],
)
def test_an_address_that_cannot_be_the_rendezvous_is_reported(host, port, status, error, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(PROJECT / "launch"))
    import elastic

    monkeypatch.delenv("NODE_RANK", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1]) if port == "in use" else port
        for name, value in {"MASTER_ADDR": host, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        with pytest.raises(SystemExit) as raised:
            elastic.open_rendezvous(1, max_hosts=1)
    assert raised.value.code == status and re.search(error, capsys.readouterr().err)


def test_a_run_that_crashes_too_often_ends_with_its_status(tmp_path):
    line = [sys.executable, str(PROJECT / "launch" / "elastic.py"), "1", "1", "-c", "raise SystemExit(9)"]
    variables = {**environment(), "CRASHES": "1", "NODE_RANK": "0"}
    done = subprocess.run([*line, "--out", str(tmp_path)], env=variables, capture_output=True, text=True)
    assert done.returncode == 9 and "the run crashed 1 time (status 9)" in done.stderr


SLOW_HEARTBEAT = """
import contextlib, sys, threading, time
from datetime import timedelta
import elastic
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

beating, keep_alive = threading.Event(), DynamicRendezvousHandler._keep_alive

def slow(handler):
    keep_alive(handler)
    beating.set()
    with contextlib.suppress(RuntimeError):  # waits in C++, as a heartbeat does for its answer
        handler._state_holder._backend._store.wait(["no such key"], timedelta(seconds=1))

DynamicRendezvousHandler._keep_alive = slow
elastic.HEARTBEAT_SECONDS = 1
elastic.close = lambda *_: beating.wait(60) and 0
main = elastic.main

def ends_after_the_heartbeat(arguments):
    status = main(arguments)
    time.sleep(float(arguments.pop()))
    return status

elastic.main = ends_after_the_heartbeat
elastic.run(["1", "1", "-c", "pass", "--out", *sys.argv[1:]])
"""


@pytest.mark.parametrize("seconds", ["0.5", "1.5"], ids=["during the heartbeat", "after it"])
def test_a_launcher_ends_in_order_whatever_its_heartbeat_does(seconds, tmp_path):
    variables = {**environment(), "NODE_RANK": "0", "PYTHONPATH": f"{PROJECT / 'launch'}:{PROJECT}"}
    line = [sys.executable, "-c", SLOW_HEARTBEAT, str(tmp_path), seconds]
    done = subprocess.run(line, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and "1 host joined" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_lost_host_joins_again(bach_data, fp32, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *JOB, "--elastic", 1, config=fp32)
    shared, logs = environment(), [tmp_path / "0.log", tmp_path / "1.log"]
    first, second = (Host(number, line, shared, logs[number]) for number in (0, 1))
    wait_for(lambda: newest(tmp_path / "run") >= 20)
    second.kill()
    lost_at = newest(tmp_path / "run")
    wait_for(lambda: newest(tmp_path / "run") > lost_at + 10)  # the other host continues
    first.send(signal.SIGSTOP)  # until the second host waits to join: otherwise the run might end before
    second = Host(1, line, shared, logs[1])
    wait_for(lambda: "another host waits to join" in logs[0].read_text())
    first.send(signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0), [log.read_text()[-3000:] for log in logs]
    output, other = (log.read_text() for log in logs)
    assert re.findall(r"(\d) hosts? joined", output) == ["2", "1", "2"], output[-3000:]
    # Rank 0 prints the settings. With two hosts it is on the one whose launcher has the lower process ID.
    assert sorted(re.findall(r"tokens per step: (\d) ranks?", output + other)) == ["1", "2", "2"], other[-3000:]
    assert "Traceback" not in output
    last = read_progress(checkpoints(tmp_path / "run")[-1])
    assert (last.step, last.samples) == (STEPS, 5 * STEPS)  # the same number of rows in every step
    unbroken = train(tmp_path / "unbroken", "--data", bach_data, *JOB, config=fp32)
    differences = np.abs(np.subtract(Run(tmp_path / "run", 0, "").curve(), unbroken.curve()))
    assert len(differences) == STEPS and differences.max() < 1e-3, differences


def test_a_host_that_receives_sigterm_saves_and_leaves_while_the_other_continues(bach_data, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *JOB, "--elastic", 1)
    shared, logs = environment(), [tmp_path / "0.log", tmp_path / "1.log"]
    first, second = (Host(number, line, shared, logs[number]) for number in (0, 1))
    wait_for(lambda: newest(tmp_path / "run") >= 20)
    second.launcher.send_signal(signal.SIGTERM)
    assert second.wait() == 75
    output = "".join(log.read_text() for log in logs)
    [left_at] = map(int, re.findall(r"stopped by a signal after step (\d+)", output))
    assert 20 <= left_at < STEPS
    assert first.wait() == 0 and newest(tmp_path / "run") == STEPS
    assert f"step_{left_at:08d}, step {left_at}" in logs[0].read_text()
