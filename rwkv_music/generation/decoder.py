"""Token-by-token decoding of many rows at once, in preallocated tensors.

`RWKV.forward` accepts any length and allocates a new state in each call. A `Decoder` updates its state in place. It
launches as few kernels as the operators allow, always in the same order, so that a step can be recorded as a CUDA
graph.

Notable choices:
- The mathematics and the precision of `Decoder` are those of `model_v8`; a test compares the results. The low-rank
  gates are zero-padded to a common rank and computed with two batched products instead of eight products.
- On a CPU with a C++ compiler, `CpuDecoder` computes the whole step in one call of a C++ kernel. It rounds the matrices
  to bf16.
- `ModelDecoder` calls the model for each token. It is used if the head size is not that of the fused operators, or if
  ZeRO-3 has partitioned the weights, because ZeRO-3 gathers them only when a module is called.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_music.cuda import graphs
from rwkv_music.model_v8 import RWKV, Block, State
from rwkv_music.ops import decode_cpu, fused
from rwkv_music.ops.wkv7s import wkv7s_forward

PREFILL_WINDOW = 1024  # tokens of a prompt per forward pass
CPU_WINDOW = 256  # tokens of a prompt per call of the C++ kernel
MIXES = "rkvwag"  # "rkv" are the inputs of the projections, "vwag" those of the low-rank gates
GATES = "vwag"


class Decoder:
    """A decoder of B rows that processes one token per row and step, and updates its state in place.

    `supports_decoder(model)` must be true, and the weights must not change during the lifetime of the decoder.
    `step` reads `token`, int64 [B], and writes `logits`, [B, V].
    """

    def __init__(self, model: RWKV, rows: int):
        self.model = model
        device = model.device
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, model.config.vocab_size, dtype=model.emb.weight.dtype, device=device)
        self.state: State = model.init_state(rows)
        self._first = torch.arange(rows, dtype=torch.int32, device=device)  # each token is a document by itself
        self._cu_seqlens = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._layers = [_Layer(block) for block in model.blocks]

    def start(self, logits: Tensor, state: State) -> None:
        """Start from the results of `read_prompt`: logits [B, V] and a state of B rows.

        Logits [1, V] and a state of one row are copied to all B rows.
        """
        self.logits.copy_(logits)
        for own, given in zip(self.state, state, strict=True):
            own.copy_(given)

    def read(self, ids: Tensor, state: State | None = None) -> None:
        """Process a prompt, which `step` then continues. `ids` and `state` are as for `read_prompt`, of 1 or B rows."""
        self.start(*read_prompt(self.model, ids, state))

    @torch.no_grad()
    def step(self) -> None:
        """Process `token`, updating `state` and `logits`."""
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
        """Return x + att(mixed) and the first layer's values, both [B, C]; update `wkv` [B, H, N, N] in place."""
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
    """A block, with its token-shift mixes and its low-rank gates as stacked tensors."""

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
    """Return the token-shift mixes of norm(x) and `previous`, [n, B, C]. Then set `previous` [B, C] to norm(x)."""
    mixed, _ = fused.norm_mix(x, norm.weight, norm.bias, mixes, first, previous, norm.eps)
    previous.copy_(norm(x))
    return mixed


class CpuDecoder(Decoder):
    """A `Decoder` that uses the C++ kernel of `ops.decode_cpu`, for a model in fp32 or bf16 on a CPU.

    The matrices are rounded to bf16. All other weights, the state and `logits` are fp32. The kernel must be available:
    `decode_cpu.load()` must not return None.
    """

    def __init__(self, model: RWKV, rows: int):
        self.model = model
        self._weights = decode_cpu.packed(model)
        self.token = torch.zeros(rows, dtype=torch.int64)
        self._padded_logits = torch.zeros(rows, self._weights.shape.vocabulary)
        self.logits = self._padded_logits[:, : model.config.vocab_size]
        self.state = self._own(model.init_state(rows))

    def read(self, ids: Tensor, state: State | None = None) -> None:
        ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
        vocab_size = self.model.config.vocab_size
        if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:  # the kernel would read outside its tables
            raise IndexError(
                f"A token of the prompt is outside the vocabulary, 0 to {vocab_size - 1}: use the model's tokenizer."
            )
        state = self._own(self.model.init_state(len(ids)) if state is None else state)
        logits = torch.zeros(len(ids), self._padded_logits.shape[1])
        for window in ids.split(CPU_WINDOW, dim=1):
            self._forward(window.contiguous(), state, logits)
        self.start(logits[:, : self.logits.shape[1]], state)

    def step(self) -> None:
        self._forward(self.token.unsqueeze(1), self.state, self._padded_logits)

    @staticmethod
    def _own(state: State) -> State:
        """Return an fp32 copy of a state. In memory, its `wkv` has the kernel's order of axes: key axis, value axis."""
        copy = State(*(x.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for x in state))
        return copy._replace(wkv=copy.wkv.mT.contiguous().mT)

    def _forward(self, ids: Tensor, state: State, logits: Tensor) -> None:
        decode_cpu.forward(self._weights, ids, state.att_shift, state.wkv.mT, state.ffn_shift, logits)


class ModelDecoder:
    """A decoder that calls the model for each token, for any module with `init_state` and `forward(ids, state)`."""

    def __init__(self, model: torch.nn.Module, rows: int):
        self.model, self.rows = model, rows
        self.token = torch.zeros(rows, dtype=torch.int64, device=model.device)

    def start(self, logits: Tensor, state: State) -> None:
        origins = torch.arange(self.rows) % len(logits)  # repeats a single row
        self.logits, self.state = logits.expand(self.rows, -1), state.rows(origins)

    def read(self, ids: Tensor, state: State | None = None) -> None:
        self.start(*read_prompt(self.model, ids, state))

    @torch.no_grad()  # not inference_mode, because ZeRO-3 gathers weights here that are trained later
    def step(self) -> None:
        logits, self.state = self.model(self.token.unsqueeze(1), state=self.state)
        self.logits = logits[:, -1]


def supports_decoder(model: torch.nn.Module) -> bool:
    """Return whether a `Decoder` can run this model."""
    return (
        isinstance(model, RWKV)
        and model.config.head_size == fused.HEAD_SIZE
        and not any(hasattr(parameter, "ds_id") for parameter in model.parameters())  # ZeRO-3 sets this attribute
    )


def make_decoder(model: torch.nn.Module, rows: int) -> Decoder | ModelDecoder:
    """Return the fastest decoder that supports `model`."""
    if not supports_decoder(model):
        return ModelDecoder(model, rows)
    on_cpu = model.device.type == "cpu" and model.emb.weight.dtype in (torch.float32, torch.bfloat16)
    return CpuDecoder(model, rows) if on_cpu and decode_cpu.load() else Decoder(model, rows)


@torch.no_grad()
def read_prompt(model: torch.nn.Module, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Process a prompt in parallel over time. Return the logits of the next token, [B, V], and the state.

    `ids` is int64 [B, T], or [T] for one row, T >= 1. `state` has B rows; None means the initial state. A long prompt
    is processed in windows, and each window starts from the state after the previous one.
    """
    ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
    state = model.init_state(len(ids)) if state is None else state
    windows = ids.split(PREFILL_WINDOW, dim=1)
    if supports_decoder(model):
        for window in windows:
            features, state = model.features(window, state, None, None)
        return model.head(features[:, -1]), state
    for window in windows:
        logits, state = model(window, state=state)
    return logits[:, -1], state


def as_cuda_graph(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record `function` as a CUDA graph, and return a function that replays it with a single launch.

    On a CPU, return `function` itself. `function` is called a few times before it is recorded. It must use tensors at
    fixed addresses and must not synchronize.
    """
    if device.type != "cuda":
        return function
    with torch.cuda.device(device):
        graphs.warm_up(function)
        return graphs.capture(function)[0].replay
