"""The optimizer step without host waits: gradient norm, clipping, skipping of non-finite gradients, and update.

DeepSpeed checks each tensor for overflow and then synchronizes. It casts every gradient to float64 to compute the norm,
and synchronizes once per group. After each synchronization, the GPU is idle until the host has caught up. On one H200,
these waits take a seventh of the step of a 1.3B model, and a larger part of a small model's step. DeepSpeed then copies
the gradients into one fp32 tensor for the optimizer, and the optimizer's weights into those of the model. These copies
take half of the remaining time of the update.

Here the norm is computed once and stays on the device. The clipping divisor and the decision to skip the step are
computed from it and passed to `adamw_` as tensors. `adamw_` reads the gradients in place, and writes the weights where
the model reads them. For the groups that Muon updates, `Muon.update` replaces `adamw_`.

DeepSpeed still partitions, reduces and gathers, with one exception: the small tensors that stay on every rank under
ZeRO-3. DeepSpeed gathers each of them separately, and the host waits. Here all of them are gathered at once.

Sources: `step` in deepspeed/runtime/zero/stage_1_and_2.py and stage3.py of DeepSpeed 0.19.
"""

from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.runtime import utils
from deepspeed.runtime.zero import stage_1_and_2
from torch import Tensor

from rwkv_music.training.deepspeed_engine.fast.adamw import adamw_
from rwkv_music.training.deepspeed_engine.zero_shards import ZeroShards

# What belongs to a partition: its optimizer group, its fp32 master weights, the weights that the model reads, and its
# gradients. Concatenated, the gradients have the partition's layout.
Share = tuple[dict[str, Any], Tensor, Tensor, list[Tensor]]


class UpdateOnDevice:
    """A replacement of the `step` method of DeepSpeed's ZeRO optimizer.

    Args:
        engine: a DeepSpeed engine with torch's AdamW or with `Muon`, not offloaded. Another optimizer raises TypeError,
            because `UpdateOnDevice` never calls the optimizer's own `step`.

    Attributes:
        skipped: int64 [] on the device, the same on every rank: steps skipped since the start because the gradient was
            not finite.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._zero = engine.optimizer
        if not isinstance(self._zero.optimizer, torch.optim.AdamW):  # the base class of `Muon`
            raise TypeError(
                f"the update on the device supports AdamW and Muon, not {type(self._zero.optimizer).__name__}"
            )
        device = self._zero.device
        self._bad = torch.zeros((), device=device)  # 1.0 if this step's gradient is not finite
        self._divisor = torch.ones((), device=device)  # clips the gradient
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._stage3 = engine.zero_optimization_stage() == 3
        self._shards: ZeroShards | None = None
        self._zero.step = self._step

    def start(self, shards: ZeroShards) -> None:
        """Set the shards to update, and create their states, so that a lack of memory shows before the first step."""
        self._shards = shards
        for partition in range(len(shards.masters)):
            shards.optimizer_state(partition)

    @torch.no_grad()
    def _step(self) -> None:
        if self._stage3:
            self._zero._pre_step()
            self._zero._partition_all_parameters()
        else:
            self._zero.micro_step_id = stage_1_and_2.INITIAL_MICRO_STEP_ID
        shares = list(self._shares_of_stage3() if self._stage3 else self._shares_of_stage_1_and_2())
        self._zero._global_grad_norm = self._norm([gradient for *_, gradients in shares for gradient in gradients])
        for partition, (group, masters, weights, gradients) in enumerate(shares):
            state = self._shards.optimizer_state(partition)
            state["step"] += 1 - self._bad
            if group["muon"]:
                self._zero.optimizer.update(partition, gradients, weights, self._divisor, self._bad)
                continue
            beta1, beta2 = group["betas"]
            start = 0
            for gradient in gradients:
                here = slice(start, start + gradient.numel())
                start = here.stop
                adamw_(
                    masters.data[here],
                    state["exp_avg"][here],
                    state["exp_avg_sq"][here],
                    gradient.reshape(-1),
                    weights.data[here],
                    lr=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    step=state["step"],
                    divisor=self._divisor,
                    bad=self._bad,
                )
        if self._stage3:
            self._gather_of_stage3()
        else:
            self._gather_of_stage_1_and_2()

    def _shares_of_stage_1_and_2(self) -> Iterator[Share]:
        zero = self._zero
        for i, group in enumerate(zero.optimizer.param_groups):
            weights = zero.parallel_partitioned_bit16_groups[i][dist.get_rank(zero.real_dp_process_group[i])]
            yield group, zero.single_partition_of_fp32_groups[i], weights, zero.averaged_gradients[i]

    def _shares_of_stage3(self) -> Iterator[Share]:
        zero = self._zero  # all gradients are in one tensor, partition after partition
        start = 0
        for i, masters in enumerate(zero.fp32_partitioned_groups_flat):
            gradient = zero.grad_partitions_flat_buffer[start : start + masters.numel()]
            start += masters.numel()
            group = zero.optimizer.param_groups[zero.sub_group_to_group_id[i]]
            yield group, masters, zero.fp16_partitioned_groups_flat[i], [gradient]

    def _gather_of_stage3(self) -> None:
        """Gather the small tensors, which stay on every rank. The others are gathered when a layer needs them."""
        zero = self._zero
        zero.averaged_gradients = {}
        zero.invalidate_secondary_tensor()  # the node-local hpZ copy of trained parameters is outdated
        small = [parameter for parameter in zero.persistent_parameters if parameter.requires_grad]
        if small:
            small[0].all_gather_coalesced(small).wait()
        gathering = zero.parameter_offload._DeepSpeedZeRoOffload__allgather_stream
        if gathering is not None:  # even if nothing was gathered above, this stream must wait for the update
            gathering.wait_stream(torch.cuda.current_stream())

    def _gather_of_stage_1_and_2(self) -> None:
        """Free the gradients and gather the other ranks' weights."""
        zero = self._zero
        for i in range(len(zero.bit16_groups)):
            zero.averaged_gradients[i] = zero.all_grad_tensors[i] = None
            zero.free_grad_in_param_list(zero.params_in_partition[i] + zero.params_not_in_partition[i])
        utils.all_gather_dp_groups(
            groups_flat=zero.bit16_groups_flat,
            partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
            dp_process_group=zero.real_dp_process_group,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm over all ranks, fp32 []. Set the clipping divisor and the flag that skips the step."""
        zero = self._zero
        # A GPU sums in a tree, for which fp32 suffices. A CPU sums sequentially: fp32 would have an error of 1e-5 at a
        # million elements.
        exact = torch.float32 if gradients[0].is_cuda else torch.float64
        norms = [torch.linalg.vector_norm(gradient, dtype=exact) for gradient in gradients]
        squares = torch.stack(norms).double().square().sum()
        dist.all_reduce(squares, group=zero.dp_process_group)
        norm = squares.sqrt().float()
        self._bad.copy_(~norm.isfinite())
        self.skipped += self._bad.long()
        if zero.clip_grad > 0:
            self._divisor.copy_(((norm + 1e-6) / zero.clip_grad).clamp(min=1.0))
        return norm
