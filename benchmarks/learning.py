"""Compare how fast RWKV and a Transformer of the same size learn: same rows, same validation, same number of steps.

    python benchmarks/learning.py DATA --out DIR [--minutes 7.5] [--gpus 0,1]
    python benchmarks/learning.py DATA --plan      # only print the runs and their estimated time
    python benchmarks/learning.py DATA --out DIR --preset tiny --ctx_len 64 --steps 6 --val_every 3      # on a CPU

There are four contestants: RWKV x080 with AdamW, RWKV x080 with Muon, RWKV x070 with the better of these two
optimizers, and a Transformer (transformer.py). A setting is a learning rate, a dropout (Transformer only) and a weight
decay of the matrices. Each contestant first runs with one seed at the same number of settings, and then at its best
setting with more seeds. Two more runs, one of RWKV x080 with Muon and one of the Transformer, use longer rows with the
same number of tokens per step.

One process per GPU takes the runs from a queue, the most important ones first. A run that would not end within
--minutes is not started. learning.json is written after every validation, so that an interrupted run keeps the results
up to its last validation. Repeat the command with --add to make the runs that are missing.

Seconds of training are the number of steps times the median step time, without validation, compilation and set-up."""

import argparse
import contextlib
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import report
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rwkv_music.config import PRESETS
from rwkv_music.data.dataset import read_dataset_json

WORKER = Path(__file__).parent / "learning_worker.py"
Setting = tuple[float, float, float]  # learning rate, dropout, weight decay
GRIDS: dict[str, tuple[Setting, ...]] = {  # the most promising first
    "adamw": ((1e-3, 0.0, 0.1), (1e-3, 0.0, 1.0), (2e-3, 0.0, 1.0)),
    "muon": ((2e-3, 0.0, 1.0), (2e-3, 0.0, 0.1), (2e-3, 0.0, 2.0)),
    "transformer": ((1e-3, 0.1, 1.0), (2e-3, 0.1, 1.0), (1e-3, 0.1, 0.1)),
}
NAMES = {
    "adamw": "RWKV x080, AdamW",
    "muon": "RWKV x080, Muon",
    "x070": "RWKV x070",
    "transformer": "Transformer, AdamW",
    "muon_long": "RWKV x080, Muon, long rows",
    "transformer_long": "Transformer, AdamW, long rows",
}
COLORS = {"adamw": "C0", "muon": "C1", "x070": "C2", "transformer": "C3"}
PARTS = ("adamw", "muon", "x070", "transformer", "long")
LONGER = 4  # factor by which the long runs lengthen the rows and divide their number
# Estimates for 0.1b on an H200, used until a run of the same kind has been measured.
TOKENS_PER_SECOND = {"rwkv": 490_000, "transformer": 630_000}
SET_UP_S = {"rwkv": 8, "transformer": 5}
FIRST_S = {"rwkv": 15, "transformer": 45}  # more for the first run of a process: start, kernels, compilation
HELD_GIB = 20  # a process that holds more GPU memory after a job is replaced
SPACING = 0.02  # nats per token between the losses of the table


@dataclass(frozen=True)
class Job:
    """A run. `name` is a key of NAMES."""

    name: str
    lr: float
    dropout: float
    weight_decay: float
    seed: int
    optimizer: str = "adamw"

    @property
    def kind(self) -> str:
        return "transformer" if self.name.startswith("transformer") else "rwkv"

    @property
    def is_long(self) -> bool:
        return self.name.endswith("_long")

    @property
    def setting(self) -> Setting:
        return self.lr, self.dropout, self.weight_decay

    def __str__(self) -> str:
        return f"{NAMES[self.name]}, {described(self.setting)}, seed {self.seed}"


def described(setting: Setting) -> str:
    lr, dropout, weight_decay = setting
    return f"lr {lr:g}" + (f", dropout {dropout:g}" if dropout else "") + f", weight decay {weight_decay:g}"


def setting_of(run: dict) -> Setting:
    return run["lr"], run["dropout"], run["weight_decay"]


def finished(runs: list[dict], name: str) -> list[dict]:
    """Return the finished runs of a contestant."""
    return [run for run in runs if run["name"] == name and run["finished"]]


def best_setting(runs: list[dict], name: str) -> Setting | None:
    """Return the setting with which the first seed has the lowest loss, or None if there is no run."""
    first = [run for run in finished(runs, name) if run["seed"] == 0]
    best = min(first, key=lambda run: run["best_loss"], default=None)
    return best and setting_of(best)


def wanted(runs: list[dict], parts: list[str], grid: int, seeds: int) -> list[Job]:
    """Return all jobs that can be planned from the finished `runs`, the most important first.

    The further seeds of a contestant are planned when its grid is complete. The runs of x070 are planned when the grids
    of both optimizers are complete.
    """

    def settled(name: str) -> bool:
        ended = {setting_of(run) for run in runs if run["name"] == name and run["seed"] == 0}
        return ended >= set(GRIDS[name][:grid])

    def seed(name: str, number: int) -> list[Job]:
        best = best_setting(runs, name) if name not in GRIDS or settled(name) else None
        return [Job(name, *best, number, optimizer[name])] if best and name in parts else []

    racing = [name for name in GRIDS if name in parts]
    optimizer = {"adamw": "adamw", "muon": "muon", "transformer": "adamw"}
    jobs = [Job(name, *GRIDS[name][i], 0, optimizer[name]) for i in range(grid) for name in racing]
    losses = {
        name: min((run["best_loss"] for run in finished(runs, name) if run["seed"] == 0), default=math.inf)
        for name in ("muon", "adamw")  # also runs of an earlier command
    }
    winner = min(losses, key=losses.get)
    optimizer["x070"] = optimizer[winner]
    x070: list[Job] = []
    if "x070" in parts and all(settled(name) for name in losses if name in parts):
        best = best_setting(runs, winner) or GRIDS[winner][0]
        settings = sorted(GRIDS[winner][:grid], key=lambda setting: setting != best)
        x070 = [Job("x070", *setting, 0, optimizer["x070"]) for setting in settings]
    jobs += x070[:1]
    jobs += [job for name in racing for job in seed(name, 1) if seeds > 1]
    if "long" in parts:
        for name in ("muon", "transformer"):
            if name not in racing or settled(name):
                jobs.append(Job(f"{name}_long", *(best_setting(runs, name) or GRIDS[name][0]), 0, optimizer[name]))
    jobs += [job for number in range(2, seeds) for name in racing for job in seed(name, number)]
    jobs += [job for number in range(1, seeds) for job in seed("x070", number)]
    return jobs + x070[1:]


def estimated_seconds(job: Job, runs: list[dict], tokens: int, is_first: bool) -> float:
    """Return the expected seconds of a job of `tokens` tokens: those of the most similar runs, if there are any."""
    ended = [run for run in runs if run["kind"] == job.kind and run["finished"]]
    same = [run for run in ended if run["name"] == job.name]
    similar = [run["seconds"] for run in same or ended]
    # A process compiles the Transformer for each length of rows.
    is_first = is_first or (job.kind == "transformer" and job.is_long)
    usual = min(similar) if similar else tokens / TOKENS_PER_SECOND[job.kind] + SET_UP_S[job.kind]
    return usual + (FIRST_S[job.kind] if is_first else 0)


class Worker:
    """A process that runs `script` with jobs on one GPU. `events` receives (worker, process, message).

    A message is an answer of the process, or None when the process has ended.
    """

    def __init__(self, script: Path, gpu: str, workers: int, log: Path, events: queue.Queue) -> None:
        self._script, self.gpu, self._workers, self._log, self._events = script, gpu, workers, log, events
        self.process: subprocess.Popen | None = None
        self.job: Job | None = None  # the one in progress
        self.run: dict[str, Any] | None = None  # its results so far
        self.kinds: list[str] = []  # of the jobs that this process has taken

    def start(self) -> None:
        """Start the process if it is not running, which takes some seconds."""
        if self.process is not None:
            return
        own = {"CUDA_VISIBLE_DEVICES": self.gpu, "LEARNING_WORKERS": str(self._workers)}
        environment = {**os.environ, "PYTHONPATH": python_path(), **own}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with self._log.open("a") as log:
            self.process = subprocess.Popen([sys.executable, str(self._script)], env=environment, stderr=log, **pipes)
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def take(self, job: Job, run: dict[str, Any], settings: dict[str, Any]) -> None:
        self.start()
        self.job, self.run = job, run
        self.kinds.append(job.kind)
        with contextlib.suppress(BrokenPipeError):  # the process has ended: `_listen` reports it
            print(json.dumps(settings), file=self.process.stdin, flush=True)

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self._events.put((self, process, json.loads(line)))
        self._events.put((self, process, None))

    def stop(self) -> None:
        """End the process, and ignore its further answers."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process, self.kinds = None, []


def python_path() -> str:
    """Return PYTHONPATH with this project first."""
    return os.pathsep.join(filter(None, (str(WORKER.parent.parent), os.environ.get("PYTHONPATH"))))


class Race:
    """The queue of the runs, and their results.

    Attributes:
        file: name of the files with the results and the log, without their ending.
        names: titles of the contestants.
        colors: colors of the contestants in the picture.
    """

    file, names, colors = "learning", NAMES, COLORS

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any], runs: list[dict]) -> None:
        self._options, self._settings, self.runs = options, settings, runs
        self._out = Path(options.out)
        self._events: queue.Queue = queue.Queue()
        self._workers = [
            Worker(self.script(), gpu, len(options.gpus), self._out / f"{self.file}_{number}.log", self._events)
            for number, gpu in enumerate(options.gpus)
        ]
        self._retried: set[Job] = set()
        self._fresh = False  # whether each run of RWKV needs a new process

    def script(self) -> Path:
        """Return the script that runs the jobs."""
        return WORKER

    def wanted(self, runs: list[dict]) -> list[Job]:
        """Return all jobs that can be planned from the ended `runs`, the most important first."""
        return wanted(runs, self._options.part, self._options.grid, self._options.seeds)

    def grids(self) -> dict[str, list]:
        """Return the settings of each grid."""
        return {name: [list(setting) for setting in grid[: self._options.grid]] for name, grid in GRIDS.items()}

    def summary(self) -> dict[str, Any]:
        """Return the figures of the contestants."""
        return summary(self.runs)

    def table(self) -> str:
        """Return the summary as text."""
        return as_table(self.summary())

    def job_settings(self, job: Job) -> dict[str, Any]:
        settings = {**self._settings, **asdict(job), "kind": job.kind, "compile": not self._options.eager}
        settings["data"] = str(self._options.data.resolve())
        if job.is_long:
            settings["ctx_len"] *= LONGER
            settings["batch_size"] = max(1, settings["batch_size"] // LONGER)
        return {**settings, "channel_mix": "x070" if job.name == "x070" else "x080"}

    def jobs_left(self) -> list[Job]:
        """Return the jobs that are known and neither done nor running."""
        started = {tuple(run[field.name] for field in fields(Job)) for run in self.runs}
        ended = [run for run in self.runs if run["finished"] or "failed" in run]
        return [job for job in self.wanted(ended) if astuple(job) not in started]

    def next_job(self, worker: Worker, left: list[Job]) -> Job | None:
        """Return the next job. If only another worker has compiled the Transformer, prefer a job of RWKV."""
        others = [other for other in self._workers if other is not worker and "transformer" in other.kinds]
        mine = [job for job in left if job.kind == "rwkv" or not others or "transformer" in worker.kinds]
        return next(iter(mine or left), None)

    def run(self, deadline: float) -> list[Job]:
        """Run the jobs until `deadline`, a time of time.monotonic. Return the jobs that were left out."""
        for worker in self._workers:
            worker.start()
        try:
            while time.monotonic() < deadline:
                for worker in self._workers:
                    left = self.jobs_left()
                    job = self.next_job(worker, left) if worker.run is None else None
                    if job is None:
                        continue
                    settings = self.job_settings(job)
                    tokens = settings["steps"] * settings["batch_size"] * settings["ctx_len"]
                    needed = estimated_seconds(job, self.runs, tokens, job.kind not in worker.kinds)
                    if time.monotonic() + needed < deadline:
                        facts = {name: settings[name] for name in ("ctx_len", "batch_size", "steps", "channel_mix")}
                        run = {**asdict(job), "kind": job.kind, **facts, "gpu": worker.gpu, "finished": False}
                        self.runs.append(run)
                        if self._fresh and job.kind == "rwkv" and "rwkv" in worker.kinds:
                            worker.stop()
                        worker.take(job, run, settings)
                if all(worker.run is None for worker in self._workers):
                    break
                try:
                    self.handle(*self._events.get(timeout=max(0.0, min(1.0, deadline - time.monotonic()))))
                except queue.Empty:
                    continue
        finally:
            for worker in self._workers:
                worker.stop()
        self.write()
        return self.jobs_left()

    def handle(self, worker: Worker, process: subprocess.Popen, message: dict[str, Any] | None) -> None:
        """Process a message from a worker."""
        if process is not worker.process:
            return
        run, job = worker.run, worker.job
        if message is None:
            message = {"result": {"failed": "the process ended", "crashed": True}}
        if run is None:  # it ended between two jobs
            worker.stop()
            return
        if "points" in message:
            run |= message["points"]
            self.add_best(run)
            self.write()
            return
        run |= message["result"]
        crashed, worker.run = run.pop("crashed", False), None
        if "failed" in run:
            print(f"{job}: failed: {run['failed']}", flush=True)
        else:
            self.add_best(run)
            run["finished"] = True
            print(
                f"{job}: best loss {run['best_loss']:.4f} at step {run['best_step']}, "
                f"{run['tokens_per_second']:,.0f} tokens/s, {run['seconds']:.0f} s",
                flush=True,
            )
        if crashed:
            self._fresh = self._fresh or (job.kind == "rwkv" and "rwkv" in worker.kinds[:-1])
            if job not in self._retried:
                self._retried.add(job)
                self.runs.remove(run)
        if crashed or run.get("held_gib", 0) > HELD_GIB:
            worker.stop()
        self.write()

    @staticmethod
    def add_best(run: dict[str, Any]) -> None:
        """Add the figures that follow from the points and the step time of a run."""
        finite = [point for point in run["validation"] if math.isfinite(point[1])]
        if finite:
            run["best_step"], run["best_loss"] = min(finite, key=lambda point: point[1])
        if run.get("step_ms"):
            run["tokens_per_second"] = round(run["batch_size"] * run["ctx_len"] / run["step_ms"] * 1e3)

    def write(self) -> Path:
        figures = {"settings": self._settings, "grids": self.grids(), "runs": self.runs}
        return report.write(self.file, {**figures, "summary": self.summary()}, self._out)


# ---- summary ---------------------------------------------------------------------------------------------------------


def steps_to(run: dict[str, Any], loss: float) -> float | None:
    """Return the step at which a run reaches a validation loss, by linear interpolation. None if it is not reached."""
    before = None
    for step, value in run["validation"]:
        if value <= loss:
            if before is None:
                return step
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = step, value
    return None


def spread(values: list[float]) -> dict[str, float] | None:
    """Return the mean, the standard deviation (None for one value), the minimum and the maximum."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "least": min(values), "most": max(values)}


def chosen_runs(runs: list[dict], names: Iterable[str]) -> dict[str, list[dict]]:
    """Return the finished runs of each contestant at its best setting, without contestants that have none."""
    chosen = {
        name: [run for run in finished(runs, name) if setting_of(run) == best_setting(runs, name)] for name in names
    }
    return {name: some for name, some in chosen.items() if some}


def figures_of(chosen: dict[str, list[dict]], runs: list[dict]) -> dict[str, Any]:
    """Return the figures of each contestant from the result of `chosen_runs`."""
    lowest = min(run["best_loss"] for some in chosen.values() for run in some)
    first = math.ceil(lowest / SPACING)
    thresholds = [round(SPACING * (first + i), 4) for i in range(7, -1, -1)]
    contestants = {}
    for name, some in chosen.items():
        table = []
        for loss in thresholds:
            reached = [(steps, run["step_ms"]) for run in some if (steps := steps_to(run, loss)) is not None]
            if len(reached) == len(some):
                seconds = [steps * ms / 1e3 for steps, ms in reached]
                means = {"steps": statistics.mean(steps for steps, _ in reached), "seconds": statistics.mean(seconds)}
                table.append({"loss": loss, **{key: round(value, 2) for key, value in means.items()}})
        contestants[name] = {
            "grid": [[*setting_of(r), r["best_loss"]] for r in finished(runs, name) if r["seed"] == 0],
            "lr": some[0]["lr"],
            "dropout": some[0]["dropout"],
            "weight_decay": some[0]["weight_decay"],
            "optimizer": some[0]["optimizer"],
            "seeds": len(some),
            "parameters": some[0]["parameters"],
            "best_loss": spread([run["best_loss"] for run in some]),
            "best_step": spread([run["best_step"] for run in some]),
            "tokens_per_second": statistics.median(run["tokens_per_second"] for run in some),
            "to_loss": table,
        }
    return contestants


def summary(runs: list[dict]) -> dict[str, Any]:
    """Return the figures of each contestant at its best setting, and of the others against AdamW."""
    chosen = chosen_runs(runs, NAMES)
    if not chosen:
        return {}
    result: dict[str, Any] = {"contestants": figures_of(chosen, runs)}
    adamw = {run["seed"]: run for run in chosen.get("adamw", [])}
    for name in ("muon", "x070", "transformer"):
        ratios = []
        for run in chosen.get(name, []):
            other = adamw.get(run["seed"])
            steps = steps_to(run, other["best_loss"]) if other else None
            if steps is not None:
                ratios.append((steps / other["best_step"], run["step_ms"] / other["step_ms"]))
        if ratios:
            result[f"{name}_to_the_best_loss_of_adamw"] = {
                "seeds": len(ratios),
                "steps_over_adamw": spread([steps for steps, _ in ratios]),
                "seconds_over_adamw": spread([steps * ms for steps, ms in ratios]),
            }
    return result


def lines_of(contestants: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Return the figures of the contestants as the lines of a table."""
    lines = [f"{'':<34}{'lr':>8}{'seeds':>7}{'best loss':>11}{'+-':>8}{'at step':>9}{'tokens/s':>11}{'parameters':>13}"]
    for name, x in contestants.items():
        deviation = x["best_loss"]["deviation"]
        lines.append(
            f"{names[name]:<34}{x['lr']:>8g}{x['seeds']:>7}{x['best_loss']['mean']:>11.4f}"
            f"{'-' if deviation is None else format(deviation, '.4f'):>8}{x['best_step']['mean']:>9.0f}"
            f"{x['tokens_per_second']:>11,.0f}{x['parameters']:>13,}"
        )
    return lines


def as_table(result: dict[str, Any]) -> str:
    """Return the summary as text."""
    lines = lines_of(result.get("contestants", {}), NAMES)
    for name in ("muon", "x070", "transformer"):
        ratio = result.get(f"{name}_to_the_best_loss_of_adamw")
        if ratio:
            steps, seconds = (ratio[f"{what}_over_adamw"]["mean"] for what in ("steps", "seconds"))
            lines.append(
                f"{NAMES[name]} reaches AdamW's best loss in {steps:.3f} of its steps and {seconds:.3f} of its time"
            )
    return "\n".join(lines)


def plot(runs: list[dict], path: Path, names: dict[str, str], colors: dict[str, str]) -> None:
    """Plot validation loss by steps and by seconds of training: the mean of the seeds and their range."""
    figure, (by_step, by_second) = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    lowest, highest = math.inf, 0.0
    for name in names:
        setting = best_setting(runs, name)
        some = [run for run in finished(runs, name) if setting_of(run) == setting]
        if not some:
            continue
        steps = [step for step, _ in some[0]["validation"]]
        losses = [[loss for _, loss in run["validation"]] for run in some]
        mean, least, most = (
            [function(values) for values in zip(*losses, strict=True)] for function in (statistics.mean, min, max)
        )
        ms = statistics.median(run["step_ms"] for run in some)
        label = f"{names[name]}, {described(setting)}"
        style = {"color": colors[name.removesuffix("_long")], "linestyle": "--" if name.endswith("_long") else "-"}
        for axes, scale in ((by_step, 1.0), (by_second, ms / 1e3)):
            places = [scale * step for step in steps]
            axes.plot(places, mean, label=label, **style)
            axes.fill_between(places, least, most, color=style["color"], alpha=0.2, linewidth=0)
        lowest, highest = min(lowest, *least), max(highest, mean[len(mean) // 3])
    if not math.isfinite(lowest):
        plt.close(figure)
        return
    margin = 0.05 * (highest - lowest) or 0.01
    by_step.set(xlabel="optimizer steps", ylabel="validation loss, nats per token")
    by_step.set_ylim(lowest - margin, highest + margin)
    by_second.set(xlabel="seconds of training")
    by_step.legend(fontsize=9)
    for axes in (by_step, by_second):
        axes.grid(alpha=0.3)
        axes.set_xlim(0)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- command line ----------------------------------------------------------------------------------------------------


def plan(race: Race, options: argparse.Namespace) -> str:
    """Return the jobs and their estimated seconds, as if the first setting of each grid were the best."""
    runs: list[dict] = []
    lines, total, seen = [], 0.0, set()
    while left := [job for job in race.wanted(runs) if job not in seen]:
        job = left[0]
        settings = race.job_settings(job)
        tokens = settings["steps"] * settings["batch_size"] * settings["ctx_len"]
        is_first = not any(other.kind == job.kind for other in seen)
        total += estimated_seconds(job, [], tokens, is_first)
        seen.add(job)
        runs.append({**asdict(job), "kind": job.kind, "finished": True, "best_loss": float(len(runs))})
        lines.append(f"{total:7.0f} s  {job}, {settings['batch_size']} x {settings['ctx_len']:,}")
    budget = 60 * options.minutes * len(options.gpus)
    lines += [f"estimate: {total:.0f} s on the GPUs together (H200, 0.1b); {budget:.0f} s are available"]
    lines += [f"grid of {name}: {grid}" for name, grid in race.grids().items()]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser, file: str, minutes: float) -> None:
    """Add the arguments that all races have. The results are DIR/`file`.json."""
    parser.add_argument("data", type=Path, metavar="DATA", help="prepared dataset folder")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    parser.add_argument("--minutes", type=float, default=minutes, help=f"time limit in minutes (default: {minutes:g})")
    parser.add_argument("--gpus", help="numbers of the GPUs, separated by commas (default: all)")
    parser.add_argument("--grid", type=int, default=3, help="settings per contestant, 1 to 3 (default: 3)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the best setting (default: 3)")
    parser.add_argument("--preset", choices=PRESETS, default="0.1b", help="layers and width (default: 0.1b)")
    parser.add_argument("--ctx_len", type=int, default=1024, help="tokens per row (default: 1024)")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per step (default: 32)")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps per run (default: 600)")
    parser.add_argument("--warmup_steps", type=int, default=50, help="steps of linear warm-up (default: 50)")
    parser.add_argument("--augment", default="transpose", help="augmentation, as in train.py (default: transpose)")
    parser.add_argument("--val_every", type=int, default=50, help="steps between validations (default: 50)")
    parser.add_argument("--add", action="store_true", help=f"keep the finished runs of DIR/{file}.json")
    parser.add_argument("--plan", action="store_true", help="print the runs and their estimated time, and stop")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of a parser with `add_arguments`, with the list of GPUs."""
    options = parser.parse_args()
    if not 1 <= options.grid <= 3 or options.seeds < 1:
        parser.error("--grid is 1, 2 or 3, and --seeds at least 1")
    if options.val_every < 2:
        parser.error("--val_every is at least 2: the step after a validation has no measured time")
    every = ",".join(map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ""
    options.gpus = (options.gpus or every).split(",")
    return options


def run_race(race_type: type[Race], options: argparse.Namespace, started: float, names: tuple[str, ...] = ()) -> int:
    """Make the runs and write, plot and print their results. Return the exit status.

    Args:
        started: when the command started, a time of time.monotonic.
        names: the race's own options that runs kept by --add must have been made with.
    """
    shared = ("preset", "ctx_len", "batch_size", "steps", "warmup_steps", "augment", "val_every")
    settings = {name: getattr(options, name) for name in (*shared, *names)}
    settings["dataset"] = read_dataset_json(options.data)["sha256"]
    file = Path(options.out) / f"{race_type.file}.json"
    runs: list[dict] = []
    if options.add and file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["settings"] != settings:
            print(f"{file} was measured with other settings: measure without --add.", file=sys.stderr)
            return 1
        runs = [run for run in kept["runs"] if run["finished"]]
    race = race_type(options, settings, runs)
    print(plan(race, options), flush=True)
    if options.plan:
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    left_out = race.run(started + 60 * options.minutes)
    plot(race.runs, file.with_suffix(".png"), race.names, race.colors)
    print(race.table())
    for job in left_out:
        print(f"left out for lack of time: {job}")
    return int(any("failed" in run for run in race.runs))


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser, Race.file, minutes=7.5)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="contestants (default: all)")
    parser.add_argument(
        "--attention",
        choices=("varlen", "flex", "sdpa", "mask"),
        default="varlen",
        help="attention of the Transformer, see transformer.py; if it fails, the next of varlen, flex, sdpa is used "
        "(default: varlen)",
    )
    parser.add_argument("--eager", action="store_true", help="do not compile the Transformer")
    options = parse(parser)
    options.eager = options.eager or not torch.cuda.is_available()
    return run_race(Race, options, started, ("attention",))


if __name__ == "__main__":
    sys.exit(main())
