"""Checkpoints that are written while training continues."""

import os
import subprocess

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rwkv_music.checkpoint.run_folder import checkpoints, fault
from rwkv_music.training.saving import take_over
from tests.training.conftest import SMALL, train
from tests.training.test_health import troubled
from tests.training.test_training import tensor_hashes


def test_steps_are_taken_while_a_checkpoint_is_written(bach_data, tmp_path):
    """The disk takes two seconds for each of two files."""
    more = ["--val_every", 0, "--save_every", 10]
    run = troubled("slow-disk", tmp_path / "run", "--data", bach_data, *SMALL, *more, ranks=2)
    assert run.status == 0, run.output[-3000:]
    taken = {event.step: event.wall_time for event in EventAccumulator(str(run.folder)).Reload().Scalars("train/loss")}
    tenth, last = checkpoints(run.folder)
    assert (tenth.name, last.name) == ("step_00000010", "step_00000020")
    assert taken[13] < (tenth / "manifest.json").stat().st_mtime < (last / "manifest.json").stat().st_mtime
    assert fault(tenth) is None and fault(last) is None


def test_they_hold_what_they_would_if_the_training_waited(one_process, bach_data, tmp_path):
    """Each of the steps after a snapshot changes what it was taken of."""
    more = ["--micro_batch_size", 2, "--save_every", 2]
    overlapped, blocking = (
        train(tmp_path / mode, "--data", bach_data, *SMALL, *more, "--save_mode", mode)
        for mode in ("overlapped", "blocking")
    )
    for ours, theirs in zip(checkpoints(overlapped.folder), checkpoints(blocking.folder), strict=True):
        assert ours.name == theirs.name and tensor_hashes(ours) == tensor_hashes(theirs)
    assert len(checkpoints(overlapped.folder)) == 10


def test_a_disk_that_fills_meanwhile_is_told_once_and_the_last_checkpoint_is_intact(bach_data, tmp_path):
    more = ["--val_every", 0, "--save_every", 5]
    run = troubled("full-disk", tmp_path / "run", "--data", bach_data, *SMALL, *more, ranks=2)
    assert run.status == 1 and "Traceback" not in run.output, run.output[-3000:]
    [said] = [line for line in run.output.splitlines() if line.startswith("train.py: ")]
    assert "The disk is full while saving the checkpoint of step 10" in said
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step_00000005"]
    assert fault(run.last_checkpoint) is None


def test_a_start_that_takes_a_run_over_is_told_of_the_process_that_has_it(tmp_path):
    assert take_over(tmp_path, f"here {os.getpid()} first") is None
    assert take_over(tmp_path, f"here {os.getpid()} again") is None  # a container's, which has the same number
    assert take_over(tmp_path, "here 1 second") == os.getpid()
    with subprocess.Popen(["true"]) as ended:
        pass
    take_over(tmp_path, f"here {ended.pid} third")
    assert take_over(tmp_path, f"elsewhere {os.getpid()} fourth") is None  # it has ended
    assert take_over(tmp_path, f"here {os.getpid()} fifth") is None  # of another machine nothing is known


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe 7 x", b"here " + b"9" * 5000 + b" x", b"here " + b"9" * 20 + b" x"]
)
def test_a_damaged_note_of_the_owner_is_replaced(content, tmp_path):
    (tmp_path / ".owner").write_bytes(content)
    assert take_over(tmp_path, "here 1 next") is None
    assert (tmp_path / ".owner").read_text() == "here 1 next\n"
