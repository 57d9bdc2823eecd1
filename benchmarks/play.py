"""Measure in Chromium how soon the page of `play` has the first new note, and how soon a new user hears a fill.

    make demo && python benchmarks/play.py --run demo/run [--model NAME] [--repeats N] [--out DIR]

For each model, the script starts `python -m rwkv_music play` as a user does, opens the page in Debian's Chromium
(`apt-get install chromium`), and fills bars 5 to 8 of the alto of the example with two candidates. The models are the
included one, with --run that of a run folder, and models of the presets tiny and 0.1b with random weights. Random
models need as long for a token as trained ones, but write more notes into a bar. The script measures

- served: from the start of the command to the address of the page,
- heard: from the start of the command until the new bars sound. The user's part is to open the page, to click on the
  example, on Fill and, as soon as the fill is complete, on Play.
- first_note: from the click on Fill until the page has the first new note: for the first fill after the start
  (first_note_cold), and for the following ones the median and the maximum (first_note).

All times are in seconds. A CPU that other programs use gives longer times; the load average at the start is recorded.
The audio samples are real: "heard" is the time at which the page's analyser sees a sound. Writes results/play.json.
Exit status 1 if a first note takes longer than REQUIRED allows, or "heard" longer than HEARD_WITHIN."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
import torch
from playwright.sync_api import Page, sync_playwright

from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import make_codec

PROJECT = Path(__file__).parent.parent
REQUIRED = {"included": 1.0, "run": 1.0, "tiny": 1.0, "0.1b": 3.0}  # seconds to the first note, at most
HEARD_WITHIN = 60.0  # seconds
TIMEOUT_MS = 300_000
ARGUMENTS = ["--no-sandbox", "--disable-background-networking"]
SOUNDS = "() => document.getElementById('level').value > 0.01"
DONE = "() => document.getElementById('status').textContent.startsWith('Filled in')"


def write_untrained(preset: str, folder: Path) -> Path:
    """Write a model with random weights in bf16, and its tokenizer. Return the path of the weights."""
    codec = make_codec("multitrack")
    torch.manual_seed(0)
    model = RWKV(ModelConfig(**PRESETS[preset], vocab_size=codec.vocab_size)).bfloat16()
    path = folder / f"{preset}.pth"
    torch.save(model.state_dict(), path)
    codec.save(f"{path}.tokenizer.json")
    return path


def fill(page: Page) -> float:
    """Click on Fill, and wait for the result. Return the seconds until the page had the first new note."""
    page.evaluate("() => { document.getElementById('status').textContent = ''; }")
    page.click("#fill")
    page.wait_for_function(DONE)
    return page.evaluate("() => performance.getEntriesByName('first note')[0].duration") / 1000


def measure(model: Path | None, repeats: int) -> dict[str, float]:
    """Return the figures of a model; None is the included one."""
    command = [sys.executable, "-m", "rwkv_music", "play", *([str(model)] if model else []), "--port", "0"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        load = os.getloadavg()[0]
        start = time.perf_counter()
        pipes = {"stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, "--no-browser"], cwd=PROJECT, **pipes) as process:
            try:
                address = next(line for line in process.stdout if line.startswith("Play at ")).split()[2]
                served = time.perf_counter() - start
                page = browser.new_page()
                page.set_default_timeout(TIMEOUT_MS)
                page.goto(address)
                page.click("#welcome-example")
                page.wait_for_selector("#fill:enabled")
                cold = fill(page)
                page.click("#play")
                page.wait_for_function(SOUNDS)
                heard = time.perf_counter() - start
                page.click("#play")
                warm = [fill(page) for _ in range(repeats)]
            finally:
                process.terminate()
        browser.close()
    figures = {
        "load_average": load,
        "served": served,
        "heard": heard,
        "first_note_cold": cold,
        "first_note": statistics.median(warm),
        "first_note_max": max(warm),
    }
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=REQUIRED, help="measure only this model")
    parser.add_argument("--run", type=Path, metavar="RUN", help="run folder to measure too, for example demo/run")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="fills after the first one (default: 5)")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats is smaller than 1.")
    if options.model == "run" and options.run is None:
        parser.error("--model run needs --run.")
    if shutil.which("chromium") is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium.")
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in [options.model] if options.model else REQUIRED:
            if name == "run":
                if options.run is None:
                    continue
                path = options.run
            else:
                path = None if name == "included" else write_untrained(name, Path(folder))
            figures[name] = measure(path, options.repeats)
            print(f"{name}: {figures[name]}", flush=True)
    print(report.write("play" + (f"_{options.model}" if options.model else ""), {"models": figures}, options.out))
    slow = {
        name: f"the first note takes longer than {REQUIRED[name]} s"
        for name, one in figures.items()
        if max(one["first_note_cold"], one["first_note_max"]) > REQUIRED[name]
    }
    slow |= {name: "the first fill is heard too late" for name, one in figures.items() if one["heard"] > HEARD_WITHIN}
    for name, fault in slow.items():
        print(f"{name}: {fault}.", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
