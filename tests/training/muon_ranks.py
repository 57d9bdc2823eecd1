"""Train a small model with Muon under every ZeRO stage, with and without the fast paths; one rank of several.

Usage: muon_ranks.py OUT: rank 0 writes the losses of each run, by stage and `--fast`, to the JSON file OUT.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.batch_plan import plan_batches
from rwkv_music.training.deepspeed_engine.engine import FastPaths, make_engine, materialize, select_device
from rwkv_music.training.process_group import init_process_group

ROWS, TOKENS, VOCABULARY = 4, 24, 20
MODEL = ModelConfig(n_layer=2, n_embd=32, head_size=16, vocab_size=VOCABULARY)
# Runs by their number of ranks: stage, `--fast`, steps.
FAST_RUNS = [(stage, "auto", 30) for stage in (1, 2, 3)]
RUNS = {1: FAST_RUNS, 2: [*FAST_RUNS, (1, "off", 4), (2, "off", 4), (3, "off", 4)], 4: FAST_RUNS}
# Without a large epsilon, AdamW turns rounding noise in zero gradients into full-size updates.
TRAIN = TrainConfig(
    optimizer="muon", batch_size=ROWS, lr=3e-3, weight_decay=0.1, grad_clip=0.5, beta1=0.9, beta2=0.99, adam_eps=1e-6
)


def initial_weights() -> dict[str, Tensor]:
    """Return weights by name in which no matrix is zero, so that every matrix has a gradient from the first step."""
    torch.manual_seed(0)
    model = RWKV(MODEL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
            elif name == "emb.weight":
                parameter.mul_(1e3)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def batches(steps: int) -> Tensor:
    """Return tokens [steps, ROWS, TOKENS + 1]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (steps, ROWS, TOKENS + 1), generator=generator)


def run(
    stage: int, fast: str, steps: int, bad_step: int = -1, bf16: bool = False
) -> tuple[list[float], dict[str, Tensor]]:
    """Train on this rank's rows of `batches`; return the losses over all ranks, and this rank's slices of the weights.

    Args:
        bad_step: the step whose gradient is NaN.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    file = {"bf16": {"enabled": bf16}, "zero_optimization": {"stage": stage, "reduce_bucket_size": 10_000}}
    train = TrainConfig(**{**vars(TRAIN), "fast": fast})
    plan = plan_batches(train, set(), file, "ds.json", ranks)
    with torch.device("meta"):
        model = RWKV(MODEL)
    device = select_device()
    materialize(model, device, plan)
    engine = make_engine(model, plan, device, FastPaths(fast == "auto", False), TOKENS)
    weights = initial_weights()
    for piece in engine.shards.slices:
        values = weights[piece.name].flatten()[piece.start : piece.start + piece.length]
        piece.of(engine.shards.masters[piece.partition]).view(-1).copy_(values)
    engine.shards.update_weights()
    engine.set_learning_rate(TRAIN.lr)
    losses = []
    for step, tokens in enumerate(batches(steps).chunk(ranks, dim=1)[rank]):
        loss = engine(input_ids=tokens[:, :-1], targets=tokens[:, 1:])
        engine.backward(loss * (float("nan") if step == bad_step else 1.0))
        engine.step()
        mean = loss.detach() / ranks
        dist.all_reduce(mean)
        losses.append(mean.item())
    slices = {piece.name: piece.of(engine.shards.masters[piece.partition]).clone() for piece in engine.shards.slices}
    return losses, slices


def main() -> None:
    init_process_group("gloo", 5)
    losses = {f"{stage} {fast}": run(stage, fast, steps)[0] for stage, fast, steps in RUNS[dist.get_world_size()]}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(losses))
    dist.barrier()


if __name__ == "__main__":
    main()
