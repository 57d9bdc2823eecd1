"""The map from ZeRO shards to parameters: the elements of each parameter that this rank's optimizer holds, and where.

DeepSpeed keeps the optimizer's states in flat fp32 partitions. Under ZeRO-1 and 2, a rank has one partition per
parameter group. The group's parameters are concatenated, and each rank holds an equal share of the result. Under
ZeRO-3, a rank has one partition per sub-group, which contains the rank's share of each parameter, one after another.
`ZeroShards` describes both layouts as slices of the model's own parameters. A checkpoint contains only such slices, so
any stage on any number of ranks can load it.

The layout is an implementation detail of DeepSpeed. The constructor therefore compares it with the layout that
DeepSpeed's public `safe_get_*` functions use, and raises an error if the two differ. Under ZeRO-1 and 2 with
`round_robin_gradients`, it cannot compare them. If ZeRO-3 offloads the optimizer states of a GPU, it compares only
sizes.

Sources: deepspeed/runtime/zero/stage_1_and_2.py, stage3.py and deepspeed/utils/tensor_fragment.py of DeepSpeed 0.19.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import safe_get_local_fp32_param
from torch import Tensor
from torch import distributed as dist

from rwkv_music.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
MUON_MOMENTS = ("momentum",)
# The attributes of DeepSpeed's optimizers that this module reads.
STAGE_1_2_ATTRIBUTES = (
    "single_partition_of_fp32_groups", "round_robin_bit16_groups", "round_robin_bit16_offsets", "round_robin_gradients",
    "partition_size", "real_dp_process_group", "update_lp_params",
)  # fmt: skip
STAGE_3_ATTRIBUTES = (
    "fp32_partitioned_groups_flat", "fp16_groups", "sub_group_process_groups", "checkpoint_event_prologue",
    "checkpoint_event_epilogue", "_reassign_or_swap_out_partitioned_parameters", "sub_group_to_group_id",
)  # fmt: skip

Layout = dict[str, list[tuple[str, list[int]]]]  # flat parameter -> names and shapes of its members, in order


@dataclass(frozen=True)
class ParameterSlice:
    """Consecutive elements of one of the model's parameters in one of this rank's partitions.

    Attributes:
        name: the parameter.
        shape: shape of the whole parameter.
        start: first element, counted in the flattened parameter.
        length: number of elements.
        partition: index into `ZeroShards.masters`.
        offset: index of the first element in that partition.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    partition: int
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """Return a view of this slice in `flat`, a tensor with the layout of the partition.

        The view has the parameter's shape if the slice is the whole parameter, otherwise [length].
        """
        values = flat.detach()[self.offset : self.offset + self.length]
        return values.view(self.shape) if self.length == torch.Size(self.shape).numel() else values


class ZeroShards:
    """This rank's shards of the fp32 master weights and the optimizer's states.

    Args:
        engine: a DeepSpeed engine under ZeRO-1, 2 or 3.
        layout: the model's parameters in each flat parameter of the engine; empty if there are no flat parameters.

    Attributes:
        masters: the flat fp32 partitions.
        groups: the optimizer group of each partition.
        slices: the content of the partitions, in order.

    Raises:
        UserError: the optimizer states are on NVMe or partly offloaded, or this version of DeepSpeed uses another
            layout.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, layout: Layout) -> None:
        self._engine, self._zero = engine, engine.optimizer
        self.stage3 = type(self._zero) is DeepSpeedZeroOptimizer_Stage3
        whole = self.stage3 and not self._zero.swap_optimizer and self._zero.partial_offload == 1
        if not whole and type(self._zero) is not DeepSpeedZeroOptimizer:
            raise UserError(
                "The DeepSpeed file keeps optimizer states on NVMe, partly on the CPU, or in an optimizer other than "
                "ZeRO-1, 2 or 3, which checkpoints do not support: use a file like one of ds_configs."
            )
        if not all(hasattr(self._zero, name) for name in STAGE_3_ATTRIBUTES * self.stage3 or STAGE_1_2_ATTRIBUTES):
            raise _unknown_layout()
        self.masters: list[Tensor] = (
            self._zero.fp32_partitioned_groups_flat if self.stage3 else self._zero.single_partition_of_fp32_groups
        )
        groups = self._zero.optimizer.param_groups
        numbers = self._zero.sub_group_to_group_id if self.stage3 else range(len(self.masters))
        self.groups: list[dict[str, Any]] = [groups[numbers[i]] for i in range(len(self.masters))]
        self.slices = list(self._slices(layout))

    def _slices(self, layout: Layout) -> Iterator[ParameterSlice]:
        names = {parameter: name for name, parameter in self._engine.module.named_parameters()}
        spans = self._stage3_spans if self.stage3 else self._stage_1_and_2_spans
        for parameter, shape, start, length, partition, offset in spans():
            first = 0  # index in this parameter at which its next member begins
            for name, own_shape in layout.get(names[parameter], [(names[parameter], shape)]):
                size = torch.Size(own_shape).numel()
                begin, end = max(start, first), min(start + length, first + size)
                if begin < end:
                    place = offset + begin - start
                    yield ParameterSlice(name, tuple(own_shape), begin - first, end - begin, partition, place)
                first += size

    # The next two methods yield tuples (parameter, shape, start, length, partition, offset). `parameter` is a parameter
    # of the engine. The other elements are defined as in `ParameterSlice`.

    def _stage_1_and_2_spans(self) -> Iterator[tuple[Tensor, tuple[int, ...], int, int, int, int]]:
        zero = self._zero
        for i, parameters in enumerate(zero.round_robin_bit16_groups):
            size = zero.partition_size[i]
            first = size * dist.get_rank(zero.real_dp_process_group[i])
            for parameter, place in zip(parameters, zero.round_robin_bit16_offsets[i], strict=True):
                begin, end = max(place, first), min(place + parameter.numel(), first + size)
                if begin >= end:
                    continue
                if not zero.round_robin_gradients:
                    self._check(parameter._hp_mapping.hp_fragment, self.masters[i], begin - first, end - begin)
                yield parameter, tuple(parameter.shape), begin - place, end - begin, i, begin - first

    def _stage3_spans(self) -> Iterator[tuple[Tensor, tuple[int, ...], int, int, int, int]]:
        for i, parameters in enumerate(self._zero.fp16_groups):
            rank, offset = dist.get_rank(self._zero.sub_group_process_groups[i]), 0
            for parameter in parameters:
                share = parameter.partition_numel()
                self._check(safe_get_local_fp32_param(parameter), self.masters[i], offset, share)
                begin = rank * share
                length = min(share, parameter.ds_numel - begin)  # the last shares may be partly or wholly padding
                if length > 0:
                    yield parameter, tuple(parameter.ds_shape), begin, length, i, offset
                offset += share

    @staticmethod
    def _check(public: Tensor, master: Tensor, offset: int, length: int) -> None:
        """Raise UserError if DeepSpeed's public shard is not the `length` elements of `master` at `offset`."""
        # On another device, `public` is a copy, so its address cannot be compared.
        same_place = public.device != master.device or public.data_ptr() == master[offset:].data_ptr()
        if public.numel() != length or not same_place:
            raise _unknown_layout()

    def moments(self, partition: int) -> tuple[str, ...]:
        """Return the names of the tensors that the optimizer keeps beside the master weights of a partition."""
        return MUON_MOMENTS if self.groups[partition]["muon"] else MOMENTS

    def optimizer_state(self, partition: int) -> dict[str, Any]:
        """Return the optimizer's state of a partition: "step" and the tensors that `moments` names.

        If there is no state yet, create it as AdamW does.
        """
        optimizer, master = self._zero.optimizer, self.masters[partition]
        state = optimizer.state[master]
        if not state:
            on_cpu = isinstance(optimizer, DeepSpeedCPUAdam)
            state["step"] = 0 if on_cpu else torch.zeros((), dtype=torch.float32, device=master.device)
            for name in self.moments(partition):
                state[name] = torch.zeros_like(master, requires_grad=False)
        return state

    def set_optimizer_steps(self, steps: int) -> None:
        """Set the number of steps that the optimizer has taken. AdamW's bias correction depends on it."""
        for partition in range(len(self.masters)):
            state = self.optimizer_state(partition)
            state["step"] = torch.full_like(state["step"], steps) if torch.is_tensor(state["step"]) else steps

    def update_weights(self) -> None:
        """Overwrite the model's weights with the rounded master weights. Collective."""
        zero = self._zero
        if not self.stage3:
            zero.update_lp_params()
            return
        zero.checkpoint_event_prologue()
        for i in range(len(self.masters)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        for parameter in self._engine.module.parameters():
            parameter.ds_secondary_tensor = None  # the node's copy (zero_hpz_partition_size) is outdated
        zero.checkpoint_event_epilogue()
        if self.masters[0].is_cuda:
            torch.cuda.synchronize()  # layers are gathered on another stream, which must not read older weights

    def frozen_slices(self) -> Iterator[tuple[str, Tensor, int]]:
        """Yield this rank's part of each frozen parameter: name, values [n], and the index of the first value."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                continue
            values, start = parameter.data.view(-1), 0
            if hasattr(parameter, "ds_id"):  # partitioned by ZeRO-3
                share = parameter.partition_numel()
                start = share * dist.get_rank(parameter.ds_process_group)
                values = parameter.ds_tensor.data.view(-1)[: max(0, min(share, parameter.ds_numel - start))]
            if len(values):
                yield name.removeprefix("model."), values, start  # in a `FlatParams`, the model is named "model"


def _unknown_layout() -> UserError:
    return UserError(
        f"DeepSpeed {deepspeed.__version__} lays out its ZeRO partitions differently from DeepSpeed 0.19, so "
        f"checkpoints cannot be written or read: install the version that pyproject.toml pins."
    )
