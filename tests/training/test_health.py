"""A run that looks after itself: gradients that are not finite, losses that spike, ranks that hang or die."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, fault, find_checkpoint, read_progress
from rwkv_music.training.health import SpikeDetector
from rwkv_music.training.loop import Loop
from tests.training.conftest import PROJECT, SMALL, TINY, Run, command, environment, on_two_ranks, train
from tests.training.test_checkpoint import wait_for
from tests.training.test_training import tensor_hashes
from tests.training.troubled import step_with_a_nan

LONG = [*TINY, "--steps", "1000000", "--val_every", "0", "--save_every", "50", "--keep", "1"]


def troubled(trouble: str, folder, *arguments: object, ranks: int = 1) -> Run:
    """`train.py` with a trouble put in, run to its end."""
    program = (PROJECT / "tests" / "training" / "troubled.py", trouble)
    return train(folder, *arguments, program=program, ranks=ranks, check=False)


@pytest.mark.parametrize("stage", (2, 3))
def test_a_nan_in_one_ranks_gradient_skips_that_step_everywhere_and_no_other(stage, bach_data, tmp_path):
    config = PROJECT / "ds_configs" / f"zero{stage}.json"
    more = ["--data", bach_data, *SMALL, "--val_every", 0, "--deepspeed_config", config]
    run = troubled("nan-gradient", tmp_path / "run", *more, ranks=2)
    assert run.status == 0, run.output[-3000:]
    assert run.curve("train/skipped_steps") == [0] * 6 + [1] * 14
    losses = run.curve()
    assert len(losses) == 19 and np.isfinite(losses).all() and losses[-1] < losses[0] - 0.5


def test_too_many_skipped_steps_end_the_run_and_every_earlier_checkpoint_stays(bach_data, tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, "step", step_with_a_nan(7, 10**9))
    more = ["--save_every", 2, "--keep", 1, "--max_skipped_steps", 4, "--val_every", 0]
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, *more, check=False)
    assert run.status == 1 and "Traceback" not in run.output, run.output[-3000:]
    said = run.output.strip().splitlines()[-1]
    assert "The last 5 steps, up to step 11, were skipped" in said
    assert "delete the checkpoints after step 6" in said and "resumes from step_00000006" in said
    assert [path.name[-2:] for path in checkpoints(run.folder)] == ["06", "08", "10"]


@pytest.mark.parametrize("stopped", [False, True])
def test_the_weights_are_saved_after_a_skipped_step(stopped, bach_data, tmp_path, monkeypatch):
    """The gradient of step 7 is not finite: the last step, or the one in which SIGTERM comes."""
    skipping = step_with_a_nan(7, 8)

    def step(loop: Loop, *arguments):
        if stopped and loop.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return skipping(loop, *arguments)

    monkeypatch.setattr(Loop, "step", step)
    arguments = ["--data", bach_data, *SMALL, "--val_every", 0, "--save_every", 6, "--max_skipped_steps", 1]
    run = train(tmp_path / "run", *arguments, "--stop_after", 9 if stopped else 7, check=False)
    assert run.status == (75 if stopped else 0), run.output[-3000:]
    sixth, seventh = checkpoints(run.folder)
    assert fault(seventh) is None and tensor_hashes(seventh) == tensor_hashes(sixth)
    progress = read_progress(seventh)
    assert (progress.step, progress.samples, progress.skipped, progress.skipped_in_a_row) == (7, 28, 1, 1)
    again = train(tmp_path / "run", *arguments, check=False)  # the restart continues the count
    assert again.status == 1 and "The last 2 steps, up to step 8, were skipped" in again.output


@pytest.mark.parametrize("trouble, whole", [("spike", "step_00000030"), ("damaged-spike", "step_00000020")])
def test_a_spike_is_rolled_back_and_other_rows_are_taken(trouble, whole, bach_data, tmp_path):
    more = ["--steps", 50, "--save_every", 10, "--on_spike", "rollback", "--val_every", 0, "--warmup_steps", 10]
    run = troubled(trouble, tmp_path / "run", "--data", bach_data, *SMALL, *more)
    assert run.status == 0, run.output[-3000:]
    [(at, target)] = re.findall(r"step (\d+): the loss has risen to [\d.]+; returning to (step_\d+)", run.output)
    assert 31 <= int(at) <= 35 and target == whole
    losses = run.curve()
    assert len(losses) == 50 and losses[-1] < 5  # one curve, with no spike in it


def test_rollbacks_and_the_losses_before_a_spike_outlive_a_restart(bach_data, tmp_path, monkeypatch):
    """Every start after step 6 finds a spike in its first step and is killed after the rollback."""
    arguments = ["--data", bach_data, *SMALL, "--val_every", 0, "--save_every", 3, "--on_spike", "rollback"]
    train(tmp_path / "run", *arguments, "--stop_after", 3)
    run = train(tmp_path / "run", *arguments, "--stop_after", 6)
    progress = read_progress(run.last_checkpoint)
    assert progress.losses == pytest.approx(run.curve()) and progress.last_step_without_spike == 6

    def roll_back_and_die(loop: Loop, loss: float):
        roll_back(loop, loss)
        raise RuntimeError("killed")

    roll_back = Loop.roll_back
    with monkeypatch.context() as patch:
        patch.setattr(SpikeDetector, "is_spike", lambda *_: True)
        patch.setattr(Loop, "roll_back", roll_back_and_die)
        starts = [train(tmp_path / "run", *arguments, check=False) for _ in range(4)]
    assert [start.status for start in starts] == [70, 70, 70, 1]
    assert "after 3 returns to step_00000006" in starts[-1].output
    resumed = train(tmp_path / "run", *arguments, "--stop_after", 7)
    assert read_progress(resumed.last_checkpoint).samples == 4 * (6 + 3 + 1)  # no rows of a spike again
    (tmp_path / "run" / "rollbacks.json").write_text("[" * 10**5)
    damaged = train(tmp_path / "run", *arguments, check=False)
    assert damaged.status == 1 and "rollbacks.json cannot be read" in damaged.output


def test_what_a_spike_is():
    detector, random = SpikeDetector(), np.random.default_rng(0)
    falling = 3 + 4 * np.exp(-np.arange(200) / 20) + 0.1 * random.standard_normal(200)
    assert not any(map(detector.is_spike, falling))
    assert detector.is_spike(4.5) and detector.is_spike(float("nan"))
    assert not detector.is_spike(3.2)


def test_a_rank_that_hangs_is_named_with_its_step(bach_data, tmp_path):
    more = ["--val_every", 0, "--hang_minutes", 0.1]
    run = troubled("hang", tmp_path / "run", "--data", bach_data, *SMALL, *more, ranks=2)
    assert run.status == 70, run.output[-3000:]
    assert re.search(r"rank 1 has been reading its rows for step 6 for 0\.\d minutes", run.output), run.output[-3000:]
    assert "read_that_hangs" in run.output  # the stack of the thread that reads


def end_a_rank(number: int, how: signal.Signals, data: Path, run: Path) -> tuple[int, str, float]:
    """Of two that train, once there is a checkpoint: the launcher's status, all that was said, and seconds to the end.

    Args:
        how: the signal that the rank gets.
    """
    line = on_two_ranks(command(run, "--data", data, *LONG))
    running = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: checkpoints(run))
    line = ["pgrep", "-P", str(running.pid), "-f", "train.py"]  # not launch/guard.py
    ranks = subprocess.run(line, capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[number]), how)
    killed = time.monotonic()
    said = running.communicate(timeout=60)[0]
    return running.returncode, said, time.monotonic() - killed


def test_a_rank_that_dies_ends_the_others_in_seconds(bach_data, tmp_path):
    status, said, seconds = end_a_rank(1, signal.SIGKILL, bach_data, tmp_path / "run")
    assert seconds < 15 and status in (70, 137)
    lost = r"rank 0 lost another rank after step [\d,]+; the same command resumes from step_\d+ \(\w+Error: \S.+\)"
    assert re.search(lost, said), said  # with the cause
    assert re.search(r"local rank 1 .*SIGKILL.*memory", said), said


def test_a_crash_below_python_shows_where_it_was(bach_data, tmp_path):
    _, said, _ = end_a_rank(0, signal.SIGSEGV, bach_data, tmp_path / "run")
    assert "Fatal Python error: Segmentation fault" in said and 'loop.py", line' in said, said[-3000:]
    assert re.search(r"local rank 0 .*SIGSEGV", said), said


def test_threads_that_outlive_the_run_do_not_turn_its_end_into_a_crash(bach_data, tmp_path):
    """Left by `sys.exit`, such a process is aborted each time; with gloo's threads about one in forty was."""
    run = troubled("thread", tmp_path / "run", "--data", bach_data, *SMALL, "--steps", 1)
    assert run.status == 0 and run.output.strip().splitlines()[-1].startswith("Trained to step 1;"), run.output[-3000:]
    again = troubled("thread", tmp_path / "run", "--n_embd", 128)
    assert again.status == 1 and "holds a model of another shape" in again.output, again.output[-3000:]


def test_a_file_system_that_vanishes_is_told(bach_data, tmp_path):
    line = command(tmp_path / "run", "--data", bach_data, *LONG)
    running = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: checkpoints(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 1 and said.strip().splitlines()[-1].startswith("train.py: No such file"), said
    assert fault(find_checkpoint(tmp_path / "elsewhere")) is None
