"""Measure how long a checkpoint interrupts training, in each --save_mode.

    python benchmarks/saving.py

The script trains a model on the CPU with checkpoints of about 500 MB. It measures the time that the main thread spends
on a checkpoint, the duration of steps while a checkpoint is written, and the duration of other steps. Writes
results/saving.json."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

from rwkv_music.checkpoint.run_folder import checkpoints
from rwkv_music.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.prepare.corpus import write_corpus
from rwkv_music.prepare.pipeline import prepare
from rwkv_music.training.signals import leave

PROJECT = Path(__file__).parent.parent
SAVE_EVERY, SAVES = 8, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs=2, metavar=("MODE", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only)))
        leave(0)  # skips the interpreter's shutdown, which DeepSpeed's threads would abort
    with tempfile.TemporaryDirectory() as folder:
        write_corpus("bach", Path(folder) / "midi", workers=1, limit=12)
        prepare([Path(folder) / "midi"], Path(folder) / "data", workers=1)
        results = {}
        for mode in ("blocking", "overlapped"):
            line = [sys.executable, __file__, "--only", mode, f"{folder}/data"]
            output = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
            results[mode] = json.loads(output.splitlines()[-1])
            print(mode, results[mode], flush=True)
    report.write("saving", results)
    return 0


def measure(mode: str, data: str) -> dict[str, float]:
    """Return medians in seconds: of the pause for a checkpoint, of steps while one is written, and of other steps."""
    from rwkv_music.training.loop import Loop
    from rwkv_music.training.setup import setup

    with tempfile.TemporaryDirectory() as run:
        train = TrainConfig(
            out=run,
            steps=SAVE_EVERY * (SAVES + 1) + 1,
            batch_size=2,
            save_every=SAVE_EVERY,
            keep=2,
            val_every=0,
            save_mode=mode,
        )
        config = RunConfig(ModelConfig(n_layer=9, n_embd=512), DataConfig(data=data, ctx_len=128), train)
        trainer = Loop(setup(config, PROJECT / "ds_configs" / "zero2.json", given=set()))
        standing: dict[int, float] = {}  # by checkpoint; the first one also allocates the copies
        quiet, beside = [], []
        under_way = []
        step, save, finish = trainer.step, trainer.saver.save, trainer.saver.finish

        def timed(action, *arguments) -> None:
            start = time.perf_counter()
            under_way.append(action)
            action(*arguments)
            under_way.pop()
            if not under_way:  # `save` calls `finish`
                number = trainer.progress.step // SAVE_EVERY
                standing[number] = standing.get(number, 0) + time.perf_counter() - start

        def timed_step(*arguments):
            start, busy = time.perf_counter(), trainer.saver.writing
            result = step(*arguments)
            (beside if busy else quiet).append(time.perf_counter() - start)
            return result

        trainer.step = timed_step
        trainer.saver.save = lambda progress: timed(save, progress)
        trainer.saver.finish = lambda: timed(finish)
        trainer.run()
        size = sum(file.stat().st_size for file in checkpoints(run)[-1].iterdir())
    between = [standing[number] for number in range(2, SAVES + 1)]
    return {
        "checkpoint_mb": round(size / 1e6),
        "standing_still_s": round(statistics.median(between), 3),
        "step_s": round(statistics.median(quiet[2:]), 3),
        "step_while_writing_s": round(statistics.median(beside), 3) if beside else None,
        "steps_while_writing": round(len(beside) / SAVES, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
