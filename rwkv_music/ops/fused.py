"""What stands between the model's matrix products, each as one pass over memory, forward and backward.

These operators are bound by memory. On a GPU in bf16 each is one of our kernels (`rwkv_music/cuda/fused_*.cu`), which
reads each input once, computes in fp32 and writes each output once; elsewhere, and in any other dtype, it is the plain
PyTorch form that defines it.

Notable choices:
- None of them records a gradient: each comes as a pair, `op` and `op_backward`, for whoever writes a half-block's
  backward by hand and would rather recompute than save. The plain forms (`plain_*`) can be differentiated, and the
  backward's plain form is just that, by autograd.
- The kernels do not round between two steps as the plain forms do in bf16: they are closer to exact arithmetic.
- Sums over tokens are fp32 and in a fixed order: the same input gives the same bits.
- Nothing waits for the device, and nothing is allocated but outputs and partial sums.

Letters in shapes: M tokens of all rows and documents, C width (a multiple of 64), H = C / 64 heads, D documents, V
vocabulary. A kernel wants contiguous tensors.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_music.config import IGNORE_INDEX

HEAD_SIZE = 64
GROUP_NORM_EPS = 64e-5
WIDEST_NORM = 4096  # channels: a norm's kernel keeps a whole token's in one block's registers


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
    """Layer norm, and n mixes of each token with the one before it.

    With h = layer_norm(x) and s_t = h_{t-1}: mixed[i] = h + (s - h) * mixes[i].

    Args:
        x: [M, C].
        ln_weight, ln_bias: [C].
        mixes: [n, C]; n is 6 before time mixing and 1 before channel mixing (the kernels know no other).
        first: int32 [M]: the number of the document that token t begins, or -1 where it begins none. Token 0 begins
            one. `document_starts` makes it.
        previous: [D, C]: the s of each document's first token; None for zeros.

    Returns:
        mixed [n, M, C], and the norm's mean and reciprocal deviation [M, 2], fp32 or wider, for the backward.
    """
    if _kernels_take(x) and x.shape[1] <= WIDEST_NORM:
        return _kernels().norm_mix(x, ln_weight, ln_bias, mixes, first, previous, eps)
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
    """Gradients of norm_mix's inputs."""

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
    """From dmixed [n, M, C]; `dresidual` [M, C], the gradient that reaches x around the norm, is added to x's."""
    if _kernels_take(x) and x.shape[1] <= WIDEST_NORM:
        inputs = (dmixed, x, mean_rstd, ln_weight, ln_bias, mixes, first, previous, dresidual)
        return NormMixGrads(*_kernels().norm_mix_backward(*inputs))

    def mixed(x: Tensor, ln_weight: Tensor, ln_bias: Tensor, mixes: Tensor, previous: Tensor | None) -> list[Tensor]:
        return [plain_norm_mix(x, ln_weight, ln_bias, mixes, first, previous, eps)[0]]

    grads = NormMixGrads(*_vjp(mixed, (x, ln_weight, ln_bias, mixes, previous), [dmixed]))
    return grads if dresidual is None else grads._replace(x=grads.x + dresidual)


def document_starts(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """`first` int32 [tokens] for documents packed by cu_seqlens int32 [D+1]; a document may be empty."""
    token = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:], token, right=True, out_int32=True)
    return torch.where(cu_seqlens[document] == token, document, -1)


# ---------------------------------------------------------------------------------------------------------------------
# The gates before the recurrence.


class Gates(NamedTuple):
    """What the recurrence takes besides r, each [M, C]."""

    w: Tensor  # the raw decay
    k: Tensor  # the replacement key
    v: Tensor  # the value, with its residual
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
    """Decay, in-context learning rate, value residual and the two keys.

    With a = sigmoid(a0 + a_low) and kk = normalize(k * k_k) over each head: w = w0 + w_low,
    k = k * (1 + (a - 1) * k_a), v = lerp(v, v_first, sigmoid(v0 + v_low)), removal = -kk, replacement = kk * a.

    Args:
        k, v, v_first [M, C]: the key, the value, and layer 0's value. Layer 0 itself has no v_first, v_low, v0 (None),
            and its v comes back as it is.
        w_low, a_low, v_low [M, C]: what the low-rank products put out.
        w0, a0, v0, k_k, k_a [C].
    """
    if _kernels_take(k):
        w, new_k, new_v, removal, replacement = _kernels().gates(
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
    """Gradients of the inputs of `gates`, but w_low's, which is w's own. None where layer 0 has no such input."""

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
    dk_more: Tensor | None,
    dv_more: Tensor | None,
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
    """From the gradients `dout` of all five outputs; `dk_more` and `dv_more` [M, C] are added to those of k and v.

    The inputs are those of `gates`; w_low and w0, which the gradients do not depend on, are left out. In layer 0 the
    gradient of v is that of its output, and may be the same tensor.
    """
    if _kernels_take(k):
        v = None if v_first is None else v
        grads = GatesGrads(
            *_kernels().gates_backward(*dout, dk_more, dv_more, k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
        )
        return grads._replace(v=dout.v) if grads.v is None else grads

    def without_w(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        k, v, v_first, a_low, v_low, a0, v0, k_k, k_a = inputs
        return plain_gates(k, v, v_first, a_low, a_low, v_low, a0, a0, v0, k_k, k_a)[1:]

    dk = dout.k if dk_more is None else dout.k + dk_more
    dv = dout.v if dv_more is None else dout.v + dv_more
    inputs = (k, v, v_first, a_low, v_low, a0, v0, k_k, k_a)
    *tokens, da0, dv0, dk_k, dk_a = _vjp(without_w, inputs, [dk, dv, dout.removal, dout.replacement])
    return GatesGrads(*tokens, dout.w.sum(0), da0, dv0, dk_k, dk_a)


# ---------------------------------------------------------------------------------------------------------------------
# After the recurrence: group norm, bonus and output gate.


def norm_bonus_gate(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> Tensor:
    """(group_norm(y) + (r . k . r_k) v) * g, norm and dot product over each head: [M, C].

    y is what the recurrence puts out, r, k, v are what it took, g is the output gate, all [M, C]; r_k, ln_weight and
    ln_bias are [C].
    """
    if _kernels_take(y):
        return _kernels().norm_bonus_gate(y, r, k, v, g, r_k, ln_weight, ln_bias)
    return plain_norm_bonus_gate(y, r, k, v, g, r_k, ln_weight, ln_bias)


def plain_norm_bonus_gate(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> Tensor:
    M, C = y.shape
    norm = F.group_norm(y, C // HEAD_SIZE, ln_weight, ln_bias, GROUP_NORM_EPS)
    bonus = (r * k * r_k).view(M, -1, HEAD_SIZE).sum(dim=-1, keepdim=True) * v.view(M, -1, HEAD_SIZE)
    return (norm + bonus.view(M, C)) * g


class NormBonusGateGrads(NamedTuple):
    """Gradients of norm_bonus_gate's inputs; and `out` once more, for a backward that did not save it."""

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
    """From dout [M, C]."""
    inputs = (y, r, k, v, g, r_k, ln_weight, ln_bias)
    if _kernels_take(y):
        return NormBonusGateGrads(*_kernels().norm_bonus_gate_backward(dout, *inputs))
    grads = _vjp(lambda *inputs: [plain_norm_bonus_gate(*inputs)], inputs, [dout])
    return NormBonusGateGrads(*grads, plain_norm_bonus_gate(*inputs))


# ---------------------------------------------------------------------------------------------------------------------
# Channel mixing: squared ReLU, DeepEmbed and the residual.


def relu_squared(k: Tensor) -> Tensor:
    """relu(k)^2 of k [M, F], F a multiple of 8."""
    return _kernels().relu_squared(k) if _kernels_take(k) else plain_relu_squared(k)


def plain_relu_squared(k: Tensor) -> Tensor:
    return torch.relu(k).square()


def relu_squared_backward(dout: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """relu(k)^2 once more, and the gradient of k: a backward that saved k alone needs both."""
    if _kernels_take(k):
        return _kernels().relu_squared_backward(dout, k)
    return plain_relu_squared(k), *_vjp(lambda k: [plain_relu_squared(k)], (k,), [dout])


class EmbedOrder(NamedTuple):
    """The tokens of a batch, ordered by what they are; those that are the same keep their order."""

    ids: Tensor  # int64 [M], rising
    positions: Tensor  # int64 [M]: where each of them stands in the batch
    vocab_size: int


def embed_order(ids: Tensor, vocab_size: int) -> EmbedOrder:
    """The order in which gradients of tables [vocab_size, C] are summed, for ids int64 [M]: once a batch, for all."""
    return EmbedOrder(*torch.sort(ids, stable=True), vocab_size)


def embed_gate(x: Tensor, out: Tensor, enn: Tensor, ids: Tensor) -> Tensor:
    """x + out * enn[ids]: DeepEmbed and the residual. x, out [M, C]; enn [V, C]; ids int64 [M], each below V."""
    return _kernels().embed_gate(x, out, enn, ids) if _kernels_take(x) else plain_embed_gate(x, out, enn, ids)


def plain_embed_gate(x: Tensor, out: Tensor, enn: Tensor, ids: Tensor) -> Tensor:
    return torch.addcmul(x, out, F.embedding(ids, enn))


def embed_gate_backward(dx: Tensor, out: Tensor, enn: Tensor, order: EmbedOrder) -> tuple[Tensor, Tensor]:
    """The gradients of out [M, C] and of enn [V, C] from dx [M, C], which is also the gradient of x."""
    if _kernels_take(dx):
        return _kernels().embed_gate_backward(dx, out, enn, order.ids, order.positions)
    ids = torch.empty_like(order.ids).scatter_(0, order.positions, order.ids)
    wide = torch.promote_types(dx.dtype, torch.float32)
    return dx * F.embedding(ids, enn), _sum_by_id(dx.to(wide) * out, order).to(enn.dtype)


def embedding_grad(dx: Tensor, order: EmbedOrder) -> Tensor:
    """The gradient [V, C] of an embedding's table from dx [M, C]: the sum over a token's occurrences."""
    if _kernels_take(dx):
        return _kernels().embedding_grad(dx, order.ids, order.positions, order.vocab_size)
    return _sum_by_id(dx, order).to(dx.dtype)


def _sum_by_id(x: Tensor, order: EmbedOrder) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = x.new_zeros(order.vocab_size, x.shape[1], dtype=wide)
    return sums.index_add_(0, order.ids, x[order.positions].to(wide))


# ---------------------------------------------------------------------------------------------------------------------
# The loss.


@torch.no_grad()
def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Cross-entropy in nats, each row's own, fp32 or wider [P]; the logits [P, V] become its gradient times `scale`.

    Targets are int64 [P] below V, or IGNORE_INDEX: then the row has 0 nats and no gradient. `scale` is a number, or an fp32
    scalar on the logits' device.
    """
    if _kernels_take(logits):
        tensor, number = (scale, 1.0) if isinstance(scale, Tensor) else (None, scale)
        return _kernels().cross_entropy_(logits, targets, tensor, number)
    counted = (targets != IGNORE_INDEX).unsqueeze(1)
    target = targets.unsqueeze(1).clamp(min=0)
    logs = logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nats = -logs.gather(1, target) * counted
    grad = logs.exp_().scatter_add_(1, target, torch.full_like(nats, -1.0))
    logits.copy_(grad.mul_(counted * scale))
    return nats.squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------


def _kernels_take(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16


def _kernels():
    from rwkv_music.cuda import build

    return build.load()


def _vjp(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of `inputs` from those of `function`'s outputs, by autograd; None for an input that is None."""
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        found = iter(torch.autograd.grad(outputs, [x for x in leaves if x is not None], grads))
    return [None if x is None else next(found) for x in leaves]
