"""How fast is the WKV7s operator? On the CPU: its chunked form against a loop over tokens, in one process.

    python benchmarks/wkv7s.py

Writes results/wkv7s_cpu.json. Times are medians in milliseconds; what counts is the ratio.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import report
import torch
from torch import Tensor

from rwkv_music.wkv7s import wkv7s


def inputs(B: int, T: int, H: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """r, w, k, v, a, b [B, T, H, 64] as the model makes them, with gradients asked for."""
    torch.manual_seed(0)
    r, w, k, v, kk, gate = (torch.randn(B, T, H, 64, device=device) for _ in range(6))
    kk = torch.nn.functional.normalize(kk, dim=-1)
    return [x.to(dtype).requires_grad_() for x in (r, w, k, v, -kk, kk * torch.sigmoid(gate))]


def token_loop(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The recurrence as its formula stands, one token after the other: what a plain PyTorch port does."""
    B, T, H, N = r.shape
    S = r.new_zeros(B, H, N, N)
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
    out = []
    for t in range(T):
        removed = (S @ a[:, t].unsqueeze(-1)) @ b[:, t].unsqueeze(-2)
        S = S * decay[:, t].unsqueeze(-2) + removed + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        out.append((S @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, dim=1)


def time_cpu(operator: Callable[..., Tensor], arguments: list[Tensor], repeats: int) -> tuple[float, float]:
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
    rounds = [(time_cpu(lambda *x: wkv7s(*x)[0], arguments, 5), time_cpu(token_loop, arguments, 1)) for _ in range(5)]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="folder of the JSON (default: benchmarks/results)"
    )
    options = parser.parse_args()
    print(report.write("wkv7s_cpu", benchmark_cpu(), options.out))


if __name__ == "__main__":
    main()
