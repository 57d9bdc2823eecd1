"""Measure the host memory that loading initial weights takes under ZeRO-3.

    python benchmarks/init_memory.py --n_layer 24 --n_embd 2048 --vocab_size 65536 --ranks 2

The script writes a `.pth` file of the given shape with random bf16 weights. Each rank then loads the file in the same
way as train.py --init. Meanwhile, a sampler adds up the proportional set sizes of the ranks (/proc/PID/smaps_rollup),
in which a page shared by two ranks counts once. The sampler records the peak until each of four marks:
1. before allocation
2. when the rank's partition of the model is allocated
3. when the engine is built
4. when the weights and the fp32 master weights are loaded

The engine's own memory (master weights, moments, bf16 partitions, gradient buffers) is not a cost of loading. For this
reason, a start without a file is measured too. The cost of loading is the difference between the two peaks, divided by
the size of the file. Writes results/init_memory.json."""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

SHAPE = {"n_layer": 24, "n_embd": 2048, "vocab_size": 65536}
WORKER = """
import json, os, sys, time
import torch
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.batch_plan import plan_batches
from rwkv_music.training.deepspeed_engine.engine import FastPaths, make_engine, materialize, select_device
from rwkv_music.training.deepspeed_file import read_deepspeed_file
from rwkv_music.training.init_weights import open_initial
from rwkv_music.training.loading import load_initial
from rwkv_music.training.process_group import init_process_group
from rwkv_music.training.signals import leave
path, deepspeed_file, shape, marks = sys.argv[1:5]
torch.set_num_threads(1)
config = ModelConfig(**json.loads(shape), channel_mix="x070")
init_process_group("gloo", 10)
device = select_device()
ranks = torch.distributed.get_world_size()
plan = plan_batches(TrainConfig(batch_size=ranks), set(), read_deepspeed_file(deepspeed_file), deepspeed_file, ranks)
def reached(mark):
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        open(f"{marks}/{mark}", "w").close()
    torch.distributed.barrier()
    time.sleep(1)  # for the sampler
reached("1_before")
initial = open_initial(path, config, "") if path else None
with torch.device("meta"):
    model = RWKV(config)
materialize(model, device, plan, frozenset())
reached("2_allocated")
engine = make_engine(model, plan, device, FastPaths(True, overlaps=ranks > 1), 1024)
reached("3_engine")
if initial is not None:
    load_initial(engine, initial)
reached("4_loaded")
leave(0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of the model (default: {value})")
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder for the file of weights"
    )
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in SHAPE}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "weights.pth"
        write_weights(file, shape)
        size = file.stat().st_size
        with_file = peaks(Path(folder), file, shape, options.ranks)
        without = peaks(Path(folder), None, shape, options.ranks)
    gib = {name: {mark: round(b / 2**30, 3) for mark, b in found.items()}
           for name, found in (("with_file", with_file), ("without", without))}  # fmt: skip
    cost = (max(with_file.values()) - max(without.values())) / size
    results = {"shape": shape, "ranks": options.ranks, "file_gib": round(size / 2**30, 3), "peak_pss_gib": gib,
               "loading_beyond_the_engine_over_file": round(cost, 3),
               "allocating_over_file": round((with_file["2_allocated"] - with_file["1_before"]) / size, 3)}  # fmt: skip
    print(report.write("init_memory", results).read_text(encoding="utf-8"))


def write_weights(path: Path, shape: dict[str, int]) -> None:
    """Write a `.pth` file with random bf16 weights."""
    import torch

    from rwkv_music.checkpoint.tensors import parameter_shapes
    from rwkv_music.config import ModelConfig

    shapes = parameter_shapes(ModelConfig(**shape, channel_mix="x070"))
    torch.save({name: torch.empty(s, dtype=torch.bfloat16).normal_(std=0.02) for name, s in shapes.items()}, path)


def peaks(folder: Path, file: Path | None, shape: dict[str, int], ranks: int) -> dict[str, int]:
    """Return the peak memory of all ranks together until each mark, in bytes."""
    marks = folder / ("marks" if file else "marks_without")
    marks.mkdir()
    ds_file = Path(__file__).parent.parent / "ds_configs" / "zero3.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own |= {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
        paths = [str(Path(__file__).parent.parent), os.getenv("PYTHONPATH")]
        own["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "-c", WORKER, str(file or ""), str(ds_file), json.dumps(shape), str(marks)]
        processes.append(subprocess.Popen(command, env={**os.environ, **{k: str(v) for k, v in own.items()}}))
    found: dict[str, int] = {}
    most = 0
    while any(process.poll() is None for process in processes):
        held = sum(pss(process.pid) for process in processes)
        most = max(most, held)
        for mark in sorted(path.name for path in marks.iterdir()):
            if mark not in found:
                found[mark], most = most, 0
        time.sleep(0.05)
    assert all(process.returncode == 0 for process in processes)
    return found


def pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
    except (OSError, StopIteration):
        return 0


if __name__ == "__main__":
    main()
