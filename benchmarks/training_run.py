"""Train a preset on real data and keep its curves.

    python benchmarks/training_run.py --data DATA --preset 0.1b --steps 200

Writes results/training_PRESET.json: losses, speed and memory. Exit status 1 if a loss is not finite or the loss does
not fall. Options that are not listed are passed to train.py."""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = Path(__file__).parent.parent / "train.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="prepared dataset folder")
    parser.add_argument("--preset", default="0.1b", help="model preset (default: 0.1b)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--deepspeed_config", default=str(TRAIN.parent / "ds_configs" / "zero2.json"), metavar="FILE")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, str(TRAIN), "--data", options.data, "--out", run, "--preset", options.preset]
        command += ["--deepspeed_config", options.deepspeed_config, "--steps", str(options.steps), "--log_every", "5"]
        command += ["--val_every", str(max(options.steps // 4, 1)), *more]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        events = EventAccumulator(run).Reload()
        curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    losses = [value for _, value in curves["train/loss"]]
    speeds = [value for _, value in curves["speed/tokens_per_second"]]
    figures = {
        "arguments": " ".join(command[2:])
        .replace(run, "RUN")
        .replace(options.data, "DATA")
        .replace(str(TRAIN.parent) + "/", ""),
        "seconds_in_all": round(seconds, 1),
        "median_tokens_per_second": statistics.median(speeds),
        "curves": curves,
    }
    finite = all(math.isfinite(value) for points in curves.values() for _, value in points)
    falling = statistics.mean(losses[-3:]) < 0.9 * losses[0]
    print(report.write(f"training_{options.preset}", figures, options.out))
    speed = figures["median_tokens_per_second"]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {speed:,.0f} tokens/s, all finite: {finite}")
    return 0 if finite and falling else 1


if __name__ == "__main__":
    sys.exit(main())
