"""Kill a run with SIGKILL many times, half of them while it writes a checkpoint. Check the checkpoint to resume from.

    python benchmarks/kills.py --kills 100

The run trains a small model and saves a checkpoint every second step. After each kill, the script compares every byte
of the checkpoint from which the run would resume with the manifest, and then restarts the run. Writes
results/kills.json. Exit status 1 if a run would have resumed from a damaged checkpoint."""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

from rwkv_music.checkpoint.run_folder import (
    checkpoints,
    contents_fault,
    fault,
    find_checkpoint,
    read_manifest,
    read_progress,
)
from rwkv_music.prepare.corpus import write_corpus
from rwkv_music.prepare.pipeline import prepare

PROJECT = Path(__file__).parent.parent
SMALL = "--n_layer 2 --n_embd 64 --ctx_len 128 --batch_size 4 --steps 1000000 --val_every 0 --save_every 2 --keep 3"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="number of kills (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    counts = {"kills": 0, "left_a_partial_one": 0, "damaged_under_a_steps_name": 0, "resumed_from_a_damaged_one": 0}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_corpus("bach", here / "midi", workers=1, limit=12)
        prepare([here / "midi"], here / "data", workers=1)
        run = here / "run"
        line = [
            sys.executable,
            str(PROJECT / "train.py"),
            "--data",
            str(here / "data"),
            "--out",
            str(run),
            *SMALL.split(),
        ]
        line += ["--deepspeed_config", str(PROJECT / "ds_configs" / "zero2.json")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        for kill in range(options.kills):
            before = newest_step(run)
            running = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while running.poll() is None and newest_step(run) <= before:
                time.sleep(0.05)
            if kill % 2:
                while running.poll() is None and not unfinished(run):
                    pass
                time.sleep(moments.uniform(0, 0.03))  # about as long as this model takes to save
            else:
                time.sleep(moments.uniform(0, 1))
            if running.poll() is not None:
                sys.exit(f"train.py exited with status {running.returncode} before it was killed.")
            running.kill()
            running.wait()
            counts["kills"] += 1
            counts["left_a_partial_one"] += bool(unfinished(run))
            counts["damaged_under_a_steps_name"] += sum(not whole(path) for path in checkpoints(run))
            counts["resumed_from_a_damaged_one"] += not whole(find_checkpoint(run))
            print(f"\r{counts}", end="", flush=True)
    print()
    report.write("kills", counts)
    return int(counts["resumed_from_a_damaged_one"] > 0)


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
