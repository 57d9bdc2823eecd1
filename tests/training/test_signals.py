"""Signals to stop: one more checkpoint on all ranks, and an exit status that tells a launcher what to do."""

import os
import signal
import subprocess
import time

import pytest

from rwkv_music.checkpoint.run_folder import checkpoints
from rwkv_music.training.signals import EXIT_RESUMABLE, INTERRUPTED, StopSignals
from tests.training.conftest import SMALL, command, environment, on_two_ranks
from tests.training.test_checkpoint import wait_for

LONG = [*SMALL, "--steps", "1000000", "--save_every", "0", "--val_every", "0"]


@pytest.mark.parametrize(
    "number, status, says",
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGUSR1, EXIT_RESUMABLE, "stopped by a signal")],
)
def test_two_ranks_stop_with_a_checkpoint(number, status, says, bach_data, tmp_path):
    """The launcher passes the signal on; the ranks hear it at different moments and must agree on one step."""
    line = command(tmp_path / "run", "--data", bach_data, *LONG)
    running = subprocess.Popen(
        on_two_ranks(line), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list((tmp_path / "run").glob("events*")) and has_trained(tmp_path / "run"))
    running.send_signal(number)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == status and "Traceback" not in said, said
    [saved] = checkpoints(tmp_path / "run")
    step = int(saved.name.removeprefix("step_"))
    assert f"{says} after step {step:,}; the same command resumes from {saved.name}." in said


def test_ctrl_c_under_deepspeeds_launcher_stops_with_a_checkpoint(bach_data, tmp_path):
    """A terminal sends it to all processes at once, and the launcher then a SIGTERM to each rank."""
    line = command(tmp_path / "run", "--data", bach_data, *LONG, ranks=2)
    running = subprocess.Popen(
        line,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: has_trained(tmp_path / "run"))
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    [saved] = checkpoints(tmp_path / "run")
    step = int(saved.name.removeprefix("step_"))
    assert f"train.py: interrupted after step {step:,}; the same command resumes from {saved.name}." in said
    assert 'train.py", line' not in said  # no traceback of ours


def has_trained(run) -> bool:
    """TensorBoard's file grows with every step that is logged."""
    return sum(path.stat().st_size for path in run.glob("events*")) > 10_000


def test_a_second_ctrl_c_ends_at_once_but_the_same_one_twice_does_not():
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # from the terminal, and from a launcher that forwards it
        assert signals.interrupted and not signals.stop_later
        time.sleep(0.6)
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
