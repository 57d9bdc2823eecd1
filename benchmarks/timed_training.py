"""Train for a given time. A short run first measures the duration of a step, from which the number of steps follows."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).parent.parent
PROBE_STEPS = 120
SHARE_OF_STEPS = 0.94  # share of the time for steps; validations and checkpoints take the rest


def train(data: Path, out: Path, options: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Train, and return the points of each curve. Exits if the training fails."""
    command = [sys.executable, "train.py", "--data", str(data.resolve()), "--out", str(out.resolve()), *options]
    if subprocess.run(command, cwd=PROJECT).returncode:
        raise SystemExit("train.py failed")
    events = EventAccumulator(str(out)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def steps_in(minutes: float, data: Path, options: Sequence[str]) -> int:
    """Return how many steps with these options take so many minutes. Compiles the kernels if necessary."""
    with tempfile.TemporaryDirectory() as run:
        probe = ("--steps", "100000", "--stop_after", str(PROBE_STEPS), "--val_every", "0", "--log_every", "20")
        seconds = train(data, Path(run), [*options, *probe])["speed/step_seconds"][-1][1]
    steps = max(1, round(60 * minutes * SHARE_OF_STEPS / seconds))
    print(f"{seconds:.4f} s per step: {steps:,} steps", flush=True)
    return steps
