"""The ranks of context_parallel.py, which starts this program.

    context_parallel_worker.py compare PRESET TOKENS OUT   # two ranks
    context_parallel_worker.py longest PRESET TOKENS OUT   # one rank, for rows of more than TOKENS
    context_parallel_worker.py train PRESET TOKENS OUT     # any number of ranks, which divide the row

Rank 0 writes what it found to the JSON file OUT. A row is one document of random tokens."""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from step import PROJECT, make_data
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import PRESETS, DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.data.dataset import Batch, make_batch
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import fused_sublayers
from rwkv_music.ops.context_parallel import exchanged_bytes
from rwkv_music.training.loop import Loop
from rwkv_music.training.process_group import consecutive_ranks, init_process_group
from rwkv_music.training.setup import setup
from rwkv_music.training.signals import leave

VOCABULARY = 20096
NOISE = 0.3  # added to the weights, relative to 1 / sqrt(C): no sublayer is zero, as in a model that was trained
SHORTER = 16  # the second length at which bytes are counted is this fraction of the first
# The search for the longest row starts at this fraction of the predicted one. Each next row is longer by another one.
START, INCREMENT = 0.8, 0.04


def random_row(tokens: int) -> Batch:
    """Return one row of `tokens` random tokens with as many targets."""
    row = np.random.default_rng(0).integers(3, VOCABULARY, (1, tokens + 1))
    return make_batch(row[:, :-1].copy(), row[:, 1:].copy(), [np.zeros(1, np.int64)])


# ---- compare ---------------------------------------------------------------------------------------------------------


def compare(preset: str, tokens: int) -> dict[str, Any]:
    """Compare loss and gradient of a first step on one GPU and on two, and count what the two exchange.

    For comparison, one GPU also computes the step with PyTorch's operators instead of the fused ones, which changes
    only the rounding. The gradient is that of the mean loss.
    """
    on_gpu = torch.cuda.is_available()
    init_process_group("nccl" if on_gpu else "gloo", 10)
    group, rank = consecutive_ranks(2, 10), dist.get_rank()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    model = noisy_model(preset, device)
    whole, config = random_row(tokens), model.config

    def gradient(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        loss = model(**batch.to(device).arguments(), reduction="sum") / whole.n_targets
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        return loss.detach().double(), gradients

    model.recompute = "block"
    with fused(rank == 0):
        loss, gradients = gradient(whole)  # at the same time: fused on rank 0, unfused on rank 1
    model.recompute = "none"  # which computes the same; the forward pass exchanges once
    received = {}
    with counted_bytes(group) as count:
        loss_of_part, gradients_of_part = gradient(whole.part(group))
        received[tokens] = count() / config.n_layer
        gradient(random_row(tokens // SHORTER).part(group))
        received[tokens // SHORTER] = count() / config.n_layer

    losses, squares = {"one": loss.clone(), "two": loss_of_part, "one_unfused": loss}, dict.fromkeys(NORMS, 0.0)
    dist.broadcast(losses["one"], 0)
    dist.all_reduce(losses["two"])
    dist.broadcast(losses["one_unfused"], 1)
    for own, part in zip(gradients, gradients_of_part, strict=True):
        one, two, unfused = own.float(), part.float(), own.float()
        dist.broadcast(one, 0)
        dist.all_reduce(two)
        dist.broadcast(unfused, 1)
        for name, x in zip(NORMS, (one, two, unfused, two - one, unfused - one), strict=True):
            squares[name] += x.double().square().sum().item()
    losses = {name: loss.item() for name, loss in losses.items()}
    norms = {name: math.sqrt(square) for name, square in squares.items()}
    item_size = next(model.parameters()).element_size()
    return {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "tokens": tokens,
        "losses": losses,
        "gradient_norms": {name: norms[name] for name in losses},
        # Relative to one GPU's fused step.
        "differences": {
            name: {
                "loss": abs(losses[name] / losses["one"] - 1),
                "gradient_norm": abs(norms[name] / norms["one"] - 1),
                "gradient": norms[f"{name} - one"] / norms["one"],
            }
            for name in ("two", "one_unfused")
        },
        "bytes_per_layer": {
            "formula": exchanged_bytes(2, config.n_embd, config.head_size, item_size),
            "counted": received,
        },
    }


NORMS = ("one", "two", "one_unfused", "two - one", "one_unfused - one")


def noisy_model(preset: str, device: torch.device) -> RWKV:
    """Return a model with the same random weights on all ranks, in bf16 on a GPU."""
    torch.manual_seed(0)
    with device, torch.no_grad():
        model = RWKV(ModelConfig(vocab_size=VOCABULARY, **PRESETS[preset]))
        for parameter in model.parameters():
            parameter += NOISE / model.config.n_embd**0.5 * torch.randn_like(parameter)
    model = model.bfloat16() if device.type == "cuda" else model
    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), 0)
    return model


@contextmanager
def fused(wanted: bool) -> Iterator[None]:
    """A context in which the blocks run on the fused sublayers only if `wanted` (and supported)."""
    supports = fused_sublayers.supports
    with mock.patch.object(fused_sublayers, "supports", lambda *arguments: wanted and supports(*arguments)):
        yield


@contextmanager
def counted_bytes(group: dist.ProcessGroup) -> Iterator[Callable[[], int]]:
    """Count the bytes that this rank receives from the others. The function returns those since its last call."""
    counted, undisturbed = [], dist.all_gather

    def gather(out: list[Tensor], *arguments: Any, **options: Any) -> dist.Work:
        counted.extend(x.nbytes for i, x in enumerate(out) if i != group.rank())
        return undisturbed(out, *arguments, **options)

    def count() -> int:
        total = sum(counted)
        counted.clear()
        return total

    with mock.patch.object(dist, "all_gather", gather):
        yield count


# ---- longest, train --------------------------------------------------------------------------------------------------


@contextmanager
def training(preset: str, tokens: int) -> Iterator[Callable[[int], float | None]]:
    """Set up a run whose ranks divide each row. The function trains on one row, and returns the peak in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), VOCABULARY, 1, tokens)
        ranks = int(os.environ["WORLD_SIZE"])
        train = TrainConfig(
            out=f"{folder}/run", batch_size=1, context_parallel=ranks, recompute="block", val_every=0, warmup_steps=10
        )
        config = RunConfig(ModelConfig(**PRESETS[preset]), DataConfig(folder, tokens), train)
        context = setup(config, PROJECT / "ds_configs" / "zero2.json", {"batch_size"})
        loop, device = Loop(context), context.device

        def step(tokens: int) -> float | None:
            batch = random_row(tokens)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            loss = loop.step([batch if context.group is None else batch.part(context.group)], train.lr)
            if not torch.isfinite(loss).all():
                raise ArithmeticError(f"the loss of {tokens} tokens is {loss.tolist()}")
            return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None

        yield step


def longest(preset: str, tokens: int) -> dict[str, Any]:
    """Find the longest row that this GPU trains. On a CPU it is `tokens`."""
    with training(preset, tokens) as step:
        few, more = tokens // 2, tokens
        step(few)  # the first step allocates what stays
        less_gib, more_gib = step(few), step(more)
        found = {"longest": more, "peak_gib": more_gib, "too_long": None}
        if more_gib is None:
            return found
        per_token = (more_gib - less_gib) / (more - few)
        available = (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / 2**30
        predicted = more + (available - more_gib) / per_token
        attempt, found["predicted"] = START * predicted, round(predicted)
        try:
            while True:
                tokens = int(attempt) // 1024 * 1024
                started = time.perf_counter()
                found |= {"longest": tokens, "peak_gib": step(tokens)}
                seconds = time.perf_counter() - started
                print(f"one GPU trains {tokens:,} tokens: {found['peak_gib']:.1f} GiB, {seconds:.1f} s", flush=True)
                attempt += INCREMENT * predicted
        except torch.OutOfMemoryError:
            print(f"one GPU lacks the memory for {tokens:,} tokens", flush=True)
            found["too_long"] = tokens
    return found


def train(preset: str, tokens: int) -> dict[str, Any]:
    """Train two steps on a row of `tokens` tokens, divided among the ranks."""
    with training(preset, tokens) as step:
        step(tokens)
        return {"tokens": tokens, "peak_gib_of_rank_0": step(tokens)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("compare", "longest", "train"))
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("tokens", type=int)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    task = {"compare": compare, "longest": longest, "train": train}[options.task]
    found = task(options.preset, options.tokens)
    if dist.get_rank() == 0:
        options.out.write_text(json.dumps(found))
    dist.barrier()
    return 0


if __name__ == "__main__":
    leave(main())  # skips the interpreter's shutdown, which DeepSpeed's threads would abort
