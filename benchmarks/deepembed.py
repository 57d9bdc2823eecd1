"""Compare forms of DeepEmbed by how fast RWKV learns with them: same rows, same validation, same number of steps.

    python benchmarks/deepembed.py DATA --out DIR [--minutes 9] [--gpus 0,1] [--grid 2] [--seeds 3]
    python benchmarks/deepembed.py DATA --plan     # only print the runs and their estimated time
    python benchmarks/deepembed.py DATA --out DIR --preset tiny --ctx_len 64 --steps 6 --val_every 3      # on a CPU

The contestants are:
- x070: no DeepEmbed (`--channel_mix x070`)
- x080: the output of channel mixing times a vector of the token (`--channel_mix x080`)
- gate32: BlinkDL's later form (RWKV-v7/rwkv_v7a_demo.py). A matrix of the token, 32 x 32, and the input gate the hidden
  layer of channel mixing: h * ((x s1) S s2 + s0) with S = s_emb[token] + ln0(emb[token]) s_emb_x^T

gate32 exists only in this benchmark (deepembed_worker.py). It would have become a third value of `--channel_mix` if its
loss had been lower than those of x070 and x080 by more than the spread of the seeds. It was lower than that of x080 by
more than the spread, but not than that of x070 (results/deepembed.json, measured with --grid 2).

Training is that of train.py with ds_configs/zero2.json on one GPU, also in validation. x070 and x080 use the fused
sublayers. gate32 uses fused time mixing, but channel mixing in plain PyTorch, because no kernel computes its gate.
Compare the losses by steps, then: a kernel for the gate would shorten the times of gate32.

Each contestant first runs with one seed at the learning rates of the grid, and then at its best one with more seeds.
The rest is as in learning.py: one process per GPU, the queue, --minutes, --add, the results in deepembed.json after
every validation. The weights that the contestants have in common start with the same values for the same seed.

On an H200, a run with the default arguments takes about 50 s for x070, 60 s for x080 and 80 s for gate32. The 12 runs
of --grid 2 --seeds 3 took 730 s together. --plan assumes that all forms are as fast as x080.

Seconds of training are the number of steps times the median step time, without validation, compilation and set-up."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import learning
from learning import Job, described

WORKER = Path(__file__).parent / "deepembed_worker.py"
LEARNING_RATES = (2e-3, 1e-3, 4e-3)  # the most promising first
NAMES = {
    "x070": "x070, no DeepEmbed",
    "x080": "x080, factors of the output",
    "gate32": "gate of the hidden layer, 32 x 32",
}
COLORS = {name: f"C{number}" for number, name in enumerate(NAMES)}
BASES = ("x070", "x080")  # those that the others are compared with


class NamedJob(Job):
    """A run of this race."""

    def __str__(self) -> str:
        return f"{self.name}, {described(self.setting)}, seed {self.seed}"


class DeepEmbedRace(learning.Race):
    """The race between the forms of DeepEmbed."""

    file, names, colors = "deepembed", NAMES, COLORS

    def script(self) -> Path:
        return WORKER

    def grids(self) -> dict[str, list]:
        rates, weight_decay = LEARNING_RATES[: self._options.grid], self._options.weight_decay
        return {name: [[lr, 0.0, weight_decay] for lr in rates] for name in self._options.contestants}

    def wanted(self, runs: list[dict]) -> list[Job]:
        """Return the jobs: the grids, then the further seeds of the contestants whose grid is complete."""
        optimizer, grids = self._options.optimizer, self.grids()
        settings = [(name, grid[i]) for i in range(self._options.grid) for name, grid in grids.items()]
        jobs: list[Job] = [NamedJob(name, *setting, 0, optimizer) for name, setting in settings]
        for seed in range(1, self._options.seeds):
            for name, grid in grids.items():
                ended = {learning.setting_of(run) for run in runs if run["name"] == name and run["seed"] == 0}
                best = learning.best_setting(runs, name)
                if best and ended >= set(map(tuple, grid)):
                    jobs.append(NamedJob(name, *best, seed, optimizer))
        return jobs

    def job_settings(self, job: Job) -> dict[str, Any]:
        data = str(self._options.data.resolve())
        forms = {"channel_mix": "x080" if job.name == "x080" else "x070", "gated": job.name == "gate32"}
        return {**self._settings, **asdict(job), "kind": job.kind, "data": data, **forms}

    def summary(self) -> dict[str, Any]:
        chosen = learning.chosen_runs(self.runs, NAMES)
        if not chosen:
            return {}
        return {"contestants": learning.figures_of(chosen, self.runs), "differences": differences(chosen)}

    def table(self) -> str:
        result = self.summary()
        lines = learning.lines_of(result.get("contestants", {}), NAMES)
        for name, bases in result.get("differences", {}).items():
            for base, x in bases.items():
                spread = "one seed" if x["spread"] is None else f"spread {x['spread']:.4f}"
                lines.append(f"{name} against {base}: {x['loss']:+.4f} nats per token ({spread})")
        return "\n".join(lines)


def differences(chosen: dict[str, list[dict]]) -> dict[str, dict[str, dict]]:
    """Return, for each contestant and each of BASES, the difference of their mean best losses in nats per token.

    `spread` is the larger of the two standard deviations over the seeds, None if one of them has a single seed. `wins`
    is whether the contestant's loss is lower by more than the spread.
    """
    best = {name: learning.spread([run["best_loss"] for run in some]) for name, some in chosen.items()}
    result: dict[str, dict[str, dict]] = {}
    for name, x in best.items():
        for base in BASES[: BASES.index(name)] if name in BASES else BASES:
            if base not in best:
                continue
            deviations, loss = [x["deviation"], best[base]["deviation"]], x["mean"] - best[base]["mean"]
            spread = None if None in deviations else max(deviations)
            wins = spread is not None and loss < -spread
            result.setdefault(name, {})[base] = {"loss": loss, "spread": spread, "wins": wins}
    return result


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    learning.add_arguments(parser, DeepEmbedRace.file, minutes=9)
    parser.add_argument(
        "--contestants", nargs="+", choices=NAMES, default=list(NAMES), help="forms of DeepEmbed (default: all)"
    )
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon", help="optimizer (default: muon)")
    parser.add_argument("--weight_decay", type=float, default=0.1, help="of the large matrices (default: 0.1)")
    options = learning.parse(parser)
    return learning.run_race(DeepEmbedRace, options, started, ("optimizer", "weight_decay"))


if __name__ == "__main__":
    sys.exit(main())
