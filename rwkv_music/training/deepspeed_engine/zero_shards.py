"""What this rank's optimizer holds: which elements of which of the model's parameters, and where.

DeepSpeed keeps the optimizer's states in flat fp32 partitions. Under ZeRO-1 and 2 there is one for each parameter
group, a rank's equal share of all its parameters one after the other; under ZeRO-3 one for each group too, in which the
rank's shares of the single parameters lie one after the other. Both are told here as pieces of the model's own
parameters, so that a checkpoint speaks of these alone, and any stage on any number of ranks takes up what another left.

Sources: deepspeed/runtime/zero/stage_1_and_2.py and stage3.py of DeepSpeed 0.19.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor
from torch import distributed as dist

from rwkv_music.errors import UserError
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one of the model's parameters in one of this rank's partitions."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int  # the first element, counted in the flattened parameter
    length: int
    partition: int
    offset: int  # where it begins in the partition

    def of(self, flat: Tensor) -> Tensor:
        """This piece of a tensor that is laid out as the partition is; of the parameter's shape if it is all of it."""
        values = flat.detach()[self.offset : self.offset + self.length]
        return values.view(self.shape) if self.length == torch.Size(self.shape).numel() else values


def master_partitions(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """This rank's fp32 master weights, flat.

    Raises UserError for an optimizer whose states lie elsewhere.
    """
    zero = engine.optimizer
    if type(zero) is DeepSpeedZeroOptimizer:
        return zero.single_partition_of_fp32_groups
    if type(zero) is DeepSpeedZeroOptimizer_Stage3 and not zero.swap_optimizer and zero.partial_offload == 1:
        return zero.fp32_partitioned_groups_flat
    raise UserError(
        "The DeepSpeed file keeps the optimizer's states where a checkpoint cannot take them from (on NVMe, or in part "
        "on the CPU, or by another optimizer than ZeRO-1, 2 or 3): use a file like one of ds_configs."
    )


def pieces(engine: deepspeed.DeepSpeedEngine) -> list[Piece]:
    """All that this rank's partitions hold, in their order."""
    master_partitions(engine)
    spans = _spans_of_stage3 if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3) else _spans_of_stage_1_and_2
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    packed = (
        engine.module if isinstance(engine.module, FlatParams) else getattr(engine.module, "zero3_flat_params", None)
    )
    layout = {} if packed is None else packed.layout
    found = []
    for parameter, shape, start, length, partition, offset in spans(engine.optimizer):
        first = 0  # where the next of the model's parameters begins in this one
        for name, own_shape in layout.get(names[parameter], [(names[parameter], shape)]):
            size = torch.Size(own_shape).numel()
            begin, end = max(start, first), min(start + length, first + size)
            if begin < end:
                place = offset + begin - start
                found.append(Piece(name, tuple(own_shape), begin - first, end - begin, partition, place))
            first += size
    return found


Span = tuple[Tensor, tuple[int, ...], int, int, int, int]  # a parameter of the engine's; then as in Piece


def _spans_of_stage_1_and_2(zero: DeepSpeedZeroOptimizer) -> Iterator[Span]:
    for i, parameters in enumerate(zero.round_robin_bit16_groups):
        size = zero.partition_size[i]
        mine = size * dist.get_rank(zero.real_dp_process_group[i])
        for parameter, place in zip(parameters, zero.round_robin_bit16_offsets[i], strict=True):
            begin, end = max(place, mine), min(place + parameter.numel(), mine + size)
            if begin < end:
                yield parameter, tuple(parameter.shape), begin - place, end - begin, i, begin - mine


def _spans_of_stage3(zero: DeepSpeedZeroOptimizer_Stage3) -> Iterator[Span]:
    for i, parameters in enumerate(zero.fp16_groups):
        rank, offset = dist.get_rank(zero.sub_group_process_groups[i]), 0
        for parameter in parameters:
            share = parameter.partition_numel()
            begin = rank * share
            length = min(share, parameter.ds_numel - begin)  # the last shares may be padding, in part or wholly
            if length > 0:
                yield parameter, tuple(parameter.ds_shape), begin, length, i, offset
            offset += share


def optimizer_state(engine: deepspeed.DeepSpeedEngine, master: Tensor) -> dict[str, Any]:
    """AdamW's state of a partition: "step", and both `MOMENTS`; made as AdamW makes it if there is none yet."""
    optimizer = engine.optimizer.optimizer
    state = optimizer.state[master]
    if not state:
        on_cpu = isinstance(optimizer, DeepSpeedCPUAdam)
        state["step"] = 0 if on_cpu else torch.zeros((), dtype=torch.float32, device=master.device)
        for name in MOMENTS:
            state[name] = torch.zeros_like(master, requires_grad=False)
    return state


def set_optimizer_steps(engine: deepspeed.DeepSpeedEngine, steps: int) -> None:
    """How many steps AdamW has taken, which its bias correction counts."""
    for master in master_partitions(engine):
        state = optimizer_state(engine, master)
        state["step"] = torch.full_like(state["step"], steps) if torch.is_tensor(state["step"]) else steps


def weights_from_masters(engine: deepspeed.DeepSpeedEngine) -> None:
    """Set the model's weights to its master weights, rounded; every rank calls it."""
    zero = engine.optimizer
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        zero.checkpoint_event_prologue()
        for i in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        for parameter in engine.module.parameters():
            parameter.ds_secondary_tensor = None  # a node's own copy, with zero_hpz_partition_size: of before
        zero.checkpoint_event_epilogue()
        let_gathering_wait(zero)
    else:
        zero.update_lp_params()


def let_gathering_wait(zero: DeepSpeedZeroOptimizer_Stage3) -> None:
    """On a GPU layers are gathered on a stream of its own, and must not be before their weights have been written.

    Where there are small tensors DeepSpeed waits, as it gathers those.
    """
    gathering = zero.parameter_offload._DeepSpeedZeRoOffload__allgather_stream
    if gathering is not None:
        gathering.wait_stream(torch.cuda.current_stream())
