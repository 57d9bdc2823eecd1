"""Kill runs with SIGKILL many times, and check from which checkpoint they resume and which one is the best.

    python benchmarks/kills.py [--kills 100] [--best_kills 20] [--seed 0]

A small model trains on the CPU, is killed, and is started again. Writes results/kills.json. Exit status 1 if a check
fails.

- checkpoints: the model saves every second step. Half of the kills come at random moments, half while it writes a
  checkpoint. Each time, every byte of the checkpoint that the run would resume from is compared with the manifest.
- best: the model validates after every step, at a learning rate at which the loss falls and rises, so that the best
  checkpoint changes often. It saves every fourth step and after each validation with a new lowest loss. Half of the
  kills come at random moments, half soon after such a validation, when its checkpoint is being saved. Each time, every
  byte of the best checkpoint is compared with the manifest. A run that is never killed then measures the loss of every
  step. At each kill and at the end, the best checkpoint must be the one with the lowest loss of all steps up to the
  newest checkpoint.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import report
from tqdm import tqdm

from rwkv_music.checkpoint.run_folder import (
    checkpoints,
    contents_fault,
    fault,
    find_checkpoint,
    read_manifest,
    read_progress,
)
from rwkv_music.checkpoint.validations import Validations, choose_checkpoint
from rwkv_music.prepare.corpus import write_corpus
from rwkv_music.prepare.pipeline import prepare

PROJECT = Path(__file__).parent.parent
SMALL = "--n_layer 2 --n_embd 64 --ctx_len 128 --batch_size 4 --steps 1000000"
SAVING = f"{SMALL} --val_every 0 --save_every 2 --keep 3"
VALIDATING = f"{SMALL} --val_every 1 --val_rows 8 --save_every 4 --keep 1 --lr 0.01 --warmup_steps 20"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
SAVE_SECONDS = 0.03  # about as long as this model takes to save
BETWEEN_SECONDS = 0.4  # about as long as the second run takes from one checkpoint to the next
MOMENT_SECONDS = 60  # maximum wait for the moment of a kill


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="number of kills of the first run (default: 100)")
    parser.add_argument("--best_kills", type=int, default=20, help="number of kills of the second run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_corpus("bach", here / "midi", workers=1, limit=12)
        prepare([here / "midi"], here / "data", workers=1)
        counts = kill_while_saving(here, options.kills, moments)
        best = kill_while_validating(here, options.best_kills, moments)
    print(report.write("kills", counts | {"best": best}))
    return int(counts["resumed_from_a_damaged_one"] + best["best_not_whole"] + best["best_not_the_lowest_loss"] > 0)


def command(here: Path, run: Path, arguments: str) -> list[str]:
    """Return the command line that trains on the data in `here`."""
    line = [sys.executable, str(PROJECT / "train.py"), "--data", str(here / "data"), "--out", str(run)]
    return [*line, *arguments.split(), "--deepspeed_config", str(PROJECT / "ds_configs" / "zero2.json")]


def kill(line: list[str], run: Path, moment: Callable[[], bool], seconds: float) -> None:
    """Start a run, and kill it `seconds` after it has saved a checkpoint and `moment()` is true."""
    before = newest_step(run)
    running = subprocess.Popen(line, env=ENVIRONMENT, **QUIET)
    while running.poll() is None and newest_step(run) <= before:
        time.sleep(0.05)
    given_up = time.monotonic() + MOMENT_SECONDS
    while running.poll() is None and not moment():
        time.sleep(0.001)
        if time.monotonic() > given_up:
            running.kill()
            sys.exit(f"The moment of a kill did not come within {MOMENT_SECONDS} s: use fewer kills.")
    time.sleep(seconds)
    if running.poll() is not None:
        sys.exit(f"train.py exited with status {running.returncode} before it was killed.")
    running.kill()
    running.wait()


def kill_while_saving(here: Path, kills: int, moments: random.Random) -> dict[str, int]:
    """Kill a run that saves often; return the counts."""
    run = here / "saving"
    line = command(here, run, SAVING)
    counts = {"kills": kills, "left_a_partial_one": 0, "damaged_under_a_steps_name": 0, "resumed_from_a_damaged_one": 0}
    for number in tqdm(range(kills), "checkpoints", disable=None):
        if number % 2:
            kill(line, run, lambda: bool(unfinished(run)), moments.uniform(0, SAVE_SECONDS))
        else:
            kill(line, run, lambda: True, moments.uniform(0, 1))
        counts["left_a_partial_one"] += bool(unfinished(run))
        counts["damaged_under_a_steps_name"] += sum(not whole(path) for path in checkpoints(run))
        counts["resumed_from_a_damaged_one"] += not whole(find_checkpoint(run))
    return counts


@dataclass(frozen=True)
class Left:
    """The steps of the newest and the best checkpoint of a killed run, and its recorded losses by step."""

    newest: int
    best: int
    losses: dict[int, float]


def kill_while_validating(here: Path, kills: int, moments: random.Random) -> dict[str, int]:
    """Kill a run whose best checkpoint changes often; return the counts."""
    run, found, not_whole = here / "validating", [], 0
    line = command(here, run, VALIDATING)
    for number in tqdm(range(kills), "best", disable=None):
        if number % 2:
            kill(line, run, lambda: is_being_saved(run), moments.uniform(0, SAVE_SECONDS))
        else:
            kill(line, run, lambda: True, moments.uniform(0, BETWEEN_SECONDS))
        best, _ = choose_checkpoint(run)
        not_whole += not whole(best)
        losses = {entry.step: entry.loss for entry in Validations.read(run).entries}
        found.append(Left(newest_step(run), read_progress(best).step, losses))
    last = newest_step(run) + 4
    for folder in (run, here / "undisturbed"):
        subprocess.run(
            [*command(here, folder, VALIDATING), "--stop_after", str(last)], env=ENVIRONMENT, check=True, **QUIET
        )
    at_end, _ = choose_checkpoint(run)
    true = {entry.step: entry.loss for entry in Validations.read(here / "undisturbed").entries}
    recorded = {entry.step: entry.loss for entry in Validations.read(run).entries}
    found.append(Left(last, read_progress(at_end).step, recorded))
    return {
        "kills": kills,
        "steps": last,
        "kills_before_the_best_was_saved": sum(lowest(left.losses) > left.newest for left in found),
        "bests": len({left.best for left in found}),
        "best_not_whole": not_whole + (not whole(at_end)),
        "best_not_the_lowest_loss": sum(not is_the_lowest(left, true) for left in found),
    }


def is_being_saved(run: Path) -> bool:
    """Return whether the step with the lowest recorded loss has no checkpoint yet."""
    validations = Validations.read(run)
    lowest = validations.lowest()
    return lowest is not None and not validations.checkpoint(lowest).exists()


def is_the_lowest(left: Left, true: dict[int, float]) -> bool:
    """Return whether the best checkpoint has the lowest of the `true` losses that the run had measured and saved.

    Losses after the newest checkpoint do not count, because the weights are lost: the run repeats these steps. The
    recorded losses must be the true ones.
    """
    known = {step: loss for step, loss in true.items() if step <= left.newest}
    if left.newest not in left.losses and left.newest > 1:
        del known[left.newest]  # the run was killed before the validation of the newest checkpoint was recorded
    return left.best == lowest(known) and all(true[step] == loss for step, loss in left.losses.items() if step in true)


def lowest(losses: dict[int, float]) -> int:
    """Return the first step with the lowest loss."""
    return min(losses, key=lambda step: (losses[step], step))


def unfinished(run: Path) -> list[Path]:
    """Return the checkpoints that are being written."""
    return list((run / "checkpoints").glob(".step_*.partial"))


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name.removeprefix("step_")) for path in checkpoints(run)), default=0)


def whole(checkpoint: Path) -> bool:
    """Return whether every byte is as it was written."""
    if fault(checkpoint) or contents_fault(checkpoint, read_manifest(checkpoint)):
        return False
    return read_progress(checkpoint).step == int(checkpoint.name.removeprefix("step_"))


if __name__ == "__main__":
    sys.exit(main())
