"""launch/slurm.sh on a real Slurm of two nodes: jobs train, and after any interruption end with the same weights."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, find_checkpoint, read_manifest, tensor_files
from rwkv_music.training.signals import SAME_SECONDS
from tests.slurm.conftest import Slurm, wait_until
from tests.training.conftest import PROJECT, TINY, Run, train

STEPS = 100
JOB = [*TINY, "--steps", str(STEPS), "--save_every", "10", "--val_every", "0"]


@pytest.fixture(scope="session")
def undisturbed(bach_data, tmp_path_factory) -> Run:
    """Return the same run by two ranks on one host, without Slurm."""
    return train(tmp_path_factory.mktemp("undisturbed") / "run", "--data", bach_data, *JOB, ranks=2)


@pytest.fixture
def submit(slurm, bach_data, tmp_path):
    """Return a function that submits the job and returns its number and its run folder."""
    jobs = []

    def sbatch(*options: str, more: tuple[str, ...] = ()) -> tuple[str, Path]:
        output = ["--output", tmp_path / "job.out", "--nodes=2", "--parsable"]
        arguments = ["--data", bach_data, "--out", tmp_path / "run", *JOB, *more]
        jobs.append(slurm.run("sbatch", *output, *options, "launch/slurm.sh", *arguments))
        return jobs[-1], tmp_path / "run"

    yield sbatch
    for job in jobs:
        slurm.run("scancel", job)
    wait_until(slurm.idle, 180)


def finished(slurm: Slurm, job: str, run: Path, seconds: float = 300) -> str:
    """Wait until the job has completed and return its log."""
    log = run.parent / "job.out"
    try:
        wait_until(lambda: slurm.facts(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), seconds)
    except AssertionError:
        raise AssertionError(f"{slurm.facts(job)}\n{log.read_text()[-3000:] if log.exists() else 'no log'}") from None
    text = log.read_text(errors="replace")  # a progress bar may be cut inside a character
    assert slurm.facts(job)["JobState"] == "COMPLETED", text[-3000:]
    return text


def assert_equal_weights(run: Path, undisturbed: Run) -> None:
    """Check that every file of master weights and moments has the same hash."""
    ours, theirs = find_checkpoint(run), undisturbed.last_checkpoint
    assert ours.name == theirs.name == f"step_{STEPS:08d}" and len(tensor_files(ours)) == 4
    for name in tensor_files(ours):
        assert read_manifest(ours)[name] == read_manifest(theirs)[name], name


def a_rank_of(run: Path, number: int, of: str = "RANK") -> int | None:
    """Return the process id of the rank of `run` whose environment has `of`=`number`; None if it does not run."""
    for process, line in processes(run).items():
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if b"-u" in line and f"{of}={number}".encode() in variables:
                return process
    return None


def processes(folder: Path) -> dict[int, list[bytes]]:
    """Return the processes with `folder`, or a path in it, among their arguments: process ids and arguments."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().split(b"\0")
            if any(word.startswith(str(folder).encode()) for word in line):
                found[int(path.parent.name)] = line
    return found


def test_a_job_with_a_killed_rank_that_is_later_requeued_gives_the_weights_of_one_host(slurm, submit, undisturbed):
    job, run = submit()
    wait_until(lambda: checkpoints(run), 240)
    os.kill(wait_until(lambda: a_rank_of(run, 1), 10), signal.SIGKILL)
    wait_until(lambda: a_rank_of(run, 0) is None, 15)  # srun ends the other node
    crashed_at = find_checkpoint(run)
    wait_until(lambda: find_checkpoint(run) != crashed_at, 240)
    slurm.run("scontrol", "requeue", job)
    text = finished(slurm, job, run)
    assert "crash 1 (status" in text and "requeued" in text
    [(stopped, saved)] = re.findall(r"stop.* after step (\d+).* step_(\d+)", text)
    assert int(stopped) == int(saved)
    assert_equal_weights(run, undisturbed)


def test_a_job_at_its_time_limit_is_requeued(slurm, submit, undisturbed):
    """The time limit is lowered once the job trains, because Slurm sends its warning once, perhaps before srun starts.

    Slurm checks time limits every 30 seconds. A stopped rank keeps the job running until the warning arrives.
    """
    job, run = submit("--time=10", "--signal=USR1@20")
    wait_until(lambda: checkpoints(run), 240)
    rank = wait_until(lambda: a_rank_of(run, 1), 10)
    os.kill(rank, signal.SIGSTOP)
    slurm.run("scontrol", "update", f"job={job}", "EndTime=now+55")
    wait_until(lambda: goes_on(rank), 60)  # Slurm sends SIGCONT with the warning
    text = finished(slurm, job, run)
    assert "stopped by a signal; requeued" in text, text[-3000:]
    assert_equal_weights(run, undisturbed)


def goes_on(process: int) -> bool:
    """Return whether a process is not stopped (any more), or has ended."""
    try:
        return re.search(r"State:\s*(\S)", Path(f"/proc/{process}/status").read_text())[1] != "T"
    except OSError:
        return True


def test_a_lost_node_requeues_the_job(slurm, submit, undisturbed):
    """The slurmd and all its descendants are killed at once; the node returns later."""
    job, run = submit()
    wait_until(lambda: checkpoints(run), 240)
    slurm.daemons["n2"].kill()
    for process in chain_up_to_slurmstepd(wait_until(lambda: a_rank_of(run, 1), 10)):
        os.kill(process, signal.SIGKILL)
    slurm.daemons["n2"].wait()
    wait_until(lambda: slurm.facts(job)["Restarts"] == "1", 180)
    slurm.start("n2")
    finished(slurm, job, run)
    assert_equal_weights(run, undisturbed)


def test_a_lost_slurmd_requeues_the_job(slurm, submit):
    """The node's ranks keep running until Slurm declares the node down and requeues the job."""
    job, run = submit("--export=ALL,CRASHES=9", more=("--steps", "100000", "--keep", "2"))
    wait_until(lambda: checkpoints(run), 240)
    before = a_rank_of(run, 1)
    slurm.daemons["n2"].kill()
    slurm.daemons["n2"].wait()
    try:
        wait_until(lambda: slurm.facts(job)["Restarts"] == "1", 180)
        reached = find_checkpoint(run).name
    finally:
        slurm.start("n2")
    wait_until(lambda: a_rank_of(run, 1) not in (None, before), 180)
    wait_until(lambda: find_checkpoint(run).name > reached, 240)


def chain_up_to_slurmstepd(process: int) -> list[int]:
    """Return a process and its ancestors up to its slurmstepd, which comes first."""
    status = Path(f"/proc/{process}/status").read_text()
    name, parent = re.search(r"Name:\s*(\S+)", status)[1], int(re.search(r"PPid:\s*(\d+)", status)[1])
    return [process] if name.startswith("slurmstepd") else [*chain_up_to_slurmstepd(parent), process]


# Ranks that ignore all signals, as a rank that hangs in a kernel does, or that end with a status each.
WITHOUT_TORCH = """
import os, signal, sys, time
if sys.argv[-1] == "hang":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    print("hangs", flush=True)
    time.sleep(600)
sys.exit(int(sys.argv[-1].split()[int(os.environ["RANK"])]))
"""


# A launcher that SIGTERM kills, and that ends with a user's mistake when the job has been requeued.
KILLED_AT_FIRST = """
import os, signal, sys
if "SLURM_RESTART_COUNT" not in os.environ:
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(1)
"""


@pytest.fixture(scope="module")
def ended(slurm, bach_data, tmp_path_factory) -> dict[str, tuple[dict[str, str], str]]:
    """Return the facts and the log of jobs that all run at once: some hang, and some end by a user's mistake."""
    folder, jobs = tmp_path_factory.mktemp("ended"), {}
    for name in ("launch", "rwkv_music", ".venv"):
        (folder / name).symlink_to(PROJECT / name)
    (folder / "train.py").write_text(WITHOUT_TORCH)

    def submit(name: str, project: Path, *arguments: object) -> None:
        options = ["--nodes=2", "--oversubscribe", "--time=10", "--parsable", f"--output={folder}/{name}.out"]
        options += [f"--export=ALL,RWKV_MUSIC={project}"]
        jobs[name] = slurm.run("sbatch", *options, "launch/slurm.sh", "--out", folder / name, *arguments)

    def reaches(name: str, *states: str) -> None:
        wait_until(lambda: slurm.facts(jobs[name])["JobState"] in states, 60)

    (folder / "config" / "config.json").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "checkpoints").touch()
    hanging = ("limit", "sigint", "scancel")
    for name in hanging:
        (folder / f"{name}.out").touch()
        submit(name, folder, "hang")
    for name in hanging:
        wait_until(lambda name=name: (folder / f"{name}.out").read_text().count("hangs\n") == 2, 30)
    submit("statuses", folder, "1 70")
    early = folder / "early"  # a project whose launcher is killed by SIGTERM, as if it arrived before its handlers
    (early / "launch").mkdir(parents=True)
    (early / "launch" / "node.py").write_text(KILLED_AT_FIRST)
    (early / "train.py").touch()
    (early / ".venv").symlink_to(PROJECT / ".venv")
    submit("sigterm", early)
    for name in ("config", "checkpoints"):
        submit(name, PROJECT, "--data", bach_data, *JOB)
    slurm.run("scancel", jobs["scancel"])
    slurm.run("scontrol", "update", f"JobId={jobs['limit']}", "EndTime=now+30")
    slurm.run("scancel", "--signal=USR1", jobs["limit"])  # Slurm's warning
    slurm.run("scancel", "--signal=INT", jobs["sigint"])
    time.sleep(2 * SAME_SECONDS)
    slurm.run("scancel", "--signal=INT", jobs["sigint"])
    slurm.run("scancel", "--signal=USR1", jobs["limit"])  # a second warning must not change anything
    reaches("limit", "PENDING")
    slurm.run("scontrol", "hold", jobs["limit"])
    for name in jobs.keys() - {"limit"}:
        reaches(name, "FAILED", "CANCELLED")
    left = processes(folder)
    found = {name: (slurm.facts(job), (folder / f"{name}.out").read_text()) for name, job in jobs.items()}
    slurm.run("scancel", *jobs.values())
    assert not left, left
    return found


def test_ranks_that_hang_are_killed_before_the_time_limit_and_the_job_is_requeued(ended):
    facts, log = ended["limit"]
    assert facts["JobState"] == "PENDING" and facts["Restarts"] == "1", log
    assert "crash 1 (status 137)" in log


def test_a_launcher_that_sigterm_ends_before_it_handles_signals_is_a_stop(ended):
    facts, log = ended["sigterm"]
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "1"), log
    assert log.count("stopped by a signal; requeued") == 1 and "crash" not in log, log


@pytest.mark.parametrize("how, state, status", [("scancel", "CANCELLED", "0:15"), ("sigint", "FAILED", "130:0")])
def test_ranks_that_hang_end_with_their_job(how, state, status, ended):
    """By scancel after Slurm's KillWait, and by a second SIGINT."""
    facts, log = ended[how]
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == (state, status, "0"), log


@pytest.mark.parametrize("mistake", ["statuses", "config", "checkpoints"])
def test_a_users_mistake_that_one_rank_finds_ends_the_job_after_one_start(mistake, ended):
    """A rank ends with 1 and the other with 70; config.json is a folder; "checkpoints" in the run folder is a file."""
    facts, log = ended[mistake]
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0"), log
    assert "crash" not in log and log.count("train.py: ") == (mistake != "statuses"), log


def test_an_elastic_job_continues_without_a_lost_node_until_it_joins_again(slurm, submit, tmp_path):
    """The job keeps its allocation and is not requeued."""
    job, run = submit("--no-kill", more=("--elastic", "1", "--steps", "200"))
    wait_until(lambda: checkpoints(run), 240)
    rank = wait_until(lambda: a_rank_of(run, 1, of="NODE_RANK"), 10)
    launcher = int(re.search(r"PPid:\s*(\d+)", Path(f"/proc/{rank}/status").read_text())[1])
    for process in (launcher, rank):
        os.kill(process, signal.SIGKILL)
    text = finished(slurm, job, run)
    sizes = re.findall(r"tokens per step: (\d) ranks?", text)
    assert sizes[0] == sizes[-1] == "2" and len(sizes) >= 2, text[-3000:]
    assert slurm.facts(job)["Restarts"] == "0"
    assert find_checkpoint(run).name == "step_00000200"
