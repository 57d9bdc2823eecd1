"""Signals to stop: one more checkpoint on all ranks, and an exit status that tells a launcher what to do."""

import os
import signal
import subprocess
import time

import pytest

from rwkv_music.checkpoint.run_folder import checkpoints, fault
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.training.samples import HeldOut
from rwkv_music.training.signals import EXIT_RESUMABLE, INTERRUPTED, StopSignals
from tests.training.conftest import SMALL, TINY, command, environment, on_two_ranks, train
from tests.training.test_checkpoint import wait_for

LONG = [*TINY, "--steps", "1000000", "--save_every", "0", "--val_every", "0"]


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


@pytest.mark.parametrize(
    "send, number, says",
    [(os.killpg, signal.SIGINT, "interrupted"), (os.kill, signal.SIGTERM, "stopped by a signal")],
    ids=["ctrl-c", "sigterm"],
)
def test_a_stop_of_deepspeeds_launcher_stops_with_a_checkpoint(send, number, says, bach_data, tmp_path):
    """A terminal sends Ctrl-C to all processes at once, and the launcher then a SIGTERM to each rank.

    SIGTERM is sent to the `deepspeed` command alone, which ends without its ranks: they notice it.
    """
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
    send(running.pid, number)
    said = running.communicate(timeout=60)[1]  # to the end of all processes
    [saved] = checkpoints(tmp_path / "run")
    step = int(saved.name.removeprefix("step_"))
    assert f"train.py: {says} after step {step:,}; the same command resumes from {saved.name}." in said
    assert 'train.py", line' not in said  # no traceback of ours


@pytest.mark.parametrize(
    "what, save_every, last",
    [
        ("validation", 3, False),
        ("validation", 0, False),
        ("validation", 3, True),
        ("validation of streams", 3, False),
        ("sample", 3, False),
    ],
)
def test_a_stop_while_validating_or_sampling_leaves_the_checkpoint(
    what, save_every, last, bach_data, tmp_path, monkeypatch
):
    """After step 3 the run would validate or sample forever. SIGTERM comes once the due checkpoint is complete."""
    folder, signaled = tmp_path / "run", []

    def note() -> None:
        if signaled or checkpoints(folder) or not save_every:
            signaled.append(what)
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)

    def read_forever(self, *arguments):
        while True:
            for batch in read(self, *arguments):
                note()
                yield batch

    def read_window(self, window, *arguments):
        if self._dataset.split == "val":
            note()
        return window_of(self, window % 3, *arguments)

    def draw_forever(self, model, after_token) -> None:
        while True:
            note()
            after_token()

    read, window_of = MusicDataset.validation_batches, DocumentStreams.batch
    monkeypatch.setattr(MusicDataset, "validation_batches", read_forever)
    monkeypatch.setattr(DocumentStreams, "batch", read_window)
    monkeypatch.setattr(DocumentStreams, "windows_per_pass", property(lambda _: 10**9, lambda *_: None), raising=False)
    monkeypatch.setattr(HeldOut, "draw", draw_forever)
    due = ["--val_every", 0, "--sample_every", 3] if what == "sample" else ["--val_every", 3]
    due += ["--tbptt", 1] if what == "validation of streams" else []
    steps = ["--save_every", save_every, "--stop_after", 3 if last else 20]
    run = train(folder, "--data", bach_data, *SMALL, *due, *steps, check=False)
    assert run.status == (0 if last else EXIT_RESUMABLE), run.output[-3000:]
    [saved] = checkpoints(folder)
    assert saved.name == "step_00000003" and fault(saved) is None
    assert len(signaled) <= 2


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
