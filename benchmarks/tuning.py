"""Measure how much a tuned initial state learns of a composer, compared with full fine-tuning.

    python benchmarks/tuning.py --work DIR

The script trains a base model on music21's corpora without Palestrina. It then tunes this model on some movements by
Palestrina in two ways, by training all weights and by training only an initial state per layer. Both use the same
number of steps and several learning rates. The loss is measured on held-out movements. Writes results/tuning.json.

Exit status 1 in any of these cases: the best state improves the loss less than half as much as the best full
fine-tuning; the state has 1% of the parameters or more; the file of the base model has changed.

Results that DIR already contains are reused. The defaults take under 20 minutes on a CPU core. On a GPU:

    python benchmarks/tuning.py --work DIR --n_layer 12 --n_embd 768 --ctx_len 1024 --batch_size 16 \\
        --base_steps 3000 --steps 300 --name tuning_gpu"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).parent.parent
COMPOSER = ("palestrina", 200)
OTHERS = {"bach": 200, "monteverdi": 49, "josquin": 29, "trecento": 103, "haydn": 9, "mozart": 16, "ryansMammoth": 150}
RATES = {"all": (3e-4, 1e-3, 3e-3), "state": (0.3, 1.0, 3.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="folder for scores, datasets and runs")
    parser.add_argument("--n_layer", type=int, default=2, help="layers (default: 2)")
    parser.add_argument("--n_embd", type=int, default=320, help="width (default: 320)")
    parser.add_argument("--ctx_len", type=int, default=256, help="tokens per row (default: 256)")
    parser.add_argument("--batch_size", type=int, default=8, help="rows per step (default: 8)")
    parser.add_argument("--base_steps", type=int, default=900, help="optimizer steps of the base model (default: 900)")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each tuning (default: 150)")
    parser.add_argument("--name", default="tuning", help="name of the JSON file (default: tuning)")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    work = options.work

    composer, others = dataset(work, "composer", dict([COMPOSER])), dataset(work, "others", OTHERS)
    shape = ["--ctx_len", options.ctx_len, "--batch_size", options.batch_size, "--save_every", 0]
    wide = ["--n_layer", options.n_layer, "--n_embd", options.n_embd]
    base_run, base = work / "base", work / "base.safetensors"
    if not base.exists():
        schedule = ["--steps", options.base_steps, "--warmup_steps", 20, "--lr", 1e-3, "--lr_final", 1e-4]
        train(base_run, "--data", others, *wide, *shape, *schedule, "--val_every", 300)
        command("-m", "rwkv_music", "export", base_run, "--format", "safetensors", "--out", base)
    before = sha256(base)

    rows = []
    for tune, rates in RATES.items():
        for lr in rates:
            run = work / f"{tune}_{lr:g}"
            schedule = ["--steps", options.steps, "--warmup_steps", 10, "--lr", lr, "--lr_final", lr / 10]
            if not run.exists():
                tuned = ["--init", base, "--tune", tune, "--val_every", options.steps]
                train(run, "--data", composer, *shape, *schedule, *tuned)
            curve = EventAccumulator(str(run)).Reload()
            trained, parameters = parameter_counts(run)
            rows.append(
                {
                    "tune": tune,
                    "lr": lr,
                    "parameters": trained,
                    "share": trained / parameters,
                    "checkpoint_bytes": sum(f.stat().st_size for f in last_checkpoint(run).iterdir()),
                    "seconds": seconds(run),
                    "val_loss": curve.Scalars("val/loss")[-1].value,
                    "first_and_last_train_loss": [curve.Scalars("train/loss")[i].value for i in (0, -1)],
                }
            )
            print(rows[-1], flush=True)
    untuned = evaluated(base_run, composer)
    best = {tune: min((r for r in rows if r["tune"] == tune), key=lambda r: r["val_loss"]) for tune in RATES}
    moved = {tune: untuned - row["val_loss"] for tune, row in best.items()}
    figures = {
        "base": {
            "model": {"layers": options.n_layer, "width": options.n_embd},
            "corpora": OTHERS,
            "steps": options.base_steps,
            "seconds": seconds(base_run),
            "val_loss_on_its_own_corpora": EventAccumulator(str(base_run)).Reload().Scalars("val/loss")[-1].value,
            "unchanged": sha256(base) == before,
        },
        "composer": {"corpus": COMPOSER[0], **json.loads((composer / "dataset.json").read_text())["splits"]},
        "steps": options.steps,
        "rows_and_tokens": [options.batch_size, options.ctx_len],
        "untuned_val_loss": untuned,
        "tuned": rows,
        "nats_moved": moved,
        "state_over_all": moved["state"] / moved["all"],
    }
    print(report.write(options.name, figures, options.out))
    print(
        f"improvement in nats per token: {moved['all']:.3f} by full fine-tuning, {moved['state']:.3f} by a state with "
        f"{best['state']['share']:.2%} of the parameters"
    )
    enough = moved["state"] >= moved["all"] / 2 and best["state"]["share"] < 0.01
    return 0 if enough and figures["base"]["unchanged"] else 1


def dataset(work: Path, name: str, corpora: dict[str, int]) -> Path:
    """Prepare the first scores of each corpus. Return the dataset folder."""
    folder = work / name
    if not (folder / "dataset.json").exists():
        for corpus, limit in corpora.items():
            command("-m", "rwkv_music", "corpus", corpus, "--limit", limit, "--out", work / "midi" / corpus)
        midi = [work / "midi" / corpus for corpus in corpora]
        command("-m", "rwkv_music", "prepare", *midi, "--out", folder, "--val-fraction", 0.2)
    return folder


def train(run: Path, *arguments: object) -> None:
    """Run train.py with ZeRO-1."""
    command("train.py", "--out", run, "--deepspeed_config", "ds_configs/zero1.json", *arguments)


def command(*arguments: object) -> str:
    """Run Python with these arguments in the project's folder. Return its output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=PROJECT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def evaluated(run: Path, data: Path) -> float:
    """Return a run's loss on the held-out pieces of `data`, in nats per token."""
    table = command("-m", "rwkv_music", "evaluate", run, "--data", data)
    return float(next(line for line in table.splitlines() if line.startswith("val")).split()[2])


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


def parameter_counts(run: Path) -> tuple[int, int]:
    """Return the numbers of trained and of all parameters, from the run's summary in TensorBoard."""
    texts = EventAccumulator(str(run)).Reload()
    summary = texts.Tensors("run/text_summary")[-1].tensor_proto.string_val[0].decode()
    parameters = int(re.search(r"([\d,]+) parameters, vocabulary", summary)[1].replace(",", ""))
    trained = re.search(r"trains +([\d,]+) parameters", summary)
    return int(trained[1].replace(",", "")) if trained else parameters, parameters


def seconds(run: Path) -> int:
    """Return the seconds between the first and the last point of a run's curves."""
    points = [point for tag in ("train/loss", "val/loss") for point in EventAccumulator(str(run)).Reload().Scalars(tag)]
    return round(max(p.wall_time for p in points) - min(p.wall_time for p in points))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
