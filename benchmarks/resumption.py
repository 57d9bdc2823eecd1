"""Measure how much the loss differs when a run resumes on another number of ranks or under another ZeRO stage.

    python benchmarks/resumption.py --data DATA                                       # on the CPU: 1, 2 and 4 ranks
    python benchmarks/resumption.py --data DATA --preset 0.1b --ranks 1 2 --ctx_len 1024    # on two GPUs

A run saves a checkpoint under ds_configs/zero2.json and continues for 20 steps. Copies of the checkpoint resume on each
number of ranks with zero1.json, zero2.json and zero3.json, without any other argument. If the saved micro-batch size
does not fit the number of ranks, train.py chooses a smaller one. Writes results/resumption_DEVICE.json with the
differences from the losses of the uninterrupted run. Exit status 1 if a difference exceeds 1e-3."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import report
import torch
from ranks import PROJECT, on_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 20  # after the checkpoint


def train(run: Path, ranks: int, file: str, *arguments: object) -> list[float]:
    """Run train.py and return the training losses of its run folder."""
    files = ["--out", run, "--deepspeed_config", PROJECT / "ds_configs" / f"{file}.json"]
    line, environment = on_ranks(ranks, PROJECT / "train.py", *files, *arguments, OMP_NUM_THREADS=1)
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{run.name} failed with status {done.returncode}: {done.stderr[:10_000]}"
        )  # the cause is at the beginning
    return [event.value for event in EventAccumulator(str(run)).Reload().Scalars("train/loss")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, metavar="DATA", help="prepared dataset folder")
    parser.add_argument("--preset", default="tiny", help="model preset (default: tiny)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks (default: 1 2 4)")
    parser.add_argument("--at", type=int, default=300, help="step of the checkpoint (default: 300)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows per step (default: 16)")
    parser.add_argument("--ctx_len", type=int, default=256, help="tokens per row (default: 256)")
    parser.add_argument("--beside", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    new = ["--data", options.data, "--preset", options.preset, "--steps", options.at + STEPS, "--log_every", 1]
    new += ["--batch_size", options.batch_size, "--ctx_len", options.ctx_len, "--val_every", 0]
    new += ["--save_every", options.at]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.beside) as pool:
        here = Path(folder)
        unbroken = {ranks: pool.submit(train, here / str(ranks), ranks, "zero2", *new) for ranks in options.ranks}

        def resume(before: int, after: int, stage: int) -> dict[str, object]:
            expected = unbroken[before].result()[options.at :]
            run = here / f"{before}_{after}_{stage}"
            middle = Path("checkpoints") / f"step_{options.at:08d}"
            shutil.copytree(here / str(before) / middle, run / middle)
            losses = train(run, after, f"zero{stage}")
            shutil.rmtree(run)
            apart = [abs(a - b) for a, b in zip(losses, expected, strict=True)]
            row = {"ranks": before, "then_ranks": after, "then_stage": stage, "largest": max(apart), "apart": apart}
            print(f"{before} to {after} ranks, ZeRO-2 to ZeRO-{stage}: largest difference {max(apart):.2e}", flush=True)
            return row

        layouts = [(b, a, stage) for b in options.ranks for a in options.ranks for stage in (1, 2, 3)]
        rows = [row.result() for row in [pool.submit(resume, *each) for each in layouts]]
        figures = {
            "arguments": {key: value for key, value in vars(options).items() if key not in ("data", "out", "beside")},
            "largest": max(row["largest"] for row in rows),
            "last_losses": {ranks: losses.result()[options.at :] for ranks, losses in unbroken.items()},
            "rows": rows,
        }
    device = report.card() if torch.cuda.is_available() else "cpu"
    print(report.write(f"resumption_{device}", figures, options.out))
    print(f"largest difference: {figures['largest']:.2e} nats per token")
    return int(figures["largest"] > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
