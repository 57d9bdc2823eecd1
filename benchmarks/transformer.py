"""A Transformer to compare with an RWKV of the same number of layers and the same width (see learning.py).

It has RoPE, QK-norm, SwiGLU, RMS norms before the sublayers and an untied head. Like RWKV in this project, it is
trained with bf16 weights, fp32 master weights, fused AdamW, and batches that are read ahead into pinned memory. On a
GPU it is compiled. Tokens attend only to their own document, because RWKV resets its state at the start of a document.

Attention is computed by one of:
- varlen: Flash Attention over packed documents (torch.nn.attention.varlen); a GPU only
- flex: flex_attention with a block mask of the documents; a GPU only
- sdpa: scaled_dot_product_attention that is causal but ignores documents
- mask: scaled_dot_product_attention with the mask of the documents as a tensor; the reference, slow on a GPU
"""

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.varlen import varlen_attn

from rwkv_music.config import IGNORE_INDEX

ATTENTION = ("varlen", "flex", "sdpa", "mask")
HEAD_SIZE = 64
ALIGNED = 64  # matrix products are fastest if all dimensions are multiples of this
BETAS, EPS = (0.9, 0.95), 1e-8
# Older versions of torch have the argument is_causal.
CAUSAL = {"window_size": (-1, 0)} if "window_size" in inspect.signature(varlen_attn).parameters else {"is_causal": True}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v and the result: [B, T, H, N]


class Block(nn.Module):
    """One layer: attention and a SwiGLU network, each with an RMS norm before it and a residual connection."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        hidden = -(-8 * width // (3 * ALIGNED)) * ALIGNED
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q_norm, self.k_norm = nn.RMSNorm(HEAD_SIZE, eps=1e-6), nn.RMSNorm(HEAD_SIZE, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, C // HEAD_SIZE, HEAD_SIZE).unbind(2)
        q, k = rotated(self.q_norm(q), cos, sin), rotated(self.k_norm(k), cos, sin)
        x = x + F.dropout(self.attention_out(attend(q, k, v).reshape(B, T, C)), self.dropout, self.training)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training)


class Transformer(nn.Module):
    """The language model. Its parameters are not initialized until `init_weights`."""

    def __init__(self, layers: int, width: int, vocab_size: int, ctx_len: int, dropout: float, attention: str) -> None:
        super().__init__()
        self.vocab_size, self.dropout, self.attention = vocab_size, dropout, attention
        self.emb = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, -(-vocab_size // ALIGNED) * ALIGNED, bias=False)
        angles = torch.arange(ctx_len)[:, None] * 10_000.0 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
        self.register_buffer("cos", angles.cos()[:, None])  # float32 [T, 1, N / 2]
        self.register_buffer("sin", angles.sin()[:, None])

    def forward(self, input_ids: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the sum of the nats of the targets that are not -100, float32 []; arguments as in `RWKV.forward`."""
        logits = self.logits(input_ids, cu_seqlens).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")

    def logits(self, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the logits of the next tokens, [B, T, V]."""
        B, T = input_ids.shape
        attend, cos, sin = self.attend(B, T, cu_seqlens), self.cos[:T], self.sin[:T]
        x = F.dropout(self.emb(input_ids), self.dropout, self.training)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return self.head(self.norm(x))[..., : self.vocab_size]

    def attend(self, B: int, T: int, cu_seqlens: Tensor) -> Attend:
        """Return the causal attention of B rows of T tokens whose documents start at `cu_seqlens`."""
        if self.attention == "varlen":
            packed = partial(varlen_attn, cu_seq_q=cu_seqlens, cu_seq_k=cu_seqlens, max_q=T, max_k=T, **CAUSAL)
            return lambda *qkv: packed(*(x.flatten(0, 1).contiguous() for x in qkv)).view(B, T, -1, HEAD_SIZE)
        if self.attention == "sdpa":
            return lambda *qkv: in_heads(qkv, is_causal=True)
        places = torch.arange(B * T, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
        document = torch.searchsorted(cu_seqlens[1:], places, right=True).view(B, T)
        if self.attention == "flex":

            def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                return (q >= kv) & (document[b, q] == document[b, kv])

            blocks = flex.create_block_mask(visible, B, None, T, T, device=document.device)
            in_blocks = partial(flex.flex_attention, block_mask=blocks)
            return lambda *qkv: in_blocks(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        return lambda *qkv: in_heads(qkv, attn_mask=mask)

    @torch.no_grad()
    def init_weights(self, seed: int) -> list[Tensor]:
        """Initialize the parameters as in GPT-2, but embeddings with a deviation of 1. Return fp32 master weights.

        With GPT-2's deviation of 0.02 for embeddings, the model learned much more slowly.
        """
        generator = torch.Generator(self.cos.device).manual_seed(seed)
        masters = []
        for name, parameter in self.named_parameters():
            master = torch.ones_like(parameter, dtype=torch.float32)
            if parameter.dim() == 2:
                into_residual = name.endswith(("attention_out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * len(self.blocks)) if into_residual else 0.02
                std = 1.0 if name == "emb.weight" else std
                master.normal_(0, std, generator=generator)
            parameter.copy_(master)
            masters.append(master)
        return masters


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embeddings to x [B, T, H, N]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def in_heads(qkv: tuple[Tensor, ...], **options: object) -> Tensor:
    """Return scaled_dot_product_attention of tensors [B, T, H, N]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv), **options).transpose(1, 2)


class MixedPrecision:
    """Fused AdamW over fp32 master weights of a bf16 model, with clipping of the gradient's norm."""

    def __init__(self, model: Transformer, masters: list[Tensor], weight_decay: float, grad_clip: float) -> None:
        self._parameters, self._masters, self._grad_clip = list(model.parameters()), masters, grad_clip
        for master in masters:
            master.grad = torch.zeros_like(master)
        groups = [
            {"params": [master for master in masters if master.dim() == 2], "weight_decay": weight_decay},
            {"params": [master for master in masters if master.dim() != 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=True)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the weights, and free their gradients."""
        torch._foreach_copy_([master.grad for master in self._masters], [p.grad for p in self._parameters])
        nn.utils.clip_grad_norm_(self._masters, self._grad_clip, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        torch._foreach_copy_(self._parameters, self._masters)
        for parameter in self._parameters:
            parameter.grad = None


def check_attention(attention: str, device: torch.device) -> None:
    """Raise AssertionError if the attention or its gradient differs from that of `mask`."""
    generator = torch.Generator(device).manual_seed(0)
    B, T = 2, 192
    bounds = torch.tensor([0, 70, 192, 200, 384], dtype=torch.int32, device=device)
    results: dict[str, list[Tensor]] = {}
    qkv = [torch.randn(B, T, 2, HEAD_SIZE, device=device, generator=generator).bfloat16() for _ in range(4)]
    for name in (attention, "mask"):
        attend = Transformer(1, 2 * HEAD_SIZE, 8, T, 0.0, name).to(device).attend(B, T, bounds)
        leaves = [x.clone().requires_grad_() for x in qkv[:3]]
        out = attend(*leaves)
        results[name] = [out.detach(), *torch.autograd.grad(out, leaves, qkv[3])]
    for found, expected in zip(*results.values(), strict=True):
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < 0.02, f"{attention} differs from the reference by {error:.3f}"


def make_model(
    shape: dict[str, int], vocab_size: int, ctx_len: int, dropout: float, attention: str, device: torch.device
) -> Transformer:
    """Return a model in bf16 on `device`, with float32 rotations. `shape` is an entry of PRESETS."""
    model = Transformer(shape["n_layer"], shape["n_embd"], vocab_size, ctx_len, dropout, attention).to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def candidates(attention: str, device: torch.device) -> Iterator[str]:
    """Yield the ways to compute attention: the chosen one, then those to use if it fails."""
    if device.type == "cpu":
        yield attention if attention in ("sdpa", "mask") else "mask"
        return
    yield from ATTENTION[ATTENTION.index(attention) :]
