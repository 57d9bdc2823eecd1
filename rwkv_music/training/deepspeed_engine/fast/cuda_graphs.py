"""Small models on a GPU: forward and backward recorded as CUDA graphs when their shapes first come, then replayed.

A 0.1B model's step is a thousand kernels of a few microseconds, and the host needs longer to launch them than the GPU
to run them. A graph is launched as one. What it works on stays where it was when it was recorded, so a batch is copied
there first; and its documents are filled up with empty ones to a power of two, so that few recordings serve all.

Notable choices:
- Forward and backward are two graphs, and one step of autograd: to DeepSpeed it is a computation like any other.
- Under ZeRO-1 and 2 it is the whole loss. Under ZeRO-3 it is the layers, which DeepSpeed gathers as one and takes the
  gradients of as one (`engine.may_gather_at_once`). Gathered weights lie elsewhere in each step: they are copied too.
- Only where all ranks are of one machine: the gradients come all at once, so that their way to other ranks is waited
  for. Between the GPUs of a host that takes a thirtieth of such a step; over a network it is better overlapped.
- Only where launching takes a third of the time of computing or more: a recording's memory is its own.

Source: torch.cuda.make_graphed_callables, which knows no arguments that are not tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_music.config import RunConfig
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.ops.fused import EmbedOrder
from rwkv_music.ops.fused_sublayers import Documents
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams
from rwkv_music.training.deepspeed_file import offloads

# Below so many floating-point operations a layer and micro-batch the host's part is worth removing: launching a layer
# forward and backward takes about 3 ms, in which an H200 does a third of these.
LAYER_FLOP = 3e12
WARM_UP = 2  # libraries choose their kernels and allocate their workspaces then


def is_host_bound(config: RunConfig, device: torch.device, one_host: bool, matrix_parameters: int) -> bool:
    """Whether the GPUs of a step may wait for the host, and are of one machine: what they send one another is cheap.

    Args:
        one_host: whether all ranks are of one machine.
    """
    tokens = config.train.micro_batch_size * config.data.ctx_len
    small = 6 * matrix_parameters * tokens < LAYER_FLOP * config.model.n_layer
    return device.type == "cuda" and one_host and small


def can_replay(config: RunConfig, zero: dict, at_once: bool) -> bool:
    """Whether the steps of a run that is `host_bound` can be recorded.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".
        at_once: whether ZeRO-3 gathers all blocks at once. They have `Zero3FlatParams` then, unless some of it is frozen.
    """
    if offloads(zero) or (zero["stage"] == 3 and not (at_once and config.train.tune == "all")):
        return False
    return config.data.task == "pretrain" and not config.data.tbptt  # rows of completions are of ever new lengths


@dataclass(frozen=True)
class Recording:
    """Two graphs, and the places that they read from and write to."""

    inputs: tuple[Tensor, ...]
    out: Tensor
    grad_out: Tensor
    grads: tuple[Tensor, ...]  # of the inputs that have one, then of the parameters
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class Graphs:
    """Recordings of one computation, one for each shape of its inputs that comes.

    Args:
        parameters: that it is a computation of.
        keeps_gradients: whether a gradient may still be in use when the next is made, and has to be a copy then.
    """

    def __init__(self, parameters: Sequence[Tensor], keeps_gradients: bool) -> None:
        self._parameters, self._keeps_gradients = tuple(parameters), keeps_gradients
        self._recordings: dict[tuple, Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()  # of all: one is replayed at a time

    def compute(self, weights: Sequence[Tensor], max_length: int, *inputs: Tensor) -> Tensor:
        """What is recorded, of `weights` in the place of the parameters."""
        raise NotImplementedError

    def weights(self) -> tuple[Tensor, ...]:
        """Where the recordings read the parameters."""
        return self._parameters

    def replay(self, max_length: int, *inputs: Tensor) -> Tensor:
        """`compute` of the inputs. The parameters have a gradient, and so have the inputs that are no integers."""
        key = (max_length, *(x.shape for x in inputs))
        if key not in self._recordings:
            self._recordings[key] = self._record(max_length, inputs)
        return _Replay.apply(self._recordings[key], self._keeps_gradients, *inputs, *self._parameters)

    def _record(self, max_length: int, inputs: tuple[Tensor, ...]) -> Recording:
        static = tuple(x.detach().clone() for x in inputs)
        weights = self.weights()

        def out_and_leaves() -> tuple[Tensor, list[Tensor]]:
            # Leaves of its own: autograd would wait for the stream on which DeepSpeed hooked the parameters themselves.
            own = [x.detach().requires_grad_(x.is_floating_point()) for x in static]
            leaves = [weight.detach().requires_grad_() for weight in weights]
            out = self.compute(leaves, max_length, *own)
            return out, [x for x in own if x.requires_grad] + leaves

        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                out, leaves = out_and_leaves()
                torch.autograd.grad(out, leaves, torch.ones_like(out))
        grad_out = torch.ones_like(out)
        torch.cuda.current_stream().wait_stream(beside)
        del out, leaves
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads may go on allocating, such as the one that reads the next rows.
        with torch.cuda.graph(forward, pool=self._pool, capture_error_mode="thread_local"):
            out, leaves = out_and_leaves()
        with torch.cuda.graph(backward, pool=self._pool, capture_error_mode="thread_local"):
            grads = torch.autograd.grad(out, leaves, grad_out)
        return Recording(static, out.detach(), grad_out, grads, forward, backward)


class LossGraphs(Graphs):
    """The summed loss of batches of rows by `packed`."""

    def __init__(self, packed: FlatParams, accumulates: bool) -> None:
        super().__init__(packed.flat, keeps_gradients=accumulates)
        self._packed = packed

    def loss(self, input_ids: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The sum of the nats of `targets` [B, T] that are not -100, float32, for documents that no row's end cuts.

        `cu_seqlens` int32 [D+1] has the rows' edges among its own.
        """
        return self.replay(input_ids.shape[1], input_ids, targets, _filled_up(cu_seqlens, input_ids.numel()))

    def compute(self, weights: Sequence[Tensor], max_length: int, *inputs: Tensor) -> Tensor:
        input_ids, targets, cu_seqlens = inputs
        return self._packed.unpacked(weights)(
            input_ids,
            targets=targets,
            cu_seqlens=cu_seqlens,
            # All of them: those that do not count are found by the loss's kernel.
            positions=torch.arange(targets.numel(), device=targets.device),
            max_length=max_length,
            reduction="sum",
        )


class BlockGraphs(Graphs):
    """The layers of `model`, which have `Zero3FlatParams`, in training; under ZeRO-3 they are gathered at once.

    Args:
        longest: that a document can be. Their real lengths are others in each batch, and would be recorded each.
    """

    def __init__(self, model: RWKV, longest: int) -> None:
        # ZeRO-3 has taken them when the backward pass ends: the stream that computes has waited for it (`reduction`).
        super().__init__(list(model.blocks.parameters()), keeps_gradients=False)
        self._model, self._longest, self._by_kernels = model, longest, model.blocks.forward
        self._copies: tuple[Tensor, ...] = ()  # what the recordings read

    def forward(
        self, x: Tensor, input_ids: Tensor, state: State | None, documents: Documents, recompute: str
    ) -> tuple[Tensor, State | None]:
        """In the place of `Blocks.forward`, and as it is; in training x is [M, C], and there is no state.

        A recording computes again what `model.recompute` says, which is what `recompute` is.
        """
        if not torch.is_grad_enabled():
            return self._by_kernels(x, input_ids, state, documents, recompute)
        if not self._copies:
            self._copies = tuple(torch.empty_like(parameter.data) for parameter in self._parameters)
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._parameters)
        cu_seqlens = _filled_up(documents.cu_seqlens, len(x))
        order = () if documents.order is None else (documents.order.ids, documents.order.positions)
        try:
            return self.replay(self._longest, x, input_ids, cu_seqlens, documents.first, *order), None
        finally:
            self._model.zero3_flat_params.read_from(None)

    def compute(self, weights: Sequence[Tensor], max_length: int, *inputs: Tensor) -> Tensor:
        x, input_ids, cu_seqlens, first, *order = inputs
        embed_order = EmbedOrder(*order, self._model.config.vocab_size) if order else None
        documents = Documents(cu_seqlens, max_length, first, embed_order, None)
        self._model.zero3_flat_params.read_from(weights)
        return self._by_kernels(x, input_ids, None, documents, self._model.recompute)[0]

    def weights(self) -> tuple[Tensor, ...]:
        return self._copies


def replay_steps(module: FlatParams | RWKV, ctx_len: int, accumulates: bool) -> None:
    """Make training through `module`, the engine's, replay recorded graphs.

    Args:
        module: a `FlatParams` under ZeRO-1 and 2, a model with `Zero3FlatParams` under ZeRO-3.
        ctx_len: tokens per row.
        accumulates: whether the gradients of several micro-batches are accumulated.
    """
    if isinstance(module, FlatParams):
        module.replayed_loss = LossGraphs(module, accumulates).loss
    else:
        module.blocks.forward = BlockGraphs(module, ctx_len).forward


def _filled_up(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """With empty documents at the end, up to the next power of two."""
    slots = 1 << (cu_seqlens.numel() - 2).bit_length()
    more = slots + 1 - cu_seqlens.numel()
    return torch.cat([cu_seqlens, cu_seqlens.new_full((more,), tokens)])


class _Replay(torch.autograd.Function):
    """Takes the inputs, then the parameters."""

    @staticmethod
    def forward(ctx, recording: Recording, keeps_gradients: bool, *tensors: Tensor) -> Tensor:
        for place, values in zip(recording.inputs, tensors, strict=False):
            place.copy_(values)
        recording.forward.replay()
        ctx.recording, ctx.keeps_gradients = recording, keeps_gradients
        return recording.out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        recording.grad_out.copy_(grad)
        recording.backward.replay()
        grads = (x.clone() if ctx.keeps_gradients else x.detach() for x in recording.grads)
        of_inputs = [next(grads) if x.is_floating_point() else None for x in recording.inputs]
        return (None, None, *of_inputs, *grads)
