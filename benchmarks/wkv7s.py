"""Compare the WKV7s operator with a loop over tokens on a CPU, and with flash-linear-attention's operator on a GPU.

    python benchmarks/wkv7s.py
    python benchmarks/wkv7s.py --before 0daa86e     # on a CPU: against the operator of that commit
    python benchmarks/wkv7s.py --portable           # on a GPU: against the same kernels compiled as PTX for 8.0

Writes results/wkv7s_cpu.json, wkv7s_cpu_before.json, wkv7s_gpu.json or wkv7s_portable.json. On a GPU, fla-core is
measured in the same run if it is installed. Times are medians in milliseconds; on a shared machine only the ratios are
meaningful."""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import report
import torch
from torch import Tensor

from rwkv_music.cuda import build
from rwkv_music.ops.wkv7s import wkv7s
from rwkv_music.ops.wkv7s_cpu import LOG_DECAY_SCALE

# B, T, H with N = 64: a fully occupied GPU, a half-occupied one, small models, and single long rows.
SHAPES = [(8, 4096, 64), (8, 4096, 32), (16, 1024, 12), (4, 4096, 12), (1, 16384, 12), (1, 32768, 64)]
Operator = Callable[..., Tensor]


def inputs(B: int, T: int, H: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return r, w, k, v, a, b [B, T, H, 64], distributed as in the model, with requires_grad."""
    torch.manual_seed(0)
    r, w, k, v, kk, gate = (torch.randn(B, T, H, 64, device=device) for _ in range(6))
    kk = torch.nn.functional.normalize(kk, dim=-1)
    return [x.to(dtype).requires_grad_() for x in (r, w, k, v, -kk, kk * torch.sigmoid(gate))]


def ours(*arguments: Tensor) -> Tensor:
    return wkv7s(*arguments)[0]


def token_loop(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute the recurrence from its formula, token by token, with plain PyTorch operations."""
    B, T, H, N = r.shape
    S = r.new_zeros(B, H, N, N)
    decay = torch.exp(LOG_DECAY_SCALE * torch.sigmoid(w))
    out = []
    for t in range(T):
        removed = (S @ a[:, t].unsqueeze(-1)) @ b[:, t].unsqueeze(-2)
        S = S * decay[:, t].unsqueeze(-2) + removed + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        out.append((S @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, dim=1)


# ---- CPU ------------------------------------------------------------------------------------------------------------


def time_cpu(operator: Operator, repeats: int, arguments: list[Tensor]) -> tuple[float, float]:
    """Return the median milliseconds of forward and of backward."""
    forward, backward = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        y = operator(*arguments)
        middle = time.perf_counter()
        torch.autograd.grad(y, arguments, torch.ones_like(y))
        backward.append(time.perf_counter() - middle)
        forward.append(middle - start)
    return 1e3 * statistics.median(forward[1:]), 1e3 * statistics.median(backward[1:])


def operator_at(commit: str) -> Operator:
    """Return the operator of a commit of this repository, registered under another namespace."""
    command = ["git", "show", f"{commit}:rwkv_music/ops/wkv7s.py"]
    source = subprocess.run(command, cwd=report.RESULTS.parent, capture_output=True, text=True, check=True).stdout
    source = source.replace("rwkv_music::", "rwkv_music_before::").replace("ops.rwkv_music.", "ops.rwkv_music_before.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wkv7s_before.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("wkv7s_before", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["wkv7s_before"] = module
        spec.loader.exec_module(module)
    return lambda *arguments: module.wkv7s(*arguments)[0]


def benchmark_cpu(before: str | None) -> dict:
    """Compare with a loop over tokens or, given a commit `before`, with the operator of that commit."""
    operators: dict[str, tuple[Operator, int]] = {"wkv7s": (ours, 5), "token_loop": (token_loop, 1)}
    shapes = [(4, 512, 4)]
    if before:
        operators = {"wkv7s": (ours, 5), f"wkv7s at {before}": (operator_at(before), 5)}
        shapes += [(4, 1024, 2), (1, 1024, 2), (8, 256, 2)]
    print(f"CPU, fp32, {torch.get_num_threads()} threads, milliseconds of forward / backward / both, and the ratio")
    rows = []
    for B, T, H in shapes:
        arguments = inputs(B, T, H, torch.float32, "cpu")
        # The operators take turns, so that a slowdown of the machine affects both.
        rounds = [[time_cpu(*operator, arguments) for operator in operators.values()] for _ in range(7)]
        row: dict = {"B": B, "T": T, "H": H, "N": 64}
        for i, name in enumerate(operators):
            forward, backward = (statistics.median(r[i][j] for r in rounds) for j in range(2))
            row[name] = {"forward_ms": forward, "backward_ms": backward, "both_ms": forward + backward}
        peer = row[list(operators)[1]]
        row["faster"] = {part: peer[part] / row["wkv7s"][part] for part in peer}
        rows.append(row)
        cells = ("/".join(f"{row[n][part]:.1f}" for part in peer) for n in operators)
        print(f"{B:>3} {T:>5} {H:>3}   " + "   ".join(cells) + f"   {row['faster']['both_ms']:.2f}x", flush=True)
    return {"dtype": "float32", "operators": list(operators), "rows": rows}


# ---- GPU ------------------------------------------------------------------------------------------------------------


def time_gpu(operator: Operator, arguments: list[Tensor], repeats: int = 20) -> tuple[float, float]:
    """Return the median milliseconds of forward and of backward by CUDA events.

    Before each repetition a buffer larger than the L2 cache is written, so that the cache is cold.
    """
    spill = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(4)] for _ in range(repeats + 5)]
    dy = None
    for start, middle, begin, end in events:
        spill.zero_()
        start.record()
        y = operator(*arguments)
        middle.record()
        dy = torch.randn_like(y) if dy is None else dy
        begin.record()
        torch.autograd.grad(y, arguments, dy)
        end.record()
    torch.cuda.synchronize()
    kept = events[5:]
    forward = statistics.median(start.elapsed_time(middle) for start, middle, _, _ in kept)
    return forward, statistics.median(begin.elapsed_time(end) for _, _, begin, end in kept)


def copy_bandwidth() -> float:
    """Return the bytes per second, read and written, of a large device-to-device copy."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * source.numel() / (1e-3 * statistics.median(times))


def peers() -> dict[str, Operator]:
    """Return both forms of flash-linear-attention's chunked operator, or none if it is not installed.

    Its argument w is the logarithm of the decay.
    """
    try:
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        print("fla-core is not installed: only this project's kernels are measured (pip install fla-core).")
        return {}

    def fla(**form: object) -> Operator:
        def run(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return chunk_rwkv7(r, LOG_DECAY_SCALE * torch.sigmoid(w), k, v, a, b, scale=1.0, **form)[0]

        return run

    return {"fla": fla(), "fla_safe_gate": fla(safe_gate=True)}


def benchmark_gpu() -> dict:
    bandwidth = copy_bandwidth()
    operators = {"ours": ours, **peers()}
    print(
        f"{torch.cuda.get_device_name()}, bf16, N = 64; copy {bandwidth / 1e9:,.0f} GB/s; forward / backward / both, ms"
    )
    rows = []
    for B, T, H in SHAPES:
        arguments = inputs(B, T, H, torch.bfloat16, "cuda")
        # The time to read each input and write each output once: 6 + 1 tensors forward, 7 + 6 backward.
        floor = 1e3 * 20 * arguments[0].numel() * 2 / bandwidth
        row = {"B": B, "T": T, "H": H, "floor_ms": floor}
        for name, operator in operators.items():
            forward, backward = time_gpu(operator, arguments)
            row[name] = {"forward_ms": forward, "backward_ms": backward, "both_ms": forward + backward}
        row["faster_than"] = {
            name: row[name]["both_ms"] / row["ours"]["both_ms"] for name in operators if name != "ours"
        }
        rows.append(row)
        cells = (
            f"{row[n]['forward_ms']:6.2f}/{row[n]['backward_ms']:6.2f}/{row[n]['both_ms']:6.2f}" for n in operators
        )
        print(f"{B:>3} {T:>6} {H:>3}  floor {floor:6.3f}  " + "   ".join(cells), flush=True)
        del arguments
        torch.cuda.empty_cache()
    return {
        "copy_bytes_per_second": bandwidth,
        "dtype": "bfloat16",
        "N": 64,
        "operators": list(operators),
        "rows": rows,
    }


def times_of_ours(portable: bool) -> list[tuple[float, float]]:
    """Return the milliseconds of forward and backward at each of SHAPES, native or as PTX for 8.0."""
    if portable:
        build.FLAGS = [*build.FLAGS, "-gencode=arch=compute_80,code=compute_80"]
        build.architectures = list  # no native ones
    return [time_gpu(ours, inputs(B, T, H, torch.bfloat16, "cuda")) for B, T, H in SHAPES]


def benchmark_portable() -> dict:
    """Compare the two builds in three rounds, in separate processes because their operators have the same names."""
    turns: dict[str, list] = {"native": [], "portable": []}
    for kind in [*turns] * 3:
        command = [sys.executable, __file__, "--times-of", kind]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        turns[kind].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for i, (B, T, H) in enumerate(SHAPES):
        row: dict = {"B": B, "T": T, "H": H}
        for kind, lists in turns.items():
            forward, backward = (statistics.median(times[i][part] for times in lists) for part in range(2))
            row[kind] = {"forward_ms": forward, "backward_ms": backward, "both_ms": forward + backward}
        row["slower"] = row["portable"]["both_ms"] / row["native"]["both_ms"]
        rows.append(row)
        both = f"{row['native']['both_ms']:6.2f} native {row['portable']['both_ms']:6.2f} portable"
        print(f"{B:>3} {T:>6} {H:>3}  {both}  {row['slower']:.2f}x", flush=True)
    return {"dtype": "bfloat16", "N": 64, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    parser.add_argument(
        "--before", metavar="COMMIT", help="on a CPU, compare with the operator of this commit instead of a loop"
    )
    parser.add_argument(
        "--portable", action="store_true", help="on a GPU, compare with the kernels compiled as PTX for 8.0"
    )
    parser.add_argument("--times-of", choices=("native", "portable"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.times_of:
        print(json.dumps(times_of_ours(options.times_of == "portable")))
    elif options.portable:
        print(report.write("wkv7s_portable", benchmark_portable(), options.out))
    elif torch.cuda.is_available():
        print(report.write("wkv7s_gpu", benchmark_gpu(), options.out))
    else:
        name = "wkv7s_cpu_before" if options.before else "wkv7s_cpu"
        print(report.write(name, benchmark_cpu(options.before), options.out))


if __name__ == "__main__":
    main()
