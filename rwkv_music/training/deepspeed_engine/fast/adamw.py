"""AdamW on flat tensors: this project's kernel on a GPU, torch's fused implementation elsewhere."""

import torch
from torch import Tensor

from rwkv_music.cuda import build


def adamw_(
    masters: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    weights: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Tensor,
    divisor: Tensor,
    bad: Tensor,
) -> None:
    """Take one AdamW step (arXiv 1711.05101) on the master weights, in place, and write them, rounded, to `weights`.

    On a GPU, one kernel does this in a single pass over memory, without an fp32 copy of the gradient.

    Args:
        masters, exp_avg, exp_avg_sq: fp32 [n]: the master weights and the running means of the gradient and of its
            square.
        gradient: [n], any float dtype on the CPU, bf16 or fp32 on a GPU. Its contents are undefined afterwards.
        weights: [n]: the model's weights, overwritten by `masters` rounded to their dtype (bf16 on a GPU).
        step: fp32 scalar: the number of steps so far, including this one.
        divisor: fp32 scalar by which the gradient is divided first.
        bad: fp32 scalar; if it is not 0, the step is skipped.
    """
    if masters.is_cuda and weights.dtype == torch.bfloat16:
        build.load().adamw_(
            masters, exp_avg, exp_avg_sq, gradient, weights, lr, beta1, beta2, eps, weight_decay, step, divisor, bad
        )
        return
    torch._fused_adamw_(
        [masters], [gradient.to(masters.dtype)], [exp_avg], [exp_avg_sq], [], [step],
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
        grad_scale=divisor, found_inf=bad,
    )  # fmt: skip
    weights.copy_(masters)
