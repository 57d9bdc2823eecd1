"""RWKV v8 "Heron" (rc00): the model, readable from top to bottom on its own.

An embedding; L blocks, each `x += att(ln1(x))` (time mixing, x070) and `x += ffn(ln2(x))` (channel mixing, x080); a
head. What is v8 about it is DeepEmbed: each layer's channel mixing is multiplied by a vector looked up by token.
`channel_mix="x070"` leaves that out and gives v7 "Goose".

Notable choices:
- Parameter names and shapes are BlinkDL's, so that an RWKV checkpoint loads with no renaming. Layer 0 has no value
  residual (v0, v1, v2): it is where the residual starts, and parameters without a gradient have no place in an
  optimizer.
- One forward serves training and playing: it takes a state and gives one back, for a whole piece or a single token.
- Documents may be packed with `cu_seqlens`; neither the recurrence nor the token shift looks over a document's edge.
- The head runs only where the loss counts, unless that is nearly everywhere.

Source: BlinkDL's RWKV-LM, RWKV-v7/train_temp (initialisation, groups) and RWKV-v7/rwkv_v8_rc00_demo.py (the x080
formulas); "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.

Letters in shapes: B batch, T time, C width, H heads, N head size, V vocabulary, L layers, D packed documents.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rwkv_music.config import IGNORE_INDEX, ModelConfig
from rwkv_music.ops import fused_sublayers
from rwkv_music.ops.cross_entropy import Head
from rwkv_music.ops.fused_sublayers import Documents
from rwkv_music.ops.wkv7s import wkv7s

# Where fewer of the targets than this do not count, taking the others out costs more than computing them.
WORTH_LEAVING_OUT = 1 / 32


class State(NamedTuple):
    """All that a model remembers of the tokens it has read; its size does not grow with them. The batch is axis 1.

    `att_shift` and `ffn_shift` [L, B, C]: the last inputs of each layer's time and channel mixing, in the model's
    dtype. `wkv` [L, B, H, N, N] float32 (value axis, key axis): the recurrence's states.
    """

    att_shift: Tensor
    wkv: Tensor
    ffn_shift: Tensor

    def rows(self, index: Tensor) -> "State":
        """The states of the batch rows in `index` (int64), in that order; a row may be taken several times."""
        return State(*(x.index_select(1, index.to(x.device)) for x in self))

    def among(self, rows: int, index: Tensor) -> "State":
        """These states as the rows in `index` (int64, all different) of `rows` states; the others are empty ones."""
        return State(*(x.new_zeros(len(x), rows, *x.shape[2:]).index_copy(1, index, x) for x in self))

    @staticmethod
    def empty(config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str) -> "State":
        """The state before the first token, for `batch` rows of a model in `dtype`: zeros."""
        shift = torch.zeros(config.n_layer, batch, config.n_embd, dtype=dtype, device=device)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        square = (config.n_head, config.head_size, config.head_size)
        wkv = torch.zeros(config.n_layer, batch, *square, dtype=exact, device=device)
        return State(shift, wkv, shift.clone())


class Packing(NamedTuple):
    """Where D documents lie in one row of tokens."""

    cu_seqlens: Tensor  # int32 [D+1]
    first: Tensor  # int64 [D]: each document's first token
    last: Tensor  # int64 [D]
    max_length: int  # no document is longer


def token_shift(x: Tensor, previous: Tensor | None, packing: Packing | None) -> Tensor:
    """x [B, T, C] moved on by a token; each row or packed document starts from `previous` [B or D, C], or from zero."""
    if packing is None:
        first = x.new_zeros(x.shape[0], 1, x.shape[2]) if previous is None else previous.unsqueeze(1)
        return torch.cat([first, x[:, :-1]], dim=1)
    shifted = F.pad(x[:, :-1], (0, 0, 1, 0))
    if previous is None:
        return shifted.index_fill(1, packing.first, 0)
    return shifted.index_copy(1, packing.first, previous.unsqueeze(0))


def last_token(x: Tensor, packing: Packing | None) -> Tensor:
    """The last token of each row or packed document: [B or D, C]."""
    return x[:, -1] if packing is None else x[0, packing.last]


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which only the inputs are kept for the backward pass. Nothing in the model is random."""
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)


class TimeMixing(nn.Module):
    """x070: token shift, six learned mixes, low-rank gates, the WKV7s recurrence, a norm per head, an output gate."""

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
        self.receptance = nn.Linear(C, C, bias=False)
        self.key = nn.Linear(C, C, bias=False)
        self.value = nn.Linear(C, C, bias=False)
        self.output = nn.Linear(C, C, bias=False)
        self.ln_x = nn.GroupNorm(H, C, eps=64e-5)
        # Where state tuning learns the state before a first token: [H, N, N] (value axis, key axis), else zero.
        self.register_parameter("time_state", None)

    def forward(
        self, x: Tensor, v_first: Tensor | None, shift: Tensor | None, state: Tensor | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C], layer 0's values, the carried state of the recurrence -> output, layer 0's values, new state."""
        B, T, C = x.shape
        heads = (B, T, self.n_head, self.head_size)
        delta = token_shift(x, shift, packing) - x
        xr, xw, xk, xv, xa, xg = (
            torch.addcmul(x, delta, mix) for mix in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        )
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0 + torch.tanh(xw @ self.w1) @ self.w2  # the raw decay; wkv7s bounds it
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)  # the in-context learning rate
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if self.layer == 0:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2))
        kk = F.normalize((k * self.k_k).view(heads), dim=-1)  # the removal key
        k = k * (1 + (a - 1) * self.k_a)

        r, w, k, v, a = (z.view(heads) for z in (r, w, k, v, a))
        documents = {} if packing is None else {"cu_seqlens": packing.cu_seqlens, "max_length": packing.max_length}
        y, state = wkv7s(r, w, k, v, -kk, kk * a, state=state, **documents)
        y = self.ln_x(y.reshape(B * T, C)).view(heads)
        y = y + (r * k * self.r_k).sum(dim=-1, keepdim=True) * v
        return self.output(y.view(B, T, C) * g), v_first, state

    def first_state(self, documents: int) -> Tensor | None:
        """The recurrence's state before each of `documents` first tokens, [D, H, N, N]; None where it is zero."""
        if self.time_state is None:
            return None
        exact = torch.promote_types(self.time_state.dtype, torch.float32)
        return self.time_state.to(exact).expand(documents, -1, -1, -1)


class ChannelMixing(nn.Module):
    """x080: a squared-ReLU network of the shifted input, times the token's own vector (DeepEmbed); x070: without it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(1, 1, config.n_embd))
        self.key = nn.Linear(config.n_embd, config.dim_ffn, bias=False)
        self.value = nn.Linear(config.dim_ffn, config.n_embd, bias=False)
        self.enn = nn.Embedding(config.vocab_size, config.n_embd) if config.channel_mix == "x080" else None

    def forward(self, x: Tensor, input_ids: Tensor, shift: Tensor | None, packing: Packing | None) -> Tensor:
        k = torch.addcmul(x, token_shift(x, shift, packing) - x, self.x_k)
        out = self.value(torch.relu(self.key(k)).square())
        return out if self.enn is None else out * self.enn(input_ids)


class Block(nn.Module):
    """One layer: time mixing and channel mixing, each behind a norm and added to the stream."""

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
        """One layer on x [B, T, C]; in training on a GPU on [M, C]. `state`: shift, wkv, shift, as in `State`."""
        if v_first is None:
            x = self.ln0(x)
        att_shift, wkv, ffn_shift = state or (None, None, None)
        if wkv is None:
            wkv = self.att.first_state(x.shape[0] if packing is None else packing.cu_seqlens.numel() - 1)
        if isinstance(packing, Documents):
            x, v_first, att_shift, wkv = fused_sublayers.time_mixing(self, x, v_first, packing, att_shift, wkv)
            x, ffn_shift = fused_sublayers.channel_mixing(self, x, input_ids, packing, recompute_ffn, ffn_shift)
            return x, v_first, None if state is None else (att_shift, wkv, ffn_shift)
        h = self.ln1(x)
        mixed, v_first, wkv = self.att(h, v_first, att_shift, wkv, packing)
        x = x + mixed
        att_shift = last_token(h, packing)
        h = self.ln2(x)
        if recompute_ffn:
            x = x + checkpoint(
                self.ffn, h, input_ids, ffn_shift, packing, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x = x + self.ffn(h, input_ids, ffn_shift, packing)
        return x, v_first, (att_shift, wkv, last_token(h, packing))


class Blocks(nn.ModuleList):
    """The layers. They are called as one, so that ZeRO-3 can gather those of a small model at once."""

    def forward(
        self,
        x: Tensor,
        input_ids: Tensor,
        state: State | None,
        packing: Packing | Documents | None,
        recompute: str,
    ) -> tuple[Tensor, State | None]:
        """All layers on x, as in `Block`; the new state if there was one. `recompute` as in `RWKV`."""
        v_first, carried = None, []
        for layer, block in enumerate(self):
            before = None if state is None else (state.att_shift[layer], state.wkv[layer], state.ffn_shift[layer])
            inputs = x, v_first, input_ids, before, packing
            if recompute == "none" or not torch.is_grad_enabled():
                x, v_first, after = block(*inputs)
            elif recompute == "selective":
                x, v_first, after = block(*inputs, recompute_ffn=True)
            else:
                x, v_first, after = recomputed(block, *inputs)
            if state is not None:
                carried.append(after)  # else a view of all tokens' values, which would be kept
        return x, State(*(torch.stack(parts) for parts in zip(*carried, strict=True))) if carried else None


class RWKV(nn.Module):
    """The language model. Built with the initialisation of RWKV-LM's train_temp, from torch's global random state.

    `recompute` says what training computes again in its backward rather than keep: "none"; "selective", the wide inside
    of channel mixing; "block", all of a block but its input.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("ModelConfig.vocab_size is 0: set it to the tokenizer's vocabulary size.")
        self.config = config
        self.recompute = "none"
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = Blocks(Block(config, layer) for layer in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = Head(config.n_embd, config.vocab_size)
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
    ) -> Tensor | tuple[Tensor, State]:
        """Logits of the next token, or with `targets` the loss instead; with `state`, the new state too.

        Args:
            input_ids: int64 [B, T], T >= 1.
            state: from `init_state` or an earlier call; None starts from nothing and gives no state back. Gradients
                reach it, and flow into it from the new state.
            cu_seqlens: int32 [D+1], rising strictly from 0 to B * T: documents packed into the flattened tokens. Rows
                go on into one another unless their edges are among them. The state's batch is then D.
            max_length: with `cu_seqlens`, a bound on the documents' lengths where the caller knows one (see `wkv7s`).
            targets, ctx_lengths, reduction, positions: see `loss`. Without targets they change nothing: logits are of
                context and completion alike.

        Returns:
            logits [B, T, V] in the model's dtype, or the loss; (logits, state) or (loss, state) when `state` was given.
        """
        x, state = self.features(input_ids, state, cu_seqlens, max_length)
        if targets is None:
            out = self.head(x)
        else:
            out = self._loss_of_features(x, _counted_targets(targets, ctx_lengths, cu_seqlens), positions, reduction)
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
        """Cross-entropy in nats of `targets` [B, T] int64, float32: the mean over the targets that count, or their sum.

        Targets that are -100 do not count, nor do those inside a row's context: `ctx_lengths` [B] int64 (with
        `cu_seqlens`: [D], one a document) names how many of its first tokens are context, and the first target that
        counts is the token after them. The head runs on the positions that count alone, unless nearly all do. The loss
        of no target at all is 0. `positions` [P] int64, rising, names the places in the flattened `targets` that are
        not -100, if the caller knows them: a GPU has to be waited for to find them. It goes with no `ctx_lengths`.
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
        """The state before the first token, for `batch` rows: zeros, or what state tuning has learned."""
        state = State.empty(self.config, batch, self.emb.weight.dtype, self.emb.weight.device)
        if self.blocks[0].att.time_state is None:
            return state
        return state._replace(wkv=torch.stack([block.att.first_state(batch) for block in self.blocks]))

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """Groups for AdamW as RWKV-LM makes them; `lr_scale` multiplies the learning rate.

        The decay's bias w0 learns twice as fast; weight decay reaches the large matrices alone. DeepEmbed's tables are
        left out of it: they multiply, start at 1, and decay would pull them to 0. Frozen parameters are in no group,
        and no group is empty.
        """
        plain, fast, decayed = [], [], []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.endswith("att.w0"):
                fast.append(parameter)
            elif name.endswith(".weight") and not name.split(".")[-2].startswith(("ln", "enn")):  # norms, DeepEmbed
                decayed.append(parameter)
            else:
                plain.append(parameter)
        groups = [
            {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
            {"params": fast, "weight_decay": 0.0, "lr_scale": 2.0},
            {"params": decayed, "weight_decay": weight_decay, "lr_scale": 1.0},
        ]
        return [group for group in groups if group["params"]]

    def matrix_parameters(self) -> float:
        """How many parameters multiply every token: the matrices, but not `emb` and `enn`, which are looked up.

        A frozen one counts two thirds: of its three products in training, its own gradient is not made.
        """
        elementwise = ("emb.weight", "enn.weight", "r_k")
        matrices = [p for name, p in self.named_parameters() if p.dim() == 2 and not name.endswith(elementwise)]
        return sum(p.numel() if p.requires_grad else p.numel() * 2 / 3 for p in matrices)

    @property
    def device(self) -> torch.device:
        return self.emb.weight.device

    # -----------------------------------------------------------------------------------------------------------------

    def features(
        self, input_ids: Tensor, state: State | None, cu_seqlens: Tensor | None, max_length: int | None
    ) -> tuple[Tensor, State | None]:
        """The last norm's output [B, T, C], and the new state if there was one."""
        B, T = input_ids.shape
        c, x = self.config, self.emb(input_ids)
        packing: Packing | Documents | None = None
        if (state is None or self.training) and fused_sublayers.fit(x, c.head_size):
            embed_vocabulary = c.vocab_size if c.channel_mix == "x080" else None
            packing = fused_sublayers.documents(input_ids, cu_seqlens, max_length, embed_vocabulary, state is not None)
            x, input_ids = x.flatten(0, 1), input_ids.flatten()
        elif cu_seqlens is not None:
            bounds = cu_seqlens.long()
            packing = Packing(cu_seqlens, bounds[:-1], bounds[1:] - 1, max_length or B * T)
            x, input_ids = x.reshape(1, B * T, -1), input_ids.reshape(1, B * T)
        x, state = self.blocks(x, input_ids, state, packing, self.recompute)
        return self.ln_out(x).view(B, T, -1), state

    def _loss_of_features(self, x: Tensor, targets: Tensor, positions: Tensor | None, reduction: str) -> Tensor:
        x, targets = x.flatten(0, 1), targets.reshape(-1)
        if positions is None:
            positions = (targets != IGNORE_INDEX).nonzero().squeeze(-1)
        if targets.numel() - positions.numel() > WORTH_LEAVING_OUT * targets.numel():
            x, targets = x.index_select(0, positions), targets.index_select(0, positions)
        total = self.head(x, targets)
        return total / max(positions.numel(), 1) if reduction == "mean" else total

    def parts(self) -> list[nn.Module]:
        """All of the model, in the order in which it is initialised: the vocabulary's two tables, then the layers."""
        return [self.emb, self.head, self.ln_out, *self.blocks]

    def init_weights(self) -> None:
        """Initialise as RWKV-LM's train_temp does; RWKV is not RWKV without it.

        Orthogonal matrices scaled by their role, outputs at zero so that each block starts as the identity, and mixes,
        decays and gates laid out over the channels so that layers and channels start with different horizons.
        """
        for part in self.parts():
            self.init_part(part)

    @torch.no_grad()
    def init_part(self, part: nn.Module) -> None:
        """Initialise one of `parts`, whatever its tensors hold."""
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


def _counted_targets(targets: Tensor, ctx_lengths: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """`targets` with -100 at the positions whose target lies inside the context."""
    if ctx_lengths is None:
        return targets
    positions = torch.arange(targets.numel(), device=targets.device)
    if cu_seqlens is None:
        rows = positions // targets.shape[1]
        start = rows * targets.shape[1]
    else:
        rows = torch.bucketize(positions, cu_seqlens[1:].long(), right=True)
        start = cu_seqlens.long()[rows]
    # The target at place p of a row is its token p + 1, which is context while p + 1 < ctx_length.
    inside = positions - start + 1 < ctx_lengths.to(targets.device)[rows]
    return targets.masked_fill(inside.view_as(targets), IGNORE_INDEX)
