"""The update of ZeRO-1 and 2 on the device alone: the gradient's norm, the clipping, and no step from a bad gradient.

Before it updates, DeepSpeed looks for overflow tensor by tensor, waits for the answer, casts every gradient to float64
for its norm, and waits again for each group; after each wait the GPU stands still until the host has caught up. On
one H200 all of that was a seventh of a 1.3B model's step, and more of a small one's. It follows from the norm alone,
which is read once here and never leaves the device: AdamW's fused kernel takes the factor to clip by, and the word that
the gradient is not finite, as tensors (torch's mixed precision gave it both) and does nothing when it is not.
"""

import torch
from deepspeed import comm as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


class UpdateOnDevice:
    """Takes the norm, the clipping and the overflow check of a DeepSpeed optimizer over.

    Args:
        zero: of stage 1 or 2, over a fused torch optimizer that is not offloaded.

    Attributes:
        skipped: int64 scalar on the device: the steps that were left out since the start, on every rank alike, because
            the gradient was not finite.
    """

    def __init__(self, zero: DeepSpeedZeroOptimizer) -> None:
        self._zero = zero
        self._bad = torch.zeros((), device=zero.device)  # 1.0 when this step's gradient is not finite
        self.skipped = torch.zeros((), dtype=torch.int64, device=zero.device)
        self._most = zero.clip_grad
        zero.check_grad_overflow = False
        zero.scaled_global_norm = self._norm
        zero.unscale_and_clip_grads = lambda grads, norm: None  # AdamW divides by grad_scale as it reads
        zero.optimizer.grad_scale = torch.ones((), device=zero.device)
        zero.optimizer.found_inf = self._bad

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
        if self._most > 0:
            zero.optimizer.grad_scale.copy_(((norm + 1e-6) / self._most).clamp(min=1.0))
        return norm
