"""The WKV7s recurrence, token by token in float64: what every backend is held to.

It restates the formula of `rwkv_music.ops.wkv7s` in the plainest way, shares no code with it, and is differentiable by
autograd, so that its gradients are a reference too.
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
    """y [B, T, H, N] and final state [B, H, N, N] in float64; with `cu_seqlens` [D+1] the states are [D, H, N, N]."""
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
    for t in range(T):
        removed = S @ a[:, t].unsqueeze(-1)  # [B, H, N, 1]
        S = (
            S * decay[:, t].unsqueeze(-2)
            + removed @ b[:, t].unsqueeze(-2)
            + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        )
        ys.append((S @ r[:, t].unsqueeze(-1)).squeeze(-1))
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
    """r, w, k, v, a, b [B, T, H, N] as the model makes them: a = -kk, b = kk * gate with kk of unit length.

    `w_range` draws w uniformly from it (else a normal as at the start of training); `correlated` draws all keys of a
    head around one direction, the hard case for the triangular solve inside a chunk.
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
