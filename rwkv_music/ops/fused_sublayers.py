"""The two sublayers of a block for training on a GPU. Each is one autograd function that saves few activations.

`time_mixing(block, ...)` computes `x + att(ln1(x))`, and `channel_mixing(block, ...)` computes `x + ffn(ln2(x))`. The
modules of `model_v8` compute the same in plain PyTorch and are the reference. This module differs from them as follows:

- Everything between the matrix products runs in the operators of `fused`, which read each input and write each output
  only once.
- Time mixing saves x, r, k, v, y, the checkpoints of the recurrence and the low-rank hidden values of the gates. These
  are about 8 C values per token instead of 40 C. Channel mixing saves x, the input of the squared ReLU and, in v8, the
  output before DeepEmbed, 5 C or 6 C values per token. The backward pass recomputes the mixes, the gates, and all
  normed or squared values, which takes little time.
- The last matrix product of a sublayer, or its DeepEmbed operator, also adds the residual.
- The WKV state and the token-shift state are optional inputs and outputs, one per document. The token-shift state is
  the layer norm of one token: of the token before the document (input), or of the document's last token (output). Both
  states have gradients, and cost nothing if they are not used.
- With context parallelism, both functions exchange the token-shift state with the other ranks. Time mixing also
  exchanges the WKV state.
- Gradients of frozen matrices are not computed, except that of the DeepEmbed table.
- Products are written with `@`, because ZeRO-3 replaces `F.linear` by a slower autograd function.

All tensors are flattened: M tokens of all documents, [M, C].
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_music.cuda import build
from rwkv_music.ops import context_parallel, fused
from rwkv_music.ops.context_parallel import ContextPart


class Documents(NamedTuple):
    """The D documents of a batch of M tokens, and tensors derived from them that all layers use."""

    cu_seqlens: Tensor  # int32 [D+1]
    max_length: int  # upper bound on document lengths
    first: Tensor  # int32 [M]: see `fused.document_starts`
    order: fused.EmbedOrder | None  # for the gradients of DeepEmbed's tables
    last: Tensor | None  # int64 [D]: index of each document's last token; None if no state is returned
    context: ContextPart | None = None  # with context parallelism, which part of the tokens this batch is
    end: Tensor | None = None  # int64 [1]: index of the batch's last token; None without `context`


def documents(
    input_ids: Tensor,
    cu_seqlens: Tensor | None,
    max_length: int | None,
    embed_vocabulary: int | None,
    return_state: bool = False,
    context: ContextPart | None = None,
) -> Documents:
    """Return the documents of input_ids [B, T].

    `cu_seqlens`, int32 [D+1], are their boundaries; with None, each row is a document. With `cu_seqlens`, `max_length`
    is an upper bound on document lengths; None means B * T. `embed_vocabulary` is V if the model has DeepEmbed tables,
    otherwise None. `return_state` makes the sublayers return the state after each document.
    """
    B, T = input_ids.shape
    if cu_seqlens is None:
        cu_seqlens = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=input_ids.device)
        max_length = T
    order = None
    if embed_vocabulary is not None and torch.is_grad_enabled():
        order = fused.embed_order(input_ids.flatten(), embed_vocabulary)
    last = cu_seqlens[1:].long() - 1 if return_state else None
    end = None if context is None else torch.full((1,), B * T - 1, device=input_ids.device)
    starts = fused.document_starts(cu_seqlens, B * T)
    return Documents(cu_seqlens, max_length or B * T, starts, order, last, context, end)


def supports(x: Tensor, head_size: int) -> bool:
    """Return whether the kernels support the device and dtype of x, and the head size."""
    return x.is_cuda and x.dtype == torch.bfloat16 and head_size == fused.HEAD_SIZE


def time_mixing(
    block: nn.Module,
    x: Tensor,
    v_first: Tensor | None,
    documents: Documents,
    shift: Tensor | None = None,
    wkv: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compute x + att(ln1(x)) for x [M, C].

    Args:
        v_first: [M, C]: the values of layer 0; None in layer 0.
        shift: [D, C]: ln1(x) at the token before each document; None for zeros.
        wkv: fp32 [D, H, N, N]: the WKV state before each document; None for zeros.

    Return the result [M, C], the values of layer 0 [M, C], and the new shift and wkv (None without `documents.last`).
    With `documents.context`, `shift` and `wkv` are not used for a document that began on an earlier rank, and the new
    ones of a document that continues on the next rank are not valid.
    """
    att, norm = block.att, block.ln1
    vectors = (norm.weight, norm.bias, att.ln_x.weight, att.ln_x.bias)
    vectors += (att.w0, att.a0, None if v_first is None else att.v0, att.k_k, att.k_a, att.r_k)
    gates = (att.w1, att.w2, att.a1, att.a2, att.g1, att.g2)
    gates += (None, None) if v_first is None else (att.v1, att.v2)
    matrices = (att.receptance.weight, att.key.weight, att.value.weight, att.output.weight)
    mixes = (att.x_r, att.x_w, att.x_k, att.x_v, att.x_a, att.x_g)
    return _TimeMixing.apply(
        x, v_first, documents, torch.is_grad_enabled(), shift, wkv, *vectors, *gates, *matrices, *mixes
    )


def channel_mixing(
    block: nn.Module, x: Tensor, input_ids: Tensor, documents: Documents, recompute: bool, shift: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute x + ffn(ln2(x)) for x [M, C] and input_ids int64 [M], with `shift` as in `time_mixing`.

    With `recompute`, the backward pass recomputes the matrix products (activation checkpointing). Return the result
    [M, C] and the new shift (None without `documents.last`).
    """
    ffn, norm = block.ffn, block.ln2
    enn = None if ffn.enn is None else ffn.enn.weight
    return _ChannelMixing.apply(
        x, input_ids, documents, recompute, shift, norm.weight, norm.bias, ffn.x_k,
        ffn.key.weight, ffn.value.weight, enn,
    )  # fmt: skip


# The names of the matrices among the arguments of _TimeMixing.apply. FIRST_MATRIX is the index of the first of them.
MATRICES = ("w1", "w2", "a1", "a2", "g1", "g2", "v1", "v2", "receptance", "key", "value", "output")
FIRST_MATRIX = 16


class _TimeMixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, v_first, documents, save, shift, wkv, ln_w, ln_b, lnx_w, lnx_b, w0, a0, v0, k_k, k_a, r_k,
                w1, w2, a1, a2, g1, g2, v1, v2, receptance, key, value, output, *mixes):  # fmt: skip
        # Reshape here, where autograd records nothing. For small models, the overhead of recording limits the speed.
        ctx.shapes = w0.shape, r_k.shape
        mixes = torch.cat(mixes).view(len(mixes), -1)
        w0, a0, v0, k_k, k_a, r_k = (None if z is None else z.view(-1) for z in (w0, a0, v0, k_k, k_a, r_k))
        shift, wkv = (None if z is None else z.contiguous() for z in (shift, wkv))
        ctx.has_shift, ctx.has_wkv = shift is not None, wkv is not None
        context, exchange = documents.context, None
        if context is not None:
            shift = _shift_over_ranks(x, documents, ln_w, ln_b, shift)
        mixed, moments = fused.norm_mix(x, ln_w, ln_b, mixes, documents.first, shift)
        xr, xw, xk, xv, xa, xg = mixed.unbind(0)
        r, k, v = xr @ receptance.T, xk @ key.T, xv @ value.T
        hidden_w, hidden_a, hidden_g = (xw @ w1).tanh_(), xa @ a1, (xg @ g1).sigmoid_()
        hidden_v = None if v_first is None else xv @ v1
        del mixed, xr, xw, xk, xv, xa, xg
        inputs, g = _recurrence_inputs(k, v, v_first, w0, a0, v0, k_k, k_a,
                                       hidden_w, hidden_a, hidden_v, hidden_g, w2, a2, v2, g2)  # fmt: skip
        w, k2, v2_, removal, replacement = inputs
        heads = (len(x), -1, fused.HEAD_SIZE)
        recurrence_inputs = [z.view(heads) for z in (r, w, k2, v2_, removal, replacement)]

        def forward(before: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return _recurrence(x).wkv7s_forward(
                *recurrence_inputs, before, documents.cu_seqlens, documents.max_length, save
            )

        if context is None:
            y, final_wkv, checkpoints = forward(wkv)
        else:
            (y, final_wkv, checkpoints), exchange = context_parallel.forward_over_ranks(
                context, recurrence_inputs, len(shift), wkv, forward
            )
        y = y.view_as(x)
        z = fused.norm_bonus_gate(y, r, k2, v2_, g, r_k, lnx_w, lnx_b)
        out = torch.addmm(x, z, output.T)
        if save:
            ctx.documents, ctx.exchange = documents, exchange
            ctx.save_for_backward(x, v_first, shift, moments, r, k, v, hidden_w, hidden_a, hidden_v, hidden_g, y,
                                  checkpoints, ln_w, ln_b, mixes, lnx_w, lnx_b, w0, a0, v0, k_k, k_a, r_k,
                                  w1, w2, a1, a2, g1, g2, v1, v2, receptance, key, value, output)  # fmt: skip
        values = v if v_first is None else v_first.view_as(v_first)
        if documents.last is None:
            return out, values, None, None
        return out, values, _normed(x, documents.last, ln_w, ln_b), final_wkv

    @staticmethod
    def backward(ctx, dout, dv_first_after, dlast, dfinal_wkv):
        (x, v_first, shift, moments, r, k, v, hidden_w, hidden_a, hidden_v, hidden_g, y, checkpoints,
         ln_w, ln_b, mixes, lnx_w, lnx_b, w0, a0, v0, k_k, k_a, r_k,
         w1, w2, a1, a2, g1, g2, v1, v2, receptance, key, value, output) = ctx.saved_tensors  # fmt: skip
        documents = ctx.documents
        heads = (len(x), -1, fused.HEAD_SIZE)
        (w, k2, v2_, removal, replacement), g = _recurrence_inputs(
            k, v, v_first, w0, a0, v0, k_k, k_a, hidden_w, hidden_a, hidden_v, hidden_g, w2, a2, v2, g2
        )

        # The output projection; the group norm with bonus and gate; the recurrence; the gates.
        dy, dr_bonus, dk2_bonus, dv2_bonus, dg, dr_k, dlnx_w, dlnx_b, z = fused.norm_bonus_gate_backward(
            dout @ output, y, r, k2, v2_, g, r_k, lnx_w, lnx_b
        )
        trains = dict(zip(MATRICES, ctx.needs_input_grad[FIRST_MATRIX:], strict=False))

        def product(name: str, left: Tensor, right: Tensor) -> Tensor | None:
            """Return left^T right, the gradient of matrix `name`; None if it is frozen."""
            return left.T @ right if trains[name] else None

        doutput = product("output", dout, z)
        del z
        recurrence_inputs = [z.view(heads) for z in (r, w, k2, v2_, removal, replacement)]
        dy = dy.view(heads)

        def backward(after: Tensor) -> tuple[Tensor, ...]:
            return _recurrence(x).wkv7s_backward(
                *recurrence_inputs, documents.cu_seqlens, documents.max_length, checkpoints, dy, after
            )

        if dfinal_wkv is None:  # the final states are not used
            documents_and_heads = (documents.cu_seqlens.numel() - 1, r_k.numel() // fused.HEAD_SIZE)
            state_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            dfinal_wkv = x.new_zeros(*documents_and_heads, fused.HEAD_SIZE, fused.HEAD_SIZE, dtype=state_dtype)
        if documents.context is None:
            *dinputs, dwkv = backward(dfinal_wkv.contiguous())
        else:
            *dinputs, dwkv = context_parallel.backward_over_ranks(
                documents.context, recurrence_inputs, dy, dfinal_wkv, ctx.exchange, backward
            )
        recurrence_inputs.clear()  # `backward` would keep them in memory
        dr, *dinputs = (grad.view_as(x) for grad in dinputs)
        dr += dr_bonus
        dinputs = fused.Gates(*dinputs)
        dw = dinputs.w  # also the gradient of w_low
        a_low, v_low = hidden_a @ a2, None if v_first is None else hidden_v @ v2
        dk, dv, dv_first, da_low, dv_low, dw0, da0, dv0, dk_k, dk_a = fused.gates_backward(
            dinputs, dk2_bonus, dv2_bonus, k, v, v_first, a_low, v_low, a0, v0, k_k, k_a
        )
        del w, k2, v2_, removal, replacement, dinputs, dk2_bonus, dv2_bonus, a_low, v_low
        if v_first is None:
            dv += dv_first_after  # the value residuals of the other layers use the values of this layer
        else:
            dv_first += dv_first_after

        # The projections, the token-shift mixes, the layer norm.
        mixed, _ = fused.norm_mix(x, ln_w, ln_b, mixes, documents.first, shift)
        xr, xw, xk, xv, xa, xg = mixed.unbind(0)
        dmixed = torch.empty_like(mixed)
        dxr, dxw, dxk, dxv, dxa, dxg = dmixed.unbind(0)
        torch.mm(dr, receptance, out=dxr)
        torch.mm(dk, key, out=dxk)
        torch.mm(dv, value, out=dxv)
        dreceptance, dkey, dvalue = product("receptance", dr, xr), product("key", dk, xk), product("value", dv, xv)
        dw2, dw_hidden = product("w2", hidden_w, dw), torch.ops.aten.tanh_backward(dw @ w2.T, hidden_w)
        da2, da_hidden = product("a2", hidden_a, da_low), da_low @ a2.T
        dg2, dg_hidden = product("g2", hidden_g, dg), torch.ops.aten.sigmoid_backward(dg @ g2.T, hidden_g)
        dw1, da1, dg1 = product("w1", xw, dw_hidden), product("a1", xa, da_hidden), product("g1", xg, dg_hidden)
        torch.mm(dw_hidden, w1.T, out=dxw)
        torch.mm(da_hidden, a1.T, out=dxa)
        torch.mm(dg_hidden, g1.T, out=dxg)
        dv1 = dv2_gate = None
        if v_first is not None:
            dv_hidden = dv_low @ v2.T
            dv1, dv2_gate = product("v1", xv, dv_hidden), product("v2", hidden_v, dv_low)
            dxv.addmm_(dv_hidden, v1.T)
        dx, dln_w, dln_b, dmixes, dshift = fused.norm_mix_backward(
            dmixed, x, moments, ln_w, ln_b, mixes, documents.first, shift, dout
        )
        if dlast is not None:
            dln_w, dln_b = _normed_backward(dlast, x, documents.last, ln_w, ln_b, dx, dln_w, dln_b)
        if documents.context is not None:
            dln_w, dln_b, dshift = _shift_over_ranks_backward(dshift, x, documents, ln_w, ln_b, dx, dln_w, dln_b)
        dshift = dshift if ctx.has_shift else None
        row, heads_and_channels = ctx.shapes
        dw0, da0, dv0, dk_k, dk_a = (None if z is None else z.view(row) for z in (dw0, da0, dv0, dk_k, dk_a))
        return (dx, dv_first, None, None, dshift, dwkv if ctx.has_wkv else None, dln_w, dln_b, dlnx_w, dlnx_b,
                dw0, da0, dv0, dk_k, dk_a, dr_k.view(heads_and_channels), dw1, dw2, da1, da2, dg1, dg2, dv1, dv2_gate,
                dreceptance, dkey, dvalue, doutput, *(dmix.view(row) for dmix in dmixes.unbind(0)))  # fmt: skip


def _recurrence(x: Tensor):
    """Return the namespace with wkv7s_forward and wkv7s_backward. On a GPU, these are the kernels without autograd."""
    return build.load() if x.is_cuda else torch.ops.rwkv_music


def _recurrence_inputs(k, v, v_first, w0, a0, v0, k_k, k_a, hidden_w, hidden_a, hidden_v, hidden_g, w2, a2, v2, g2):
    """Return the inputs w, k, v, a, b of the recurrence and the output gate g, each [M, C]."""
    v_low = None if v_first is None else hidden_v @ v2
    inputs = fused.gates(k, v, v_first, hidden_w @ w2, hidden_a @ a2, v_low, w0, a0, v0, k_k, k_a)
    return inputs, hidden_g @ g2


class _ChannelMixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, input_ids, documents, recompute, shift, ln_w, ln_b, x_k, key, value, enn):
        ctx.has_shift = shift is not None
        shift = None if shift is None else shift.contiguous()
        if documents.context is not None:
            shift = _shift_over_ranks(x, documents, ln_w, ln_b, shift)
        mixed, moments = fused.norm_mix(x, ln_w, ln_b, x_k.view(1, -1), documents.first, shift)
        k = mixed[0] @ key.T
        del mixed
        squared = fused.relu_squared(k)
        if enn is None:
            out, ungated = torch.addmm(x, squared, value.T), None
        else:
            ungated = squared @ value.T
            out = fused.embed_gate(x, ungated, enn, input_ids)
        ctx.documents = documents
        if recompute:
            k = ungated = None
        ctx.save_for_backward(x, shift, moments, k, ungated, ln_w, ln_b, x_k, key, value, enn)
        return out, None if documents.last is None else _normed(x, documents.last, ln_w, ln_b)

    @staticmethod
    def backward(ctx, dout, dlast):
        x, shift, moments, k, ungated, ln_w, ln_b, x_k, key, value, enn = ctx.saved_tensors
        documents = ctx.documents
        mix = x_k.view(1, -1)
        mixed, _ = fused.norm_mix(x, ln_w, ln_b, mix, documents.first, shift)
        if k is None:
            k = mixed[0] @ key.T
            if enn is not None:
                ungated = fused.relu_squared(k) @ value.T
        key_trains, value_trains = ctx.needs_input_grad[8:10]
        dungated, denn = dout, None
        if enn is not None:
            dungated, denn = fused.embed_gate_backward(dout, ungated, enn, documents.order)
        squared, dk = fused.relu_squared_backward(dungated @ value, k)
        dvalue = dungated.T @ squared if value_trains else None
        dkey = dk.T @ mixed[0] if key_trains else None
        dmixed = (dk @ key).unsqueeze(0)
        dx, dln_w, dln_b, dx_k, dshift = fused.norm_mix_backward(
            dmixed, x, moments, ln_w, ln_b, mix, documents.first, shift, dout
        )
        if dlast is not None:
            dln_w, dln_b = _normed_backward(dlast, x, documents.last, ln_w, ln_b, dx, dln_w, dln_b)
        if documents.context is not None:
            dln_w, dln_b, dshift = _shift_over_ranks_backward(dshift, x, documents, ln_w, ln_b, dx, dln_w, dln_b)
        dshift = dshift if ctx.has_shift else None
        return dx, None, None, None, dshift, dln_w, dln_b, dx_k.view_as(x_k), dkey, dvalue, denn


def _shift_over_ranks(x: Tensor, documents: Documents, weight: Tensor, bias: Tensor, shift: Tensor | None) -> Tensor:
    """Return the layer norm of x at the token before each document, [D, C], with context parallelism. Collective.

    `shift` contains these values for the documents that begin on this rank; None for zeros.
    """
    last = _normed(x, documents.end, weight, bias)
    return documents.context.from_previous(last, documents.cu_seqlens.numel() - 1, shift)


def _shift_over_ranks_backward(
    dshift: Tensor, x: Tensor, documents: Documents, weight: Tensor, bias: Tensor, dx: Tensor, dweight: Tensor,
    dbias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Add the gradients of `_shift_over_ranks`, as `_normed_backward` does for `_normed`. Collective.

    Also return the gradient of the argument `shift`; `dshift` is that of the result.
    """
    dlast, dshift = documents.context.from_next(dshift)
    return *_normed_backward(dlast, x, documents.end, weight, bias, dx, dweight, dbias), dshift


def _normed(x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the layer norm of the rows `rows`, int64 [D], of x [M, C]: [D, C]."""
    return F.layer_norm(x[rows], x.shape[1:], weight, bias)


def _normed_backward(
    dout: Tensor, x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor
) -> tuple[Tensor, Tensor]:
    """Add the gradients of `_normed` to dx (in place), dweight and dbias. Return the new dweight and dbias."""
    selected, shape = x[rows], x.shape[1:]
    _, mean, rstd = torch.native_layer_norm(selected, shape, weight, bias, 1e-5)
    dselected, dweight_normed, dbias_normed = torch.ops.aten.native_layer_norm_backward(
        dout.contiguous(), selected, shape, mean, rstd, weight, bias, [True, True, True]
    )
    dx.index_add_(0, rows, dselected)
    return dweight + dweight_normed, dbias + dbias_normed
