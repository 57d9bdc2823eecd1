"""WKV7s: the recurrence of RWKV v7 "Goose" and v8 "Heron", with input and output states and gradients of all inputs.

For each head, with d_t = exp(-exp(-0.5) * sigmoid(w_t)) in (0.545, 1):

    S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t

`wkv7s` calls the custom operators `rwkv_music::wkv7s_forward` and `rwkv_music::wkv7s_backward`. They are registered
with torch.library, with fake kernels and autograd, for two backends:

- CUDA: the kernels in `rwkv_music/cuda/`. Inputs and outputs are bf16. The state and sums of products are fp32. Outside
  of torch.compile, training calls the kernels through an autograd function in C++ (`wkv7s_bindings.cpp`), because a
  custom operator in Python is slow. For a small model, the host spends as much time on the call as the GPU spends on
  the kernels.
- CPU: the chunked form in matrix products (`wkv7s_cpu.py`), for any float dtype, computed in fp32 or fp64.

Notable choices:
- Both operators use one packed layout, [tokens, H, N] with `cu_seqlens`. A batch without `cu_seqlens` is treated as B
  documents of T tokens.
- For the backward pass, both backends save the state at the start of every chunk. The CUDA kernels recompute everything
  else to save memory. To save time, the CPU backend also saves the scores of each chunk and the solution of its
  triangular system.

Source: "RWKV-7 Goose with Expressive Dynamic State Evolution" (arXiv 2503.14456) and BlinkDL's RWKV-LM. The chunked
forms are derived in `cuda/README.md` and in `wkv7s_cpu.py`.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rwkv_music.cuda import build
from rwkv_music.ops import wkv7s_cpu
from rwkv_music.ops.wkv7s_cpu import CHECKPOINT_EVERY


def wkv7s(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the WKV7s recurrence over T tokens, starting from `state`. Return the outputs and the final state.

    Gradients flow from both results to r, w, k, v, a, b and state.

    Args:
        r, w, k, v, a, b: [B, T, H, N] of one dtype on one device, B and T >= 1. On CUDA, the dtype is bfloat16 and N is
            64 or 128. On the CPU, the dtype is any float dtype, and N is arbitrary. `w` is the raw decay, before the
            sigmoid. The model passes a = -kk and b = kk * iclr, with the removal key kk and the in-context learning
            rate iclr.
        state: [B, H, N, N], the value axis before the key axis, float32 (float64 with float64 inputs). None starts from
            zero.
        cu_seqlens: int32 [D+1], non-decreasing from 0 to T: the boundaries of D independent documents that are packed
            in one row (B must be 1). `state` and the final state are then [D, H, N, N]. The values are checked only on
            the CPU, because reading them from a GPU would make the host wait.
        max_length: an upper bound on the lengths of documents. With a bound below T, the kernels can balance the work
            better. If a document is longer, the results are wrong.

    Returns y [B, T, H, N] in the inputs' dtype, and the final state in the shape and dtype of `state`. Raises
    ValueError if shapes, dtypes or devices do not match, and UserError if the CUDA kernels cannot be built.
    """
    if r.dim() != 4 or any(x.shape != r.shape for x in (w, k, v, a, b)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (r, w, k, v, a, b))
        raise ValueError(f"wkv7s needs r, w, k, v, a, b of one shape [B, T, H, N], but got {shapes}.")
    if any(x.dtype != r.dtype or x.device != r.device for x in (w, k, v, a, b)):
        raise ValueError(
            "wkv7s needs r, w, k, v, a, b of one dtype on one device, but they differ; convert them first."
        )
    B, T, H, N = r.shape
    if T < 1 or B < 1:
        raise ValueError(f"wkv7s needs at least one row and one token, but r is {tuple(r.shape)}.")
    if r.is_cuda and (r.dtype != torch.bfloat16 or N not in (64, 128)):
        raise ValueError(
            f"wkv7s on CUDA needs bfloat16 and a head size of 64 or 128, but got {r.dtype} and {N}; "
            "use .bfloat16() or the CPU."
        )
    if not r.dtype.is_floating_point:
        raise ValueError(f"wkv7s needs floating-point inputs, but got {r.dtype}.")
    state_dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    if cu_seqlens is None:
        documents = B
        cu_seqlens = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=r.device)
    else:
        documents = cu_seqlens.numel() - 1
        if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.device != r.device or documents < 1:
            raise ValueError(
                f"cu_seqlens must be an int32 vector [D+1] on {r.device}, "
                f"but it is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)} on {cu_seqlens.device}."
            )
        if B != 1:
            raise ValueError(
                f"cu_seqlens packs documents in one row, but B is {B}; reshape the inputs to [1, B * T, H, N]."
            )
        if not cu_seqlens.is_cuda and not cu_seqlens.is_meta:
            bounds = cu_seqlens.tolist()
            if bounds[0] != 0 or bounds[-1] != T or any(x > y for x, y in zip(bounds[:-1], bounds[1:], strict=True)):
                raise ValueError(f"cu_seqlens must be non-decreasing from 0 to T = {T}, but it is {bounds}.")
    if state is not None and (
        state.shape != (documents, H, N, N) or state.dtype != state_dtype or state.device != r.device
    ):
        raise ValueError(
            f"state must be {state_dtype} {(documents, H, N, N)} on {r.device}, "
            f"but it is {state.dtype} {tuple(state.shape)} on {state.device}."
        )
    inputs = (r, w, k, v, a, b)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *(() if state is None else (state,))))
    max_length = min(max_length or T, T)
    if r.is_cuda and save and type(r) is not FakeTensor and not torch.compiler.is_compiling():
        return build.load().wkv7s(*inputs, state, cu_seqlens, max_length)
    packed = (x.reshape(B * T, H, N) for x in inputs)
    y, final_state, _ = torch.ops.rwkv_music.wkv7s_forward(*packed, state, cu_seqlens, max_length, save)
    return y.view(B, T, H, N), final_state


def checkpoint_slots(tokens: int, documents: int) -> int:
    """Return a number of saved states that is sufficient for any division of `tokens` into `documents`.

    It depends only on shapes, so that nothing has to be read from the device. `cuda/wkv7s.cuh` has the same rule.
    """
    return tokens // CHECKPOINT_EVERY + documents


# ---------------------------------------------------------------------------------------------------------------------
# The custom operators: forward and backward, each with a CPU, a CUDA and a fake kernel; autograd connects them.


@torch.library.custom_op("rwkv_music::wkv7s_forward", mutates_args=(), device_types="cuda")
def wkv7s_forward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor,
    max_length: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrence over packed documents: r..b [M, H, N], state [D, H, N, N] or None, cu_seqlens int32 [D+1].

    Return y [M, H, N], the final state [D, H, N, N], and the checkpoints for the backward pass, [slots, H, ...]. Unless
    `save` is set, there are no slots. Checkpoints are [N, N] states on CUDA and `wkv7s_cpu.Saved` on the CPU.
    """
    r, w, k, v, a, b = (x.contiguous() for x in (r, w, k, v, a, b))
    state = None if state is None else state.contiguous()
    return build.load().wkv7s_forward(r, w, k, v, a, b, state, cu_seqlens.contiguous(), max_length, save)


@torch.library.custom_op("rwkv_music::wkv7s_backward", mutates_args=(), device_types="cuda")
def wkv7s_backward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_final_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of r..b [M, H, N], in their dtype, and of the initial state [D, H, N, N]."""
    inputs = (x.contiguous() for x in (r, w, k, v, a, b, cu_seqlens))
    if grad_final_state is not None:
        grad_final_state = grad_final_state.contiguous()
    return build.load().wkv7s_backward(*inputs, max_length, checkpoints, grad_y.contiguous(), grad_final_state)


# These CPU kernels are not registered with `custom_op` or `register_kernel`: a kernel that is registered in that way
# imports torch.compile at its first call, which takes seconds.
@torch.library.impl("rwkv_music::wkv7s_forward", "cpu")
def _(r, w, k, v, a, b, state, cu_seqlens, max_length, save):
    slots = checkpoint_slots(r.shape[0], cu_seqlens.numel() - 1) if save else 0
    return wkv7s_cpu.forward(r, w, k, v, a, b, state, cu_seqlens, slots)


@torch.library.impl("rwkv_music::wkv7s_backward", "cpu")
def _(r, w, k, v, a, b, cu_seqlens, max_length, checkpoints, grad_y, grad_final_state):
    return wkv7s_cpu.backward(r, w, k, v, a, b, cu_seqlens, checkpoints, grad_y, grad_final_state)


@wkv7s_forward.register_fake
def _(r, w, k, v, a, b, state, cu_seqlens, max_length, save):
    M, H, N = r.shape
    documents = cu_seqlens.shape[0] - 1
    state_dtype = torch.float64 if r.dtype == torch.float64 else torch.float32
    slots = checkpoint_slots(M, documents) if save else 0
    final_state = r.new_empty(documents, H, N, N, dtype=state_dtype)
    if r.is_cuda:
        checkpoints = r.new_empty(slots, H, N, N, dtype=torch.bfloat16)
    else:
        checkpoints = r.new_empty(slots, H, wkv7s_cpu.Saved.elements(CHECKPOINT_EVERY, N), dtype=state_dtype)
    return r.new_empty(M, H, N), final_state, checkpoints


@wkv7s_backward.register_fake
def _(r, w, k, v, a, b, cu_seqlens, max_length, checkpoints, grad_y, grad_final_state):
    return (*(r.new_empty(r.shape) for _ in range(6)), torch.empty_like(grad_final_state))


def _setup_context(ctx, inputs, output):
    r, w, k, v, a, b, state, cu_seqlens, max_length, save = inputs
    y, _, checkpoints = output
    ctx.has_state = state is not None
    ctx.max_length = max_length
    ctx.set_materialize_grads(False)  # otherwise autograd would allocate a zero gradient for the checkpoints
    if save:
        ctx.save_for_backward(r, w, k, v, a, b, cu_seqlens, checkpoints)


def _backward(ctx, grad_y, grad_final_state, _grad_checkpoints):
    *inputs, checkpoints = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(inputs[0])
    if grad_final_state is None:
        _, H, N = inputs[0].shape
        state_dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        grad_final_state = inputs[0].new_zeros(inputs[-1].numel() - 1, H, N, N, dtype=state_dtype)
    *grads, grad_state = torch.ops.rwkv_music.wkv7s_backward(
        *inputs, ctx.max_length, checkpoints, grad_y, grad_final_state
    )
    return (*grads, grad_state if ctx.has_state else None, None, None, None)


wkv7s_forward.register_autograd(_backward, setup_context=_setup_context)
