"""Measure the prediction of music in parts, and how well a fill-in model uses the music around a hole.

    python benchmarks/parts.py DATA [--out DIR]

DATA is prepared with `multitrack` from several folders, each of which is a corpus. The script trains the 0.1b preset on
prediction, and a second model on a mix of prediction and infilling. Then it measures on the validation split:

- corpora: bits per note in each corpus, and by kind of token.
- holes: bits per note of the original music in holes, with and without the music around them (evaluation/holes.py).

Both models train at the same time, on two GPUs if there are two. Writes results/parts.json."""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import report
import torch

from rwkv_music.checkpoint.weights import load_model
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.evaluation.holes import hole_losses
from rwkv_music.evaluation.losses import nats_of_targets

PROJECT = Path(__file__).parent.parent
COMMON = (
    "--deepspeed_config ds_configs/zero2.json --preset 0.1b --lr 1e-3 --lr_final 1e-4 --warmup_steps 50 "
    "--weight_decay 0.1 --augment transpose --save_every 0 --val_every 100"
).split()
PLAIN = "--ctx_len 1024 --batch_size 32 --steps 600".split()
INFILL = (
    "--ctx_len 1536 --batch_size 24 --steps 1200 --task mix --completion_weight 0 --infill_weight 0.6 --val_rows 200"
).split()
HOLES = ((8, 1), (4, 1), (4, 2), (4, 4))  # bars on each side, bars of the hole


def train(out: Path, data: Path, options: list[str], gpu: int) -> None:
    command = [sys.executable, "train.py", "--data", data.resolve(), "--out", out, *COMMON, *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)} if torch.cuda.is_available() else dict(os.environ)
    done = subprocess.run(list(map(str, command)), cwd=PROJECT, env=environment, capture_output=True, text=True)
    print(done.stdout[-600:], flush=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


@torch.no_grad()
def bits_by_corpus(run: Path, data: Path, device: str) -> dict[str, dict]:
    """Return the figures of each corpus: its pieces, notes, bits per note, and bits per note of each kind of token."""
    model, codec, config, _ = load_model(run, device)
    dataset = MusicDataset(data, "val", config.data.ctx_len)
    offsets = BinIdx(data / "val").offsets
    lines = [json.loads(line) for line in (data / "pieces.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["split"] == "val"]
    corpus = np.array([Path(line["file"]).parent.name for line in lines])
    notes = np.array([line["n_notes"] for line in lines])
    kinds = codec.token_properties.kinds
    nats: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for i, batch in enumerate(dataset.validation_batches(16)):
        if not batch.n_targets:
            continue
        place = i * batch.input_ids.numel() + batch.positions.numpy() + 1
        of_piece = corpus[np.searchsorted(offsets, place, side="right") - 1]
        kind = kinds[batch.targets.flatten()[batch.positions].numpy()]
        loss = nats_of_targets(model, batch)[0]
        for name in np.unique(of_piece).tolist():
            for which in np.unique(kind).tolist():
                nats[name][which] += float(loss[(of_piece == name) & (kind == which)].sum())
    figures = {}
    for name, by_kind in sorted(nats.items()):
        n_notes = int(notes[corpus == name].sum())
        bits = {kind: value / math.log(2) / n_notes for kind, value in by_kind.items()}
        figures[name] = {
            "pieces": int((corpus == name).sum()),
            "notes": n_notes,
            "bits_per_note": round(sum(bits.values()), 4),
            "by_kind": {kind: round(value, 4) for kind, value in sorted(bits.items(), key=lambda item: -item[1])},
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: benchmarks/results)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        runs = {name: Path(folder) / name for name in ("plain", "infill")}
        second = pool.submit(train, runs["infill"], options.data, INFILL, max(torch.cuda.device_count() - 1, 0))
        train(runs["plain"], options.data, PLAIN, 0)
        corpora = bits_by_corpus(runs["plain"], options.data, device)
        second.result()
        model, codec, *_ = load_model(runs["infill"], device)
        holes = []
        for context_bars, hole_bars in HOLES:
            for loss in hole_losses(model, codec, options.data, context_bars, hole_bars, per_piece=4):
                facts = {"context_bars": context_bars, "hole_bars": hole_bars, **vars(loss)}
                holes.append(facts | {"nats": round(loss.nats, 2), "bits_per_note": round(loss.bits_per_note, 4)})
    figures = {"options": " ".join(COMMON), "plain": " ".join(PLAIN), "infill": " ".join(INFILL)}
    path = report.write("parts", {**figures, "corpora": corpora, "holes": holes}, options.out or report.RESULTS)
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
