"""Compare the duration of a training step with AdamW and with Muon on one GPU, for the 1.5b preset.

    python benchmarks/muon_step.py [--out DIR]

Writes results/step_muon.json with the figures of step.py for each optimizer."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import report

SETTINGS = "--preset 1.5b --batch_size 8 --ctx_len 2048".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=report.RESULTS, metavar="DIR", help="output folder")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in ("adamw", "muon"):
            file = Path(folder) / f"{optimizer}.json"
            line = [sys.executable, Path(__file__).parent / "step.py", *SETTINGS, "--optimizer", optimizer]
            subprocess.run([*line, "--write", file], check=True)
            figures[optimizer] = json.loads(file.read_text(encoding="utf-8"))
            print(f"{optimizer}: {figures[optimizer]['step_ms']:.1f} ms per step", flush=True)
    print(report.write("step_muon", figures, options.out))


if __name__ == "__main__":
    main()
