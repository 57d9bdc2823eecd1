"""A real Slurm on the loopback interface: one controller and two nodes, each with its own slurmd.

The tests are skipped where Slurm is not installed (`apt-get install slurm-wlm munge iproute2`) or without root rights.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.training.conftest import PROJECT, free_port

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job starts only after its previous credential has expired, by default after two minutes.
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmdTimeout=3
KillWait=20
InactiveLimit=0
MinJobAge=300
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=all Nodes=n1,n2 Default=YES OverSubscribe=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A running cluster; `folder` holds its configuration, logs and pid files."""

    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def run(self, *command: object) -> str:
        """Run a Slurm command and return its output."""
        done = subprocess.run([*map(str, command)], env=self.environment, capture_output=True, text=True, cwd=PROJECT)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    @property
    def environment(self) -> dict[str, str]:
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **own}

    def start(self, name: str) -> None:
        """Start slurmctld, or the slurmd of the node `name`."""
        command = ["slurmctld", "-D"] if name == "slurmctld" else ["slurmd", "-D", "-N", name]
        command += ["-f", str(self.folder / "slurm.conf")]
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(command, stdout=out, stderr=out)

    def idle(self) -> bool:
        """Return whether both nodes are idle."""
        states = self.run("sinfo", "--noheader", "--Node", "--nodes=n1,n2", "--format=%T").split()
        return states == ["idle", "idle"]

    def facts(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    missing = [tool for tool in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"Slurm cannot run here ({', '.join(missing) or 'not root'}): apt-get install slurm-wlm munge, as root"
        )
    munged = _start_munge()
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    ports = [free_port() for _ in range(3)]
    text = CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(text)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    cluster = Slurm(folder)
    try:
        for name in ("slurmctld", "n1", "n2"):
            cluster.start(name)
        try:
            wait_until(cluster.idle, 30)
        except AssertionError:
            pytest.skip(f"Slurm did not start: {(folder / 'slurmctld.log').read_text()[-300:]}")
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root"], env=cluster.environment, capture_output=True)
        time.sleep(1)
        for process in reversed(cluster.daemons.values()):
            process.terminate()
            process.wait(30)
        if munged is not None:
            munged.terminate()
            munged.wait(30)


def _start_munge() -> subprocess.Popen | None:
    """Start munged in the foreground and return it; None if it runs already."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return None
    for folder in ("/run/munge", "/var/log/munge"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, "munge", "munge")
    process = subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground"], stderr=subprocess.DEVNULL)
    wait_until(lambda: subprocess.run(["munge", "-n"], capture_output=True).returncode == 0, 10)
    return process


def wait_until(condition, seconds: float):
    """Wait until `condition()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except AssertionError:  # the daemon does not answer yet
            pass
        time.sleep(0.25)
    raise AssertionError(f"the condition was still false after {seconds} s")
