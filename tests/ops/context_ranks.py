"""Compare the operators and the model over 2 and 4 ranks with one rank; one rank of 4.

Usage: context_ranks.py OUT [DEVICE]: rank 0 writes the largest relative error of each case, and the bytes that a rank
receives per layer by the number of tokens and of ranks, to the JSON file OUT.

Results in float64 and float32 are compared with those of one rank. In bfloat16 (with DEVICE "cuda", where the ranks
share the GPUs) the difference from float64 may be 5e-3, or 1.5 times one rank's, and the error is divided by that.
"""

import copy
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import IGNORE_INDEX, ModelConfig
from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.data.dataset import Batch, MusicDataset, make_batch
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.evaluation.losses import summed_loss_of_streams
from rwkv_music.model_v8 import RWKV, Packing, token_shift
from rwkv_music.ops import fused_sublayers
from rwkv_music.ops.context_parallel import ContextPart, cut, previous_tokens, wkv7s_over_ranks
from rwkv_music.ops.wkv7s import wkv7s
from rwkv_music.training.process_group import init_process_group
from rwkv_music.training.tbptt import StreamStates
from tests.data.test_dataset import make as make_dataset
from tests.ops.reference import wkv7s_inputs
from tests.training.plain_engine import PlainEngine

RANKS = (2, 4)
VOCABULARY = 17
# Long rows and few heads, so that the kernels divide a rank's part into segments.
SIZES = {"cpu": {"tokens": 131, "head_size": 16}, "cuda": {"tokens": 6501, "head_size": 64}}
DTYPES = {"cpu": {"float32": torch.float32, "float64": torch.float64}, "cuda": {"bfloat16": torch.bfloat16}}
# Fused sublayers or not, activation checkpointing, and whether the initial state is learned.
PLAIN = [("", "none", ""), ("", "block", ""), ("", "none", ", state tuning")]
FUSED = [("fused ", "none", ""), ("fused ", "block", ", state tuning")]


def device_of(dtype: torch.dtype) -> torch.device:
    """Return this rank's GPU for bf16, otherwise the CPU."""
    if dtype != torch.bfloat16:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def documents(tokens: int) -> dict[str, list[int]]:
    """Return the bounds of documents, by name, that have edges of 2 and 4 ranks at all kinds of places."""
    first, second, third = (bounds[0] for bounds in cut([0, tokens], 4)[1:])
    inside = (second + third) // 2
    return {
        "one": [0, tokens],
        "before, on and after edges": [0, first - 1, second, third + 1, tokens],
        "inside parts": [0, first // 2, first + 8, first + 9, inside, tokens],
        "one from the first edge on": [0, first, tokens],
        "some on edges": [0, first, inside, third, tokens],
    }


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to that of `expected` if it is not zero."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    return ((actual - expected).norm() / (expected.norm() or 1)).item()


def largest_error(dtype: torch.dtype, actual: list[Tensor], one_rank: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest error of `actual`: from one rank's results, in bfloat16 as described above.

    `exact` are one rank's results in float64. Some results in bfloat16, such as states, are float32.
    """
    return max(
        error(x, z) / max(1.5 * error(y, z), 5e-3) if dtype == torch.bfloat16 else error(x, y)
        for x, y, z in zip(actual, one_rank, exact, strict=True)
    )


# ---- the token shift and the recurrence ------------------------------------------------------------------------------


def operator_error(bounds: list[int], dtype: torch.dtype, group: dist.ProcessGroup) -> float:
    """Return the largest error of this rank's outputs, final states and gradients, given random gradients of both."""
    device, N = device_of(dtype), SIZES[device_of(dtype).type]["head_size"]
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = wkv7s_inputs(1, bounds[-1], 2, N=N, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64).to(dtype)
    states, grad_states = (
        torch.randn(len(bounds) - 1, 2, N, N, generator=generator, dtype=torch.float64).to(state_dtype)
        for _ in range(2)
    )

    def run(leaves: list[Tensor], grads: list[Tensor], operator: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        results = operator(*leaves[:6], state=leaves[6])
        return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, grads)]

    def whole(*arguments: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=state.device)
        return wkv7s(*arguments, state=state, cu_seqlens=cu_seqlens)

    def on_device(x: Tensor) -> Tensor:
        return x.to(device)

    own, context = ContextPart.of(bounds, group)
    part = slice(own[0], own[-1])
    own_documents = np.searchsorted(bounds, own[:-1], side="right") - 1

    ends_here = np.isin(own[1:], bounds)

    def part_of(results: list[Tensor]) -> list[Tensor]:
        y, final, *grads = results
        grad_state = grads.pop()[own_documents]
        grad_state[: int(own[0] not in bounds)] = 0  # the state of a document that began earlier is not used
        return [y[:, part], final[own_documents][ends_here], *(x[:, part] for x in grads), grad_state]

    def over_ranks(*arguments: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        cu_seqlens = torch.tensor(own, dtype=torch.int32, device=device) - own[0]
        return wkv7s_over_ranks(*arguments, context, cu_seqlens, int(cu_seqlens.diff().max()), state)

    leaves = [*(x[:, part] for x in inputs), states[own_documents]]
    grads = [grad_y[:, part], grad_states[own_documents]]  # that of a document that continues is not used
    actual = run(list(map(on_device, leaves)), list(map(on_device, grads)), over_ranks)
    actual[1] = actual[1][ends_here]
    tensors = [(*inputs, states), (grad_y, grad_states)]
    one_rank = part_of(run(*(list(map(on_device, x)) for x in tensors), whole))
    exact = part_of(run(*([y.double() for y in x] for x in tensors), whole))
    return largest_error(dtype, actual, one_rank, exact)


def shift_error(bounds: list[int], group: dist.ProcessGroup) -> float:
    """Return the largest error of this rank's shifted tokens and their gradients, in float64."""
    generator = torch.Generator().manual_seed(0)
    x, grad, shift = (torch.randn(*shape, 3, generator=generator).double() for shape in (
        (1, bounds[-1]), (1, bounds[-1]), (len(bounds) - 1,)))  # fmt: skip
    own, context = ContextPart.of(bounds, group)

    def run(part: list[int], shift: Tensor, context: ContextPart | None) -> list[Tensor]:
        tokens, edges = slice(part[0], part[-1]), torch.tensor(part) - part[0]
        packing = Packing(edges.int(), edges[:-1], edges[1:] - 1, int(edges.diff().max()), context)
        leaves = [z.clone().requires_grad_() for z in (x[:, tokens], shift)]
        own, previous = leaves
        if context is not None:
            previous = previous_tokens(own[0, -1:], context, len(shift), shift=previous)
        shifted = token_shift(own, previous, packing)
        return [shifted.detach(), *torch.autograd.grad(shifted, leaves, grad[:, tokens])]

    own_documents = np.searchsorted(bounds, own[:-1], side="right") - 1
    *tokens, grad_shift = run(bounds, shift, None)
    grad_shift = grad_shift[own_documents]
    grad_shift[: int(own[0] not in bounds)] = 0  # that of a document that began earlier is not used
    expected = [*(z[:, own[0] : own[-1]] for z in tokens), grad_shift]
    return max(map(error, run(own, shift[own_documents], context), expected))


# ---- the model -------------------------------------------------------------------------------------------------------


def model(dtype: torch.dtype, tuned: bool = False) -> RWKV:
    """Return a model in which no gradient is zero; `tuned` adds the initial states that state tuning learns."""
    torch.manual_seed(0)
    N = SIZES[device_of(dtype).type]["head_size"]
    made = RWKV(ModelConfig(n_layer=2, n_embd=2 * N, head_size=N, vocab_size=VOCABULARY)).double()
    with torch.no_grad():
        for p in made.parameters():
            p += 0.05 * torch.randn_like(p)
    if tuned:
        for block in made.blocks:
            block.att.time_state = torch.nn.Parameter(torch.randn(2, N, N, dtype=torch.float64))
    return made.to(device_of(dtype), dtype)


@contextmanager
def fused_blocks(head_size: int) -> Iterator[None]:
    """A context in which the model's blocks run on the fused sublayers, as on a GPU."""
    with (
        mock.patch.object(fused_sublayers, "supports", lambda x, _: True),
        mock.patch.object(fused_sublayers.fused, "HEAD_SIZE", head_size),
    ):
        yield


def batch(starts: list[list[int]], tokens: int) -> Batch:
    """Return rows of `tokens` tokens with documents from `starts`, whose last token has no target."""
    generator = np.random.default_rng(0)
    rows = generator.integers(VOCABULARY, size=(len(starts), tokens + 1))
    targets = rows[:, 1:].copy()
    for row, first in zip(targets, starts, strict=True):
        row[[start - 1 for start in first]] = IGNORE_INDEX
    flat = [i * tokens + np.array(first) for i, first in enumerate(starts)]
    return make_batch(rows[:, :-1].copy(), targets, flat)


BATCHES = {
    "one row": ([[0]], 67),
    "a long row": ([[0]], 2001),
    "odd rows": ([[0, 5], [0], [0, 17, 18]], 37),
    "edges between rows": ([[0], [0], [0], [0]], 9),
    "fewer tokens than ranks": ([[0]], 3),
}


def model_error(name: str, net: RWKV, group: dist.ProcessGroup) -> float:
    """Return the largest error of the loss and of the gradients, summed over the ranks of the group."""
    whole = batch(*BATCHES[name])

    def run(net: RWKV, some: Batch) -> list[Tensor]:
        arguments = {**some.to(net.device).arguments(), "reduction": "sum"}
        net.zero_grad()
        loss = net(**arguments)
        loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        with torch.no_grad():
            again = net(**arguments)
        return [x.detach().cpu() for x in (loss, again, *grads)]

    one_rank, exact = run(net, whole), run(copy.deepcopy(net).cpu().double(), whole)
    actual = []
    for x in run(net, whole.part(group)):
        total = x.double()
        dist.all_reduce(total, group=group)
        actual.append(total.to(x.dtype))
    return largest_error(net.emb.weight.dtype, actual, one_rank, exact)


# Streams, tokens per row, and the length of the pieces. Rows are in one part or several, and end before, on and after
# the edges between parts.
STREAMS = {
    "a row": (1, 67, 1),
    "odd rows": (3, 37, 1),
    "edges between rows": (4, 9, 1),
    "fewer tokens than ranks": (1, 3, 1),
    "long rows": (3, 1501, 40),
}
PIECES = [150, 40, 3, 90, 1, 17, 30, 2, 60]
STEPS, WINDOWS = 2, 3  # windows per step


def streams_error(name: str, net: RWKV, group: dist.ProcessGroup) -> float:
    """Return the largest error of TBPTT's losses, gradients summed over the ranks, states, and validation loss."""
    n_streams, ctx_len, scale = STREAMS[name]
    with tempfile.TemporaryDirectory() as folder:
        sizes = [scale * size for size in PIECES]
        make_dataset(Path(folder), sizes)
        generator = np.random.default_rng(0)
        with BinIdxWriter(Path(folder) / "train") as writer:
            for size in sizes:
                writer.add(generator.integers(1, VOCABULARY, size))
        streams = DocumentStreams(MusicDataset(folder, "train", ctx_len), n_streams)
        windows = [streams.batch(window) for window in range(STEPS * WINDOWS)]

        def run(net: RWKV, group: dist.ProcessGroup | None) -> list[Tensor]:
            engine = PlainEngine(net)
            states = StreamStates(engine, net.config, [range(n_streams)], group)
            net.zero_grad()
            losses = []
            for step in range(STEPS):
                batches = windows[step * WINDOWS : (step + 1) * WINDOWS]
                batches = batches if group is None else [batch.part(group) for batch in batches]
                losses.append(states.step(engine, batches, torch.tensor(1 / 64, device=net.device)))
            found = [*losses, *(torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters())]

            def parts(batches: Iterator[Batch]) -> Iterator[Batch]:
                return (batch if group is None else batch.part(group) for batch in batches)

            own = range(n_streams)
            found.append(summed_loss_of_streams(net, streams, own, net.device, 3 * n_streams, parts))
            if group is not None:
                for x in found:
                    dist.all_reduce(x, group=group)
            return [x.detach().cpu() for x in (*found, *states.tensors().values())]

        exact = run(copy.deepcopy(net).cpu().double(), None)
        return largest_error(net.emb.weight.dtype, run(net, group), run(net, None), exact)


def received_bytes(whole: Batch, group: dist.ProcessGroup) -> float:
    """Return the bytes per layer that this rank receives in the forward and backward pass of a float32 model."""
    counted, net = [], model(torch.float32)

    def gather(out: list[Tensor], x: Tensor, group: dist.ProcessGroup, async_op: bool) -> dist.Work:
        counted.extend(y.nbytes for i, y in enumerate(out) if i != group.rank())
        return undisturbed(out, x, group=group, async_op=async_op)

    undisturbed = dist.all_gather
    with mock.patch.object(dist, "all_gather", gather):
        net(**whole.part(group).arguments(), reduction="sum").backward()
    return sum(counted) / net.config.n_layer


# ---- all cases -------------------------------------------------------------------------------------------------------


def cases(groups: dict[int, dist.ProcessGroup], device: str) -> Iterator[tuple[str, float]]:
    size = SIZES[device]
    for (ranks, group), (dtype, type_) in itertools.product(groups.items(), DTYPES[device].items()):
        place = f"{ranks} ranks, {dtype}"
        for name, bounds in documents(size["tokens"]).items():
            yield f"operator, {place}, {name}", operator_error(bounds, type_, group)
            if dtype == "float64":
                yield f"token shift, {place}, {name}", shift_error(bounds, group)
        for fused, recompute, tuned in (*PLAIN, *FUSED) if device == "cpu" else PLAIN:  # on a GPU all are fused
            if dtype == "float32" and fused + recompute + tuned != "none":  # fused sublayers run in bf16 alone
                continue
            net = model(type_, tuned=bool(tuned))
            net.recompute = recompute
            with fused_blocks(size["head_size"]) if fused else nullcontext():
                name = f"{fused}model, {place}, {recompute}{tuned}"
                yield name, model_error("odd rows", net, group)
        names = {"float64": ("one row", "edges between rows", "fewer tokens than ranks"), "bfloat16": ("a long row",)}
        for name in names.get(dtype, ()):
            yield f"model, {place}, {name}", model_error(name, model(type_), group)
        names = {"float32": ("odd rows",), "float64": list(STREAMS)[:-1], "bfloat16": ("long rows",)}
        for name in names[dtype]:
            yield f"streams, {place}, {name}", streams_error(name, model(type_), group)
        if dtype == "float64":
            net = model(type_)
            net.recompute = "block"
            with fused_blocks(size["head_size"]):
                yield f"fused streams, {place}, odd rows", streams_error("odd rows", net, group)


def take_part_without_rows(group: dist.ProcessGroup) -> None:
    """Run the model with padding on the second rank, as if it could not read its rows: the others must not hang."""
    rows = ([[0]], 1) if group.rank() == 1 else BATCHES["odd rows"]
    model(torch.float32)(**batch(*rows).part(group).arguments(), reduction="sum").backward()


def main() -> None:
    device = "".join(sys.argv[2:]) or "cpu"
    init_process_group("gloo", 5)
    groups = {}
    for ranks in RANKS:
        for first in range(0, dist.get_world_size(), ranks):
            members = range(first, first + ranks)
            group = dist.new_group(list(members))
            if dist.get_rank() in members:
                groups[ranks] = group
    errors = {}
    for name, found in cases(groups, device):
        largest = torch.tensor(found, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        errors[name] = largest.item()
    received = {}
    if device == "cpu":
        for tokens in (40, 67):
            whole = batch([[0]], tokens)
            received[tokens] = {ranks: received_bytes(whole, group) for ranks, group in groups.items()}
        for group in groups.values():
            take_part_without_rows(group)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"errors": errors, "received": received}))
    dist.barrier()


if __name__ == "__main__":
    main()
