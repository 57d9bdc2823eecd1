"""launch/slurm.sh on a real Slurm of two nodes: it trains, and comes back from what ends it, to the same weights."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, find_checkpoint, read_manifest, tensor_files
from tests.slurm.conftest import Slurm, wait_until
from tests.training.conftest import SMALL, Run, train

STEPS = 60
JOB = [*SMALL, "--steps", str(STEPS), "--save_every", "10", "--val_every", "0"]


@pytest.fixture(scope="session")
def undisturbed(bach_data, tmp_path_factory) -> Run:
    """The same run by two ranks on one machine, with no Slurm."""
    return train(tmp_path_factory.mktemp("undisturbed") / "run", "--data", bach_data, *JOB, ranks=2)


@pytest.fixture
def submit(slurm, bach_data, tmp_path):
    """Submit the job, as a user does; its number and its run folder."""
    jobs = []

    def sbatch(*options: str, more: tuple[str, ...] = ()) -> tuple[str, Path]:
        output = ["--output", tmp_path / "job.out", "--nodes=2", "--parsable"]
        arguments = ["--data", bach_data, "--out", tmp_path / "run", *JOB, *more]
        jobs.append(slurm.run("sbatch", *output, *options, "launch/slurm.sh", *arguments))
        return jobs[-1], tmp_path / "run"

    yield sbatch
    for job in jobs:
        slurm.run("scancel", job)
    wait_until(slurm.idle, 60)


def finished(slurm: Slurm, job: str, run: Path, seconds: float = 150) -> str:
    """The job's log, when it is done."""
    log = run.parent / "job.out"
    try:
        wait_until(lambda: slurm.facts(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), seconds)
    except AssertionError:
        raise AssertionError(f"{slurm.facts(job)}\n{log.read_text()[-3000:] if log.exists() else 'no log'}") from None
    text = log.read_text(errors="replace")  # a progress bar may be cut within a character
    assert slurm.facts(job)["JobState"] == "COMPLETED", text[-3000:]
    return text


def assert_equal_weights(run: Path, undisturbed: Run) -> None:
    """The same bits in every file of master weights and moments."""
    ours, theirs = find_checkpoint(run), undisturbed.last_checkpoint
    assert ours.name == theirs.name == f"step_{STEPS:08d}" and len(tensor_files(ours)) == 4
    for name in tensor_files(ours):
        assert read_manifest(ours)[name] == read_manifest(theirs)[name], name


def a_rank_of(run: Path, number: int, of: str = "RANK") -> int | None:
    """The process that is rank `number` of a run; or one on that node."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().split(b"\0")
            if str(run).encode() in line and b"-u" in line:
                if f"{of}={number}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
        except OSError:
            continue
    return None


def test_two_nodes_train_as_one_machine_does(slurm, submit, undisturbed):
    job, run = submit()
    finished(slurm, job, run)
    assert_equal_weights(run, undisturbed)


def test_a_job_that_is_requeued_loses_nothing(slurm, submit, undisturbed):
    job, run = submit()
    wait_until(lambda: checkpoints(run), 90)
    slurm.run("scontrol", "requeue", job)
    text = finished(slurm, job, run)
    [stopped] = re.findall(r"asked to stop after step (\d+); the same command goes on from step_(\d+)", text)
    assert int(stopped[0]) == int(stopped[1])
    assert_equal_weights(run, undisturbed)


def test_a_time_limit_that_strikes(slurm, submit, undisturbed):
    """Slurm looks every half minute for jobs to warn: a rank stands still until it has, however fast the others are. A
    start that is warned before it trains is a crash, of which there may be some.
    """
    job, run = submit("--time=1", "--signal=USR1@45", "--export=ALL,CRASHES=9")
    wait_until(lambda: checkpoints(run), 150)
    rank = wait_until(lambda: a_rank_of(run, 1), 10)
    os.kill(rank, signal.SIGSTOP)
    wait_until(lambda: goes_on(rank), 60)  # Slurm's warning comes with a SIGCONT
    text = finished(slurm, job, run)
    assert "; queued again" in text, text[-3000:]
    assert_equal_weights(run, undisturbed)


def goes_on(process: int) -> bool:
    """Whether a process that was made to stand still does so no longer, or is no more."""
    try:
        return re.search(r"State:\s*(\S)", Path(f"/proc/{process}/status").read_text())[1] != "T"
    except OSError:
        return True


def test_a_rank_that_is_killed(slurm, submit, undisturbed):
    job, run = submit()
    wait_until(lambda: checkpoints(run), 90)
    os.kill(wait_until(lambda: a_rank_of(run, 1), 10), signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: a_rank_of(run, 0) is None, 15)
    assert time.monotonic() - killed < 15
    text = finished(slurm, job, run)
    assert "crash 1 (status" in text and "queued again" in text
    assert_equal_weights(run, undisturbed)


def test_a_node_that_is_lost(slurm, submit, undisturbed):
    """Its slurmd and all that it had started die at once, and the machine comes back later."""
    job, run = submit()
    wait_until(lambda: checkpoints(run), 90)
    slurm.daemons["n2"].kill()
    for process in chain_up_to_slurmstepd(wait_until(lambda: a_rank_of(run, 1), 10)):
        os.kill(process, signal.SIGKILL)
    slurm.daemons["n2"].wait()
    wait_until(lambda: slurm.facts(job)["Restarts"] == "1", 60)
    slurm.start("n2")
    finished(slurm, job, run)
    assert_equal_weights(run, undisturbed)


def test_a_slurmd_that_is_lost_alone(slurm, submit):
    """Its node's ranks live on, until Slurm, which no longer hears of the node, ends the job and queues it again."""
    job, run = submit("--export=ALL,CRASHES=9", more=("--steps", "100000", "--keep", "2"))
    wait_until(lambda: checkpoints(run), 90)
    before = a_rank_of(run, 1)
    slurm.daemons["n2"].kill()
    slurm.daemons["n2"].wait()
    try:
        wait_until(lambda: slurm.facts(job)["Restarts"] == "1", 60)
        reached = find_checkpoint(run).name
    finally:
        slurm.start("n2")
    wait_until(lambda: a_rank_of(run, 1) not in (None, before), 60)
    wait_until(lambda: find_checkpoint(run).name > reached, 90)


def chain_up_to_slurmstepd(process: int) -> list[int]:
    """A process and those that it descends from, up to the slurmstepd that looks after them, which comes first."""
    status = Path(f"/proc/{process}/status").read_text()
    name, parent = re.search(r"Name:\s*(\S+)", status)[1], int(re.search(r"PPid:\s*(\d+)", status)[1])
    return [process] if name.startswith("slurmstepd") else [*chain_up_to_slurmstepd(parent), process]


def test_an_elastic_job_goes_on_without_a_node_and_takes_it_back(slurm, submit, tmp_path):
    """In the same allocation: it is not queued again."""
    job, run = submit("--no-kill", more=("--elastic", "1", "--steps", "200"))
    wait_until(lambda: checkpoints(run), 90)
    rank = wait_until(lambda: a_rank_of(run, 1, of="NODE_RANK"), 10)
    launcher = int(re.search(r"PPid:\s*(\d+)", Path(f"/proc/{rank}/status").read_text())[1])
    for process in (launcher, rank):
        os.kill(process, signal.SIGKILL)
    text = finished(slurm, job, run)
    sizes = re.findall(r"tokens a step: (\d) ranks?", text)
    assert sizes[0] == sizes[-1] == "2" and len(sizes) >= 2, text[-3000:]
    assert slurm.facts(job)["Restarts"] == "0"
    assert find_checkpoint(run).name == "step_00000200"
