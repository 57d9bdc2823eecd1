"""Measure how training scales over the GPUs of one host: presets under DeepSpeed files on 1, 2, 4 and 8 GPUs.

    python benchmarks/scaling.py                    # scaling.json and scaling.png in results/, within ten minutes
    python benchmarks/scaling.py --add              # measure what the first call had no time for
    python benchmarks/scaling.py --preset 1.5b --file zero3 zeropp --channel_mix x080
    python benchmarks/scaling.py --preset tiny --gpus 1 2 --folder DIR      # without GPUs: ranks on the CPU

Weak scaling: every GPU processes the batch of `ONE_GPU`. Strong scaling: all GPUs share this batch. A row of the result
is one configuration, which step.py measures in separate processes. If a configuration fails, its row gives the reason,
and the other configurations are still measured. If the host has enough GPUs, several are measured at the same time,
except those that offload the optimizer to the host. With --alone, they are measured one after the other.

Options that are not listed go to step.py: --n_layer, --channel_mix, --recompute, --measured ..."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import report
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from ranks import PROJECT, on_ranks

# Rows on one GPU and further arguments of step.py. Models are v7 by default, like RWKV-LM's public figures.
ONE_GPU = {
    "tiny": (8, "--ctx_len 256"),
    "0.1b": (16, "--ctx_len 1024"),
    "0.4b": (8, "--ctx_len 2048"),
    "1.5b": (8, "--ctx_len 2048"),
    "7b": (4, "--ctx_len 4096 --measured 3"),  # fits in 80 GB with half of the optimizer states; a step takes seconds
}
FIRST_GUESS_S = 60  # expected seconds of a preset's row until one is measured
# The first match is the cause; later ones are other ranks' errors about the lost rank.
ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:[\w.]*(?:Error|Exception)|step\.py: error): .+)", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A configuration. Its scaling is "weak" or "strong". On one GPU, which is the base of both, it is "weak"."""

    preset: str
    file: str
    gpus: int
    scaling: str

    def __str__(self) -> str:
        return f"{self.preset} {self.file} {self.scaling} on {self.gpus}"

    @property
    def ds_file(self) -> Path:
        return PROJECT / "ds_configs" / f"{self.file}.json"

    @property
    def needs_the_host(self) -> bool:
        return "offload_optimizer" in json.loads(self.ds_file.read_text())["zero_optimization"]


def jobs(presets: list[str] | None, files: list[str], scalings: list[str], counts: list[int]) -> list[Job]:
    """Return the jobs in order of importance: weak before strong, largest number of GPUs first.

    Without `presets`, these are the rows of the table: two presets, and one row of a model that needs all GPUs.
    """
    counts = sorted(counts, reverse=True)
    wanted = [
        Job(preset, file, gpus, "weak" if gpus == 1 else scaling)
        for scaling in scalings
        for preset in presets or ("1.5b", "0.1b")
        for file in files
        for gpus in counts
    ]
    if not presets and "weak" in scalings:
        wanted.append(Job("7b", "zero2", counts[0], "weak"))
    return sorted(dict.fromkeys(wanted), key=lambda job: job.scaling == "strong")


class Running:
    """A job that runs on some of the host's GPUs, named as in CUDA_VISIBLE_DEVICES."""

    def __init__(self, job: Job, places: list[str], folder: str, more: list[str]) -> None:
        self.job, self.places, self.started = job, places, time.monotonic()
        name = str(job).replace(" ", "_")
        self._figures, self._log = Path(folder) / f"{name}.json", Path(folder) / f"{name}.txt"
        rows, arguments = ONE_GPU[job.preset]
        batch_size = rows * job.gpus if job.scaling == "weak" else rows
        line, environment = on_ranks(
            job.gpus,
            PROJECT / "benchmarks" / "step.py",
            *["--preset", job.preset, "--deepspeed_config", job.ds_file, "--batch_size", batch_size],
            *["--channel_mix", "x070", "--measured", "10", *arguments.split(), *more, "--write", self._figures],
            CUDA_VISIBLE_DEVICES=",".join(places),
            TMPDIR=folder,
        )
        with self._log.open("w") as log:
            self._process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=log)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its ranks end with it
            self._process.wait()

    def row(self) -> dict[str, Any]:
        """Return the row of a job that has ended: the job, its seconds, and its figures or the cause of its failure."""
        row = {**asdict(self.job), "seconds": round(time.monotonic() - self.started, 1)}
        if self._process.returncode == 0:
            figures = json.loads(self._figures.read_text())
            figures.pop("costliest_kernels", None)
            return row | figures
        log = self._log.read_text(errors="replace").strip()
        cause = ERROR.search(log)
        last_line = log.splitlines()[-1] if log else f"exit status {self._process.returncode}"
        return row | {"failed": (cause[1] if cause else last_line)[:300]}


def measure(
    wanted: list[Job],
    places: list[str],
    deadline: float,
    more: list[str],
    note: Callable[[Job, dict[str, Any]], None],
    alone: bool = False,
) -> None:
    """Run the jobs in order, as many at once as there are GPUs for. Jobs that do not fit the deadline are left out.

    Args:
        places: names of GPUs.
        deadline: by time.monotonic; jobs that still run then are stopped.
        note: called with each finished job and its row.
    """
    queue, free, longest = deque(wanted), list(places), {}
    running: list[Running] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while (queue or running) and time.monotonic() < deadline:
                for one in [one for one in running if one.ended()]:
                    running.remove(one)
                    free += one.places
                    row = one.row()
                    longest[one.job.preset] = max(longest.get(one.job.preset, 0), row["seconds"])
                    note(one.job, row)
                if not queue or len(free) < (len(places) if alone or queue[0].needs_the_host else queue[0].gpus):
                    time.sleep(0.2)
                    continue
                job = queue.popleft()
                if time.monotonic() + longest.get(job.preset, FIRST_GUESS_S) < deadline:
                    own = free if alone or job.needs_the_host else free[: job.gpus]
                    free = free[len(own) :]
                    running.append(Running(job, own, folder, more))
        finally:
            for one in running:
                one.stop()


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add each row's speed-up over one GPU under the same file; None if that was not measured."""
    base = {(row["preset"], row["file"]): row.get("tokens_per_second") for row in rows if row["gpus"] == 1}
    for row in rows:
        one = base.get((row["preset"], row["file"]))
        if "failed" not in row:
            row["times_one_gpu"] = row["tokens_per_second"] / one if one else None


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text; communication in milliseconds per step."""
    lines = [f"{'':<30}{'tokens/s':>11}{'x one':>7}{'MFU':>7}{'GiB':>7}{'states GB':>11}{'hidden':>8}{'exposed':>9}"]
    for row in sorted(rows, key=lambda row: (row["preset"], row["file"], row["scaling"] == "strong", row["gpus"])):
        name = f"{row['preset']} {row['file']} {row['scaling']} x {row['gpus']}"
        if "failed" in row:
            lines.append(f"{name:<30}  failed: {row['failed']}")
            continue
        sent = row.get("communication", {})
        cells = [(row["times_one_gpu"], 7, ".2f"), (row["mfu"], 7, ".1%"), (row["peak_gib"], 7, ".1f")]
        cells += [(row["optimizer_bytes"] / 1e9, 11, ".2f")]
        cells += [(sent.get("hidden_ms"), 8, ".1f"), (sent.get("exposed_ms"), 9, ".1f")]
        shown = "".join(f"{'-' if value is None else format(value, form):>{width}}" for value, width, form in cells)
        lines.append(f"{name:<30}{row['tokens_per_second']:>11,.0f}{shown}")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot speed, communication and memory by number of GPUs, for each preset measured on several numbers of GPUs."""
    rows = sorted((row for row in rows if "failed" not in row), key=lambda row: row["gpus"])
    presets = [p for p in ONE_GPU if len({row["gpus"] for row in rows if row["preset"] == p}) > 1]
    if not presets:
        return
    figure, grid = plt.subplots(len(presets), 3, figsize=(15, 4 * len(presets)), squeeze=False, layout="constrained")
    for preset, (speed, sent, memory) in zip(presets, grid, strict=True):
        mine = [row for row in rows if row["preset"] == preset]
        counts, files = sorted({row["gpus"] for row in mine}), sorted({row["file"] for row in mine})
        speed.plot(counts, counts, color="0.8", linewidth=4, label="ideal")
        memory.plot(counts, [0] * len(counts), alpha=0)  # so that the margin is a fraction of the whole range
        for number, file in enumerate(files):
            color = f"C{number}"
            weak = [row for row in mine if row["file"] == file and row["scaling"] == "weak"]
            strong = [row for row in mine if row["file"] == file and (row["scaling"] == "strong" or row["gpus"] == 1)]
            for name, line, some in (("weak", "o-", weak), ("strong", "o:", strong)):
                some = [row for row in some if row["times_one_gpu"]]
                if len(some) > 1:
                    points = [row["gpus"] for row in some], [row["times_one_gpu"] for row in some]
                    speed.plot(*points, line, color=color, label=f"{file}, {name}")
            held = [(row["gpus"], row["peak_gib"]) for row in weak if row["peak_gib"] is not None]
            memory.plot([gpus for gpus, _ in held], [gib for _, gib in held], "o-", color=color, label=file)
            timed = [row for row in weak if row["gpus"] > 1 and "communication" in row]
            at = [counts.index(row["gpus"]) + 0.8 * (number + 0.5) / len(files) - 0.4 for row in timed]
            hidden = [100 * row["communication"]["hidden_ms"] / row["step_ms"] for row in timed]
            exposed = [100 * row["communication"]["exposed_ms"] / row["step_ms"] for row in timed]
            width = 0.7 / len(files)
            sent.bar(at, exposed, width, color=color)
            sent.bar(at, hidden, width, bottom=exposed, color=color, alpha=0.3)
        speed.set(title=f"{preset}: speed-up over one GPU", xticks=counts, ylim=0)
        sent.set(title="NCCL, % of a step (weak): exposed (dark), hidden (light)", ylim=0)
        several = [gpus for gpus in counts if gpus > 1]
        sent.set(xticks=[counts.index(gpus) for gpus in several], xticklabels=several)
        memory.set(title="peak GiB per GPU (weak)", xticks=counts, ylim=0)
        for axes in (speed, sent, memory):
            axes.set_xlabel("GPUs")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    files = sorted(path.stem for path in (PROJECT / "ds_configs").glob("*.json"))
    presets = "presets to measure (default: 1.5b and 0.1b, and 7b under zero2 on all GPUs)"
    parser.add_argument("--preset", nargs="+", choices=ONE_GPU, help=presets)
    parser.add_argument(
        "--file",
        nargs="+",
        choices=files,
        default=["zero1", "zero2", "zero3"],
        help="files of ds_configs/ (default: zero1 zero2 zero3)",
    )
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of GPUs (default: 1 2 4 8)")
    parser.add_argument("--scaling", nargs="+", choices=("weak", "strong"), default=["weak", "strong"])
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="time limit in minutes; rows left out are listed (default: 9.5)"
    )
    parser.add_argument("--add", action="store_true", help="keep existing rows of the same commit and machine")
    parser.add_argument("--alone", action="store_true", help="measure one row at a time")
    parser.add_argument("--plot", action="store_true", help="only draw scaling.png from scaling.json")
    parser.add_argument(
        "--folder", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options, more = parser.parse_known_args()
    result, picture = Path(options.folder) / "scaling.json", Path(options.folder) / "scaling.png"
    if options.plot:
        plot(json.loads(result.read_text())["rows"], picture)
        return 0
    on_gpus = torch.cuda.is_available()
    if not on_gpus and (not options.preset or Path(options.folder) == report.RESULTS):
        print("There is no CUDA GPU: use --preset tiny --folder DIR to run on the CPU.", file=sys.stderr)
        return 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if on_gpus else None
    places = visible.split(",") if visible else [str(n) for n in range(os.cpu_count())]
    if on_gpus:
        places = places[: torch.cuda.device_count()]
    counts = [gpus for gpus in options.gpus if 0 < gpus <= len(places)]
    if not counts:
        print(f"--gpus: this host has {len(places)}; give at most that number.", file=sys.stderr)
        return 1
    # Rows of one file must agree in what affects the figures.
    setting = {"arguments": more, "nccl": {key: os.environ[key] for key in sorted(os.environ) if key[:5] == "NCCL_"}}
    same = {key: value for key, value in report.machine().items() if key != "date"} | setting
    rows: list[dict[str, Any]] = []
    if options.add and result.exists():
        kept = json.loads(result.read_text())
        if any({**kept["machine"], **kept}.get(key) != value for key, value in same.items()):
            print(
                f"{result} was measured with another commit, machine or setting: measure without --add.",
                file=sys.stderr,
            )
            return 1
        rows = [row for row in kept["rows"] if "failed" not in row]
    measured = [tuple(row[field] for field in Job.__dataclass_fields__) for row in rows]
    wanted = [
        job for job in jobs(options.preset, options.file, options.scaling, counts) if astuple(job) not in measured
    ]
    left_out = list(wanted)

    def write() -> None:
        add_ratios(rows)
        report.write("scaling", {**setting, "rows": rows, "left_out": list(map(str, left_out))}, options.folder)

    def note(job: Job, row: dict[str, Any]) -> None:
        rows.append(row)
        left_out.remove(job)
        print(f"{job}: {row.get('failed') or 'measured'} ({row['seconds']:.0f} s)", flush=True)
        write()  # after each row, so that a kill loses only the running ones

    measure(wanted, places, started + 60 * options.minutes, more, note, options.alone)
    write()
    plot(rows, picture)
    print(table(rows))
    for job in left_out:
        print(f"{job}: left out for lack of time; measure it with --add")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
