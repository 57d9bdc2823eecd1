"""Compare the WKV7s CUDA operator with a float64 reference on random shapes and inputs, on a GPU.

    python benchmarks/fuzz_wkv7s.py [--cases 3000] [--seed 0] [--head-size 64]

For each case, the following are drawn: the shape, the division into documents (some of them empty) and segments, the
range of w, the similarity of the keys, and whether there is an initial state. Each case is computed twice, and the
results must be the same, bit for bit.

Writes results/wkv7s_fuzz.json, or wkv7s_fuzz_128.json for head size 128. Exit status 1 if an output exceeds its error
bound, is NaN, or differs between the two computations.

The reference and its gradients are written out by hand, and share no code with the operator or with the reference in
the tests. Many cases are computed at once, token by token, with each head of each document as a row of a batch."""

import argparse
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

import report
import torch
from torch import Tensor
from torch.nn.functional import normalize

from rwkv_music.cuda import build
from rwkv_music.ops.wkv7s import wkv7s

OUTPUTS = ("y", "final_state", "dr", "dw", "dk", "dv", "da", "db", "dstate")
ORDINARY, HARD = 5e-3, 8e-3  # bounds on ||out - reference|| / ||reference||; hard: extreme w or similar keys
BATCH = 400_000 * 64**2  # largest number of state elements in the reference: 13 GB


@dataclass
class Case:
    """A random input of the operator."""

    bounds: list[int]  # document boundaries, in tokens
    rows: int  # > 0: a batch of this many rows of equal length; 0: packed documents
    heads: int
    head_size: int
    w_range: tuple[float, float] | None  # None: normal, as at the start of training
    noise: float | None  # keys are one direction plus this much noise; None: independent
    with_state: bool
    segment_tokens: int | None  # None: the public operator chooses
    seed: int

    @property
    def bound(self) -> float:
        return ORDINARY if self.w_range is None and self.noise is None else HARD

    @property
    def lengths(self) -> list[int]:
        return [stop - start for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True)]


def draw_case(chance: random.Random, head_size: int) -> Case:
    longest = chance.choices((20, 300, 1000), (0.2, 0.7, 0.1))[0]
    T, rows = chance.randint(1, longest), 0
    if chance.random() < 0.5:
        rows = chance.randint(1, 3)
        bounds = [i * T for i in range(rows + 1)]
    else:
        bounds = [0, *sorted(chance.choices(range(T + 1), k=chance.randint(0, 6))), T]
    low = chance.uniform(-20, 20)
    ranges = (
        *((-20, 20), (-20, -20), (20, 20), (-20, -19), (19, 20)),
        *((-10, -3), (-6, -4)),  # slow decays, the worst case for similar keys
        (low, chance.uniform(low, 20)),
    )
    return Case(
        bounds=bounds,
        rows=rows,
        heads=chance.randint(1, 5),
        head_size=head_size,
        w_range=None if chance.random() < 0.5 else chance.choice(ranges),
        noise=chance.choice((None, None, None, 0.1, 0.3)),
        with_state=chance.random() < 0.5,
        segment_tokens=chance.choice((None, None, 0, 64, 128) if head_size == 64 else (None, 0)),
        seed=chance.randrange(1 << 40),
    )


def make_inputs(case: Case) -> tuple[list[Tensor], Tensor | None, Tensor, Tensor]:
    """Return [r, w, k, v, a, b] [tokens, H, N], state or None, dy, and the final state's gradient, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(case.seed)
    N = case.head_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    tokens = (case.bounds[-1], case.heads, N)
    r, w, k, v, kk, gate, dy = (normal(*tokens) for _ in range(7))
    w = 2 * w - 1
    if case.w_range is not None:
        low, high = case.w_range
        w = low + (high - low) * torch.rand(tokens, device="cuda", generator=generator)
    if case.noise is not None:
        kk = normal(1, case.heads, N) + case.noise * kk
        k = case.noise * k + kk
    kk = normalize(kk, dim=-1)
    states = (len(case.lengths), case.heads, N, N)
    state = normal(*states) if case.with_state else None
    inputs = [x.bfloat16() for x in (r, w, k, v, -kk, kk * torch.sigmoid(gate))]
    return inputs, state, dy.bfloat16(), normal(*states)


def run_operator(case: Case, inputs: list[Tensor], state: Tensor | None, dy: Tensor, dfinal: Tensor) -> list[Tensor]:
    """Return OUTPUTS with packed tokens. Without an initial state, dstate exists only for explicit segments."""
    T = case.bounds[-1]
    bounds = torch.tensor(case.bounds, dtype=torch.int32, device="cuda")
    longest = T // max(case.rows, 1)  # as the public operator computes it
    if case.segment_tokens is not None:
        ops = build.load()
        y, final, saved = ops.wkv7s_forward(*inputs, state, bounds, longest, True, case.segment_tokens)
        return [y, final, *ops.wkv7s_backward(*inputs, bounds, longest, saved, dy, dfinal, case.segment_tokens)]
    shape = (max(case.rows, 1), longest, case.heads, case.head_size)
    leaves = [x.view(shape).requires_grad_() for x in inputs] + ([] if state is None else [state.requires_grad_()])
    y, final = wkv7s(*leaves[:6], state, None if case.rows else bounds)
    grads = torch.autograd.grad([y, final], leaves, [dy.view(shape), dfinal])
    return [x.detach().reshape(dy.shape) if x.shape == shape else x.detach() for x in (y, final, *grads)]


def reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, dy: Tensor, dfinal: Tensor
) -> list[Tensor]:
    """Return OUTPUTS in float64.

    Args:
        r, w, k, v, a, b, dy: [T, R, N]. Past a row's end, w is -infinity and the others are 0.
        state, dfinal: [R, N, N].
    """
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
    slope = -math.exp(-0.5) * torch.sigmoid(w) * torch.sigmoid(-w) * decay  # d decay / dw
    T = len(r)
    states = torch.empty(T + 1, *state.shape, dtype=state.dtype, device=state.device)
    states[0] = state
    removed = torch.empty_like(v)
    for t in range(T):
        S = states[t]
        removed[t] = torch.einsum("rij,rj->ri", S, a[t])
        torch.mul(S, decay[t, :, None, :], out=states[t + 1])
        states[t + 1].baddbmm_(torch.stack((removed[t], v[t]), 2), torch.stack((b[t], k[t]), 1))
    y = torch.einsum("trij,trj->tri", states[1:], r)
    dr, dw, dk, dv, da, db = (torch.empty_like(r) for _ in range(6))
    G = dfinal.clone()
    for t in reversed(range(T)):
        G += dy[t, :, :, None] * r[t, :, None, :]
        dv[t], dremoved = torch.bmm(G, torch.stack((k[t], b[t]), 2)).unbind(2)
        dk[t], db[t] = torch.bmm(torch.stack((v[t], removed[t]), 1), G).unbind(1)
        dr[t] = torch.einsum("rij,ri->rj", states[t + 1], dy[t])
        da[t] = torch.einsum("rij,ri->rj", states[t], dremoved)
        dw[t] = (G * states[t]).sum(1) * slope[t]
        G = G * decay[t, :, None, :] + dremoved[:, :, None] * a[t, :, None, :]
    return [y, states[T], dr, dw, dk, dv, da, db, G]


def check_batch(cases: list[Case]) -> list[dict]:
    """Return for each case the relative error of every output, and whether both runs gave the same bits."""
    made = [make_inputs(case) for case in cases]
    results = []
    for case, arguments in zip(cases, made, strict=True):
        first, second = (run_operator(case, *arguments) for _ in range(2))
        results.append((first, all(map(torch.equal, first, second))))

    rows = [
        (c, d) for c, case in enumerate(cases) for d in range(len(case.lengths))
    ]  # each occupies as many rows as the case has heads
    starts = [0]
    for c, _ in rows:
        starts.append(starts[-1] + cases[c].heads)
    T, N = max(max(case.lengths) for case in cases), cases[0].head_size
    filled = [torch.zeros(T, starts[-1], N, dtype=torch.float64, device="cuda") for _ in range(7)]
    filled[1].fill_(-math.inf)  # so that the state does not change after the end of a document
    state, dfinal = (torch.zeros(starts[-1], N, N, dtype=torch.float64, device="cuda") for _ in range(2))
    places = [[] for _ in cases]
    for (c, d), start, stop in zip(rows, starts[:-1], starts[1:], strict=True):
        inputs, initial, dy, dlast = made[c]
        tokens = slice(cases[c].bounds[d], cases[c].bounds[d + 1])
        for x, full in zip((*inputs, dy), filled, strict=True):
            full[: cases[c].lengths[d], start:stop] = x[tokens].detach()
        if initial is not None:
            state[start:stop] = initial[d].detach()
        dfinal[start:stop] = dlast[d]
        places[c].append((cases[c].lengths[d], start, stop))
    expected = reference(*filled[:6], state, filled[6], dfinal)

    found = []
    for place, (outputs, same) in zip(places, results, strict=True):
        errors = {}
        for name, out, wanted in zip(OUTPUTS, outputs, expected, strict=False):
            if name in ("final_state", "dstate"):
                parts = torch.stack([wanted[start:stop] for _, start, stop in place])
            else:
                parts = torch.cat([wanted[:length, start:stop] for length, start, stop in place])
            scale = parts.norm()
            errors[name] = (out.double() - parts).norm() / torch.where(scale > 0, scale, 1.0)
        found.append({"same": same, "errors": errors})
    names = [[*result["errors"]] for result in found]
    values = torch.stack(
        [x for result in found for x in result["errors"].values()]
    ).tolist()  # one synchronization for all
    for result, keys in zip(found, names, strict=True):
        result["errors"] = dict(zip(keys, values, strict=False))
        del values[: len(keys)]
    return found


def batches(cases: list[Case]) -> list[list[Case]]:
    """Group cases of similar length into batches that fit the reference."""
    found, size = [[]], 0
    for case in sorted(cases, key=lambda case: max(case.lengths)):
        rows = len(case.lengths) * case.heads * case.head_size**2
        if found[-1] and (size + rows) * max(case.lengths) > BATCH:
            found.append([])
            size = 0
        found[-1].append(case)
        size += rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, metavar="COUNT", help="random cases (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0)")
    parser.add_argument("--head-size", type=int, default=64, choices=(64, 128), help="head size N (default: 64)")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    chance = random.Random(options.seed)
    cases = [draw_case(chance, options.head_size) for _ in range(options.cases)]
    start = time.perf_counter()
    worst = {kind: dict.fromkeys(OUTPUTS, 0.0) for kind in ("ordinary", "hard")}
    counts, over, wrong = Counter(), Counter(), []
    for batch in batches(cases):
        for case, result in zip(batch, check_batch(batch), strict=True):
            kind = "ordinary" if case.bound == ORDINARY else "hard"
            counts[kind] += 1
            for name, error in result["errors"].items():
                worst[kind][name] = max(worst[kind][name], error) if error == error else math.nan
            largest = max(result["errors"].values(), key=lambda x: math.inf if x != x else x)
            over["over_5e-3"] += not largest < ORDINARY
            over["over_8e-3"] += not largest < HARD
            if not largest < case.bound or not result["same"]:
                wrong.append({"case": vars(case), **result})
    seconds = time.perf_counter() - start

    print(f"{options.cases} cases in {seconds:.0f} s; largest ||out - reference|| / ||reference||, in thousandths")
    print(f"{'':<24}" + "".join(f"{name:>12}" for name in OUTPUTS))
    for kind, errors in worst.items():
        label = f"{kind} ({counts[kind]} cases)"
        print(f"{label:<24}" + "".join(f"{1e3 * error:>12.2f}" for error in errors.values()))
    print(f"over 5e-3: {over['over_5e-3']}, over 8e-3: {over['over_8e-3']}")
    for item in wrong[:20]:
        print("mismatch:", item)
    figures = {
        "cases": dict(counts),
        "seed": options.seed,
        "head_size": options.head_size,
        "seconds": round(seconds, 1),
        "bounds": {"ordinary": ORDINARY, "hard": HARD},
        "worst": worst,
        "over": dict(over),
        "disagreements": wrong,
    }
    name = "wkv7s_fuzz" if options.head_size == 64 else f"wkv7s_fuzz_{options.head_size}"
    print(report.write(name, figures, options.out))
    if wrong:
        sys.exit(f"{len(wrong)} of {options.cases} cases differ from the reference or between two runs.")


if __name__ == "__main__":
    main()
