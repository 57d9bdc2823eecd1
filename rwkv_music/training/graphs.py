"""Small models on a GPU: forward and backward recorded once as CUDA graphs, then replayed.

A 0.1B model's step is a thousand kernels of a few microseconds, and the host needs longer to launch them than the GPU
to run them. A graph is launched as one. What it works on stays where it was when it was recorded, so a batch is copied
there first; and its documents are filled up with empty ones to a power of two, so that few recordings serve all.

Notable choices:
- Forward and backward are two graphs, and one step of autograd: to DeepSpeed it is a loss like any other.
- Only where all ranks are of one machine: the gradients come all at once, so that their way to other ranks is waited
  for. Between the GPUs of a host that takes a thirtieth of such a step; over a network it is better overlapped.
- Only where launching takes about as long as computing: a recording's memory is its own. Where that is so ZeRO-3, whose
  weights lie elsewhere in each step, is spared host time in another way (`engine.may_gather_at_once`).

Source: torch.cuda.make_graphed_callables, which knows no arguments that are not tensors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_music.config import RunConfig
from rwkv_music.training.engine import offloads
from rwkv_music.training.packing import Packed

# Below so many floating-point operations a layer and micro-batch the host's part is worth removing: launching a layer
# forward and backward takes about 3 ms, in which an H200 does a third of these.
LAYER_FLOP = 3e12
WARM_UP = 2  # libraries choose their kernels and allocate their workspaces then


def host_bound(config: RunConfig, device: torch.device, one_host: bool, matrix_parameters: int) -> bool:
    """Whether the GPUs of a step may wait for the host, and are of one machine: what they send one another is cheap.

    Args:
        one_host: whether all ranks are of one machine.
    """
    tokens = config.train.micro_batch_size * config.data.ctx_len
    small = 6 * matrix_parameters * tokens < LAYER_FLOP * config.model.n_layer
    return device.type == "cuda" and one_host and small


def recordable(config: RunConfig, zero: dict) -> bool:
    """Whether the steps of a run that is `host_bound` can be recorded.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".
    """
    if zero["stage"] == 3 or offloads(zero):
        return False
    return config.data.task == "pretrain" and not config.data.carry  # rows of completions are of ever new lengths


@dataclass(frozen=True)
class Recording:
    """Two graphs, and the places that they read from and write to."""

    input_ids: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    loss: Tensor
    grad_loss: Tensor
    grads: tuple[Tensor, ...]
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class Graphs:
    """The summed loss of batches of rows, by recordings of `packed`, one for each shape that comes.

    Args:
        accumulates: whether the gradients of several micro-batches are added up, so that each has to be kept.
    """

    def __init__(self, packed: Packed, accumulates: bool) -> None:
        self._packed, self._accumulates = packed, accumulates
        self._parameters = tuple(packed.flat)
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()  # of all: one is replayed at a time

    def loss(self, input_ids: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The sum of the nats of `targets` [B, T] that are not -100, float32, for documents that no row's end cuts.

        `cu_seqlens` int32 [D+1] has the rows' edges among its own.
        """
        slots = 1 << (cu_seqlens.numel() - 2).bit_length()  # a power of two, D or more
        key = (*input_ids.shape, slots)
        if key not in self._recordings:
            self._recordings[key] = self._record(input_ids, targets, _filled_up(cu_seqlens, slots, input_ids.numel()))
        recording = self._recordings[key]
        recording.input_ids.copy_(input_ids)
        recording.targets.copy_(targets)
        recording.cu_seqlens.fill_(input_ids.numel())
        recording.cu_seqlens[: cu_seqlens.numel()].copy_(cu_seqlens)
        return _Replay.apply(recording, self._accumulates, *self._parameters)

    def _record(self, input_ids: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Recording:
        static = [x.clone() for x in (input_ids, targets, cu_seqlens)]
        everywhere = torch.arange(targets.numel(), device=targets.device)
        grad_loss = torch.ones((), device=targets.device)

        def loss_and_leaves() -> tuple[Tensor, list[Tensor]]:
            # Leaves of its own: autograd would wait for the stream on which DeepSpeed hooked the parameters themselves.
            leaves = [parameter.detach().requires_grad_() for parameter in self._parameters]
            nats = self._packed.unpacked(leaves)(
                static[0],
                targets=static[1],
                cu_seqlens=static[2],
                positions=everywhere,  # all of them: those that do not count are found by the loss's kernel
                max_length=input_ids.shape[1],
                reduction="sum",
            )
            return nats, leaves

        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                torch.autograd.grad(*loss_and_leaves(), grad_loss)
        torch.cuda.current_stream().wait_stream(beside)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads may go on allocating, such as the one that reads the next rows.
        with torch.cuda.graph(forward, pool=self._pool, capture_error_mode="thread_local"):
            nats, leaves = loss_and_leaves()
        with torch.cuda.graph(backward, pool=self._pool, capture_error_mode="thread_local"):
            grads = torch.autograd.grad(nats, leaves, grad_loss)
        return Recording(*static, nats.detach(), grad_loss, grads, forward, backward)


def _filled_up(cu_seqlens: Tensor, slots: int, tokens: int) -> Tensor:
    """With empty documents at the end, so that there are `slots`."""
    more = slots + 1 - cu_seqlens.numel()
    return torch.cat([cu_seqlens, cu_seqlens.new_full((more,), tokens)])


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: Recording, accumulates: bool, *parameters: Tensor) -> Tensor:
        recording.forward.replay()
        ctx.recording, ctx.accumulates = recording, accumulates
        return recording.loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        recording.grad_loss.copy_(grad)
        recording.backward.replay()
        grads = recording.grads
        return (None, None, *((x.clone() for x in grads) if ctx.accumulates else (x.detach() for x in grads)))
