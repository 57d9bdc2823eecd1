"""The learning rate's course, a function of the step alone so that a resumed run needs no schedule state; and AdamW."""

import math

import torch
from torch import Tensor

from rwkv_music.config import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """The learning rate of optimizer step `step` (0 is the first), before a group's `lr_scale`.

    Linear warm-up to `lr` over `warmup_steps`; then a cosine to `lr_final` (`schedule="cosine"`), or `lr` held until
    the last `decay_fraction` of the steps and a straight line to `lr_final` from there ("wsd", warm-up-stable-decay,
    as in MiniCPM, arXiv 2404.06395).
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    start = train.warmup_steps if train.schedule == "cosine" else round(train.steps * (1 - train.decay_fraction))
    start = max(start, train.warmup_steps)
    progress = min(max((step + 1 - start) / max(train.steps - start, 1), 0.0), 1.0)
    falling = (1 + math.cos(math.pi * progress)) / 2 if train.schedule == "cosine" else 1 - progress
    return train.lr_final + (train.lr - train.lr_final) * falling


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


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
        from rwkv_music.cuda import build

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
