"""Matrix products that are also fast in bf16 on a CPU without AVX-512.

On such a CPU, PyTorch's own product of bf16 matrices takes about ten times as long as the same product in fp32. The
products of this module convert the factors to fp32 and round the result to bf16. Autograd saves the bf16 factors. On
all other devices and for all other dtypes, the products are PyTorch's own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# PyTorch passes bf16 products to oneDNN on CPUs with these instruction sets.
CPU_HAS_FAST_BF16 = torch.backends.cpu.get_cpu_capability() in ("AVX512", "SVE256")


class Linear(nn.Linear):
    """`nn.Linear` without bias, computed by `linear`."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., n] @ weight.T, for a weight [m, n]."""
    return _Fp32Product.apply(x, weight, True) if _needs_fp32(x) else F.linear(x, weight)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a [..., n] @ b [n, m], in `out` if it is given. With `out`, gradients must be disabled."""
    if not _needs_fp32(a):
        return torch.matmul(a, b, out=out)
    product = _Fp32Product.apply(a, b, False)
    return product if out is None else out.copy_(product)


def _needs_fp32(x: Tensor) -> bool:
    return not CPU_HAS_FAST_BF16 and x.dtype == torch.bfloat16 and x.device.type == "cpu"


class _Fp32Product(torch.autograd.Function):
    """a @ b, or a @ b.T if `transposed`, computed in fp32 and returned in a's dtype.

    The transposition is an argument because ZeRO-3 would leave the gathered weights in memory if a view of them were
    saved for the backward pass.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.transposed = transposed
        factor = b.float()
        return (a.float() @ (factor.T if transposed else factor)).to(a.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        grad, da, db = grad.float(), None, None
        if ctx.needs_input_grad[0]:
            factor = b.float()
            da = (grad @ (factor if ctx.transposed else factor.T)).to(a.dtype)
        if ctx.needs_input_grad[1]:
            left, right = (x.reshape(-1, x.shape[-1]) for x in (a.float(), grad))
            db = (right.T @ left if ctx.transposed else left.T @ right).to(b.dtype)
        return da, db, None
