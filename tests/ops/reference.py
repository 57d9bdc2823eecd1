"""The naive WKV7s reference for all backends: the recurrence token by token in float64.

It implements the formula of `rwkv_music.ops.wkv7s` without sharing code with it. Autograd differentiates it, which also
gives reference gradients.
"""

import math

import torch
from torch import Tensor


def wkv7s_reference(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y [B, T, H, N] and the final state [B, H, N, N], or [D, H, N, N] with `cu_seqlens` [D+1], in float64."""
    r, w, k, v, a, b = (x.double() for x in (r, w, k, v, a, b))
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        outputs, finals = [], []
        for i, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            initial = None if state is None else state[i : i + 1]
            y, final = wkv7s_reference(*(x[:, start:stop] for x in (r, w, k, v, a, b)), state=initial)
            outputs.append(y)
            finals.append(final)
        return torch.cat(outputs, dim=1), torch.cat(finals)
    B, T, H, N = r.shape
    S = r.new_zeros(B, H, N, N) if state is None else state.double()
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
    ys = []
    # unbind and not x[:, t], whose backward allocates a tensor of the size of x for every token.
    for r_t, d_t, k_t, v_t, a_t, b_t in zip(*(x.unbind(1) for x in (r, decay, k, v, a, b)), strict=True):
        removed = S @ a_t.unsqueeze(-1)  # [B, H, N, 1]
        S = S * d_t.unsqueeze(-2) + removed @ b_t.unsqueeze(-2) + v_t.unsqueeze(-1) @ k_t.unsqueeze(-2)
        ys.append((S @ r_t.unsqueeze(-1)).squeeze(-1))
    y = torch.stack(ys, dim=1) if ys else r
    return y, S


def wkv7s_inputs(
    B: int,
    T: int,
    H: int,
    N: int = 64,
    *,
    seed: int = 0,
    dtype=torch.float32,
    device="cpu",
    w_range: tuple[float, float] | None = None,
    correlated: bool = False,
) -> tuple[Tensor, ...]:
    """Return random r, w, k, v, a, b [B, T, H, N] as in the model: a = -kk, b = kk * gate with kk of unit length.

    Args:
        w_range: the interval from which w is drawn uniformly; None draws from a normal as at the start of training.
        correlated: whether to draw all keys of a head near one direction, the hard case for the triangular solve inside
            a chunk.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(B, T, H, N, generator=generator, dtype=torch.float64)

    r, k, v = normal(), normal(), normal()
    w = 2 * normal() - 1
    if w_range is not None:
        low, high = w_range
        w = low + (high - low) * torch.rand(B, T, H, N, generator=generator, dtype=torch.float64)
    kk = normal()
    if correlated:
        kk = torch.randn(B, 1, H, N, generator=generator, dtype=torch.float64) + 0.1 * kk
        k = k * 0.1 + kk
    kk = torch.nn.functional.normalize(kk, dim=-1)
    gate = torch.sigmoid(normal())
    return tuple(x.to(dtype).to(device) for x in (r, w, k, v, -kk, kk * gate))
