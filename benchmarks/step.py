"""Measure a training step and its parts, on random tokens.

    python benchmarks/step.py                                        # the table: step_h200.json on an H200
    python benchmarks/step.py --card                                 # what fits in 24 GiB: step_24gib.json
    python benchmarks/step.py --preset 0.1b --batch_size 16 --ctx_len 1024 --channel_mix x070
    deepspeed --num_gpus 2 benchmarks/step.py --preset 1.5b --batch_size 16 --ctx_len 2048
    deepspeed --num_gpus 2 benchmarks/step.py --preset 1.5b --batch_size 1 --ctx_len 131072 --context_parallel 2
    python benchmarks/step.py --preset 0.1b --profile 3 --folder DIR  # and a trace of three steps in DIR/profile/

Tokens per second are computed from the wall time of `--measured` steps, including reading the batches. The parts of a
step are times on the GPU. Forward and backward are measured from their first launch to their last kernel. The rest
(optimizer, clipping, waiting) is the time from the end of backward to the next forward. `gaps` is the time in which no
kernel runs, from a profile of a few steps. Peak memory includes everything that the process allocates, because
replaying a CUDA graph allocates nothing. `step_gib` is the peak minus what is allocated between two steps (weights,
optimizer states and buffers). It consists of activations and temporary tensors. On a CPU, only wall time is measured.

On several ranks, time, memory and optimizer bytes are maxima over the ranks; parts and kernels are from rank 0.
`communication` is the time in which NCCL kernels run, including the wait for the slowest rank. It is `hidden` while
other kernels compute, and `exposed` otherwise.

MFU is 6 x matrix parameters x tokens per second / peak dense bf16 FLOP/s of the GPUs."""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from torch import distributed as dist

from rwkv_music.config import PRESETS, DataConfig, ModelConfig, RunConfig, TrainConfig, add_arguments, from_arguments
from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.files import file_sha256
from rwkv_music.tokenizers.registry import make_codec
from rwkv_music.training.signals import leave

PROJECT = Path(__file__).parent.parent
# The rows of the table, by name: arguments of this script.
ROWS = {
    "L12 C768, 16 x 1024": "--preset 0.1b --batch_size 16 --ctx_len 1024 --channel_mix x070",
    "L12 C768, 8 x 4096": "--preset 0.1b --batch_size 8 --ctx_len 4096 --channel_mix x070",
    "L24 C2048, 8 x 2048": "--preset 1.5b --batch_size 8 --ctx_len 2048 --channel_mix x070",
    "L12 C768, 16 x 1024, DeepEmbed": "--preset 0.1b --batch_size 16 --ctx_len 1024",
    "L12 C768, 8 x 4096, DeepEmbed": "--preset 0.1b --batch_size 8 --ctx_len 4096",
    "L24 C2048, 8 x 2048, DeepEmbed": "--preset 1.5b --batch_size 8 --ctx_len 2048",
}
# Full fine-tuning on a workstation's GPU: the process may use 24 GiB of the GPU's memory.
CARD = {
    "L24 C1024, 8 x 2048": "--preset 0.4b --batch_size 8 --ctx_len 2048 --recompute selective",
    "L24 C2048, 4 x 2048, offload": "--preset 1.5b --batch_size 4 --ctx_len 2048 --recompute selective "
    f"--deepspeed_config {PROJECT / 'ds_configs' / 'zero2_offload.json'}",
}
# Kinds of kernels by parts of their names; the first match counts.
KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "sm90_xmma", "splitk", "cublas"),
    "recurrence": ("wkv7s",),
    "fused operators": ("fused",),
    "optimizer": ("multi_tensor", "adam"),
    "communication": ("nccl",),
    "copies and fills": ("memcpy", "memset", "copy_kernel", "catarray", "fillfunctor"),
}


def make_data(folder: Path, vocab_size: int, rows: int, ctx_len: int) -> None:
    """Write a dataset of one long document of random tokens, so that every row is within one document."""
    with BinIdxWriter(folder / "train") as writer:
        writer.add(np.random.default_rng(0).integers(3, vocab_size, rows * ctx_len + 1))
    make_codec("midi-llm").save(folder / "tokenizer.json")  # a valid file; its vocabulary is not used
    tokenizer = {"name": "none", "vocab_size": vocab_size, "pad_id": 0, "fingerprint": "0" * 64}
    splits = {"train": {"pieces": 1}, "val": {"pieces": 0}}
    facts = {"splits": splits, "sha256": {"tokenizer.json": file_sha256(folder / "tokenizer.json")}}
    (folder / "dataset.json").write_text(json.dumps({"tokenizer": tokenizer, **facts}))


class Marks:
    """CUDA events around forward, backward and step, recorded by wrapping these methods of the engine."""

    def __init__(self, engine: Any) -> None:
        self.steps: list[dict[str, torch.cuda.Event]] = []
        for name in ("forward", "backward", "step"):
            setattr(engine, name, self._marked(name, getattr(engine, name)))

    def _marked(self, name: str, method: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            if name == "forward":
                self.steps.append({})
            self._mark(f"{name} begins")
            result = method(*arguments, **options)
            self._mark(f"{name} ends")
            return result

        return run

    def _mark(self, name: str) -> None:
        self.steps[-1][name] = event = torch.cuda.Event(enable_timing=True)
        event.record()

    def medians(self) -> dict[str, float]:
        """Return the median milliseconds of each part over the steps."""
        torch.cuda.synchronize()
        pairs = list(zip(self.steps[:-1], self.steps[1:], strict=True))

        def median(begin: str, end: str) -> float:
            return statistics.median(a[begin].elapsed_time(a[end]) for a, _ in pairs)

        return {
            "forward_ms": median("forward begins", "forward ends"),
            "backward_ms": median("backward begins", "backward ends"),
            "optimizer_ms": median("step begins", "step ends"),
            "whole_ms": statistics.median(a["forward begins"].elapsed_time(b["forward begins"]) for a, b in pairs),
        }


@dataclass(frozen=True)
class Kernel:
    """A kernel or copy on the GPU, with its start and end in milliseconds of the profile."""

    name: str
    kind: str
    start: float
    end: float


def profiled_kernels(profiler: torch.profiler.profile) -> list[Kernel]:
    """Return the kernels and copies of a profile, with their kinds."""
    kernels = []
    for event in profiler.events():
        # Annotations are not kernels; they span the kernels launched within them.
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation:
            continue
        name = event.name.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "others")
        kernels.append(Kernel(event.name, kind, event.time_range.start / 1e3, event.time_range.end / 1e3))
    return kernels


def kernel_times(kernels: list[Kernel], steps: int) -> tuple[dict[str, float], list[tuple[str, float, int]]]:
    """Return the GPU milliseconds per step by kind of kernel, and the 25 costliest kernels with their counts."""
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        by_kind[kernel.kind] += (kernel.end - kernel.start) / steps
        by_name[kernel.name].append((kernel.end - kernel.start) / steps)
    top = sorted(((name, sum(times), len(times) // steps) for name, times in by_name.items()), key=lambda x: -x[1])
    return dict(by_kind), top[:25]


def covered(kernels: Iterable[Kernel]) -> float:
    """Return the milliseconds in which at least one of the kernels runs."""
    total, reached = 0.0, -math.inf
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        total += max(0.0, kernel.end - max(kernel.start, reached))
        reached = max(reached, kernel.end)
    return total


def communication(kernels: list[Kernel], steps: int) -> dict[str, float]:
    """Return the milliseconds per step of collectives: in all, hidden by computation, and exposed.

    Copies and fills do not count as computation, because many of them serve the collectives' buckets.
    """
    collectives = [kernel for kernel in kernels if kernel.kind == "communication"]
    computing = [kernel for kernel in kernels if kernel.kind not in ("communication", "copies and fills")]
    whole, exposed = covered(collectives), covered(collectives + computing) - covered(computing)
    return {"whole_ms": whole / steps, "hidden_ms": (whole - exposed) / steps, "exposed_ms": exposed / steps}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one configuration in this process."""
    from rwkv_music.training.loop import Loop
    from rwkv_music.training.metrics import Trace, model_flop_utilization, peak_memory_bytes
    from rwkv_music.training.setup import setup

    started = time.perf_counter()
    preset = PRESETS[options.preset]
    model = from_arguments(ModelConfig, options, **preset)
    with tempfile.TemporaryDirectory() as folder:
        train = from_arguments(TrainConfig, options, out=f"{folder}/run", val_every=0, steps=10**6, warmup_steps=10)
        ctx_len = getattr(options, "ctx_len", 1024)
        make_data(Path(folder), options.vocab, 4 * train.batch_size, ctx_len)
        config = RunConfig(model, DataConfig(folder, ctx_len), train)
        context = setup(config, options.deepspeed_config, given=set(vars(options)))
        loop, rank = Loop(context), context.rank
        on_gpu = context.device.type == "cuda"
        wait = 0.0

        def run(steps: int, after_each: Callable[[], Any] = lambda: None) -> float:
            """Take some steps; return the seconds."""
            nonlocal wait
            begin, wait = time.perf_counter(), 0.0
            with ThreadPoolExecutor(1) as reader:
                coming = reader.submit(loop.read_step, 0)
                for step in range(steps):
                    asked = time.perf_counter()
                    batches, error = coming.result()
                    if error:
                        raise error
                    wait += time.perf_counter() - asked
                    coming = reader.submit(loop.read_step, (step + 1) * train.batch_size)
                    loss = loop.step(batches, train.lr)
                    after_each()
            assert torch.isfinite(loss).all()
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - begin

        run(1)
        first_step_s = time.perf_counter() - started
        between_steps = torch.cuda.memory_allocated(context.device) if on_gpu else 0
        run(5)
        seconds = run(options.measured)
        data_ms = 1e3 * wait / options.measured
        peak = peak_memory_bytes(context.device) or 0
        own = [seconds, loop.engine.optimizer_bytes(), peak, peak - between_steps]
        most = torch.tensor(own, dtype=torch.float64, device=context.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        seconds, states, peak, step_bytes = most.tolist()
        step_ms = 1e3 * seconds / options.measured
        tokens = train.batch_size * ctx_len
        rate = tokens / step_ms * 1e3
        figures = {
            "model": {"layers": model.n_layer, "width": model.n_embd, "channel_mix": model.channel_mix},
            "vocabulary": options.vocab,
            "batch": [train.batch_size, ctx_len],
            "ranks": context.plan.world_size,
            "deepspeed_config": Path(options.deepspeed_config).name,
            "recompute": context.memory.recompute,
            "parameters": context.size.parameters,
            "step_ms": step_ms,
            "tokens_per_second": rate,
            "mfu": model_flop_utilization(context.size.matrix_parameters, rate / context.plan.world_size, loop.flops),
            "peak_gib": peak / 2**30 if on_gpu else None,
            "step_gib": step_bytes / 2**30 if on_gpu else None,
            "estimated_gib": context.memory.estimate.peak / 2**30,
            "optimizer_bytes": round(states),
            "waiting_for_data_ms": data_ms,
            "from_start_to_first_step_s": first_step_s,
        }
        top: list[tuple[str, float, int]] = []
        if on_gpu:
            marks = Marks(loop.engine)
            run(options.measured)
            parts = marks.medians()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                profiled = 1e3 * run(3) / 3
            kernels = profiled_kernels(profiler)
            kinds, top = kernel_times(kernels, 3)
            figures |= {
                "outside_forward_and_backward": 1 - (parts["forward_ms"] + parts["backward_ms"]) / parts["whole_ms"],
                **parts,
                "gaps_ms": profiled - covered(kernels) / 3,
                "communication": communication(kernels, 3),
                "kernels_ms": dict(sorted(kinds.items(), key=lambda x: -x[1])),
                "costliest_kernels": [{"ms": ms, "launches": n, "name": name[:120]} for name, ms, n in top[:16]],
            }
        if train.profile:
            trace = Trace(options.folder, rank, train.profile, context.device)
            run(Trace.WARM_UP + train.profile, trace.step)
            trace.write()
        if rank == 0:
            print(json.dumps(figures, indent=2))
            if options.kernels:
                for name, ms, count in top:
                    print(f"{ms:8.3f} ms {count:5d} x  {name[:150]}")
            if options.write:
                Path(options.write).write_text(json.dumps(figures))
        loop.close()
    return figures


def table(wanted: dict[str, str], more: list[str]) -> dict[str, Any]:
    """Measure every row in a separate process; print the table."""
    rows = {}
    for name, arguments in wanted.items():
        with tempfile.NamedTemporaryFile() as answer:
            command = [sys.executable, __file__, *arguments.split(), "--write", answer.name, *more]
            done = subprocess.run(command, stdout=subprocess.DEVNULL)
            if done.returncode == 0:
                rows[name] = json.loads(Path(answer.name).read_text())
            else:
                print(f"{name}: failed with status {done.returncode}", file=sys.stderr, flush=True)
    print(
        f"{'':<34}{'step ms':>9}{'tokens/s':>10}{'MFU':>7}{'GiB':>7}{'forward':>9}{'backward':>9}{'rest':>7}{'gaps':>7}"
    )
    for name, row in rows.items():
        print(
            f"{name:<34}{row['step_ms']:>9.1f}{row['tokens_per_second']:>10,.0f}{row['mfu']:>7.1%}{row['peak_gib']:>7.1f}"
            f"{row['forward_ms']:>9.1f}{row['backward_ms']:>9.1f}{row['outside_forward_and_backward']:>7.1%}"
            f"{row['gaps_ms']:>7.1f}"
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="measure this configuration instead of the table")
    parser.add_argument("--vocab", type=int, default=20096, help="vocabulary size (default: 20096)")
    parser.add_argument("--measured", type=int, default=20, help="steps to measure (default: 20)")
    parser.add_argument("--deepspeed_config", default=str(PROJECT / "ds_configs" / "zero2.json"), metavar="FILE")
    parser.add_argument("--card", action="store_true", help="measure configurations that train in 24 GiB")
    parser.add_argument("--limit_gib", type=float, help="limit the process to this much GPU memory, in GiB")
    parser.add_argument("--kernels", action="store_true", help="print the costliest kernels")
    parser.add_argument("--write", metavar="FILE", help="write the figures of --preset as JSON")
    parser.add_argument(
        "--folder",
        default=report.RESULTS,
        metavar="DIR",
        help="output folder for JSON and traces (default: benchmarks/results)",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    add_arguments(parser, ModelConfig, skip=("vocab_size",))
    add_arguments(parser, TrainConfig, skip=("out", "steps"))
    add_arguments(parser, DataConfig, skip=("data",))
    options = parser.parse_args()
    if not torch.cuda.is_available() and (not options.preset or options.limit_gib):
        print("benchmarks/step.py needs a CUDA GPU for this; --preset alone runs on a CPU too.", file=sys.stderr)
        return 1
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if options.limit_gib:
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.limit_gib * 2**30 / total_bytes)
    if options.preset:
        measure(options)
        return 0
    if options.card:
        rows = table(CARD, ["--limit_gib", "24", "--measured", "5"])
        print(report.write("step_24gib", {"limit_gib": 24, "rows": rows}, options.folder))
        return int(rows.keys() != CARD.keys())
    rows = table(ROWS, [])
    print(report.write(f"step_{report.card()}", {"rows": rows}, options.folder))
    return int(rows.keys() != ROWS.keys())


if __name__ == "__main__":
    leave(main())  # skips the interpreter's shutdown, which DeepSpeed's threads would abort
