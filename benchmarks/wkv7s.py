"""How fast is the WKV7s operator? On the CPU beside a loop over tokens, on a GPU beside flash-linear-attention's.

    python benchmarks/wkv7s.py

Writes results/wkv7s_cpu.json, or results/wkv7s_gpu.json where there is a GPU; there fla-core, if it is installed, is
timed in the same run. Times are medians in milliseconds; on a shared machine the ratios are what counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import report
import torch
from torch import Tensor

from rwkv_music.wkv7s import LOG_DECAY_SCALE, wkv7s

# B, T, H with N = 64: a full chip, a half-full one, small models, and one long row.
SHAPES = [(8, 4096, 64), (8, 4096, 32), (16, 1024, 12), (4, 4096, 12), (1, 16384, 12), (1, 32768, 64)]
Operator = Callable[..., Tensor]


def inputs(B: int, T: int, H: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """r, w, k, v, a, b [B, T, H, 64] as the model makes them, with gradients asked for."""
    torch.manual_seed(0)
    r, w, k, v, kk, gate = (torch.randn(B, T, H, 64, device=device) for _ in range(6))
    kk = torch.nn.functional.normalize(kk, dim=-1)
    return [x.to(dtype).requires_grad_() for x in (r, w, k, v, -kk, kk * torch.sigmoid(gate))]


def ours(*arguments: Tensor) -> Tensor:
    return wkv7s(*arguments)[0]


def token_loop(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The recurrence as its formula stands, one token after the other: what a plain PyTorch port does."""
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


def time_cpu(operator: Operator, arguments: list[Tensor], repeats: int) -> tuple[float, float]:
    """Median milliseconds of forward and of backward."""
    forward, backward = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        y = operator(*arguments)
        middle = time.perf_counter()
        torch.autograd.grad(y, arguments, torch.ones_like(y))
        backward.append(time.perf_counter() - middle)
        forward.append(middle - start)
    return 1e3 * statistics.median(forward[1:]), 1e3 * statistics.median(backward[1:])


def benchmark_cpu(B: int = 4, T: int = 512, H: int = 4) -> dict:
    arguments = inputs(B, T, H, torch.float32, "cpu")
    rows = {}
    # Interleaved in rounds, so that a machine that slows down slows both.
    rounds = [(time_cpu(ours, arguments, 5), time_cpu(token_loop, arguments, 1)) for _ in range(5)]
    for i, name in enumerate(("wkv7s", "token_loop")):
        forward, backward = (statistics.median(r[i][j] for r in rounds) for j in range(2))
        rows[name] = {"forward_ms": forward, "backward_ms": backward, "both_ms": forward + backward}
    ratios = {part: rows["token_loop"][part] / rows["wkv7s"][part] for part in ("forward_ms", "backward_ms", "both_ms")}
    print(f"CPU, fp32, B={B} T={T} H={H}, {torch.get_num_threads()} threads, milliseconds")
    print(f"{'':<12}{'forward':>10}{'backward':>10}{'both':>10}")
    for name, row in rows.items():
        print(f"{name:<12}" + "".join(f"{row[part]:>10.1f}" for part in ratios))
    print(f"{'ratio':<12}" + "".join(f"{ratio:>9.1f}x" for ratio in ratios.values()))
    return {"shape": {"B": B, "T": T, "H": H, "N": 64}, "dtype": "float32", **rows, "ratio": ratios}


# ---- GPU ------------------------------------------------------------------------------------------------------------


def time_gpu(operator: Operator, arguments: list[Tensor], repeats: int = 20) -> tuple[float, float]:
    """Median milliseconds of forward and of backward on the GPU's own clock.

    Between repetitions a buffer larger than the L2 cache is written, so that no time is that of a warm cache.
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
    """Bytes a second, read and written, of a large device-to-device copy."""
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
    """flash-linear-attention's chunked operator in both forms, if it is installed; it takes the decay's logarithm."""
    try:
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        print("fla-core is not installed: only our own kernels are timed (pip install fla-core).")
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
        # Each input read once and each output written once: 6 + 1 tensors forward, 7 + 6 backward.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="folder of the JSON (default: benchmarks/results)"
    )
    options = parser.parse_args()
    if torch.cuda.is_available():
        print(report.write("wkv7s_gpu", benchmark_gpu(), options.out))
    else:
        print(report.write("wkv7s_cpu", benchmark_cpu(), options.out))


if __name__ == "__main__":
    main()
