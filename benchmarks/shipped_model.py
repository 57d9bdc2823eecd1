"""Train the model that the package contains, and export it.

    python -m rwkv_music corpus bach --out midi/bach      # and palestrina, ryansMammoth
    python -m rwkv_music prepare midi --out DATA
    python benchmarks/shipped_model.py DATA --minutes 3

The model predicts pieces and fills in holes. With --minutes, a short run measures the speed first, and the number of
steps follows from it. Writes the weights as bf16 safetensors, the tokenizer beside them, and results/shipped_model.json
with the losses, the size and the settings. Exit status 1 if the two files are larger than 6,000,000 bytes. Options that
are not listed go to train.py."""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import report
from corpus_run import run
from demo import read_evaluation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rwkv_music.checkpoint.weights import SHIPPED_MODEL, open_weights, tokenizer_beside

MOST_BYTES = 6_000_000
# Of the shapes below 6 MB, x070 with 5 layers x 192 has the most weights outside of tables that are indexed by token:
# 2,156,928 of 2,881,152. With x080, the tables of DeepEmbed take the place of half of them.
SHAPE = "--channel_mix x070 --n_layer 5 --n_embd 192 --dim_ffn 576".split()
TRAIN = (
    "--deepspeed_config ds_configs/zero2.json --ctx_len 1536 --batch_size 48 --lr 2e-3 --lr_final 1e-4 "
    "--warmup_steps 100 --weight_decay 0.1 --augment all --task mix --completion_weight 0 --infill_weight 0.5"
).split()
PROBE_STEPS, PROBE_SKIPPED = 120, 60  # steps of the run that measures the speed; the first ones do not count


def train(data: Path, folder: Path, steps: int, more: list[str]) -> dict[str, list]:
    """Train for `steps` steps; return each curve as a list of (step, value, wall time in seconds)."""
    command = [sys.executable, "train.py", "--data", str(data.resolve()), "--out", str(folder), *SHAPE, *TRAIN]
    run(*command, "--steps", str(steps), "--log_every", str(min(max(steps // 100, 1), 10)), "--save_every", "0", *more)
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def steps_within(minutes: float, data: Path, folder: Path, more: list[str]) -> int:
    """Return the number of optimizer steps that take `minutes`, by the speed of a short run."""
    points = train(data, folder, PROBE_STEPS, [*more, "--val_every", "0"])["train/loss"]
    first, last = next(point for point in points if point[0] >= PROBE_SKIPPED), points[-1]
    steps_per_second = (last[0] - first[0]) / (last[2] - first[2])
    print(f"{steps_per_second:.2f} steps/s", flush=True)
    return max(int(60 * minutes * steps_per_second), PROBE_STEPS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="dataset folder, prepared with multitrack")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=3.0, metavar="X", help="minutes of training (default: 3)")
    length.add_argument("--steps", type=int, metavar="N", help="optimizer steps, instead of --minutes")
    parser.add_argument(
        "--out", type=Path, default=SHIPPED_MODEL, metavar="FILE", help=f"weights (default: {SHIPPED_MODEL})"
    )
    parser.add_argument(
        "--results", default=report.RESULTS, metavar="DIR", help="folder of the .json (default: benchmarks/results)"
    )
    options, more = parser.parse_known_args()
    command = [sys.executable, "-m", "rwkv_music"]
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "run"
        steps = options.steps or steps_within(options.minutes, options.data, Path(folder) / "speed", more)
        start = time.perf_counter()
        curves = train(options.data, trained, steps, ["--val_every", str(max(steps // 12, 1)), *more])
        seconds = time.perf_counter() - start
        run(*command, "export", str(trained), "--format", "safetensors", "--out", str(options.out.resolve()))
        files = (options.out, tokenizer_beside(options.out))
        sizes = {file.name: file.stat().st_size for file in files}
        weights = open_weights(options.out)
        evaluation = read_evaluation(run(*command, "evaluate", str(trained), "--data", str(options.data.resolve())))
        config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    facts = json.loads((options.data / "dataset.json").read_text(encoding="utf-8"))
    every = max(len(curves["train/loss"]) // 50, 1)
    figures = {
        "data": {"splits": facts["splits"], "vocabulary": facts["tokenizer"]["vocab_size"], "files": sources(options)},
        "options": " ".join([*SHAPE, *TRAIN, *more]),
        "parameters": sum(math.prod(tensor) for tensor in weights.shapes.values()),
        "bytes": sizes,
        "steps": steps,
        "rows_per_step": config["train"]["batch_size"],
        "seconds": round(seconds, 1),
        "evaluation": evaluation,
        "curves": {
            tag: [point[:2] for point in points[:: every if tag == "train/loss" else 1]]
            for tag, points in curves.items()
            if tag == "train/loss" or tag.startswith("val/")
        },
    }
    print(report.write("shipped_model", figures, options.results))
    print(f"{sum(sizes.values()):,} bytes, {steps:,} steps in {seconds:.0f} s, {evaluation['val']}")
    return 0 if sum(sizes.values()) <= MOST_BYTES else 1


def sources(options: argparse.Namespace) -> dict[str, int]:
    """Return how many pieces of the dataset come from each folder."""
    counts: dict[str, int] = {}
    for line in (options.data / "pieces.jsonl").read_text(encoding="utf-8").splitlines():
        name = Path(json.loads(line)["file"]).parent.name
        counts[name] = counts.get(name, 0) + 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
