"""Time `make demo` in a clean clone, twice, and keep what it produces.

    python benchmarks/demo.py
    python benchmarks/demo.py --before COMMIT     # also time the demo of an earlier commit

Writes results/demo.json and, to results/demo/, the loss curve and the three pieces with their piano rolls."""

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import report
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).parent.parent


def timed_demo(clone: Path) -> tuple[float, str]:
    """Run `make demo`. Return its duration in seconds and its output."""
    start = time.perf_counter()
    done = subprocess.run(["make", "demo"], cwd=clone, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"make demo failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout


def both_times(clone: Path, commit: str = "HEAD") -> tuple[dict[str, int], str]:
    """Clone the project and run `make demo` twice. Return the seconds of each run, and the output of the first."""
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
    first, output = timed_demo(clone)
    again, _ = timed_demo(clone)
    return {"first_seconds": round(first), "again_seconds": round(again)}, output


def read_evaluation(output: str) -> dict[str, dict[str, float]]:
    """Parse the table that `evaluate` printed: {split: {column: value}}."""
    columns = ("targets", "nats_per_token", "bits_per_note", "ngram", "ngram_nats_per_token")
    columns += ("bigram_nats_per_token", "unigram_nats_per_token")
    # Only the lines of this table contain a colon, in the n-gram column: "5: 1.2023".
    lines = (line for line in output.splitlines() if line.startswith(("train ", "val ")) and ":" in line)
    rows = (line.replace(",", "").replace(":", "").split() for line in lines)
    return {row[0]: dict(zip(columns, map(float, row[1:]), strict=True)) for row in rows}


def draw_curve(run: Path, bigram: float, path: Path) -> dict[str, list]:
    """Plot and return the loss curves of a run; the bigram model's loss is a horizontal line."""
    events = EventAccumulator(str(run)).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("train/loss", "val/loss")}
    figure = Figure(figsize=(9, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*curves["train/loss"], strict=True), color="#1b5e9b", label="training")
    axes.plot(*zip(*curves["val/loss"], strict=True), "o-", color="#d2521a", label="validation")
    axes.axhline(bigram, color="#555", linestyle="--", label="bigram model, validation")
    axes.set(xlabel="optimizer step", ylabel="nats per token", ylim=(0, 4), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="also time the demo of this commit")
    before = parser.parse_args().before
    out = report.RESULTS / "demo"
    out.mkdir(parents=True, exist_ok=True)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        if before:
            figures["before"] = {"commit": before, **both_times(Path(folder) / "before", before)[0]}
        clone = Path(folder) / "clone"
        times, output = both_times(clone)
        evaluation = read_evaluation(output)
        curves = draw_curve(clone / "demo" / "run", evaluation["val"]["bigram_nats_per_token"], out / "curve.png")
        for file in sorted((clone / "demo" / "music").iterdir()):
            shutil.copy(file, out / file.name)
    figures = {**times, **figures, "evaluation": evaluation, "curves": curves}
    print(report.write("demo", figures))
    print(times, figures.get("before", ""), evaluation["val"])


if __name__ == "__main__":
    main()
