"""The learning-rate schedule. It depends on the step alone, so checkpoints contain no schedule state."""

import math

import torch

from rwkv_music.config import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Return the learning rate of optimizer step `step` (0 is the first), not yet multiplied by a group's `lr_scale`.

    The schedule begins with a linear warm-up to `lr` over `warmup_steps`. With `schedule="cosine"`, a cosine to
    `lr_final` follows. With "wsd" (warm-up, stable, decay, as in MiniCPM, arXiv 2404.06395), the rate stays at `lr`,
    and decays linearly to `lr_final` in the last `decay_fraction` of the steps.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    start = train.warmup_steps if train.schedule == "cosine" else round(train.steps * (1 - train.decay_fraction))
    start = max(start, train.warmup_steps)
    progress = min(max((step + 1 - start) / max(train.steps - start, 1), 0.0), 1.0)
    falling = (1 + math.cos(math.pi * progress)) / 2 if train.schedule == "cosine" else 1 - progress
    return train.lr_final + (train.lr - train.lr_final) * falling


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every parameter group's learning rate to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
