"""Measure --context_parallel 2 on two GPUs of one host against one of them.

    python benchmarks/context_parallel.py --data DATA               # all sections: context_parallel.json in results/
    python benchmarks/context_parallel.py --only speed rows
    python benchmarks/context_parallel.py --preset tiny --tokens 512 --steps 4 --data DATA --folder DIR    # on a CPU

Sections:
- speed: tokens per second and memory for one row of --tokens tokens, by preset. `step_gib` is the memory that a step
  takes in addition to weights and optimizer states (see step.py).
- rounding: loss and gradient of a first step on two GPUs, compared with one. How much rounding alone changes them is
  measured on one GPU, by PyTorch's operators instead of the fused ones. Also the bytes that a GPU receives per layer,
  by the number of tokens.
- rows: the longest row that one GPU trains with --recompute block; a longer row that it does not train; and whether
  two GPUs train a row of twice the latter.
- steps: losses of a training run on DATA on two GPUs, compared with one: not stopped, and stopped in the middle and
  resumed on the other number of GPUs. How much rounding alone changes them is measured on one GPU, by other
  micro-batches.

The results are written after each section. Those of sections that are not selected are kept. Exit status 1 if a process
failed."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
import torch
from ranks import PROJECT, on_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rwkv_music.config import PRESETS

STEP, WORKER = (PROJECT / "benchmarks" / name for name in ("step.py", "context_parallel_worker.py"))
RECOMPUTE = {"1.5b": "block"}  # a row of 131,072 tokens needs it on one GPU
WAIT_S = 420  # for one process


class Failed(Exception):
    """An error for a process that failed or took too long."""


@dataclass
class Process:
    """A program on one of two ranks, or on both."""

    ranks: int
    arguments: list[object]
    gpu: int = 0  # of one rank
    _log: Any = field(default_factory=lambda: tempfile.TemporaryFile("w+"))

    def start(self) -> "Process":
        gpus = "0,1" if self.ranks == 2 else self.gpu
        own = {"CUDA_VISIBLE_DEVICES": gpus, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        line, environment = on_ranks(self.ranks, *self.arguments, **(own if torch.cuda.is_available() else {}))
        self._started = time.monotonic()
        self._process = subprocess.Popen(line, env=environment, cwd=PROJECT, stdout=self._log, stderr=subprocess.STDOUT)
        return self

    def stop(self) -> None:
        self._process.kill()  # its ranks end with it
        self._process.wait()

    def wait(self) -> None:
        try:
            status = self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            status = f"none after {WAIT_S} s"
        program = Path(self.arguments[0]).name
        seconds = time.monotonic() - self._started
        print(f"  {program} on {self.ranks}: {seconds:.0f} s, status {status}", file=sys.stderr, flush=True)
        if status:
            self._log.seek(0)
            raise Failed(
                f"{' '.join(map(str, self.arguments))} failed with status {status}: {self._log.read()[-6000:]}"
            )


def run(*processes: Process) -> None:
    """Run processes at the same time."""
    started = [process.start() for process in processes]
    try:
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.stop()


def speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    def measurement(preset: str, ranks: int, gpu: int = 0) -> tuple[Process, Path]:
        out = folder / f"{preset}_{ranks}.json"
        arguments = ["--preset", preset, "--batch_size", 1, "--ctx_len", options.tokens, "--context_parallel", ranks]
        arguments += ["--recompute", RECOMPUTE.get(preset, "none"), "--measured", options.measured, "--write", out]
        return Process(ranks, [STEP, *arguments], gpu), out

    # One GPU each, at the same time.
    alone = {preset: measurement(preset, 1, gpu=i) for i, preset in enumerate(options.preset)}
    run(*(process for process, _ in alone.values()))
    rows = {}
    print(f"{'':<24}{'one GPU':>12}{'two GPUs':>12}{'ratio':>8}")
    for preset in options.preset:
        process, out = measurement(preset, 2)
        run(process)
        one, two = (json.loads(path.read_text()) for path in (alone[preset][1], out))
        ratios = {}
        for name in ("tokens_per_second", "peak_gib", "step_gib"):
            if one[name] is None:  # on a CPU
                continue
            ratios[name] = two[name] / one[name]
            print(f"{f'{preset} {name}':<24}{one[name]:>12,.1f}{two[name]:>12,.1f}{ratios[name]:>8.3f}", flush=True)
        for figures in (one, two):
            figures.pop("costliest_kernels", None)
        rows[preset] = {"one": one, "two": two, "ratios": ratios}
    return rows


def rounding(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = {}
    for preset in options.preset:
        out = folder / f"compare_{preset}.json"
        run(Process(2, [WORKER, "compare", preset, options.tokens, out]))
        rows[preset] = row = json.loads(out.read_text())
        print(f"{preset}, relative to one GPU{'':<11}{'loss':>11}{'|gradient|':>12}{'gradient':>11}")
        for name, apart in row["differences"].items():
            cells = f"{apart['loss']:>11.1e}{apart['gradient_norm']:>12.1e}{apart['gradient']:>11.1e}"
            print(f"  {name.replace('_', ' GPU, '):<32}{cells}", flush=True)
        traffic = row["bytes_per_layer"]
        row["bytes_equal"] = all(count == traffic["formula"] for count in traffic["counted"].values())
        print(f"  bytes per layer: {traffic['counted']}, by the formula {traffic['formula']:,}", flush=True)
    return rows


def rows(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    preset, out = options.preset[-1], folder / "longest.json"
    run(Process(1, [WORKER, "longest", preset, options.tokens, out]))
    found = {"preset": preset, "one": json.loads(out.read_text())}
    longest = found["one"]["longest"]
    too_long = found["one"]["too_long"] or longest  # on a CPU, none is too long
    print(f"{preset}: one GPU trains {longest:,} tokens, but not {too_long:,}", flush=True)
    run(Process(2, [WORKER, "train", preset, 2 * too_long, out]))
    found["two"] = json.loads(out.read_text())
    print(f"{preset}: two GPUs train {2 * too_long:,} tokens", flush=True)
    return found


def steps(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if options.data is None:
        raise Failed("the section `steps` needs --data")
    half = options.steps // 2
    fixed = ["--data", options.data, "--preset", options.preset[0], "--ctx_len", options.ctx_len, "--batch_size", 4]
    fixed += ["--steps", options.steps, "--warmup_steps", 10, "--log_every", 1, "--val_every", 0]
    fixed += ["--deepspeed_config", PROJECT / "ds_configs" / "zero2.json"]

    def training(name: str, ranks: int, *more: object, gpu: int = 0) -> Process:
        own = ["--out", folder / name, "--context_parallel", ranks]
        return Process(ranks, [PROJECT / "train.py", *fixed, "--micro_batch_size", 2, *own, *more], gpu)

    def resumed(name: str) -> list[object]:
        return ["--resume", folder / name / "checkpoints" / f"step_{half:08d}"]

    def losses(name: str) -> list[float]:
        return [event.value for event in EventAccumulator(str(folder / name)).Reload().Scalars("train/loss")]

    saves = ["--save_every", half]
    run(training("one", 1, *saves), training("other_micro_batches", 1, "--micro_batch_size", 1, gpu=1))
    run(training("two", 2, *saves))
    run(training("two_then_one", 1, *resumed("two")), training("one_again", 1, gpu=1))
    run(training("one_then_two", 2, *resumed("one")))
    found = {name: losses(name) for name in ("one", "one_again", "other_micro_batches", "two")}
    for name in ("one_then_two", "two_then_one"):
        found[name] = found[name.partition("_")[0]][:half] + losses(name)
    largest = {
        name: max(abs(x - y) for x, y in zip(found["one"], curve, strict=True))
        for name, curve in found.items()
        if name != "one"
    }
    print(f"{options.preset[0]}, {options.steps} steps, loss {found['one'][0]:.3f} -> {found['one'][-1]:.3f}")
    for name, difference in largest.items():
        print(f"  largest difference of {name.replace('_', ' ')}: {difference:.2e}", flush=True)
    arguments = {"preset": options.preset[0], "ctx_len": options.ctx_len, "batch_size": 4, "micro_batch_size": 2}
    return {**arguments, "stopped_after": half, "largest_differences": largest, "losses": found}


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    section.__name__: section for section in (speed, rounding, rows, steps)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument(
        "--preset", nargs="+", choices=PRESETS, default=["0.1b", "1.5b"],
        help="one or two presets; `steps` uses the first, `rows` the last (default: 0.1b 1.5b)",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=131072, help="tokens of the row (default: 131072)")
    parser.add_argument("--measured", type=int, default=4, help="steps that `speed` measures (default: 4)")
    parser.add_argument("--data", type=Path, metavar="DATA", help="prepared dataset folder, for `steps`")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of `steps` (default: 50)")
    parser.add_argument("--ctx_len", type=int, default=32768, help="tokens per row of `steps` (default: 32768)")
    parser.add_argument(
        "--folder", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    path = Path(options.folder) / "context_parallel.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    figures.pop("machine", None)
    failures = 0
    for name in options.only:
        started = time.monotonic()
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = SECTIONS[name](options, Path(folder))
            except Failed as failure:
                failures += 1
                print(f"{name}: {failure}", file=sys.stderr, flush=True)
                continue
        figures[name] = {"seconds": round(time.monotonic() - started, 1), **found}
        report.write("context_parallel", figures, options.folder)
    print(path)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
