"""AdamW on flat tensors: one kernel of ours on a GPU, torch's fused implementation elsewhere."""

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
    """One step of AdamW (arXiv 1711.05101) in place, from the gradient as it came to the weights that the model reads.

    On a GPU in one pass of our own kernel, which needs no fp32 copy of the gradient; elsewhere by torch's.

    Args:
        masters, exp_avg, exp_avg_sq: fp32 [n]: the weights, and the running means of the gradient and of its square.
        gradient: [n], of any float dtype on the CPU, bf16 or fp32 on a GPU. What is left in it is not defined.
        weights: [n]: becomes `masters`, rounded to its dtype (bf16 on a GPU).
        step: fp32 scalar: how many steps there have been, this one included.
        divisor: fp32 scalar that the gradient is divided by first.
        bad: fp32 scalar; when it is not 0, nothing is changed.
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
