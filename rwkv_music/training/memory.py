"""Estimates of the peak memory of a training step, and checks that a step fits into memory.

The estimate for a GPU adds up the tensors that `fused_sublayers`, `cross_entropy` and DeepSpeed's stages hold.
benchmarks/step.py prints the estimate beside the measured peak.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed as dist

from rwkv_music.config import RECOMPUTE, ModelConfig
from rwkv_music.errors import SharedError, UserError, plural
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops.cross_entropy import CHUNK_LOGITS
from rwkv_music.ops.wkv7s import CHECKPOINT_EVERY
from rwkv_music.system import available_memory, gib, ranks_of_this_host
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.deepspeed_file import uses_bf16

BF16, FP32 = 2, 4
# An estimate fits if it is at most this fraction of the available memory. The rest is a margin for low estimates.
USABLE_FRACTION = 0.94
LARGEST_OVERESTIMATE = 1.1  # upper bound on the ratio of estimated to measured peak in benchmarks/results/


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes on one GPU."""

    states: int  # what exists during the whole run: weights, optimizer and stream states, and some gradients
    activations: int  # kept from the forward pass for the backward pass
    working: int  # everything else that exists at the peak

    @property
    def peak(self) -> int:
        return self.states + self.activations + self.working


@dataclass(frozen=True)
class StreamMemory:
    """Counts that determine how many recurrent states a GPU holds with `tbptt` (see tbptt.py)."""

    streams: int  # streams of the rank, over all micro-batches of a step
    rows: int  # streams in one micro-batch
    documents: float  # mean number of documents in one window of a micro-batch; at least one per row
    windows: int  # windows per step


def muon_elements(model: RWKV, optimizer: str) -> int:
    """Return the number of elements of `model` that Muon updates with `--optimizer` set to `optimizer`."""
    groups = model.parameter_groups(0.0, optimizer == "muon")
    return sum(p.numel() for group in groups if group["muon"] for p in group["params"])


def model_state_bytes(
    parameters: int, trained: int, zero_stage: int, world_size: int, bf16: bool, by_muon: int = 0
) -> int:
    """Return the bytes of weights, gradients and optimizer states on one rank, without activations (arXiv 1910.02054).

    AdamW keeps 12 bytes per trained parameter: an fp32 master weight and two fp32 moments. Muon keeps 8 bytes for each
    of the `by_muon` parameters that it updates. ZeRO-1 partitions these bytes among the ranks. ZeRO-2 also partitions
    the gradients, and ZeRO-3 also the weights.
    """
    size = BF16 if bf16 else FP32
    weights = parameters * size / (world_size if zero_stage == 3 else 1)
    gradients = trained * size / (world_size if zero_stage >= 2 else 1)
    return round(weights + gradients + (3 * trained - by_muon) * FP32 / world_size)


def state_bytes(model: ModelConfig) -> int:
    """Return the bytes of one row's `model_v8.State` in a bf16 model: the fp32 WKV states and two token shifts."""
    return model.n_layer * model.n_embd * (FP32 * model.head_size + 2 * BF16)


def activation_values(model: ModelConfig, recompute: str) -> float:
    """Return the number of bf16 values that a layer keeps per token for the backward pass."""
    return sum(_sublayer_values(model, recompute)) if recompute != "block" else model.n_embd  # the block's input


def _sublayer_values(model: ModelConfig, recompute: str) -> tuple[float, float]:
    """Return how many bf16 values time mixing and channel mixing keep per token, if the block is not recomputed."""
    C = model.n_embd
    ranks = model.decay_rank + model.iclr_rank + model.value_rank + model.gate_rank
    state = C * model.head_size / CHECKPOINT_EVERY
    time_mixing = 5 * C + ranks + state + 4  # x, r, k, v, y; gates' hidden values; WKV states; norm's mean and rstd
    channel_mixing = C + 4  # x
    if recompute == "none":
        channel_mixing += model.dim_ffn + (C if model.channel_mix == "x080" else 0)
    return time_mixing, channel_mixing


def estimate(
    model: ModelConfig,
    parameters: int,  # elements of the whole model
    trained: int,  # elements that are not frozen
    *,
    zero_stage: int,
    ranks: int,
    tokens: int,  # in a rank's micro-batch
    recompute: str,
    bucket: int,  # DeepSpeed's `reduce_bucket_size`, in elements
    offload: bool,  # whether optimizer states and gradients are on the CPU
    live: int = 10**9,  # DeepSpeed's `stage3_max_live_parameters`: maximum number of elements kept gathered
    overlaps: bool = False,  # whether ZeRO-1 or 2 reduces gradients during the backward pass
    at_once: bool = False,  # whether ZeRO-3 gathers all blocks at once and reduces their gradients at the end
    replays: bool = False,  # whether the step (under ZeRO-3, its blocks) is replayed as CUDA graphs
    accumulates: bool = False,  # whether the gradients of several micro-batches or windows are accumulated
    streams: StreamMemory | None = None,  # the states held with `tbptt`
    by_muon: int = 0,  # elements that Muon updates
    context_parallel: int = 1,  # ranks that share a micro-batch
) -> MemoryEstimate:
    """Estimate the memory of a bf16 step on one of `ranks` GPUs."""
    shared = trained / ranks
    weights = BF16 * (parameters / ranks if zero_stage == 3 else parameters)
    optimizer = 0 if offload else FP32 * (3 * shared - by_muon / ranks)
    # `lasting`: gradients that exist from the start of the backward pass. `growing`: gradients that the backward pass
    # creates while it frees activations. With several ranks, the first reduction of ZeRO-1 and 2 allocates a buffer for
    # all gradients of a rank's share.
    lasting = growing = 0.0
    if zero_stage == 3:
        lasting, growing = 0 if offload else BF16 * shared, BF16 * trained if at_once else 0
    elif offload:
        growing = BF16 * (trained - shared) if zero_stage == 1 else 0
    elif accumulates:
        lasting = BF16 * (trained if zero_stage == 1 else 2 * shared)  # ZeRO-2 also holds those of the micro-batch
    else:
        lasting = BF16 * shared if ranks > 1 else 0
        growing = BF16 * (trained if zero_stage == 1 else shared) - lasting
    buckets = BF16 * bucket * (2 if overlaps and zero_stage < 3 else 1)  # one is filled while the other is reduced
    gathered = BF16 * min(parameters, live) if zero_stage == 3 and ranks > 1 else 0
    kept = activation_values(model, recompute) * tokens * model.n_layer * BF16
    if recompute == "block":
        kept += model.n_embd * tokens * BF16  # layer 0's values, which all layers read
    if context_parallel > 2:  # the matrices T and E of all ranks, which ops/context_parallel.py defines
        kept += 2 * context_parallel * model.n_embd * model.head_size * FP32 * model.n_layer

    C, V = model.n_embd, model.vocab_size
    logits = min(CHUNK_LOGITS, tokens * V) * BF16
    head = logits + FP32 * V * C + BF16 * V * C + 3 * BF16 * C * tokens
    # The peak of a sublayer's backward pass: channel mixing's products and their gradients, or time mixing's recomputed
    # mixes, gates and recurrence inputs with all their gradients.
    channel_mixing, time_mixing = 3 * model.dim_ffn + 4 * C, 26 * C
    if recompute == "block":  # the backward pass of a block also holds the values that its sublayers keep
        of_time_mixing, of_channel_mixing = _sublayer_values(model, "none")
        channel_mixing += of_time_mixing + of_channel_mixing
        time_mixing += of_time_mixing
    layer = max(channel_mixing, time_mixing) * tokens * BF16
    stream_states = passing = 0.0
    if streams is not None:
        stream_states = streams.streams * state_bytes(model)
        # For each stream of the micro-batch: the states between its windows, the final state, and the gradient of one
        # state. For each document: its initial state, and its final state twice, as a tensor per layer and as one
        # tensor for all layers. In the backward pass, gradients of the same size replace the states of the documents.
        passing = ((streams.windows + 1) * streams.rows + 3 * streams.documents) * state_bytes(model)
    if replays and zero_stage == 3:
        # A recorded CUDA graph has its own memory, which the head cannot use, and reads a copy of the blocks' weights.
        # The estimate counts one graph. A second graph, for batches of more documents, would add its own gradients.
        widest = max(kept + layer, layer + growing) + head + BF16 * (trained - 2 * V * C)
    else:
        widest = max(kept + max(head, layer), layer + growing)
    backward = widest + buckets + gathered + passing
    return MemoryEstimate(round(weights + optimizer + lasting + stream_states), round(kept), round(backward - kept))


def least_recompute(
    requested: str, estimate_with: Callable[[str], MemoryEstimate], available: float
) -> tuple[str, MemoryEstimate]:
    """Return the level of `RECOMPUTE` to use, and its estimate.

    "auto" selects the lowest level that fits the `available` bytes, or the highest if none does.
    """
    levels = RECOMPUTE if requested == "auto" else (requested,)  # in order of increasing recomputation
    estimates = {level: estimate_with(level) for level in levels}
    chosen = next((level for level in levels if estimates[level].peak <= USABLE_FRACTION * available), levels[-1])
    return chosen, estimates[chosen]


def available_bytes(device: torch.device) -> float:
    """Return the bytes that torch holds or can still allocate on its GPU; infinity on a CPU. Collective.

    The result is the minimum over all ranks.
    """
    if device.type != "cuda":
        return math.inf
    own = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    least = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return least.item()


def check_gpu_memory(estimated: MemoryEstimate, available: float) -> None:
    """Raise SharedError if a step certainly needs more than `available` bytes, which must be the same on all ranks."""
    if estimated.peak > LARGEST_OVERESTIMATE * available:
        raise SharedError(
            f"A training step needs about {gib(estimated.peak)} per GPU, but only {gib(available)} are available: "
            f"choose a smaller --preset, --ctx_len or --micro_batch_size, --recompute block, a larger "
            f"--context_parallel, or a DeepSpeed file that partitions or offloads more."
        )


def host_bytes(
    model: ModelConfig,
    parameters: int,
    trained: int,
    *,
    zero_stage: int,
    world_size: int,
    tokens: int,  # in a rank's micro-batch
    recompute: str,
    bf16: bool,
    by_muon: int = 0,  # elements that Muon updates
) -> int:
    """Return a lower bound, in bytes, on the peak memory of a step on one of `world_size` CPU ranks.

    On a CPU, autograd keeps more activations than the fused sublayers do on a GPU. In time mixing and the norms it
    keeps at least 35 C values per layer and token, where C is the width. In channel mixing it keeps the hidden values
    before and after the square.
    """
    size, C = BF16 if bf16 else FP32, model.n_embd
    sublayers = 35 * C + (2 * model.dim_ffn + C if recompute == "none" else 0)
    kept = 2 * C * model.n_layer + sublayers if recompute == "block" else sublayers * model.n_layer
    logits = min(CHUNK_LOGITS, tokens * model.vocab_size)
    states = model_state_bytes(parameters, trained, zero_stage, world_size, bf16, by_muon)
    return states + size * (kept * tokens + logits)


def check_host_memory(model: RWKV, plan: BatchPlan, ctx_len: int) -> None:
    """Raise SharedError if a training step on CPUs does not fit into the memory of one of the hosts. Collective."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]  # the model may be on the meta device
    train = plan.train
    per_rank = host_bytes(
        model.config,
        sum(size for size, _ in sizes),
        sum(size for size, trains in sizes if trains),
        zero_stage=plan.zero_stage,
        world_size=plan.world_size,
        tokens=plan.tokens(ctx_len),
        recompute="none" if train.recompute == "auto" else train.recompute,  # on a CPU `least_recompute` chooses "none"
        bf16=uses_bf16(plan.deepspeed),
        by_muon=muon_elements(model, train.optimizer),
    )
    ranks_here = ranks_of_this_host()

    def check() -> None:
        if (available := available_memory()) < per_rank * ranks_here:
            raise UserError(
                f"A training step needs at least {gib(per_rank)} per rank for {plural(ranks_here, 'rank')} on this "
                f"host, but only {gib(available)} of memory are available: choose a smaller --preset, --ctx_len or "
                f"--micro_batch_size, or --recompute block."
            )

    raise_on_any_rank("checking the available memory", check)
