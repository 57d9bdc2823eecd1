"""Compare the training curves of the fused sublayers and of the plain model: 200 steps on real data, on a GPU.

    python benchmarks/fused_curve.py --data DATA

Three runs start from the same weights and read the same batches:
1. the fused path
2. the plain PyTorch path
3. the plain path with each batch in two halves, which changes only bf16 rounding

The distance between the curves of runs 1 and 2 is compared with the distance between runs 2 and 3, which is caused by
rounding. Writes results/fused_curve.json and fused_curve.png. Exit status 1 if the first mean distance is more than
three times the second."""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PROJECT = Path(__file__).parent.parent
RUNS = {"fused": ("fused", ()), "plain": ("plain", ()), "plain, in halves": ("plain", ("--micro_batch_size", "8"))}


def train(path: str, arguments: list[str]) -> int:
    """Run train.py; with path "plain", without the fused sublayers and without CUDA graphs.

    The plain path cannot be recorded as a CUDA graph: it indexes the last token of each document, and a graph's inputs
    are padded with empty documents.
    """
    sys.path.insert(0, str(PROJECT))
    import train as entry
    from rwkv_music.ops import fused_sublayers
    from rwkv_music.training.deepspeed_engine.fast import cuda_graphs

    if path == "plain":
        fused_sublayers.supports = lambda x, head_size: False
        cuda_graphs.LAYER_FLOP = 0
    return entry.main(arguments)


def curve(name: str, data: str, steps: int) -> list[float]:
    """Train in a separate process. Return the training losses, in nats per token."""
    path, more = RUNS[name]
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, __file__, "--run", path, "--data", data, "--out", run, "--preset", "0.1b"]
        command += ["--deepspeed_config", str(PROJECT / "ds_configs" / "zero2.json"), "--steps", str(steps)]
        command += ["--log_every", "1", "--val_every", "0", "--batch_size", "16", *more]
        subprocess.run(command, check=True)
        return [event.value for event in EventAccumulator(run).Reload().Scalars("train/loss")]


def distance(a: list[float], b: list[float]) -> dict[str, float]:
    """Return the mean and the largest absolute difference of two curves, in nats per token."""
    distances = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return {"mean": statistics.mean(distances), "largest": max(distances)}


def main() -> int:
    if "--run" in sys.argv:
        at = sys.argv.index("--run")
        return train(sys.argv[at + 1], sys.argv[1:at] + sys.argv[at + 2 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="prepared dataset folder")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    curves = {name: curve(name, options.data, options.steps) for name in RUNS}
    figures = {
        "fused_from_plain": distance(curves["fused"], curves["plain"]),
        "rounding_alone": distance(curves["plain, in halves"], curves["plain"]),
        "curves": curves,
    }
    print(report.write("fused_curve", figures, options.out))
    axes = plt.figure(figsize=(7, 3.5), layout="constrained").subplots()
    for (name, values), style in zip(curves.items(), ("-", "--", ":"), strict=True):
        axes.plot(values, style, label=name)
    axes.set(xlabel="optimizer step", ylabel="nats per token", title="0.1b: fused and plain")
    axes.legend()
    axes.figure.savefig(Path(options.out) / "fused_curve.png", dpi=110)
    for pair in ("fused_from_plain", "rounding_alone"):
        print(f"{pair}: mean {figures[pair]['mean']:.4f}, largest {figures[pair]['largest']:.4f} nats per token")
    return 0 if figures["fused_from_plain"]["mean"] < 3 * figures["rounding_alone"]["mean"] else 1


if __name__ == "__main__":
    sys.exit(main())
