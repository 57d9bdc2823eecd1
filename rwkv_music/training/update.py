"""The update of ZeRO-1 and 2 on the device alone: norm, clipping, AdamW, and no step from a bad gradient.

DeepSpeed's own looks for overflow tensor by tensor and waits for the answer, casts every gradient to float64 for its
norm and waits again for each group; after each wait the GPU stands still until the host has caught up. On one H200 that
was a seventh of a 1.3B model's step, and more of a small one's. Then it copies the gradients into one fp32 tensor for
the optimizer, and the optimizer's weights into the model's: half of what was left of the update.

Here the norm is read once and stays on the device: clipping and the word that the gradient is not finite follow from
it, and `adamw_` takes both as tensors, the gradients where they lie, and leaves the weights where the model reads them.
What is shared out among the ranks, reduced and gathered stays DeepSpeed's.
"""

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.runtime.utils import all_gather_dp_groups
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from torch import Tensor

from rwkv_music.training.optimizer import adamw_
from rwkv_music.training.partitions import optimizer_state


class UpdateOnDevice:
    """Takes the place of `step` of a DeepSpeed optimizer.

    Args:
        engine: of ZeRO-1 or 2 over torch's AdamW, not offloaded.

    Attributes:
        skipped: int64 scalar on the device: the steps that were left out since the start, on every rank alike, because
            the gradient was not finite.

    Source: `step` in deepspeed/runtime/zero/stage_1_and_2.py of DeepSpeed 0.19.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._engine, self._zero = engine, engine.optimizer
        device = self._zero.device
        self._bad = torch.zeros((), device=device)  # 1.0 when this step's gradient is not finite
        self._divisor = torch.ones((), device=device)  # what clips it
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._zero.step = self._step
        for masters in self._zero.single_partition_of_fp32_groups:
            optimizer_state(engine, masters)  # now, so that whether all fits in memory shows before the first step

    @torch.no_grad()
    def _step(self) -> None:
        zero = self._zero
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        zero._global_grad_norm = self._norm()
        for i, group in enumerate(zero.optimizer.param_groups):
            masters = zero.single_partition_of_fp32_groups[i]
            state = optimizer_state(self._engine, masters)
            state["step"] += 1 - self._bad
            weights = zero.parallel_partitioned_bit16_groups[i][dist.get_rank(zero.real_dp_process_group[i])]
            beta1, beta2 = group["betas"]
            start = 0
            for gradient in zero.averaged_gradients[i]:  # of one parameter after the other, as the partition lies
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
            zero.averaged_gradients[i] = zero.all_grad_tensors[i] = None
            zero.free_grad_in_param_list(zero.params_in_partition[i] + zero.params_not_in_partition[i])
        all_gather_dp_groups(
            groups_flat=zero.bit16_groups_flat,
            partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
            dp_process_group=zero.real_dp_process_group,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )

    def _norm(self) -> Tensor:
        """The norm over all ranks, fp32 scalar; and what follows from it is set."""
        zero = self._zero
        gradients = [g for group in range(len(zero.bit16_groups)) for g in zero.averaged_gradients[group]]
        # A GPU adds in a tree, and fp32 is enough; a CPU adds in a row, and is 1e-5 off after a million elements.
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
