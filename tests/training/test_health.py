"""A run that looks after itself: gradients that are not finite, losses that spike, ranks that hang or die."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, fault, find_checkpoint
from rwkv_music.training.health import SpikeDetector
from tests.training.conftest import PROJECT, SMALL, Run, command, environment, on_two_ranks, train
from tests.training.test_checkpoint import wait_for

LONG = [*SMALL, "--steps", "1000000", "--val_every", "0", "--save_every", "5", "--keep", "1"]


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


def test_too_many_in_a_row_end_the_run_at_the_last_good_checkpoint(bach_data, tmp_path):
    more = ["--save_every", 2, "--max_skipped_steps", 4, "--val_every", 0]
    run = troubled("nan-for-good", tmp_path / "run", "--data", bach_data, *SMALL, *more)
    assert run.status == 1 and "Traceback" not in run.output, run.output[-3000:]
    said = run.output.strip().splitlines()[-1]
    assert "The last 5 steps, up to step 11, were skipped" in said
    assert "resumes from step_00000006" in said
    assert run.last_checkpoint.name == "step_00000006"


@pytest.mark.parametrize("trouble, whole", [("spike", "step_00000030"), ("damaged-spike", "step_00000020")])
def test_a_spike_is_rolled_back_and_other_rows_are_taken(trouble, whole, bach_data, tmp_path):
    more = ["--steps", 50, "--save_every", 10, "--on_spike", "rollback", "--val_every", 0, "--warmup_steps", 10]
    run = troubled(trouble, tmp_path / "run", "--data", bach_data, *SMALL, *more)
    assert run.status == 0, run.output[-3000:]
    [(at, target)] = re.findall(r"step (\d+): the loss has risen to [\d.]+; back to (step_\d+)", run.output)
    assert 31 <= int(at) <= 35 and target == whole
    losses = run.curve()
    assert len(losses) == 50 and losses[-1] < 5  # one curve, with no spike in it


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
    ranks = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[number]), how)
    killed = time.monotonic()
    said = running.communicate(timeout=60)[0]
    return running.returncode, said, time.monotonic() - killed


def test_a_rank_that_dies_ends_the_others_in_seconds(bach_data, tmp_path):
    status, said, seconds = end_a_rank(1, signal.SIGKILL, bach_data, tmp_path / "run")
    assert seconds < 15 and status in (70, 137)
    assert re.search(r"rank 0 lost another rank after step [\d,]+; the same command resumes from step_\d+", said), said
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
