"""Train the model that the package contains, and export it.

    python -m rwkv_music corpus bach --out midi/bach      # and ryansMammoth
    rm midi/bach/*-krn.mid                                # their encoder reserves rights to derived files
    python -m rwkv_music prepare midi --out DATA
    python benchmarks/shipped_model.py DATA --minutes 2

The model predicts pieces and fills in holes. With --minutes, a short run first measures the duration of a step, from
which the number of steps follows. Writes the weights as bf16 safetensors, the tokenizer in the same folder, and
results/shipped_model.json with the losses, the size and the settings. Exit status 1 if weights and tokenizer together
have more than 6,000,000 bytes. Options that are not listed are passed to train.py."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import report
import torch
from timed_training import steps_in, train

from rwkv_music.checkpoint.export import export
from rwkv_music.checkpoint.weights import SHIPPED_MODEL, load_model, tokenizer_beside
from rwkv_music.evaluation import losses
from rwkv_music.evaluation.holes import hole_losses

MOST_BYTES = 6_000_000
# With 1,886 tokens, 2,156,928 of these 2,881,152 weights are outside of tables that are indexed by token. With x080 the
# tables of DeepEmbed would replace half of them, and the corpora use only a small part of the tokens.
SHAPE = "--channel_mix x070 --n_layer 5 --n_embd 192 --dim_ffn 576".split()
TRAIN = (
    "--deepspeed_config ds_configs/zero2.json --optimizer muon --lr 2e-3 --lr_final 1e-4 --warmup_steps 100 "
    "--weight_decay 2 --augment all --ctx_len 2048 --batch_size 32 --task mix --completion_weight 0 "
    "--infill_weight 0.7 --save_every 0"
).split()
VALIDATIONS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="dataset folder, prepared with multitrack")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=3.0, metavar="X", help="minutes of training (default: 3)")
    length.add_argument("--steps", type=int, metavar="N", help="optimizer steps, instead of --minutes")
    parser.add_argument(
        "--out", type=Path, default=SHIPPED_MODEL, metavar="FILE", help="weights (default: those of the package)"
    )
    parser.add_argument(
        "--results", default=report.RESULTS, metavar="DIR", help="folder of the .json (default: benchmarks/results)"
    )
    options, more = parser.parse_known_args()
    data, settings = options.data, [*SHAPE, *TRAIN, *more]
    steps = options.steps or steps_in(options.minutes, data, settings)
    with tempfile.TemporaryDirectory() as folder:
        run, start = Path(folder) / "run", time.perf_counter()
        every = ("--steps", str(steps), "--val_every", str(-(-steps // VALIDATIONS)))
        curves = train(data, run, [*settings, *every, "--log_every", str(min(20, -(-steps // 50)))])
        minutes = (time.perf_counter() - start) / 60
        weights = export(run, options.out, "safetensors")  # before the evaluation, which takes a while
        sizes = {file.name: file.stat().st_size for file in (options.out, tokenizer_beside(options.out))}
        model, codec, config, best = load_model(run, "cuda" if torch.cuda.is_available() else "cpu")
        rows = losses.evaluate(model, codec, data, config.data.ctx_len, config.train.batch_size)
        print(losses.as_table(rows), flush=True)
        holes = hole_losses(model, codec, data)
    pieces = (json.loads(line) for line in (data / "pieces.jsonl").read_text(encoding="utf-8").splitlines())
    facts = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    figures = {
        "data": {
            "pieces": Counter(Path(piece["file"]).parent.name for piece in pieces),
            "splits": facts["splits"],
            "vocabulary": facts["tokenizer"]["vocab_size"],
        },
        "options": " ".join(settings),
        "steps": steps,
        "minutes": round(minutes, 2),
        "best_step": best,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sizes,
        "exported": vars(weights.config),
        "evaluation": {row.split: vars(row) for row in rows},
        "holes": [{**vars(loss), "bits_per_note": round(loss.bits_per_note, 4)} for loss in holes if loss.notes],
        "curves": {tag: points for tag, points in curves.items() if tag == "train/loss" or tag.startswith("val/")},
    }
    print(report.write("shipped_model", figures, options.results))
    print(f"{sum(sizes.values()):,} bytes; {steps:,} steps in {minutes:.1f} minutes, the best is step {best:,}")
    return 0 if sum(sizes.values()) <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
