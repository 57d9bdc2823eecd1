"""Measure how the waiting of torch's threads affects training and generation on a CPU, alone and with other programs.

    python benchmarks/busy_computer.py

Each setting (see SETTINGS) has its own process, which trains or generates in turns of about a second. Only one of these
processes works at a time. In each round, every setting has one turn under each load, so that all settings run under the
same conditions. A figure is the median over the rounds. A ratio is computed from two turns of the same round; the
median over the rounds is given.

Turns without load are taken while other programs use less than a tenth of the CPU time. The script waits for such
moments up to --wait minutes in all. `cpu_share_of_others` is the share that other programs used during the turns.

Writes results/busy_computer.json."""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SETTINGS = {
    "project": None,  # after `share_cores`
    "default": {},  # libgomp's default: 300,000 spins
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 5000": {"GOMP_SPINCOUNT": "5000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LOADS = {"alone": 0, "one busy process": 1, "a busy process per core": os.cpu_count()}
SHAPES = {"3x128": (3, 128), "8x256": (8, 256), "12x768": (12, 768)}  # layers, width
WORK = ("train 3x128", "train 8x256", "generate 3x128", "generate 12x768")
TURN_S = 1.0
QUIET_SHARE = 0.1  # largest share of the CPU time that other programs may use during a turn without load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each setting (default: 9)")
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK, help="what to measure (default: all)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="(default: all)")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), help="(default: all)")
    parser.add_argument("--wait", type=float, default=10, help="minutes to wait for a quiet computer (default: 10)")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: benchmarks/results)")
    parser.add_argument("--worker", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        take_turns(*options.worker)
    import report

    from rwkv_music.prepare.corpus import write_corpus
    from rwkv_music.prepare.pipeline import prepare

    figures, quiet = {}, Quiet(60 * options.wait)
    with tempfile.TemporaryDirectory() as folder:
        write_corpus("bach", Path(folder) / "midi", workers=1, limit=12)
        prepare([Path(folder) / "midi"], Path(folder) / "data", workers=1)
        for work in options.work:
            figures[work] = measure(work, options.settings, options.loads, folder, options.rounds, quiet)
            for load, found in figures[work].items():
                for setting, result in found.items():
                    print(f"{work}, {load}, {setting}: {result}", flush=True)
    report.write("busy_computer", figures, options.out or report.RESULTS)
    return 0


class Quiet:
    """A wait for moments at which other programs use little CPU time, for a limited time in all."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def wait(self) -> None:
        while self.left > 0:
            before, start = cpu_seconds(), time.perf_counter()
            time.sleep(0.5)
            passed = time.perf_counter() - start
            self.left -= passed
            if cpu_seconds() - before <= QUIET_SHARE * os.cpu_count() * passed:
                return


def measure(work: str, settings: list[str], loads: list[str], folder: str, rounds: int, quiet: Quiet) -> dict:
    """Return {load: {setting: figures}} of one kind of work."""
    workers = {name: start_worker(work, SETTINGS[name], folder) for name in settings}
    turns: dict[str, dict[str, list[dict[str, float]]]] = {load: {name: [] for name in settings} for load in loads}
    try:
        for round_number in range(rounds):
            first = round_number % len(settings)
            for load in loads:
                with busy_processes(LOADS[load]):
                    for setting in settings[first:] + settings[:first]:
                        result = turn(workers[setting])
                        while LOADS[load] == 0 and result["others"] > QUIET_SHARE and quiet.left > 0:
                            quiet.wait()
                            result = turn(workers[setting])
                        turns[load][setting].append(result)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    reference = "default" if "default" in settings else settings[0]
    figures: dict[str, dict] = {}
    for load, found in turns.items():
        figures[load] = {name: summarize(results, found[reference]) for name, results in found.items()}
        if load != loads[0]:  # compare with the same setting under the first load
            for name, results in found.items():
                figures[load][name][f"over_{loads[0]}"] = ratio(results, turns[loads[0]][name])
    return figures


def summarize(turns: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, float]:
    return {
        "tokens_per_second": round(statistics.median(turn["rate"] for turn in turns), 1),
        "over_default": ratio(turns, reference),
        "cpu_share_of_others": round(statistics.median(turn["others"] for turn in turns), 3),
    }


def ratio(turns: list[dict[str, float]], reference: list[dict[str, float]]) -> float:
    return round(statistics.median(a["rate"] / b["rate"] for a, b in zip(turns, reference, strict=True)), 3)


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """Run `n` processes that do nothing but use the CPU."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    time.sleep(0.3)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def start_worker(work: str, setting: dict[str, str] | None, folder: str) -> subprocess.Popen:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"SHARE_CORES": "1"} if setting is None else setting
    line = [sys.executable, __file__, "--worker", work, folder]
    worker = subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    turn(worker)  # waits until it has started
    return worker


def turn(worker: subprocess.Popen) -> dict[str, float]:
    """Let a worker work for `TURN_S`; return its tokens per second and the share of CPU time that others used."""
    before, start = cpu_seconds(), time.perf_counter()
    worker.stdin.write("\n")
    worker.stdin.flush()
    while not (line := worker.stdout.readline()).startswith("{"):
        if not line:
            sys.exit("A worker has ended.")
    result = json.loads(line)
    used, cores = cpu_seconds() - before, os.cpu_count() * (time.perf_counter() - start)
    return {"rate": result["tokens"] / result["seconds"], "others": max(0.0, used - result["cpu"]) / cores}


def cpu_seconds() -> float:
    """Return the CPU time that all programs of this computer have used, in seconds."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def take_turns(work: str, folder: str) -> None:
    """Do one kind of work, a turn after each line of standard input. Never returns."""
    if os.environ.pop("SHARE_CORES", None):
        from rwkv_music.openmp import share_cores

        share_cores()
    kind, shape = work.split()
    (train if kind == "train" else generate)(*SHAPES[shape], Path(folder), Turns().work)
    raise AssertionError("the work never ends")


class Turns:
    """The turns of a worker."""

    def __init__(self) -> None:
        self.ready = False
        self.deadline = 0.0

    def work(self, unit: Callable[[], int]) -> None:
        """Run `unit`, which returns its number of tokens. If no turn is in progress, first wait for one to begin."""
        if not self.deadline:
            sys.stdin.readline()
            self.cpu = own_cpu_seconds()
            unit()  # wakes the threads up
            self.tokens, self.start = 0, time.perf_counter()
            self.deadline = self.start + TURN_S
        self.tokens += unit()
        now = time.perf_counter()
        if now >= self.deadline:
            # "cpu" includes the first unit, as the measurement of `turn` does.
            figures = {"tokens": self.tokens, "seconds": now - self.start, "cpu": own_cpu_seconds() - self.cpu}
            print(json.dumps(figures), flush=True)
            self.deadline = 0.0


def own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def train(layers: int, width: int, folder: Path, work: Callable[[Callable[[], int]], None]) -> None:
    """Train as train.py does, with the rows of `make demo`."""
    from rwkv_music.config import DataConfig, ModelConfig, RunConfig, TrainConfig
    from rwkv_music.training.loop import Loop
    from rwkv_music.training.setup import setup

    settings = TrainConfig(
        out=str(Path(tempfile.mkdtemp(dir=folder))), steps=10**9, batch_size=8, save_every=0, val_every=0, log_every=10
    )
    config = RunConfig(
        ModelConfig(n_layer=layers, n_embd=width), DataConfig(data=str(folder / "data"), ctx_len=256), settings
    )
    loop = Loop(setup(config, PROJECT / "ds_configs" / "zero2.json", given=set()))
    step = loop.step

    def timed_step(batches, *arguments):
        result = []

        def unit() -> int:
            result.append(step(batches, *arguments))
            return sum(batch.input_ids.numel() for batch in batches)

        work(unit)
        return result[-1]

    loop.step = timed_step
    loop.run()


def generate(layers: int, width: int, folder: Path, work: Callable[[Callable[[], int]], None]) -> None:
    """Generate one piece token by token as `generate` does, with random weights."""
    import numpy as np
    import torch

    from rwkv_music.config import ModelConfig
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.generation.token_generator import TokenGenerator
    from rwkv_music.model_v8 import RWKV
    from rwkv_music.tokenizers.codec import Piece
    from rwkv_music.tokenizers.registry import make_codec

    codec = make_codec("multitrack")
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=layers, n_embd=width, vocab_size=codec.vocab_size)).requires_grad_(False)
    prompt = np.full(64, codec.bos_id)
    piece = Piece(prompt, np.array([1]))
    generator = TokenGenerator(model, 1, Sampling(), codec.grammar(piece, 1).tables, codec.token_properties.keys)
    tokens = generator.generate(prompt, codec.grammar(piece, 1))
    while True:

        def unit() -> int:
            next(tokens)
            return 1

        work(unit)


if __name__ == "__main__":
    sys.exit(main())
