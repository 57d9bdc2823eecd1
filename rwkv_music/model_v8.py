"""RWKV v8 "Heron" (rc00), the language model.

The model is an embedding, L blocks and a head. A block computes `x += att(ln1(x))` (time mixing, x070) and
`x += ffn(ln2(x))` (channel mixing, x080). New in v8 is DeepEmbed: the output of each layer's channel mixing is
multiplied by a vector that is looked up by token. `channel_mix="x070"` omits DeepEmbed and gives v7 "Goose".

Notable choices:
- Parameter names and shapes are BlinkDL's, so RWKV checkpoints load without renaming. The only exception is the value
  residual (v0, v1, v2) of layer 0. Later layers mix the values of layer 0 into their own, but layer 0 has nothing to
  mix in, so it has no such parameters.
- One `forward` serves training and generation. It takes and returns a state, and its input can be a whole piece or a
  single token.
- `cu_seqlens` gives the boundaries of packed documents. Neither the recurrence nor the token shift crosses them.
- With context parallelism, several ranks hold consecutive parts of one sequence of tokens (`ops.context_parallel`).
- Matrix products are those of `ops.products`, which are also fast in bf16 on a CPU without AVX-512.
- In training on a GPU, the blocks use `ops.fused_sublayers`, which computes the same result in less time and memory.

Source: BlinkDL's RWKV-LM, RWKV-v7/train_temp (initialization, groups) and RWKV-v7/rwkv_v8_rc00_demo.py (the x080
formulas); "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.

Shapes: B batch, T time, C width, H heads, N head size, V vocabulary, L layers, D packed documents, M = B * T tokens.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rwkv_music.config import IGNORE_INDEX, ModelConfig
from rwkv_music.ops import fused_sublayers
from rwkv_music.ops.context_parallel import ContextPart, previous_tokens, wkv7s_over_ranks
from rwkv_music.ops.cross_entropy import Head
from rwkv_music.ops.fused_sublayers import Documents
from rwkv_music.ops.products import Linear, matmul
from rwkv_music.ops.wkv7s import wkv7s

# The head skips ignored positions only if they make up more than this fraction of all positions. If there are fewer,
# gathering the other positions costs more than skipping saves.
MIN_IGNORED_FRACTION = 1 / 32


class State(NamedTuple):
    """The recurrent state after some tokens. Its size does not depend on the number of tokens. Axis 1 is the batch."""

    att_shift: Tensor  # [L, B, C] in the model's dtype: each layer's time mixing input at the last token
    wkv: Tensor  # [L, B, H, N, N] (value axis, key axis): the WKV states; float32, or float64 in a float64 model
    ffn_shift: Tensor  # [L, B, C] in the model's dtype: each layer's channel mixing input at the last token

    def rows(self, index: Tensor) -> "State":
        """Return the states of the batch rows `index` (int64), in that order; a row may occur several times."""
        return State(*(x.index_select(1, index.to(x.device)) for x in self))

    def scatter(self, rows: int, index: Tensor) -> "State":
        """Return the states of a batch of `rows` rows.

        Row `index[i]` gets the i-th of these states. All other rows are zero. `index` is int64, without repetition.
        """
        return State(*(x.new_zeros(len(x), rows, *x.shape[2:]).index_copy(1, index, x) for x in self))

    @staticmethod
    def empty(config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str) -> "State":
        """Return the zero state before the first token, for `batch` rows of a model in `dtype`."""
        shift = torch.zeros(config.n_layer, batch, config.n_embd, dtype=dtype, device=device)
        wkv_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        wkv_shape = (config.n_layer, batch, config.n_head, config.head_size, config.head_size)
        wkv = torch.zeros(wkv_shape, dtype=wkv_dtype, device=device)
        return State(shift, wkv, shift.clone())


class Packing(NamedTuple):
    """The positions of D documents packed in one row of tokens."""

    cu_seqlens: Tensor  # int32 [D+1]: the document boundaries
    first: Tensor  # int64 [D]: the index of each document's first token
    last: Tensor  # int64 [D]: the index of each document's last token
    max_length: int  # upper bound on document lengths
    context: ContextPart | None  # with context parallelism, which part of the sequence this row is


def token_shift(x: Tensor, previous: Tensor | None, packing: Packing | None) -> Tensor:
    """Shift x [B, T, C] by one token. The first output of each row or document is `previous` [B or D, C], or zero."""
    if packing is None:
        first = x.new_zeros(x.shape[0], 1, x.shape[2]) if previous is None else previous.unsqueeze(1)
        return torch.cat([first, x[:, :-1]], dim=1)
    shifted = F.pad(x[:, :-1], (0, 0, 1, 0))
    if previous is None:
        return shifted.index_fill(1, packing.first, 0)
    return shifted.index_copy(1, packing.first, previous.unsqueeze(0))


def last_token(x: Tensor, packing: Packing | None) -> Tensor:
    """Return the last token of each row or packed document: [B or D, C]."""
    return x[:, -1] if packing is None else x[0, packing.last]


class TimeMixing(nn.Module):
    """Time mixing (x070): token shift, six mixes, low-rank gates, the WKV7s recurrence, head norms, an output gate."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        C, H, N = config.n_embd, config.n_head, config.head_size
        self.layer, self.n_head, self.head_size = layer, H, N
        for mix in "rwkvag":
            self.register_parameter(f"x_{mix}", nn.Parameter(torch.empty(1, 1, C)))
        gates = {"w": config.decay_rank, "a": config.iclr_rank, "v": config.value_rank, "g": config.gate_rank}
        if layer == 0:
            del gates["v"]
        for gate, rank in gates.items():
            self.register_parameter(f"{gate}1", nn.Parameter(torch.empty(C, rank)))
            self.register_parameter(f"{gate}2", nn.Parameter(torch.empty(rank, C)))
            if gate != "g":
                self.register_parameter(f"{gate}0", nn.Parameter(torch.empty(1, 1, C)))
        self.k_k = nn.Parameter(torch.empty(1, 1, C))
        self.k_a = nn.Parameter(torch.empty(1, 1, C))
        self.r_k = nn.Parameter(torch.empty(H, N))
        self.receptance = Linear(C, C)
        self.key = Linear(C, C)
        self.value = Linear(C, C)
        self.output = Linear(C, C)
        self.ln_x = nn.GroupNorm(H, C, eps=64e-5)
        # The WKV state before the first token, [H, N, N] (value axis, key axis). None means zero. Only state tuning
        # sets it.
        self.register_parameter("time_state", None)

    def forward(
        self, x: Tensor, v_first: Tensor | None, shift: Tensor | None, state: Tensor | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output [B, T, C], layer 0's values [B, T, C] and the new WKV state [B or D, H, N, N].

        Args:
            x: [B, T, C], after the layer norm.
            v_first: [B, T, C]: the values of layer 0; ignored in layer 0.
            shift: [B or D, C]: x at the token before each row or document. None means zero.
            state: [B or D, H, N, N]: the WKV state before each row or document. None means zero.
            packing: the documents in x; None if each row is one document.
        """
        B, T, C = x.shape
        heads = (B, T, self.n_head, self.head_size)
        delta = token_shift(x, shift, packing) - x
        xr, xw, xk, xv, xa, xg = (
            torch.addcmul(x, delta, mix) for mix in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        )
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0 + matmul(torch.tanh(matmul(xw, self.w1)), self.w2)  # the raw decay, before the sigmoid of wkv7s
        a = torch.sigmoid(self.a0 + matmul(matmul(xa, self.a1), self.a2))  # the in-context learning rate
        g = matmul(torch.sigmoid(matmul(xg, self.g1)), self.g2)
        if self.layer == 0:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + matmul(matmul(xv, self.v1), self.v2)))
        kk = F.normalize((k * self.k_k).view(heads), dim=-1)  # the removal key
        k = k * (1 + (a - 1) * self.k_a)

        r, w, k, v, a = (z.view(heads) for z in (r, w, k, v, a))
        inputs = (r, w, k, v, -kk, kk * a)
        documents = {} if packing is None else {"cu_seqlens": packing.cu_seqlens, "max_length": packing.max_length}
        if packing is not None and packing.context is not None:
            y, state = wkv7s_over_ranks(*inputs, packing.context, state=state, **documents)
        else:
            y, state = wkv7s(*inputs, state=state, **documents)
        y = self.ln_x(y.reshape(B * T, C)).view(heads)
        y = y + (r * k * self.r_k).sum(dim=-1, keepdim=True) * v
        return self.output(y.view(B, T, C) * g), v_first, state

    def initial_state(self, documents: int) -> Tensor | None:
        """Return the learned initial WKV state, repeated for each document, [D, H, N, N]; None if there is none."""
        if self.time_state is None:
            return None
        dtype = torch.promote_types(self.time_state.dtype, torch.float32)
        return self.time_state.to(dtype).expand(documents, -1, -1, -1)


def embedding(count: int, width: int) -> nn.Embedding:
    """Return a trainable embedding table [count, width].

    On the meta device, `nn.Embedding(count, width)` would import torch.compile, which takes seconds.
    """
    if torch.empty(0).is_meta:
        return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)
    return nn.Embedding(count, width)


class ChannelMixing(nn.Module):
    """Channel mixing: token shift, a squared-ReLU network and, in x080, DeepEmbed, a vector of factors per token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(1, 1, config.n_embd))
        self.key = Linear(config.n_embd, config.dim_ffn)
        self.value = Linear(config.dim_ffn, config.n_embd)
        self.enn = embedding(config.vocab_size, config.n_embd) if config.channel_mix == "x080" else None

    def forward(self, x: Tensor, input_ids: Tensor, shift: Tensor | None, packing: Packing | None) -> Tensor:
        """Return the output [B, T, C].

        Args:
            x: [B, T, C], after the layer norm.
            input_ids: int64 [B, T].
            shift, packing: as in `TimeMixing.forward`.
        """
        k = torch.addcmul(x, token_shift(x, shift, packing) - x, self.x_k)
        out = self.value(torch.relu(self.key(k)).square())
        return out if self.enn is None else out * self.enn(input_ids)


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """Compute `module(*inputs)` with activation checkpointing: only the inputs are saved for the backward pass."""
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)  # the model has no dropout


class Block(nn.Module):
    """One layer: time mixing and channel mixing, each with a layer norm before it and a residual connection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(config.n_embd)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.att = TimeMixing(config, layer)
        self.ffn = ChannelMixing(config)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        input_ids: Tensor,
        state: tuple[Tensor, Tensor, Tensor] | None,
        packing: Packing | Documents | None,
        recompute_ffn: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """Return the new x, the values of layer 0, and this layer's new state.

        The new state is None if `packing` is `Documents` and `state` is None.

        Args:
            x: [B, T, C]; [M, C] if `packing` is `Documents` (fused training on a GPU).
            v_first: the values of layer 0, shaped like x; None in layer 0.
            input_ids: int64 [B, T]; [M] if `packing` is `Documents`.
            state: this layer's att_shift, wkv and ffn_shift of a `State`. None means zero.
            recompute_ffn: whether to apply activation checkpointing to channel mixing.
        """
        if v_first is None:
            x = self.ln0(x)
        att_shift, wkv, ffn_shift = state or (None, None, None)
        if wkv is None:
            wkv = self.att.initial_state(x.shape[0] if packing is None else packing.cu_seqlens.numel() - 1)
        if isinstance(packing, Documents):
            x, v_first, att_shift, wkv = fused_sublayers.time_mixing(self, x, v_first, packing, att_shift, wkv)
            x, ffn_shift = fused_sublayers.channel_mixing(self, x, input_ids, packing, recompute_ffn, ffn_shift)
            return x, v_first, None if state is None else (att_shift, wkv, ffn_shift)
        over_ranks = packing is not None and packing.context is not None
        h = self.ln1(x)
        if over_ranks:
            att_shift = previous_tokens(h[0, -1:], packing.context, len(packing.first), att_shift)
        mixed, v_first, wkv = self.att(h, v_first, att_shift, wkv, packing)
        x = x + mixed
        att_shift = last_token(h, packing)
        h = self.ln2(x)
        if over_ranks:
            ffn_shift = previous_tokens(h[0, -1:], packing.context, len(packing.first), ffn_shift)
        inputs = h, input_ids, ffn_shift, packing
        x = x + (checkpointed(self.ffn, *inputs) if recompute_ffn else self.ffn(*inputs))
        return x, v_first, (att_shift, wkv, last_token(h, packing))


class Blocks(nn.ModuleList):
    """The layers, called as one module so that ZeRO-3 can gather all layers of a small model at once."""

    def forward(
        self, x: Tensor, input_ids: Tensor, state: State | None, packing: Packing | Documents | None, recompute: str
    ) -> tuple[Tensor, State | None]:
        """Return x after all layers, and the new state, or None if `state` is None.

        `recompute` is described in `RWKV`. The other arguments are those of `Block.forward`.
        """
        v_first, states = None, []
        for layer, block in enumerate(self):
            before = None if state is None else (state.att_shift[layer], state.wkv[layer], state.ffn_shift[layer])
            inputs = x, v_first, input_ids, before, packing
            if recompute == "none" or not torch.is_grad_enabled():
                x, v_first, after = block(*inputs)
            elif recompute == "selective":
                x, v_first, after = block(*inputs, recompute_ffn=True)
            else:
                x, v_first, after = checkpointed(block, *inputs)
            if state is not None:
                states.append(after)  # only if needed, because `after` may be a view that keeps all tokens in memory
        return x, State(*(torch.stack(parts) for parts in zip(*states, strict=True))) if states else None


class RWKV(nn.Module):
    """The language model. Its initialization is that of RWKV-LM's train_temp and uses torch's global random state.

    The attribute `recompute` selects activation checkpointing in training. "none" turns it off. "selective" recomputes
    channel mixing, which has the widest activations. "block" recomputes whole blocks and saves only their inputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("ModelConfig.vocab_size is 0: set it to the tokenizer's vocabulary size.")
        self.config = config
        self.recompute = "none"
        self.emb = embedding(config.vocab_size, config.n_embd)
        self.blocks = Blocks(Block(config, layer) for layer in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = Head(config.n_embd, config.vocab_size)
        if not self.emb.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        input_ids: Tensor,
        state: State | None = None,
        cu_seqlens: Tensor | None = None,
        targets: Tensor | None = None,
        ctx_lengths: Tensor | None = None,
        reduction: str = "mean",
        positions: Tensor | None = None,
        max_length: int | None = None,
        context: ContextPart | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Return the logits of the next token or, with `targets`, the loss. With `state`, also return the new state.

        Args:
            input_ids: int64 [B, T], T >= 1.
            state: from `init_state` or an earlier call; differentiable. With None, the model starts from its initial
                state and returns no state.
            cu_seqlens: int32 [D+1], strictly increasing from 0 to B * T: the boundaries of the documents in the
                flattened tokens. A document may continue across the end of a row. The state's batch size is D.
            max_length: an upper bound on the documents' lengths, if known (see `wkv7s`).
            targets, ctx_lengths, reduction, positions: see `loss`. Without `targets`, the others have no effect.
            context: which part of a sequence these tokens are (context parallelism). Requires `cu_seqlens` of this
                rank's tokens. Cannot be combined with `ctx_lengths`. All ranks of the group must call the model, all
                with `state` or all without it. Each rank returns the loss of its own targets. The gradient of the total
                loss is the sum of the gradients over the ranks. The state of a document that began on an earlier rank
                is not used, and the new state of a document that continues on the next rank is not valid.

        Logits are [B, T, V] in the model's dtype.
        """
        if targets is not None:
            _check_loss_arguments(input_ids, targets, ctx_lengths, cu_seqlens, positions, reduction)
        if context is not None and (cu_seqlens is None or ctx_lengths is not None):
            raise ValueError(
                "context requires cu_seqlens and cannot be combined with ctx_lengths: give only cu_seqlens."
            )
        x, state = self.features(input_ids, state, cu_seqlens, max_length, context)
        if targets is None:
            out = self.head(x)
        else:
            out = self._loss_from_features(x, _mask_context(targets, ctx_lengths, cu_seqlens), positions, reduction)
        return out if state is None else (out, state)

    def loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        ctx_lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        reduction: str = "mean",
        positions: Tensor | None = None,
        max_length: int | None = None,
    ) -> Tensor:
        """Return the float32 cross-entropy in nats over the targets that are not ignored; 0 if there are none.

        Args:
            input_ids, cu_seqlens, max_length: see `forward`.
            targets: int64 [B, T]: the next tokens, from 0 to V - 1, or -100 where the loss ignores the target.
            ctx_lengths: int64 [B], or [D] with `cu_seqlens`: the number of context tokens at the start of each row or
                document. The loss ignores targets that are context tokens.
            reduction: "mean" or "sum".
            positions: int64 [P], ascending: the indices in the flattened `targets` of the targets that are not -100. If
                None, they are computed, which synchronizes with the GPU. Not valid with `ctx_lengths`.

        Raises ValueError for arguments that do not fit together. A target that is neither a token nor -100 raises
        ValueError on the CPU and fails a device-side assertion on a GPU.
        """
        return self(
            input_ids,
            cu_seqlens=cu_seqlens,
            targets=targets,
            ctx_lengths=ctx_lengths,
            reduction=reduction,
            positions=positions,
            max_length=max_length,
        )

    def init_state(self, batch: int) -> State:
        """Return the state before the first token for `batch` rows: zeros, or the state learned by state tuning."""
        state = State.empty(self.config, batch, self.emb.weight.dtype, self.emb.weight.device)
        if self.blocks[0].att.time_state is None:
            return state
        return state._replace(wkv=torch.stack([block.att.initial_state(batch) for block in self.blocks]))

    def parameter_groups(self, weight_decay: float, muon: bool = False) -> list[dict]:
        """Return the optimizer's parameter groups as in RWKV-LM. `lr_scale` multiplies the learning rate.

        The bias w0 of the decay has twice the learning rate of the others. Weight decay applies only to the large
        matrices. It does not apply to DeepEmbed's tables: their entries are factors that start at 1, and weight decay
        would pull them toward 0. Frozen parameters are in no group, and empty groups are omitted. With `muon`, the
        blocks' large matrices form a separate group with "muon": True, which Muon updates. AdamW updates the others.
        """
        plain, fast, decayed, matrices = [], [], [], []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.endswith("att.w0"):
                fast.append(parameter)
            elif name.endswith(".weight") and not name.split(".")[-2].startswith(("ln", "enn")):  # norms, DeepEmbed
                (matrices if muon and name.startswith("blocks.") else decayed).append(parameter)
            else:
                plain.append(parameter)
        groups = [
            {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0, "muon": False},
            {"params": fast, "weight_decay": 0.0, "lr_scale": 2.0, "muon": False},
            {"params": decayed, "weight_decay": weight_decay, "lr_scale": 1.0, "muon": False},
            {"params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0, "muon": True},
        ]
        return [group for group in groups if group["params"]]

    def matrix_parameters(self) -> float:
        """Return the number of parameters in matrix products: all matrices except `emb`, `enn` and `r_k`.

        A frozen parameter counts as 2/3. Training takes three matrix products per trained matrix, but only two per
        frozen matrix, because its gradient is not computed.
        """
        elementwise = ("emb.weight", "enn.weight", "r_k")
        matrices = [p for name, p in self.named_parameters() if p.dim() == 2 and not name.endswith(elementwise)]
        return sum(p.numel() if p.requires_grad else p.numel() * 2 / 3 for p in matrices)

    @property
    def device(self) -> torch.device:
        return self.emb.weight.device

    # -----------------------------------------------------------------------------------------------------------------

    def features(
        self,
        input_ids: Tensor,
        state: State | None,
        cu_seqlens: Tensor | None,
        max_length: int | None,
        context: ContextPart | None = None,
    ) -> tuple[Tensor, State | None]:
        """Return the output of the last norm [B, T, C], and the new state, or None if `state` is None."""
        B, T = input_ids.shape
        c, x = self.config, self.emb(input_ids)
        packing: Packing | Documents | None = None
        if (state is None or self.training) and fused_sublayers.supports(x, c.head_size):
            embed_vocabulary = c.vocab_size if c.channel_mix == "x080" else None
            packing = fused_sublayers.documents(
                input_ids, cu_seqlens, max_length, embed_vocabulary, state is not None, context
            )
            x, input_ids = x.flatten(0, 1), input_ids.flatten()
        elif cu_seqlens is not None:
            bounds = cu_seqlens.long()
            packing = Packing(cu_seqlens, bounds[:-1], bounds[1:] - 1, max_length or B * T, context)
            x, input_ids = x.reshape(1, B * T, -1), input_ids.reshape(1, B * T)
        x, state = self.blocks(x, input_ids, state, packing, self.recompute)
        return self.ln_out(x).view(B, T, -1), state

    def _loss_from_features(self, x: Tensor, targets: Tensor, positions: Tensor | None, reduction: str) -> Tensor:
        x, targets = x.flatten(0, 1), targets.reshape(-1)
        if positions is None:
            positions = (targets != IGNORE_INDEX).nonzero().squeeze(-1)
        if targets.numel() - positions.numel() > MIN_IGNORED_FRACTION * targets.numel():
            x, targets = x.index_select(0, positions), targets.index_select(0, positions)
        total = self.head(x, targets)
        return total / max(positions.numel(), 1) if reduction == "mean" else total

    def parts(self) -> list[nn.Module]:
        """Return all submodules in the order in which they are initialized. Random weights depend on this order."""
        return [self.emb, self.head, self.ln_out, *self.blocks]

    def init_weights(self) -> None:
        """Initialize all parameters as RWKV-LM's train_temp does; RWKV's quality depends on this initialization.

        Matrices are orthogonal, with a gain that depends on their role. The output matrices of both sublayers are zero,
        so each block starts as the identity. Mixes, decays and gates vary over channels and layers, so that different
        channels start with memories of different lengths.
        """
        for part in self.parts():
            self.init_part(part)

    @torch.no_grad()
    def init_part(self, part: nn.Module) -> None:
        """Initialize one of `parts`, overwriting its tensors."""
        c = self.config
        if part is self.emb:
            nn.init.uniform_(part.weight, -1e-4, 1e-4)
        elif part is self.head:
            nn.init.orthogonal_(part.weight, gain=0.5 * math.sqrt(max(c.vocab_size / c.n_embd, 1.0)))
        elif part is self.ln_out:
            part.reset_parameters()
        else:
            self._init_block(part)

    def _init_block(self, block: Block) -> None:
        c, att, ffn, layer = self.config, block.att, block.ffn, block.att.layer
        C, N = c.n_embd, c.head_size
        channel = torch.arange(C) / C
        centred = torch.arange(C) / max(C - 1, 1) - 0.5
        zigzag = (torch.arange(C) % N - (N - 1) / 2) / ((N - 1) / 2)
        zigzag = zigzag * zigzag.abs()
        depth = layer / max(c.n_layer - 1, 1)  # 0 to 1
        remaining = 1 - layer / c.n_layer  # 1 to almost 0
        for norm in block.modules():
            if isinstance(norm, nn.LayerNorm | nn.GroupNorm):
                norm.reset_parameters()
        for mix, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            getattr(att, f"x_{mix}").copy_(1 - channel ** (power * remaining))
        for gate in "wavg":
            if hasattr(att, f"{gate}1"):
                getattr(att, f"{gate}1").zero_()
                nn.init.orthogonal_(getattr(att, f"{gate}2"), gain=0.1)
        horizon = -6 + 6 * (centred + 0.5) ** (1 + depth**0.3)
        att.w0.copy_(horizon + 0.5 + zigzag * 2.5)
        att.a0.copy_(-0.19 + zigzag * 0.3 + centred * 0.4)
        if layer > 0:
            att.v0.copy_(0.73 - centred * 0.4)
        att.k_k.copy_(0.71 - centred * 0.1)
        att.k_a.fill_(1.02)
        att.r_k.fill_(-0.04)
        nn.init.orthogonal_(att.receptance.weight)
        nn.init.orthogonal_(att.key.weight, gain=0.1)
        nn.init.orthogonal_(att.value.weight)
        att.output.weight.zero_()
        att.ln_x.weight.fill_(((1 + layer) / c.n_layer) ** 0.7)
        ffn.x_k.copy_(1 - channel ** (remaining**4))
        nn.init.orthogonal_(ffn.key.weight)
        ffn.value.weight.zero_()
        if ffn.enn is not None:
            ffn.enn.weight.fill_(1.0)


def _check_loss_arguments(
    input_ids: Tensor,
    targets: Tensor,
    ctx_lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    positions: Tensor | None,
    reduction: str,
) -> None:
    if targets.shape != input_ids.shape:
        raise ValueError(f"targets is {list(targets.shape)}, but input_ids is {list(input_ids.shape)}: use one shape.")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: give 'mean' or 'sum'.")
    if ctx_lengths is None:
        return
    if positions is not None:
        raise ValueError("positions cannot be combined with ctx_lengths: give only one of them.")
    rows = len(input_ids) if cu_seqlens is None else len(cu_seqlens) - 1
    if ctx_lengths.shape != (rows,):
        raise ValueError(
            f"ctx_lengths is {list(ctx_lengths.shape)}: give one length for each row or document, [{rows}]."
        )


def _mask_context(targets: Tensor, ctx_lengths: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Return `targets` with context tokens replaced by -100."""
    if ctx_lengths is None:
        return targets
    positions = torch.arange(targets.numel(), device=targets.device)
    if cu_seqlens is None:
        rows = positions // targets.shape[1]
        start = rows * targets.shape[1]
    else:
        rows = torch.bucketize(positions, cu_seqlens[1:].long(), right=True)
        start = cu_seqlens.long()[rows]
    # The target at position p of a row or document is token p + 1. It is a context token if p + 1 < ctx_length.
    inside = positions - start + 1 < ctx_lengths.to(targets.device)[rows]
    return targets.masked_fill(inside.view_as(targets), IGNORE_INDEX)
