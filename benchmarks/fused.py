"""Measure the fused operators. With --compile, also measure their plain PyTorch forms under torch.compile.

    python benchmarks/fused.py [--compile]

Needs a GPU. Writes results/fused.json: for every operator and shape, the median microseconds of forward and backward,
and the bytes per second if each input is read once and each output written once.

The compiled backward of relu_squared is faster because it writes one tensor less: the square is kept from the forward
pass, which takes memory for 4 C values per token. The fused operator keeps nothing and recomputes the square."""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import report
import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_music.ops import fused

TOKENS = 16384
WIDTHS = (768, 2048)
VOCABULARY = 20_096
HEAD_ROWS = 3328  # rows of logits held at once


class Case(NamedTuple):
    """The forward and backward functions of an operator, its plain form for autograd, and the arguments of each."""

    name: str
    forward: Callable
    forward_args: tuple
    backward: Callable | None  # None if the forward computes the gradient
    backward_args: tuple
    plain: Callable[..., tuple[Tensor, ...]]
    plain_args: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]  # of the plain form's outputs


def cases(M: int, C: int) -> Iterator[Case]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").bfloat16()

    def many(count: int, *shape: int) -> tuple[Tensor, ...]:
        return tuple(normal(*shape) for _ in range(count))

    first = fused.document_starts(torch.arange(0, M + 1, 1024, dtype=torch.int32, device="cuda"), M)
    for n in (6, 1):
        x, weight, bias, mixes, dmixed, dx = normal(M, C), *many(2, C), normal(n, C), normal(n, M, C), normal(M, C)
        args = (x, weight, bias, mixes, first)
        mean_rstd = fused.norm_mix(*args)[1]

        # A second output, x itself, adds the residual's gradient to x's.
        def norm_mix(x: Tensor, weight: Tensor, bias: Tensor, mixes: Tensor) -> tuple[Tensor, ...]:
            return fused.plain_norm_mix(x, weight, bias, mixes, first)[0], x * 1

        yield Case(
            f"norm_mix of {n}", fused.norm_mix, args,
            fused.norm_mix_backward, (dmixed, x, mean_rstd, weight, bias, mixes, first, None, dx),
            norm_mix, args[:4], (dmixed, dx),
        )  # fmt: skip

    k, v, v_first, w_low, a_low, v_low, dk_more, dv_more = many(8, M, C)
    w0, a0, v0, k_k, k_a = many(5, C)
    args = (k, v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a)
    dout = fused.Gates(*many(5, M, C))
    yield Case(
        "gates", fused.gates, args,
        fused.gates_backward, (dout, dk_more, dv_more, k, v, v_first, a_low, v_low, a0, v0, k_k, k_a),
        fused.plain_gates, args, dout,
    )  # fmt: skip

    args, dout = (*many(5, M, C), *many(3, C)), normal(M, C)
    yield Case(
        "norm_bonus_gate", fused.norm_bonus_gate, args, fused.norm_bonus_gate_backward, (dout, *args),
        lambda *args: (fused.plain_norm_bonus_gate(*args),), args, (dout,),
    )  # fmt: skip

    k, dout = many(2, M, 4 * C)
    yield Case(
        "relu_squared", fused.relu_squared, (k,), fused.relu_squared_backward, (dout, k),
        lambda k: (fused.plain_relu_squared(k),), (k,), (dout,),
    )  # fmt: skip

    x, out, dx = many(3, M, C)
    enn = normal(VOCABULARY, C)
    # Some tokens are far more frequent than others, as in music.
    ids = (VOCABULARY * torch.rand(M, device="cuda") ** 4).long()
    order = fused.embed_order(ids, VOCABULARY)
    yield Case(
        "embed_gate", fused.embed_gate, (x, out, enn, ids), fused.embed_gate_backward, (dx, out, enn, order),
        lambda x, out, enn: (fused.plain_embed_gate(x, out, enn, ids),), (x, out, enn), (dx,),
    )  # fmt: skip
    yield Case(
        "embedding", F.embedding, (ids, enn), fused.embedding_grad, (dx, order),
        lambda enn: (F.embedding(ids, enn),), (enn,), (dx,),
    )  # fmt: skip

    if C == WIDTHS[0]:
        logits = normal(HEAD_ROWS, VOCABULARY)
        targets = torch.randint(VOCABULARY, (HEAD_ROWS,), device="cuda")
        yield Case(
            "cross_entropy", lambda x, t: (fused.cross_entropy_(x, t), x), (logits, targets), None, (),
            lambda x: (F.cross_entropy(x.float(), targets, reduction="none"),), (logits,),
            (torch.ones(HEAD_ROWS, device="cuda"),),
        )  # fmt: skip


def tensors(nested) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [x for part in nested for x in tensors(part)] if isinstance(nested, tuple) else []


def moved_bytes(args: tuple, results: tuple) -> int:
    return sum(x.numel() * x.element_size() for x in (*tensors(args), *tensors(results)))


def time_gpu(run: Callable[[Callable[[], None]], None], repeats: int = 20) -> list[float]:
    """Return the median microseconds between consecutive calls of the `mark` function that `run` receives.

    Before each repetition a buffer larger than the L2 cache is written, so that the cache is cold. The GPU is kept busy
    until all repetitions are queued, so that the host's launch time does not count.
    """
    spill = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    repetitions = []
    for i in range(repeats + 3):
        if i == 3:
            torch.cuda.synchronize()
            torch.cuda._sleep(100_000_000)
        spill.zero_()
        events = []

        def mark(events: list = events) -> None:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()

        run(mark)
        repetitions.append(events)
    torch.cuda.synchronize()
    spans = [[a.elapsed_time(b) for a, b in itertools.pairwise(events)] for events in repetitions[3:]]
    return [1e3 * statistics.median(span) for span in zip(*spans, strict=True)]


def time_case(case: Case, compile_plain: bool) -> dict:
    halves = {"forward": (case.forward, case.forward_args)}
    if case.backward:
        halves["backward"] = (case.backward, case.backward_args)

    def ours(mark: Callable[[], None]) -> None:
        mark()
        for op, args in halves.values():
            op(*args)
            mark()

    row = {"operator": case.name}
    for (part, (op, args)), us in zip(halves.items(), time_gpu(ours), strict=True):
        row[part] = {"us": us, "bytes_per_second": 1e6 * moved_bytes(args, op(*args)) / us}
    if compile_plain:
        leaves = [x.detach().requires_grad_() for x in case.plain_args]
        compiled = torch.compile(case.plain, fullgraph=True, dynamic=False)

        def autograd(mark: Callable[[], None]) -> None:
            mark()
            outputs = compiled(*leaves)
            mark()
            torch.autograd.grad(outputs, leaves, case.gradients)
            mark()

        row["compiled"] = dict(zip(("forward_us", "backward_us"), time_gpu(autograd), strict=True))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the plain forms")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    print(
        f"{torch.cuda.get_device_name()}, bf16, {TOKENS} tokens: us (GB/s) of forward and backward"
        + (", us of both when compiled" if options.compile else "")
    )
    for C in WIDTHS:
        for case in cases(TOKENS, C):
            row = {"C": C, **time_case(case, options.compile)}
            rows.append(row)
            halves = [row[part] for part in ("forward", "backward") if part in row]
            ours = "".join(f"{x['us']:8.1f} ({x['bytes_per_second'] / 1e9:5,.0f})" for x in halves)
            beside = "".join(f"{us:9.1f}" for us in row["compiled"].values()) if options.compile else ""
            print(f"C {C:>5}  {case.name:<16}{ours:<32}{beside}", flush=True)
        torch.cuda.empty_cache()
    print(report.write("fused", {"tokens": TOKENS, "dtype": "bfloat16", "rows": rows}, options.out))


if __name__ == "__main__":
    main()
