"""Train the 0.1b preset on music21's corpus and on game music for some minutes on one GPU, and make music with it.

    python -m rwkv_music corpus bach --out midi/bach      # and the other corpora that `corpus` lists
    python benchmarks/corpus_run.py --midi midi --table composers.csv
    python -m rwkv_music prepare midi --metadata composers.csv --tags composer --out DATA
    python benchmarks/corpus_run.py DATA --midi midi --minutes 5

The second line writes a table with the composers of the corpora, so that the model learns them as tags. A short
run first measures the duration of a step, from which the number of steps follows. The script evaluates the best
checkpoint and makes five pieces with it. Four are made from a held-out chorale: it is continued, filled in and
harmonized, and its bass line is written. In the fifth, a held-out fiddle tune is continued.

Writes results/corpus.json and, to results/corpus/, the loss curve and the pieces with their piano rolls. With --run,
the run folder is kept. If this folder already contains a run, the script evaluates that run and does not train."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import report
import torch
from demo import draw_curve
from parts import HOLES, bits_by_corpus
from timed_training import steps_in, train

from rwkv_music.checkpoint.weights import load_model
from rwkv_music.evaluation import fills, losses, mirex, tags
from rwkv_music.evaluation.completions import sample_measures
from rwkv_music.evaluation.holes import hole_losses
from rwkv_music.midi.measures import compared
from rwkv_music.tokenizers.codec import Codec

TRAIN = (
    "--deepspeed_config ds_configs/zero2.json --preset 0.1b --optimizer muon --lr 2e-3 --lr_final 1e-4 "
    "--warmup_steps 100 --weight_decay 2 --augment transpose --ctx_len 2048 --batch_size 24 --task mix "
    "--completion_weight 0 --infill_weight 0.8 --save_every 0"
).split()
VALIDATIONS = 24
COMPOSERS = {  # of the pieces in a folder; the others have no tag
    "airdsAirs": "traditional",
    "bach": "bach",
    "beach": "beach",
    "beethoven": "beethoven",
    "essenFolksong": "traditional",
    "josquin": "josquin",
    "monteverdi": "monteverdi",
    "mozart": "mozart",
    "oneills1850": "traditional",
    "palestrina": "palestrina",
    "ryansMammoth": "traditional",
    "schumann_robert": "schumann",
}
HOLES_BY_CORPUS = ("bach", "palestrina", "ryansMammoth", "essenFolksong")
PIECES = {  # name: (corpus, number of parts, options of `generate`)
    "continued": ("bach", 4, ("--context-bars", "4", "--bars", "12")),
    "filled-in": ("bach", 4, ("--fill", "bars=5-8")),
    "bass-line": ("bach", 4, ("--fill", "parts=4")),
    "harmonized": ("bach", 4, ("--fill", "parts=2,3,4")),
    "fiddle-tune": ("ryansMammoth", 1, ("--context-bars", "4", "--bars", "12")),
}


def write_table(midi: Path, path: Path) -> None:
    """Write the composer of each piece in the folders of COMPOSERS as .csv."""
    lines = ["file,composer"]
    for corpus, composer in COMPOSERS.items():
        lines += [f"{corpus}/{file.name},{composer}" for file in sorted((midi / corpus).glob("*.mid"))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def held_out_by_corpus(data: Path) -> dict[str, list[int]]:
    """Return the indices of the held-out pieces of each corpus in the validation split."""
    pieces = map(json.loads, (data / "pieces.jsonl").read_text(encoding="utf-8").splitlines())
    found: dict[str, list[int]] = defaultdict(list)
    for i, piece in enumerate(piece for piece in pieces if piece["split"] == "val"):
        found[Path(piece["file"]).parent.name].append(i)
    return found


def holes(model: torch.nn.Module, codec: Codec, data: Path, indices: list[int] | None = None) -> list[dict]:
    """Return the losses of holes for each setting of HOLES."""
    return [
        {"context_bars": context, "hole_bars": bars, **vars(loss), "bits_per_note": round(loss.bits_per_note, 4)}
        for context, bars in HOLES
        for loss in hole_losses(model, codec, data, context, bars, per_piece=4, indices=indices)
    ]


def prompts(data: Path, midi: Path) -> dict[tuple[str, int], Path]:
    """Return the first held-out piece that each of PIECES can use, by corpus and number of parts."""
    found: dict[tuple[str, int], Path] = {}
    wanted = {(corpus, parts) for corpus, parts, _ in PIECES.values()}
    for line in (data / "pieces.jsonl").read_text(encoding="utf-8").splitlines():
        piece = json.loads(line)
        file = Path(piece["file"])
        key = file.parent.name, piece["n_parts"]
        if piece["split"] == "val" and key in wanted:
            found.setdefault(key, midi / file.parent.name / file.name)
    return found


def evaluated(run: Path, data: Path, device: str) -> dict:
    """Return the figures of the best checkpoint of a run."""
    model, codec, config, step = load_model(run, device)
    figures = {"step": step, "parameters": sum(p.numel() for p in model.parameters())}
    rows = losses.evaluate(model, codec, data, config.data.ctx_len, config.train.batch_size)
    figures["evaluation"] = {row.split: vars(row) for row in rows}
    figures["corpora"] = bits_by_corpus(run, data, device)
    figures["holes"] = holes(model, codec, data)
    own = held_out_by_corpus(data)
    figures["holes_by_corpus"] = {name: holes(model, codec, data, own[name]) for name in HOLES_BY_CORPUS}
    figures["tags"] = [vars(loss) for loss in tags.tag_losses(model, codec, data)]
    real, completed = sample_measures(model, codec, data, 100)
    tables = {"completions": compared([f"{len(real)} real", f"{len(completed)} completed"], [real, completed])}
    tables["fills"] = fills.as_table(fills.evaluate_fills(model, codec, data, 100))
    tables["mirex"] = mirex.as_table(mirex.evaluate_mirex(model, codec, data, 40))
    figures["tables"] = {name: text.splitlines() for name, text in tables.items()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA", help="prepared dataset folder")
    parser.add_argument("--midi", required=True, type=Path, metavar="DIR", help="the folder with the corpora")
    parser.add_argument("--minutes", type=float, default=5.0, help="duration of the training (default: 5)")
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        help="run folder; if it already holds a run, evaluates it instead of training (default: a temporary folder)",
    )
    parser.add_argument(
        "--out", default=report.RESULTS, type=Path, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="only write the table of composers")
    options = parser.parse_args()
    if options.table:
        write_table(options.midi, options.table)
        return
    if not options.data:
        parser.error("give DATA or --table")
    folder = options.out / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        run = options.run or Path(temporary)
        timing = run / "timing.json"
        if not timing.is_file():
            steps, start = steps_in(options.minutes, options.data, TRAIN), time.perf_counter()
            often = ("--steps", str(steps), "--val_every", str(max(steps // VALIDATIONS, 1)), "--log_every", "20")
            train(options.data, run, [*TRAIN, *often])
            minutes = (time.perf_counter() - start) / 60
            timing.write_text(json.dumps({"steps": steps, "minutes": minutes}), encoding="utf-8")
        figures = json.loads(timing.read_text(encoding="utf-8"))
        for name, (corpus, parts, how) in PIECES.items():
            prompt = prompts(options.data, options.midi)[corpus, parts]
            command = [sys.executable, "-m", "rwkv_music", "generate", run, "--prompt", prompt, *how]
            subprocess.run([*command, "--top-p", "0.95", "--out", folder / f"{name}.mid"], check=True)
        figures |= evaluated(run, options.data, device)
        bigram = figures["evaluation"]["val"]["bigram_nats_per_token"]
        figures["curves"] = draw_curve(run, bigram, folder / "curve.png")
    facts = json.loads((options.data / "dataset.json").read_text(encoding="utf-8"))
    data = {"splits": facts["splits"], "vocabulary": facts["tokenizer"]["vocab_size"]}
    print(report.write("corpus", {"data": data, "options": " ".join(TRAIN), **figures}, options.out))


if __name__ == "__main__":
    main()
