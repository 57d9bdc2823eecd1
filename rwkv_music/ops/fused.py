"""Fused operators for everything between the model's matrix products, each with a forward and a backward pass.

The speed of these operators is limited by memory bandwidth. For bf16 on a GPU, each operator is one CUDA kernel
(`rwkv_music/cuda/fused_*.cu`), which reads each input once, computes in fp32 and writes each output once. In some
backward passes, a second kernel adds up partial sums. On other devices, for other dtypes and for a `norm_mix` wider
than WIDEST_NORM, an operator runs in plain PyTorch. If it has a function `plain_*`, this function is its definition.

Notable choices:
- The kernels do not record gradients. The hand-written backward passes of `fused_sublayers` call the functions
  `*_backward`. In plain PyTorch, most of these functions run autograd on `plain_*`.
- The kernels keep intermediate values in fp32. Plain PyTorch rounds them to bf16.
- The kernels sum over tokens in fp32 and in a fixed order, so the same input gives the same bits.
- No operator waits for the GPU. An operator allocates only its outputs and partial sums.

Shapes: M tokens of all rows and documents, C width (a multiple of 64), H = C / 64 heads, D documents, V vocabulary. The
kernels require contiguous tensors.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.cuda import build

HEAD_SIZE = 64
GROUP_NORM_EPS = 64e-5
WIDEST_NORM = 4096  # channels: the kernel of norm_mix keeps a token in the registers of one block


# ---------------------------------------------------------------------------------------------------------------------
# Layer norm, token shift and mixing.


def norm_mix(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    mixes: Tensor,
    first: Tensor,
    previous: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Compute layer norm, token shift, and n mixes of each token with the previous one.

    With h = layer_norm(x) and s_t = h_{t-1}: mixed[i] = h + (s - h) * mixes[i].

    Args:
        x: [M, C].
        ln_weight, ln_bias: [C].
        mixes: [n, C]; n is 6 for time mixing and 1 for channel mixing (the kernels support no other).
        first: int32 [M], from `document_starts`: the index of the document that starts at each token, or -1. A document
            must start at token 0.
        previous: [D, C]: the s_t of each document's first token; None for zeros.

    Return mixed [n, M, C]. Also return the mean and the reciprocal standard deviation of each token for the backward
    pass, [M, 2], in fp32 or wider.
    """
    if _uses_kernels(x) and x.shape[1] <= WIDEST_NORM:
        return build.load().norm_mix(x, ln_weight, ln_bias, mixes, first, previous, eps)
    return plain_norm_mix(x, ln_weight, ln_bias, mixes, first, previous, eps)


def plain_norm_mix(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    mixes: Tensor,
    first: Tensor,
    previous: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    h, mean, rstd = torch.native_layer_norm(x, x.shape[1:], ln_weight, ln_bias, eps)
    start = torch.zeros_like(h) if previous is None else previous[first.clamp(min=0)]
    s = torch.where((first >= 0).unsqueeze(1), start, F.pad(h[:-1], (0, 0, 1, 0)))
    mixed = torch.addcmul(h, s - h, mixes.unsqueeze(1))
    statistics = torch.cat([mean, rstd], dim=1).detach()
    return mixed, statistics.to(torch.promote_types(x.dtype, torch.float32))


class NormMixGrads(NamedTuple):
    """Gradients of the inputs of norm_mix."""

    x: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    mixes: Tensor
    previous: Tensor | None


def norm_mix_backward(
    dmixed: Tensor,
    x: Tensor,
    mean_rstd: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    mixes: Tensor,
    first: Tensor,
    previous: Tensor | None = None,
    dresidual: Tensor | None = None,
    eps: float = 1e-5,
) -> NormMixGrads:
    """Return the gradients from dmixed [n, M, C]. `dresidual` [M, C], from the residual path, is added to dx."""
    if _uses_kernels(x) and x.shape[1] <= WIDEST_NORM:
        inputs = (dmixed, x, mean_rstd, ln_weight, ln_bias, mixes, first, previous, dresidual)
        return NormMixGrads(*build.load().norm_mix_backward(*inputs))

    def mixed(x: Tensor, ln_weight: Tensor, ln_bias: Tensor, mixes: Tensor, previous: Tensor | None) -> list[Tensor]:
        return [plain_norm_mix(x, ln_weight, ln_bias, mixes, first, previous, eps)[0]]

    grads = NormMixGrads(*_vjp(mixed, (x, ln_weight, ln_bias, mixes, previous), [dmixed]))
    return grads if dresidual is None else grads._replace(x=grads.x + dresidual)


def document_starts(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Return the argument `first` of `norm_mix`, int32 [tokens], for the document boundaries cu_seqlens, int32 [D+1].

    Documents may be empty.
    """
    token = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:], token, right=True, out_int32=True)
    return torch.where(cu_seqlens[document] == token, document, -1)


# ---------------------------------------------------------------------------------------------------------------------
# The gates before the recurrence.


class Gates(NamedTuple):
    """The inputs of the recurrence besides r, each [M, C]."""

    w: Tensor  # the raw decay
    k: Tensor  # the key, scaled by the in-context learning rate; the k of wkv7s
    v: Tensor  # the value, with the value residual
    removal: Tensor  # -kk, the a of wkv7s
    replacement: Tensor  # kk * a, the b of wkv7s


def gates(
    k: Tensor,
    v: Tensor,
    v_first: Tensor | None,
    w_low: Tensor,
    a_low: Tensor,
    v_low: Tensor | None,
    w0: Tensor,
    a0: Tensor,
    v0: Tensor | None,
    k_k: Tensor,
    k_a: Tensor,
) -> Gates:
    """Compute the decay, the value residual and the keys of the recurrence.

    With a = sigmoid(a0 + a_low) and kk = normalize(k * k_k) over each head: w = w0 + w_low,
    k = k * (1 + (a - 1) * k_a), v = lerp(v, v_first, sigmoid(v0 + v_low)), removal = -kk, replacement = kk * a.

    Args:
        k, v, v_first: [M, C]: the key, the value, and the value of layer 0. In layer 0 itself, v_first, v_low and v0
            are None, and v is returned unchanged.
        w_low, a_low, v_low: [M, C]: outputs of the low-rank products.
        w0, a0, v0, k_k, k_a: [C].
    """
    if _uses_kernels(k):
        w, new_k, new_v, removal, replacement = build.load().gates(
            k, None if v_first is None else v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a
        )
        return Gates(w, new_k, v if v_first is None else new_v, removal, replacement)
    return plain_gates(k, v, v_first, w_low, a_low, v_low, w0, a0, v0, k_k, k_a)


def plain_gates(
    k: Tensor,
    v: Tensor,
    v_first: Tensor | None,
    w_low: Tensor,
    a_low: Tensor,
    v_low: Tensor | None,
    w0: Tensor,
    a0: Tensor,
    v0: Tensor | None,
    k_k: Tensor,
    k_a: Tensor,
) -> Gates:
    a = torch.sigmoid(a0 + a_low)
    kk = F.normalize((k * k_k).view(len(k), -1, HEAD_SIZE), dim=-1).view_as(k)
    v = v if v_first is None else torch.lerp(v, v_first, torch.sigmoid(v0 + v_low))
    return Gates(w0 + w_low, k * (1 + (a - 1) * k_a), v, -kk, kk * a)


class GatesGrads(NamedTuple):
    """Gradients of the inputs of `gates` except w_low, whose gradient is that of w. None for inputs that are None."""

    k: Tensor
    v: Tensor
    v_first: Tensor | None
    a_low: Tensor
    v_low: Tensor | None
    w0: Tensor
    a0: Tensor
    v0: Tensor | None
    k_k: Tensor
    k_a: Tensor


def gates_backward(
    dout: Gates,
    dk_extra: Tensor | None,
    dv_extra: Tensor | None,
    k: Tensor,
    v: Tensor,
    v_first: Tensor | None,
    a_low: Tensor,
    v_low: Tensor | None,
    a0: Tensor,
    v0: Tensor | None,
    k_k: Tensor,
    k_a: Tensor,
) -> GatesGrads:
    """Return the gradients of `gates` from `dout`, the gradients of its five outputs.

    dk_extra and dv_extra, [M, C] or None, are added to the gradients of the outputs k and v. The gradients do not
    depend on w_low and w0, so these are not arguments. In layer 0, the gradients of the input v and of the output v are
    equal, and may be the same tensor.
    """
    if _uses_kernels(k):
        v = None if v_first is None else v
        grads = GatesGrads(
            *build.load().gates_backward(*dout, dk_extra, dv_extra, k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
        )
        return grads._replace(v=dout.v) if grads.v is None else grads

    def without_w(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        k, v, v_first, a_low, v_low, a0, v0, k_k, k_a = inputs
        return plain_gates(k, v, v_first, a_low, a_low, v_low, a0, a0, v0, k_k, k_a)[1:]

    dk = dout.k if dk_extra is None else dout.k + dk_extra
    dv = dout.v if dv_extra is None else dout.v + dv_extra
    inputs = (k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
    *tokens, da0, dv0, dk_k, dk_a = _vjp(without_w, inputs, [dk, dv, dout.removal, dout.replacement])
    return GatesGrads(*tokens, dout.w.sum(0), da0, dv0, dk_k, dk_a)


# ---------------------------------------------------------------------------------------------------------------------
# After the recurrence: group norm, bonus and output gate.


def norm_bonus_gate(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> Tensor:
    """Return (group_norm(y) + sum(r * k * r_k) v) * g, [M, C], with the norm and the sum over each head.

    y [M, C] is the output of the recurrence; r, k, v [M, C] are its inputs; g [M, C] is the output gate. r_k, ln_weight
    and ln_bias are [C].
    """
    if _uses_kernels(y):
        return build.load().norm_bonus_gate(y, r, k, v, g, r_k, ln_weight, ln_bias)
    return plain_norm_bonus_gate(y, r, k, v, g, r_k, ln_weight, ln_bias)


def plain_norm_bonus_gate(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> Tensor:
    M, C = y.shape
    norm = F.group_norm(y, C // HEAD_SIZE, ln_weight, ln_bias, GROUP_NORM_EPS)
    bonus = (r * k * r_k).view(M, -1, HEAD_SIZE).sum(dim=-1, keepdim=True) * v.view(M, -1, HEAD_SIZE)
    return (norm + bonus.view(M, C)) * g


class NormBonusGateGrads(NamedTuple):
    """Gradients of the inputs of norm_bonus_gate, and its recomputed output `out`."""

    y: Tensor
    r: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    r_k: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    out: Tensor


def norm_bonus_gate_backward(
    dout: Tensor, y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> NormBonusGateGrads:
    """Return the gradients from dout [M, C]."""
    inputs = (y, r, k, v, g, r_k, ln_weight, ln_bias)
    if _uses_kernels(y):
        return NormBonusGateGrads(*build.load().norm_bonus_gate_backward(dout, *inputs))
    grads = _vjp(lambda *inputs: [plain_norm_bonus_gate(*inputs)], inputs, [dout])
    return NormBonusGateGrads(*grads, plain_norm_bonus_gate(*inputs))


# ---------------------------------------------------------------------------------------------------------------------
# Channel mixing: squared ReLU, DeepEmbed and the residual.


def relu_squared(k: Tensor) -> Tensor:
    """Return relu(k)^2 for k [M, F], F a multiple of 8."""
    return build.load().relu_squared(k) if _uses_kernels(k) else plain_relu_squared(k)


def plain_relu_squared(k: Tensor) -> Tensor:
    return torch.relu(k).square()


def relu_squared_backward(dout: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return relu(k)^2, recomputed, and the gradient of k."""
    if _uses_kernels(k):
        return build.load().relu_squared_backward(dout, k)
    return plain_relu_squared(k), *_vjp(lambda k: [plain_relu_squared(k)], (k,), [dout])


class EmbedOrder(NamedTuple):
    """The tokens of a batch, sorted by id with a stable sort."""

    ids: Tensor  # int64 [M], ascending
    positions: Tensor  # int64 [M]: the position of each sorted token in the batch
    vocab_size: int


def embed_order(ids: Tensor, vocab_size: int) -> EmbedOrder:
    """Sort the ids of a batch, int64 [M]. The gradients of all tables [vocab_size, C] use the result."""
    return EmbedOrder(*torch.sort(ids, stable=True), vocab_size)


def embed_gate(x: Tensor, out: Tensor, enn: Tensor, ids: Tensor) -> Tensor:
    """Return x + out * enn[ids]: DeepEmbed and the residual. x, out [M, C]; enn [V, C]; ids int64 [M] below V."""
    return build.load().embed_gate(x, out, enn, ids) if _uses_kernels(x) else plain_embed_gate(x, out, enn, ids)


def plain_embed_gate(x: Tensor, out: Tensor, enn: Tensor, ids: Tensor) -> Tensor:
    return torch.addcmul(x, out, F.embedding(ids, enn))


def embed_gate_backward(dx: Tensor, out: Tensor, enn: Tensor, order: EmbedOrder) -> tuple[Tensor, Tensor]:
    """Return the gradients of out [M, C] and enn [V, C] from dx [M, C], which is also the gradient of x."""
    if _uses_kernels(dx):
        return build.load().embed_gate_backward(dx, out, enn, order.ids, order.positions)
    ids = torch.empty_like(order.ids).scatter_(0, order.positions, order.ids)
    wide = torch.promote_types(dx.dtype, torch.float32)
    return dx * F.embedding(ids, enn), _sum_by_id(dx.to(wide) * out, order).to(enn.dtype)


def embedding_grad(dx: Tensor, order: EmbedOrder) -> Tensor:
    """Return the gradient [V, C] of an embedding table from dx [M, C]: for each id, the sum over its tokens."""
    if _uses_kernels(dx):
        return build.load().embedding_grad(dx, order.ids, order.positions, order.vocab_size)
    return _sum_by_id(dx, order).to(dx.dtype)


def _sum_by_id(x: Tensor, order: EmbedOrder) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = x.new_zeros(order.vocab_size, x.shape[1], dtype=wide)
    return sums.index_add_(0, order.ids, x[order.positions].to(wide))


# ---------------------------------------------------------------------------------------------------------------------
# The loss.


@torch.no_grad()
def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return the cross-entropy of each row of logits [P, V] in nats, [P], in fp32 or wider.

    The logits are overwritten with their gradient times `scale`, a number or an fp32 scalar tensor on the same device.
    `targets`, int64 [P], are from 0 to V - 1, or IGNORE_INDEX. An ignored row has 0 nats and a zero gradient. Any other
    target raises RuntimeError on the CPU and fails a device-side assertion on a GPU.
    """
    if _uses_kernels(logits):
        tensor, number = (scale, 1.0) if isinstance(scale, Tensor) else (None, scale)
        return build.load().cross_entropy_(logits, targets, tensor, number)
    counted = (targets != IGNORE_INDEX).unsqueeze(1)
    target = targets.unsqueeze(1).masked_fill(~counted, 0)  # `gather` rejects targets that are out of range
    logs = logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nats = -logs.gather(1, target) * counted
    grad = logs.exp_().scatter_add_(1, target, torch.full_like(nats, -1.0))
    logits.copy_(grad.mul_(counted * scale))
    return nats.squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------


def _uses_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16


def _vjp(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of `inputs`, by autograd. `grads` are those of the outputs of `function`.

    The result is None for inputs that are None.
    """
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        input_grads = iter(torch.autograd.grad(outputs, [x for x in leaves if x is not None], grads))
    return [None if x is None else next(input_grads) for x in leaves]
