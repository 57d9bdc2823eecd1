"""Compare the training step and the recurrence of another checkout with this one, on the same GPUs in the same run.

    git worktree add /tmp/before COMMIT && python benchmarks/checkouts.py /tmp/before [--gpus 0,1]

For each row of step.py's table, one process per variant measures the step: the other checkout and this one in turns,
twice each, and this one with `--fast off`. wkv7s.py runs in turns, too. A ratio is this checkout's median time (or
tokens per second) over the other's. With several GPUs, all variants of a row run on the same GPU.

Writes results/checkouts.json after every row. Exit status 1 if a row of this checkout is more than 2% slower or
missing."""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import report
from step import ROWS
from wkv7s import SHAPES

HERE = Path(__file__).parent.parent
MOST_SLOWER = 0.02
ROUNDS = 2
SAVING = threading.Lock()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="FOLDER", help="the other checkout")
    parser.add_argument("--gpus", default="0", help="GPUs to use, for example 0,1 (default: 0)")
    parser.add_argument("--arguments", default="", help="more arguments of step.py, for example '--measured 10'")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve(), "now": HERE}
    names: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in ["wkv7s", *sorted(ROWS, key=lambda name: "L24" not in name)]:  # the longest first
        names.put(name)
    results: dict[str, dict[str, list[Any]]] = {}
    gpus = options.gpus.split(",")
    threads = [threading.Thread(target=work, args=(gpu, names, checkouts, options, results)) for gpu in gpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures = compared(results)
    rates = [row["ratio"] for row in figures["steps"].values()] + [1 / row["ratio"] for row in figures["wkv7s"]]
    return int(len(rates) < len(ROWS) + len(SHAPES) or min(rates) < 1 - MOST_SLOWER)


def work(
    gpu: str, names: queue.SimpleQueue, checkouts: dict[str, Path], options: argparse.Namespace, results: dict
) -> None:
    """Measure rows from the queue on one GPU until it is empty."""
    while True:
        try:
            name = names.get_nowait()
        except queue.Empty:
            return
        runs: dict[str, list[Any]] = {}
        variants = [*list(checkouts) * ROUNDS, *(["fast off"] if name in ROWS else [])]
        for variant in variants:
            checkout = checkouts.get(variant, HERE)
            if name in ROWS:
                fast = ["--fast", "off"] if variant == "fast off" else []
                command = ["step.py", *ROWS[name].split(), *options.arguments.split(), *fast]
            else:
                command = ["wkv7s.py"]
            figures = measured(command, checkout, gpu)
            if figures is not None:
                runs.setdefault(variant, []).append(figures)
                print(name, variant, summary(figures), flush=True)
        with SAVING:
            results[name] = runs
            commit = subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=checkouts["before"], capture_output=True, text=True
            ).stdout.strip()
            print(report.write("checkouts", {"before": commit, **compared(results)}, options.out), flush=True)


def measured(command: list[str], checkout: Path, gpu: str) -> dict[str, Any] | None:
    """Run a benchmark of a checkout and return its results, or None with its output printed if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        is_step = command[0] == "step.py"
        output = ["--write", f"{folder}/figures.json"] if is_step else ["--out", folder]
        script = checkout / "benchmarks" / command[0]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "MASTER_PORT": str(29600 + int(gpu))}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(checkout), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        )
        done = subprocess.run(
            [sys.executable, str(script), *command[1:], *output],
            cwd=checkout, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        written = list(Path(folder).glob("*.json"))
        if done.returncode or not written:
            print(f"{script} failed with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
            return None
        return json.loads(written[0].read_text(encoding="utf-8"))


def summary(figures: dict[str, Any]) -> str:
    if "rows" in figures:
        return " ".join(f"{row['ours']['both_ms']:.4f}" for row in figures["rows"]) + " ms"
    return f"{figures['tokens_per_second']:,.0f} tokens/s"


def compared(results: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Return the figures of the rows that have been measured completely."""
    steps = {name: compared_steps(results[name]) for name in ROWS if complete(results.get(name))}
    return {"steps": steps, "wkv7s": compared_recurrence(results["wkv7s"]) if complete(results.get("wkv7s")) else []}


def complete(runs: dict[str, list[Any]] | None) -> bool:
    return runs is not None and all(len(runs.get(name, [])) == ROUNDS for name in ("before", "now"))


def compared_steps(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the tokens per second of each run, and their ratio now over before."""
    rates = {name: [run["tokens_per_second"] for run in of_variant] for name, of_variant in runs.items()}
    ratio = statistics.median(rates["now"]) / statistics.median(rates["before"])
    return {"tokens_per_second": rates, "ratio": ratio}


def compared_recurrence(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the milliseconds of forward and backward of each shape, and their ratio now over before."""
    rows = []
    for i, (B, T, H) in enumerate(SHAPES):
        times = {name: [run["rows"][i]["ours"]["both_ms"] for run in of_variant] for name, of_variant in runs.items()}
        ratio = statistics.median(times["now"]) / statistics.median(times["before"])
        rows.append({"B": B, "T": T, "H": H, "both_ms": times, "ratio": ratio})
    return rows


if __name__ == "__main__":
    sys.exit(main())
