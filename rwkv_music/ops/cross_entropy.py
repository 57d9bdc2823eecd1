"""The output head and its loss in one module, so that the logits of all tokens never exist at once.

For 16,384 tokens and a vocabulary of 20,096, the logits take 1.3 GB in float32, and the loss would need several copies.
This module processes the positions in chunks. It computes the gradients in the forward pass, from the logits of each
chunk.
"""

import torch
from torch import Tensor

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.ops import fused
from rwkv_music.ops.products import Linear, linear, matmul

CHUNK_LOGITS = 2**26  # logits in memory at once


class Head(Linear):
    """The output projection from C to V without bias. It returns logits or, with `targets`, the summed loss.

    One module does both, because ZeRO-3 gathers the weights of a module only when the module is called.
    """

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits [..., V] of x [..., C], or the summed cross-entropy of x [P, C] in nats.

        `targets`, int64 [P], are from 0 to V - 1, or IGNORE_INDEX. Any other target raises ValueError on the CPU and
        fails a device-side assertion on a GPU. The sum is a float32 scalar (float64 for float64 inputs).
        """
        if targets is None:
            return super().forward(x)
        if targets.device.type == "cpu":  # on a GPU, reading the result would synchronize
            _check_targets(targets, len(self.weight))
        if torch.is_grad_enabled():
            return _SummedLoss.apply(x, self.weight, targets)
        # The inputs are detached, because `needs_input_grad` is set for them even if gradients are disabled.
        return _SummedLoss.apply(x.detach(), self.weight.detach(), targets)


class _SummedLoss(torch.autograd.Function):
    """The summed loss. The forward pass computes the gradients of x and weight, and the backward pass scales them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        sum_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        needs_grad, trains_weight = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[1]
        nats = x.new_zeros((), dtype=sum_dtype)
        dx = torch.empty_like(x) if needs_grad else None
        dweight = torch.zeros_like(weight, dtype=sum_dtype) if trains_weight else None
        rows = max(1, CHUNK_LOGITS // len(weight))
        for chunk in (slice(start, start + rows) for start in range(0, len(x), rows)):
            logits = linear(x[chunk], weight)
            nats += fused.cross_entropy_(logits, targets[chunk]).sum()  # overwrites the logits with their gradient
            if needs_grad:
                matmul(logits, weight, out=dx[chunk])
            if trains_weight:
                dweight += _product(logits.T, x[chunk], sum_dtype)
        if needs_grad:
            ctx.save_for_backward(dx, dweight)
        return nats

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        dx, dweight = ctx.saved_tensors
        # Scale in the precision of the loss. A rounded scale would add the same error to every gradient of the model.
        dweight = None if dweight is None else (dweight * grad).to(dx.dtype)
        return (dx.to(grad.dtype) * grad).to(dx.dtype), dweight, None


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    wrong = targets[((targets < 0) | (targets >= vocab_size)) & (targets != IGNORE_INDEX)]
    if wrong.numel():
        raise ValueError(
            f"targets holds {wrong[0].item()}, which is not a token: give 0 to {vocab_size - 1}, or {IGNORE_INDEX} to "
            "ignore a position."
        )


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b, accumulated and returned in `dtype`."""
    if a.is_cuda and a.dtype != dtype:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)
