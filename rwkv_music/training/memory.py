"""How much of a GPU's memory a training step will take, told before the first; and whether a CPU's holds the states,
before they are made.

The terms are what `fused_sublayers`, `head` and DeepSpeed's stages really hold, tensor by tensor; benchmarks/step.py prints
the estimate beside the measured peak.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

from rwkv_music.config import RECOMPUTE, ModelConfig
from rwkv_music.errors import UserError, plural
from rwkv_music.ops.cross_entropy import CHUNK_LOGITS
from rwkv_music.ops.wkv7s import CHECKPOINT_EVERY
from rwkv_music.system import available_memory, gib
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.metrics import model_state_bytes

if TYPE_CHECKING:
    from rwkv_music.model_v8 import RWKV
    from rwkv_music.training.deepspeed_engine.engine import Plan

BF16, FP32 = 2, 4
ROOM = 0.94  # of the memory that there is: no peak in benchmarks/results/ is further above its estimate


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU."""

    states: int  # weights, gradients' buffers, AdamW and the states of streams, as long as the run lasts
    activations: int  # kept from the forward pass for the backward
    working: int  # the most that is alive beside them at once

    @property
    def peak(self) -> int:
        return self.states + self.activations + self.working


@dataclass(frozen=True)
class Carried:
    """Whose states a GPU holds where they are carried from window to window (see carrying.py).

    Attributes:
        streams: of all the micro-batches of a step.
        rows: of them, in one micro-batch.
        documents: that a window of a micro-batch holds parts of, on average: at least one in each row.
        windows: of a step.
    """

    streams: int
    rows: int
    documents: float
    windows: int


def state_bytes(model: ModelConfig) -> int:
    """Bytes of the state of one row in bf16 (see `model_v8.State`): the recurrence's in fp32, and two shifts."""
    return model.n_layer * model.n_embd * (FP32 * model.head_size + 2 * BF16)


def activation_values(model: ModelConfig, recompute: str) -> float:
    """bf16 values that a layer keeps for each token."""
    C = model.n_embd
    if recompute == "block":
        return 2 * C  # a block's input, and layer 0's values
    ranks = model.decay_rank + model.iclr_rank + model.value_rank + model.gate_rank
    state = C * model.head_size / CHECKPOINT_EVERY
    time_mixing = 5 * C + ranks + state + 4  # x, r, k, v, y; the gates' inside; checkpoints; the norm's moments
    channel_mixing = C + 4  # x
    if recompute == "none":
        channel_mixing += model.dim_ffn + (C if model.channel_mix == "x080" else 0)
    return time_mixing + channel_mixing


def estimate(
    model: ModelConfig,
    parameters: int,
    trained: int,
    *,
    zero_stage: int,
    ranks: int,
    tokens: int,
    recompute: str,
    bucket: int,
    offload: bool,
    live: int = 10**9,
    overlaps: bool = False,
    at_once: bool = False,
    recorded: bool = False,
    accumulates: bool = False,
    carried: Carried | None = None,
) -> MemoryEstimate:
    """What a step takes in bf16 on one of `ranks` GPUs.

    Args:
        parameters: of the whole model.
        trained: of them, what is not frozen.
        tokens: in a rank's micro-batch.
        bucket: elements of DeepSpeed's `reduce_bucket_size`.
        offload: whether the optimizer and the gradients are on the CPU.
        live: DeepSpeed's `stage3_max_live_parameters`: elements of other ranks' weights that ZeRO-3 keeps at hand.
        overlaps: whether ZeRO-1 or 2 sends gradients while it makes others.
        at_once: whether ZeRO-3 gathers all blocks at once, and takes their gradients when all are there.
        recorded: whether the step is replayed (see `graphs`); of ZeRO-3's, that is of its blocks.
        accumulates: whether the gradients of several micro-batches or windows are added up.
        carried: with --tbptt, the states.
    """
    shared = trained / ranks
    weights = BF16 * (parameters / ranks if zero_stage == 3 else parameters)
    optimizer = 0 if offload else 3 * FP32 * shared
    gradients = 0 if offload else BF16 * shared
    # These come while what the forward pass kept goes.
    others = BF16 * (trained - shared if zero_stage == 1 else trained if at_once else 0)
    if accumulates and zero_stage < 3 and not offload:
        gradients += others + (BF16 * shared if zero_stage == 2 else 0)  # of before; ZeRO-2's are added to those of now
        others = 0
    buckets = BF16 * bucket * (2 if overlaps and zero_stage < 3 else 1)  # one is filled while one is on its way
    gathered = BF16 * min(parameters, live) if zero_stage == 3 and ranks > 1 else 0
    kept = activation_values(model, recompute) * tokens * model.n_layer * BF16

    C, V = model.n_embd, model.vocab_size
    logits = min(CHUNK_LOGITS, tokens * V) * BF16
    head = logits + FP32 * V * C + BF16 * V * C + 3 * BF16 * C * tokens
    # At the widest point of a half's backward: channel mixing's products and their gradients; time mixing's recomputed
    # mixes, gates and recurrence inputs with the gradients of all of them.
    layer = max(3 * model.dim_ffn + 4 * C, 26 * C) * tokens * BF16
    if recompute == "block":
        layer += activation_values(model, "none") * tokens * BF16
    streams = passing = 0.0
    if carried is not None:
        streams = carried.streams * state_bytes(model)
        # Of each stream, the states between windows, the last one's and its gradient; of each document, what it comes in
        # with and goes out with, layer by layer and then together, or in the backward pass the gradients of these.
        passing = ((carried.windows + 1) * carried.rows + 3 * carried.documents) * state_bytes(model)
    if recorded and zero_stage == 3:
        # A recording has memory of its own, which the head cannot use, and reads a copy of the blocks' weights. It is
        # one that is counted: another, for a batch of more documents, keeps gradients of its own.
        widest = max(kept + layer, layer + others) + head + BF16 * (trained - 2 * V * C)
    else:
        widest = max(kept + max(head, layer), layer + others)
    backward = widest + buckets + gathered + passing
    return MemoryEstimate(round(weights + optimizer + gradients + streams), round(kept), round(backward - kept))


def least_recompute(asked: str, told: Callable[[str], MemoryEstimate], there: float) -> tuple[str, MemoryEstimate]:
    """What is to be recomputed: what is asked for, or for "auto" the least with which a step fits; else the most.

    Args:
        told: the estimate with each of `RECOMPUTE`.
        there: bytes that a GPU has.
    """
    levels = RECOMPUTE if asked == "auto" else (asked,)
    estimates = {level: told(level) for level in levels}
    chosen = next((level for level in levels if estimates[level].peak <= ROOM * there), levels[-1])
    return chosen, estimates[chosen]


def available_bytes(device: torch.device) -> float:
    """What torch has or can get of the memory of the rank's GPU that has the least; on a CPU no limit is known (inf).

    Every rank calls it.
    """
    if device.type != "cuda":
        return math.inf
    own = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    least = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return least.item()


def check_host_memory(model: "RWKV", zero_stage: int, plan: "Plan") -> None:
    """On a CPU: whether what this machine's ranks will hold fits into its memory, before minutes go into filling it.

    Args:
        model: may be without memory yet; what is frozen is known.

    Every rank calls it. Raises SharedError.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    bf16 = bool(plan.deepspeed.get("bf16", {}).get("enabled"))
    own = model_state_bytes(sum(size for size, _ in sizes), trained, zero_stage, plan.world_size, bf16)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "1"))  # launch/, DeepSpeed

    def check() -> None:
        if (there := available_memory()) < own * ranks_here:
            raise UserError(
                f"Weights, gradients and AdamW's states take {gib(own)} a rank, with {plural(ranks_here, 'rank')} on "
                f"this machine, which has {gib(there)} of memory free: choose a smaller --preset."
            )

    raise_on_any_rank("looking at the memory", check)
