"""The output head and its loss, together: the logits of all tokens are never held at once.

At a vocabulary of 20,096 the logits of 16,384 tokens would take 1.3 GB in float32, several times over. Here a chunk of
positions at a time goes through the head, and its gradients are made on the spot, while its logits are at hand.
"""

import torch
from torch import Tensor, nn

from rwkv_music.ops import fused

CHUNK_LOGITS = 2**26  # logits held at once


class Head(nn.Linear):
    """[C, V] without a bias: logits, or with `targets` the summed loss.

    One module for both, so that whoever gathers a module's weights when it is called (ZeRO-3) gathers them here too.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__(width, vocab_size, bias=False)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x [..., C] -> logits [..., V]; or x [P, C] and targets int64 [P] -> the sum of their nats, float32.

        The sum is float64 for float64 inputs.
        """
        if targets is None:
            return super().forward(x)
        return _SummedLoss.apply(x, self.weight, targets)


class _SummedLoss(torch.autograd.Function):
    """The gradients are made in the forward pass, for a loss whose own gradient is 1, and scaled in the backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        needs, trains = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[1]
        nats = x.new_zeros((), dtype=exact)
        dx = torch.empty_like(x) if needs else None
        dweight = torch.zeros_like(weight, dtype=exact) if trains else None
        rows = max(1, CHUNK_LOGITS // len(weight))
        for chunk in (slice(start, start + rows) for start in range(0, len(x), rows)):
            logits = x[chunk] @ weight.T
            nats += fused.cross_entropy_(logits, targets[chunk]).sum()  # and the logits are their own gradient now
            if needs:
                torch.mm(logits, weight, out=dx[chunk])
            if trains:
                dweight += _product(logits.T, x[chunk], exact)
        if needs:
            ctx.save_for_backward(dx, dweight)
        return nats

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        dx, dweight = ctx.saved_tensors
        # In the loss's own precision: a rounded scale would be the same error in every gradient of the model.
        dweight = None if dweight is None else (dweight * grad).to(dx.dtype)
        return (dx.to(grad.dtype) * grad).to(dx.dtype), dweight, None


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, summed and returned in `dtype`."""
    if a.is_cuda and a.dtype != dtype:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)
