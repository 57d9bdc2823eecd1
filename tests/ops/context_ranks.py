"""Compare the operators, the token shift and the model over 2 and 4 ranks with one rank; one rank of 4.

Usage: context_ranks.py OUT: rank 0 writes the largest relative error of each case, and the bytes that a rank receives
per layer by the number of tokens and of ranks, to the JSON file OUT.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import IGNORE_INDEX, ModelConfig
from rwkv_music.data.dataset import Batch, make_batch
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import fused_sublayers
from rwkv_music.ops.context_parallel import ContextPart, wkv7s_over_ranks
from rwkv_music.ops.wkv7s import wkv7s
from rwkv_music.training.process_group import init_process_group
from tests.ops.reference import wkv7s_inputs

RANKS = (2, 4)
TOKENS = 131  # 2 ranks: edge at 65; 4 ranks: edges at 32, 65 and 98
DOCUMENTS = {
    "one": [0, 131],
    "before, on and after edges": [0, 31, 65, 99, 131],
    "inside parts": [0, 12, 40, 41, 90, 131],
    "one from the first edge on": [0, 32, 131],
    "some on edges": [0, 32, 80, 98, 131],
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
VOCABULARY = 17
MODEL = ModelConfig(n_layer=2, n_embd=32, head_size=16, vocab_size=VOCABULARY)


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to that of `expected` if it is not zero."""
    return ((actual - expected).norm() / (expected.norm() or 1)).item()


@contextmanager
def fused_blocks() -> Iterator[None]:
    """A context in which the model's blocks run on the fused sublayers, as on a GPU."""
    with (
        mock.patch.object(fused_sublayers, "supports", lambda x, head_size: True),
        mock.patch.object(fused_sublayers.fused, "HEAD_SIZE", MODEL.head_size),
    ):
        yield


def operator_error(bounds: list[int], dtype: torch.dtype, group: dist.ProcessGroup) -> float:
    """Return the largest error of this rank's outputs and gradients, given random gradients of the outputs."""
    inputs = wkv7s_inputs(1, TOKENS, 2, N=16, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64).to(dtype)
    states = torch.randn(len(bounds) - 1, 2, 16, 16, generator=generator, dtype=torch.float64).to(dtype)

    def run(leaves: list[Tensor], grad_y: Tensor, operator: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        y = operator(*leaves[:6], state=leaves[6])
        return [y, *torch.autograd.grad(y, leaves, grad_y)]

    def whole(*arguments: object, **options: object) -> Tensor:
        return wkv7s(*arguments, cu_seqlens=torch.tensor(bounds, dtype=torch.int32), **options)[0]

    expected = run([*inputs, states], grad_y, whole)
    own, context = ContextPart.of(bounds, group)
    part = slice(own[0], own[-1])
    cu_seqlens = torch.tensor(own, dtype=torch.int32) - own[0]
    documents = np.searchsorted(bounds, own[:-1], side="right") - 1
    leaves = [x[:, part] for x in inputs] + [states[documents]]

    def over_ranks(*arguments: object, **options: object) -> Tensor:
        return wkv7s_over_ranks(*arguments, context, cu_seqlens, int(cu_seqlens.diff().max()), **options)

    actual = run(leaves, grad_y[:, part], over_ranks)
    errors = [error(x, y[:, part]) for x, y in zip(actual[:7], expected[:7], strict=True)]
    begun = expected[7][documents]
    begun[: int(own[0] not in bounds)] = 0  # the state of a document that began earlier is not used
    return max(*errors, error(actual[7], begun))


def model(dtype: torch.dtype, tuned: bool = False) -> RWKV:
    """Return a model in which no gradient is zero; `tuned` adds the initial states that state tuning learns."""
    torch.manual_seed(0)
    made = RWKV(MODEL).double()
    with torch.no_grad():
        for p in made.parameters():
            p += 0.05 * torch.randn_like(p)
    if tuned:
        for block in made.blocks:
            block.att.time_state = torch.nn.Parameter(torch.randn(2, 16, 16, dtype=torch.float64))
    return made.to(dtype)


def batch(starts: list[list[int]], tokens: int) -> Batch:
    """Return rows of `tokens` tokens with documents from `starts`, whose last token has no target."""
    generator = np.random.default_rng(0)
    rows = generator.integers(VOCABULARY, size=(len(starts), tokens + 1))
    targets = rows[:, 1:].copy()
    for row, first in zip(targets, starts, strict=True):
        row[[start - 1 for start in first]] = IGNORE_INDEX
    flat = [i * tokens + np.array(first) for i, first in enumerate(starts)]
    return make_batch(rows[:, :-1].copy(), targets, flat)


# Fused sublayers or not, activation checkpointing, and whether the initial state is learned.
PLAIN = [("", "none", ""), ("", "block", ""), ("", "none", ", state tuning")]
FUSED = [("fused ", "none", ""), ("fused ", "block", ", state tuning")]
BATCHES = {
    "one row": ([[0]], 67),
    "odd rows": ([[0, 5], [0], [0, 17, 18]], 37),
    "edges between rows": ([[0], [0], [0], [0]], 9),
    "fewer tokens than ranks": ([[0]], 3),
}


def model_error(name: str, net: RWKV, group: dist.ProcessGroup) -> float:
    """Return the largest error of the loss and of the gradients, summed over the ranks of the group."""
    whole = batch(*BATCHES[name])

    def run(some: Batch) -> list[Tensor]:
        net.zero_grad()
        loss = net(**some.arguments(), reduction="sum")
        loss.backward()
        return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters())]

    expected, actual = run(whole), run(whole.part(group))
    with torch.no_grad():
        actual.append(net(**whole.part(group).arguments(), reduction="sum"))
    expected.append(expected[0])
    for x in actual:
        dist.all_reduce(x, group=group)
    return max(error(x, y) for x, y in zip(actual, expected, strict=True))


def received_bytes(whole: Batch, group: dist.ProcessGroup) -> float:
    """Return the bytes per layer that this rank receives in the forward and backward pass of a float32 model."""
    counted, net = [], model(torch.float32)

    def gather(out: list[Tensor], x: Tensor, group: dist.ProcessGroup) -> None:
        counted.extend(y.nbytes for i, y in enumerate(out) if i != group.rank())
        undisturbed(out, x, group=group)

    undisturbed = dist.all_gather
    with mock.patch.object(dist, "all_gather", gather):
        net(**whole.part(group).arguments(), reduction="sum").backward()
    return sum(counted) / MODEL.n_layer


def cases(groups: dict[int, dist.ProcessGroup]) -> Iterator[tuple[str, float]]:
    for (ranks, group), (dtype, type_) in itertools.product(groups.items(), DTYPES.items()):
        place = f"{ranks} ranks, {dtype}"
        for documents, bounds in DOCUMENTS.items():
            yield f"operator, {place}, {documents}", operator_error(bounds, type_, group)
        for fused, recompute, tuned in (*PLAIN, *FUSED):
            if dtype == "float32" and recompute + tuned != "none":
                continue
            net = model(type_, tuned=bool(tuned))
            net.recompute = recompute
            with fused_blocks() if fused else nullcontext():
                name = f"{fused}model, {place}, {recompute}{tuned}"
                yield name, model_error("odd rows", net, group)
        for name in BATCHES:
            if dtype == "float64" and name != "odd rows":
                yield f"model, {place}, {name}", model_error(name, model(type_), group)


def main() -> None:
    init_process_group("gloo", 5)
    groups = {}
    for ranks in RANKS:
        for first in range(0, dist.get_world_size(), ranks):
            members = range(first, first + ranks)
            group = dist.new_group(list(members))
            if dist.get_rank() in members:
                groups[ranks] = group
    errors = {}
    for name, found in cases(groups):
        largest = torch.tensor(found, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        errors[name] = largest.item()
    received = {
        tokens: {ranks: received_bytes(batch([[0]], tokens), group) for ranks, group in groups.items()}
        for tokens in (40, 67)
    }
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"errors": errors, "received": received}))
    dist.barrier()


if __name__ == "__main__":
    main()
