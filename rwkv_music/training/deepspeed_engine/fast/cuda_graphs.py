"""Forward and backward of small models, recorded as CUDA graphs and replayed.

A step of a 0.1B model consists of a thousand kernels that take a few microseconds each. The GPU runs them faster than
the host launches them one by one. A CUDA graph of many kernels is launched with a single call. A graph reads and writes
fixed addresses, so each batch is first copied to these addresses. A graph also has fixed shapes. Empty documents are
added until the number of documents is a power of two, so that few recordings serve all batches.

Notable choices:
- Forward and backward are two graphs in one autograd node. DeepSpeed therefore treats them like any other computation.
- Under ZeRO-1 and 2, the computation of the whole loss is recorded. Under ZeRO-3, only the blocks are recorded.
  DeepSpeed then gathers the weights of all blocks at once, and reduces all their gradients at once
  (`gather.may_gather_at_once`). Gathered weights have new addresses in each step, so they are copied too.
- Steps are replayed only if all ranks are on one host. A replayed backward pass yields all gradients at its end, so it
  cannot overlap with their reduction. Between the GPUs of one host, the reduction takes a thirtieth of such a step.
  Over a network, overlapping the reduction saves more time than replaying.
- Steps are replayed only if launching the kernels takes at least a third of the computing time. With larger models, the
  speed-up does not justify the memory that a recording takes.

Source: torch.cuda.make_graphed_callables, which does not support non-tensor arguments.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_music.config import RunConfig
from rwkv_music.cuda import graphs
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.ops.fused import EmbedOrder
from rwkv_music.ops.fused_sublayers import Documents
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams
from rwkv_music.training.deepspeed_file import offloads

# A step is replayed if it performs fewer floating-point operations than this per layer and micro-batch. An H200 takes
# about 9 ms for LAYER_FLOP operations. Launching the forward and backward kernels of a layer takes about 3 ms.
LAYER_FLOP = 3e12


def is_host_bound(config: RunConfig, device: torch.device, one_host: bool, matrix_parameters: float) -> bool:
    """Return whether all ranks run on one host and launching kernels may limit the speed of a step.

    Args:
        one_host: whether all ranks run on one host.
        matrix_parameters: see `RWKV.matrix_parameters`.
    """
    tokens = config.train.micro_batch_size * config.data.ctx_len / config.train.context_parallel
    small = 6 * matrix_parameters * tokens < LAYER_FLOP * config.model.n_layer
    return device.type == "cuda" and one_host and small


def can_replay(config: RunConfig, zero: dict, at_once: bool) -> bool:
    """Return whether the steps of a host-bound run can be recorded.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".
        at_once: whether ZeRO-3 gathers all blocks at once. Replaying under ZeRO-3 requires this, and also requires
            `Zero3FlatParams`, which tuned runs do not have.
    """
    if offloads(zero) or (zero["stage"] == 3 and not (at_once and config.train.tune == "all")):
        return False
    if config.train.context_parallel > 1:  # `ContextPart` differs from batch to batch, but is not a tensor
        return False
    return not config.data.tbptt


@dataclass(frozen=True)
class Recording:
    """A forward and a backward graph, and the tensors that they read and write.

    Attributes:
        grads: gradients of the floating-point inputs, followed by those of the parameters.
    """

    inputs: tuple[Tensor, ...]
    out: Tensor
    grad_out: Tensor
    grads: tuple[Tensor, ...]
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class Graphs(ABC):
    """Recordings of one computation, one per combination of input shapes.

    Args:
        parameters: the parameters that the computation uses.
        keeps_gradients: whether a gradient may still be in use when the next one is computed. If so, it is copied.
    """

    def __init__(self, parameters: Sequence[Tensor], keeps_gradients: bool) -> None:
        self._parameters, self._keeps_gradients = tuple(parameters), keeps_gradients
        self._recordings: dict[tuple, Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared by all recordings: only one is replayed at a time

    @abstractmethod
    def compute(self, weights: Sequence[Tensor], max_length: int, *inputs: Tensor) -> Tensor:
        """Compute what is recorded, with `weights` in place of the parameters."""

    def weights(self) -> tuple[Tensor, ...]:
        """Return the tensors from which the recordings read the parameters."""
        return self._parameters

    def replay(self, max_length: int, *inputs: Tensor) -> Tensor:
        """Return `compute` of the inputs, differentiable in the parameters and the floating-point inputs."""
        key = (max_length, *(x.shape for x in inputs))
        if key not in self._recordings:
            self._recordings[key] = self._record(max_length, inputs)
        return _Replay.apply(self._recordings[key], self._keeps_gradients, *inputs, *self._parameters)

    def _record(self, max_length: int, inputs: tuple[Tensor, ...]) -> Recording:
        static = tuple(x.detach().clone() for x in inputs)
        weights = self.weights()

        def out_and_leaves() -> tuple[Tensor, list[Tensor]]:
            # Use new leaf tensors. With the parameters themselves, autograd would wait for the stream of DeepSpeed's
            # hooks.
            own = [x.detach().requires_grad_(x.is_floating_point()) for x in static]
            leaves = [weight.detach().requires_grad_() for weight in weights]
            out = self.compute(leaves, max_length, *own)
            return out, [x for x in own if x.requires_grad] + leaves

        def forward_and_backward() -> Tensor:
            out, leaves = out_and_leaves()
            torch.autograd.grad(out, leaves, torch.ones_like(out))
            return out

        grad_out = torch.ones_like(graphs.warm_up(forward_and_backward))
        forward, (out, leaves) = graphs.capture(out_and_leaves, self._pool)
        backward, grads = graphs.capture(lambda: torch.autograd.grad(out, leaves, grad_out), self._pool)
        return Recording(static, out.detach(), grad_out, grads, forward, backward)


class LossGraphs(Graphs):
    """Recordings of the summed loss of a batch."""

    def __init__(self, flat: FlatParams, accumulates: bool) -> None:
        super().__init__(flat.flat, keeps_gradients=accumulates)
        self._flat = flat

    def loss(self, input_ids: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the loss in nats, summed over the `targets` that are not -100, float32 [].

        Args:
            input_ids, targets: int64 [B, T].
            cu_seqlens: int32 [D+1]: document boundaries, including the boundaries of the rows.
        """
        return self.replay(input_ids.shape[1], input_ids, targets, _padded(cu_seqlens, input_ids.numel()))

    def compute(self, weights: Sequence[Tensor], max_length: int, *inputs: Tensor) -> Tensor:
        input_ids, targets, cu_seqlens = inputs
        return self._flat.unpacked(weights)(
            input_ids,
            targets=targets,
            cu_seqlens=cu_seqlens,
            # A graph has fixed shapes, so pass all positions. The loss kernel skips ignored targets.
            positions=torch.arange(targets.numel(), device=targets.device),
            max_length=max_length,
            reduction="sum",
        )


class BlockGraphs(Graphs):
    """Recordings of all blocks of a model with `Zero3FlatParams`, for ZeRO-3 that gathers all blocks at once.

    Args:
        longest: upper bound on document lengths. It is the same for all batches, so that they share recordings.
    """

    def __init__(self, model: RWKV, longest: int) -> None:
        # Gradients need no copies, because the backward pass ends with a wait for their reduction (see overlap.py).
        super().__init__(list(model.blocks.parameters()), keeps_gradients=False)
        self._model, self._longest, self._launch = model, longest, model.blocks.forward
        self._copies: tuple[Tensor, ...] = ()  # copies of the weights, which the recordings read

    def forward(
        self, x: Tensor, input_ids: Tensor, state: State | None, documents: Documents, recompute: str
    ) -> tuple[Tensor, State | None]:
        """Compute `Blocks.forward`, which this method replaces.

        In training, the method replays a recording; x is [M, C], `state` is None, and `recompute` is the model's.
        """
        if not torch.is_grad_enabled():
            return self._launch(x, input_ids, state, documents, recompute)
        if not self._copies:
            self._copies = tuple(torch.empty_like(parameter.data) for parameter in self._parameters)
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._parameters)
        cu_seqlens = _padded(documents.cu_seqlens, len(x))
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
        return self._launch(x, input_ids, None, documents, self._model.recompute)[0]

    def weights(self) -> tuple[Tensor, ...]:
        return self._copies


def replay_steps(module: FlatParams | RWKV, ctx_len: int, accumulates: bool) -> None:
    """Make training steps of `module` replay recorded graphs.

    Args:
        module: the engine's module: a `FlatParams` under ZeRO-1 and 2, a model with `Zero3FlatParams` under ZeRO-3.
        ctx_len: tokens per row.
        accumulates: whether the gradients of several micro-batches are accumulated.
    """
    if isinstance(module, FlatParams):
        module.replayed_loss = LossGraphs(module, accumulates).loss
    else:
        module.blocks.forward = BlockGraphs(module, ctx_len).forward


def _padded(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Return `cu_seqlens` with empty documents appended, so that the number of all documents is a power of two."""
    slots = 1 << (cu_seqlens.numel() - 2).bit_length()
    more = slots + 1 - cu_seqlens.numel()
    return torch.cat([cu_seqlens, cu_seqlens.new_full((more,), tokens)])


class _Replay(torch.autograd.Function):
    """The autograd node of a replay. `tensors` are the inputs, followed by the parameters."""

    @staticmethod
    def forward(ctx, recording: Recording, keeps_gradients: bool, *tensors: Tensor) -> Tensor:
        for static, values in zip(recording.inputs, tensors, strict=False):
            static.copy_(values)
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
