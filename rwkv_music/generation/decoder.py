"""A model token by token, for many rows at once, in memory that keeps its place.

`RWKV.forward` serves any length and stacks a new state for each token. Here the state is one set of tensors, written
where it lies, and what stands between two tokens is as few launches as the operators allow, in a fixed order, so that a
GPU can record a step once and replay it.

Notable choices:
- The same mathematics as `model_v8` in the same precision, held to it by a test. The low-rank gates are read as two
  stacked products instead of eight, padded with zeros to one rank.
- Where a model's weights are not all at hand (ZeRO-3 shares them out and gathers a module's when it is called), or its
  heads are not those of the fused operators, the model itself is called for each token.
- A prompt is read a window at a time with the state carried, and the head runs on its last token alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_music.model_v8 import RWKV, Block, State
from rwkv_music.ops import fused
from rwkv_music.ops.wkv7s import wkv7s_forward

PREFILL_WINDOW = 1024  # tokens of a prompt read at once
WARM_UP = 2  # runs before a graph is recorded, in which libraries choose their kernels and take their memory
MIXES = "rkvwag"  # so that the mixes of the projections lie together, and those of the gates
GATES = "vwag"


class Decoder:
    """B rows of one model, a token at a time.

    Args:
        model: an RWKV on whatever device, its weights at hand (see `can_step`). They must not change while this lives.
        rows: B.

    Attributes:
        token: int64 [B], what `step` reads.
        logits: [B, V], what `step` put out last.
        state: what the rows remember.
    """

    def __init__(self, model: RWKV, rows: int):
        self.model = model
        device = model.device
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, model.config.vocab_size, dtype=model.emb.weight.dtype, device=device)
        self.state: State = model.init_state(rows)
        self._first = torch.arange(rows, dtype=torch.int32, device=device)  # each token begins a document
        self._cu_seqlens = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._layers = [_Layer(block) for block in model.blocks]

    def start(self, logits: Tensor, state: State) -> None:
        """Begin where prompts ended: logits [B, V] and a state of B rows, or [1, V] and one row for all."""
        self.logits.copy_(logits)
        for own, given in zip(self.state, state, strict=True):
            own.copy_(given)

    @torch.no_grad()
    def step(self) -> None:
        """Read `token`: update `state` and `logits`."""
        model, state, first = self.model, self.state, self._first
        x = F.embedding(self.token, model.emb.weight)
        v_first = None
        for i, layer in enumerate(self._layers):
            block = layer.block
            if i == 0:
                x = block.ln0(x)
            mixed = _shifted(x, block.ln1, layer.mixes, first, state.att_shift[i])
            x, v_first = self._time_mixing(layer, x, mixed, v_first, state.wkv[i])
            mixed = _shifted(x, block.ln2, block.ffn.x_k.view(1, -1), first, state.ffn_shift[i])
            out = F.linear(fused.relu_squared(F.linear(mixed[0], block.ffn.key.weight)), block.ffn.value.weight)
            enn = block.ffn.enn
            x = x + out if enn is None else fused.embed_gate(x, out, enn.weight, self.token)
        self.logits.copy_(F.linear(model.ln_out(x), model.head.weight))

    def _time_mixing(
        self, layer: "_Layer", x: Tensor, mixed: Tensor, v_first: Tensor | None, wkv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x + att(mixed) and the first layer's values, both [B, C]; `wkv` [B, H, N, N] is updated."""
        att = layer.block.att
        B, C = x.shape
        heads = (B, att.n_head, att.head_size)
        r, k, v = (F.linear(z, w.weight) for z, w in zip(mixed[:3], (att.receptance, att.key, att.value), strict=True))
        hidden = torch.bmm(mixed[-len(layer.gates) :], layer.down)
        hidden[layer.gates.index("w")].tanh_()
        hidden[layer.gates.index("g")].sigmoid_()
        low = dict(zip(layer.gates, torch.bmm(hidden, layer.up), strict=True))
        gates = fused.gates(
            k, v, v_first, low["w"], low["a"], low.get("v"), att.w0.view(-1), att.a0.view(-1),
            None if v_first is None else att.v0.view(-1), att.k_k.view(-1), att.k_a.view(-1),
        )  # fmt: skip
        inputs = (r, gates.w, gates.k, gates.v, gates.removal, gates.replacement)
        y, after, _ = wkv7s_forward(*(z.view(heads) for z in inputs), wkv, self._cu_seqlens, 1, False)
        wkv.copy_(after)
        norm = att.ln_x
        z = fused.norm_bonus_gate(y.view(B, C), r, gates.k, gates.v, low["g"], att.r_k.view(-1), norm.weight, norm.bias)
        return torch.addmm(x, z, att.output.weight.T), v if v_first is None else v_first


class _Layer:
    """A block, and what of it is read in another shape."""

    def __init__(self, block: Block):
        att = block.att
        self.block = block
        self.mixes = torch.cat([getattr(att, f"x_{mix}").detach().view(1, -1) for mix in MIXES])
        self.gates = GATES if hasattr(att, "v1") else GATES[1:]
        downs = [getattr(att, f"{gate}1").detach() for gate in self.gates]
        ups = [getattr(att, f"{gate}2").detach() for gate in self.gates]
        rank = max(down.shape[1] for down in downs)
        self.down = torch.stack([F.pad(down, (0, rank - down.shape[1])) for down in downs])  # [gates, C, rank]
        self.up = torch.stack([F.pad(up, (0, 0, 0, rank - up.shape[0])) for up in ups])  # [gates, rank, C]


def _shifted(x: Tensor, norm: torch.nn.LayerNorm, mixes: Tensor, first: Tensor, previous: Tensor) -> Tensor:
    """The mixes [n, B, C] of norm(x) with the token before, which `previous` [B, C] held and now holds no more."""
    mixed, _ = fused.norm_mix(x, norm.weight, norm.bias, mixes, first, previous, norm.eps)
    previous.copy_(norm(x))
    return mixed


class WholeModel:
    """The same, by calling the model for each token: for any module with `init_state` that takes and gives a state."""

    def __init__(self, model: torch.nn.Module, rows: int):
        self.model, self.rows = model, rows
        self.token = torch.zeros(rows, dtype=torch.int64, device=model.device)

    def start(self, logits: Tensor, state: State) -> None:
        origins = torch.arange(self.rows) % len(logits)
        self.logits, self.state = logits.expand(self.rows, -1), state.rows(origins)

    @torch.no_grad()  # not inference mode: under ZeRO-3 weights that are gathered here are trained on
    def step(self) -> None:
        logits, self.state = self.model(self.token.unsqueeze(1), state=self.state)
        self.logits = logits[:, -1]


def can_step(model: torch.nn.Module) -> bool:
    """Whether a `Decoder` can read this model's weights."""
    return (
        isinstance(model, RWKV)
        and model.config.head_size == fused.HEAD_SIZE
        and not any(hasattr(parameter, "ds_id") for parameter in model.parameters())  # ZeRO-3's mark on what it shares
    )


def make_decoder(model: torch.nn.Module, rows: int) -> Decoder | WholeModel:
    return Decoder(model, rows) if can_step(model) else WholeModel(model, rows)


@torch.no_grad()
def read_prompt(model: torch.nn.Module, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Read ids int64 [B, T], or [T] for one row, T >= 1, in parallel.

    Args:
        state: of B rows, what came before; None for nothing.

    Returns the logits of what follows, [B, V], and the rows' state.
    """
    ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
    state = model.init_state(len(ids)) if state is None else state
    windows = ids.split(PREFILL_WINDOW, dim=1)
    if can_step(model):
        for window in windows:
            features, state = model.features(window, state, None, None)
        return model.head(features[:, -1]), state
    for window in windows:
        logits, state = model(window, state=state)
    return logits[:, -1], state


def recorded(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`function` as one CUDA graph, which costs the host one launch however many are in it; as it is on a CPU.

    It is run a few times first. It must read and write tensors that keep their place, and wait for nothing. Other
    threads may use the GPU meanwhile.
    """
    if device.type != "cuda":
        return function
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
