"""Train, evaluate and complete with the 0.1b preset on music21's whole corpus, on one GPU.

    python -m rwkv_music corpus bach --out midi/bach      # and the other corpora that `corpus` lists
    python -m rwkv_music prepare midi --out DATA
    python benchmarks/corpus_run.py --data DATA --prompts a.mid b.mid c.mid --steps 5000

The prompts are pieces of the validation split. Writes results/corpus.json and, to results/corpus/, the loss curve and a
completion of each prompt with its piano roll."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from demo import draw_curve, read_evaluation

PROJECT = Path(__file__).parent.parent
BARS = ("--context-bars", "4", "--bars", "8")


def run(*command: str) -> str:
    """Run `command`, echo its output and return it. Exits if the command fails."""
    print("$", *command, flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait() != 0:
        raise SystemExit(f"{command[1]} failed")
    return "".join(lines)


def read_measures(output: str) -> dict[str, dict[str, str]]:
    """Parse the symbolic measures that `evaluate --samples` printed: {measure: {group: cell}}."""
    table = re.split(r"mean \+- .*:\n", output)[1]
    names, *rows = (re.split(r"  +", line.strip()) for line in table.splitlines() if line.strip())
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="prepared dataset folder")
    parser.add_argument("--prompts", required=True, nargs="+", metavar="IN.mid", help="held-out pieces to complete")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps (default: 5000)")
    parser.add_argument("--samples", type=int, default=100, help="completions to measure (default: 100)")
    parser.add_argument(
        "--out", default=report.RESULTS, type=Path, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options, more = parser.parse_known_args()
    folder = options.out / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rwkv_music"]
    with tempfile.TemporaryDirectory() as run_folder:
        arguments = ["--data", options.data, "--out", run_folder, "--preset", "0.1b", "--steps", str(options.steps)]
        arguments += ["--deepspeed_config", str(PROJECT / "ds_configs" / "zero2.json"), "--log_every", "50"]
        arguments += ["--val_every", str(options.steps // 10), "--save_every", "0", *more]
        start = time.perf_counter()
        run(sys.executable, "train.py", *arguments)
        seconds = time.perf_counter() - start
        evaluate = (*command, "evaluate", run_folder, "--data", options.data)
        printed = run(*evaluate, "--batch-size", "32", "--samples", str(options.samples))
        for prompt in options.prompts:
            completion = str(folder / Path(prompt).name)
            run(*command, "generate", run_folder, "--prompt", prompt, *BARS, "--min-p", "0.02", "--out", completion)
        evaluation = read_evaluation(printed)
        curves = draw_curve(Path(run_folder), evaluation["val"]["bigram_nats_per_token"], folder / "curve.png")
        facts = json.loads((Path(options.data) / "dataset.json").read_text(encoding="utf-8"))
        config = json.loads((Path(run_folder) / "config.json").read_text(encoding="utf-8"))
    figures = {
        "minutes": seconds / 60,
        "data": {"splits": facts["splits"], "vocabulary": facts["tokenizer"]["vocab_size"]},
        "batch": [config["train"]["batch_size"], config["data"]["ctx_len"]],
        "steps": options.steps,
        "options": more,
        "evaluation": evaluation,
        "measures": read_measures(printed),
        "curves": curves,
    }
    print(report.write("corpus", figures, options.out))


if __name__ == "__main__":
    main()
