"""Training over the windows of whole pieces: states go from window to window, gradients a given number of them back.

Notable choices:
- A step over N windows needs the memory of one. All but the last are first read forward without a graph, and only the
  states between them are kept. Then each is read again, the last one first, and its backward pass takes the gradient of
  the state that it ended in and leaves that of the state it began in. It costs one forward pass more.
- DeepSpeed differentiates one number. What it is given is the loss and, for each value of the state, the product with
  its gradient, which is held fixed: the gradient of that is the right one.
- A window counts as an accumulation step of DeepSpeed's.
- A stream's state is saved with a checkpoint under the stream's number, by the rank that has it: going on is exact, on any
  number of ranks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwkv_music.config import ModelConfig
from rwkv_music.data.dataset import Batch
from rwkv_music.data.streams import document_states
from rwkv_music.model_v8 import State

if TYPE_CHECKING:
    import deepspeed


class StreamStates:
    """The states of this rank's streams between one step and the next.

    Args:
        engine, config: the model's.
        streams: for each micro-batch of a step, the numbers of its streams.
    """

    def __init__(self, engine: "deepspeed.DeepSpeedEngine", config: ModelConfig, streams: list[range]) -> None:
        dtype = next(engine.module.parameters()).dtype
        self._streams = streams
        self._states = [State.empty(config, len(numbers), dtype, engine.device) for numbers in streams]

    def step(self, engine: "deepspeed.DeepSpeedEngine", batches: list[Batch], scale: Tensor) -> Tensor:
        """One optimizer step; the sum of the losses in nats, float64 [].

        Args:
            batches: the windows of the first micro-batch in order, then those of the next one.
            scale: what makes of the sum over a rank's targets the loss, which DeepSpeed averages over the ranks.
        """
        windows = len(batches) // len(self._streams)
        nats = torch.zeros((), dtype=torch.float64, device=scale.device)
        for i, before in enumerate(self._states):
            own = [batch.to(scale.device) for batch in batches[i * windows : (i + 1) * windows]]
            loss, after = _backward(engine, own, before, scale)
            nats += loss
            # A step that is skipped because something was not finite must not leave that to the next ones.
            self._states[i] = State(*(_empty_unless_finite(x) for x in after))
        return nats

    def forget(self) -> None:
        """Let every stream go on from nothing."""
        for state in self._states:
            for x in state:
                x.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """All of it by stream and name, as views: what a checkpoint keeps, and restores in place."""
        return {
            f"{stream}.{kind}": x[:, i]
            for streams, state in zip(self._streams, self._states, strict=True)
            for i, stream in enumerate(streams)
            for kind, x in state._asdict().items()
        }


def _backward(
    engine: "deepspeed.DeepSpeedEngine", windows: list[Batch], state: State, scale: Tensor
) -> tuple[Tensor, State]:
    """Forward and backward over consecutive windows of some streams: the nats, and the state after them."""
    befores = [state]
    with torch.no_grad():
        for batch in windows[:-1]:
            befores.append(_forward(engine, batch, befores[-1])[1])
    nats, final, gradient = 0.0, None, None
    for i in reversed(range(len(windows))):
        before = State(*(x.detach().requires_grad_(i > 0) for x in befores.pop()))
        loss, after = _forward(engine, windows[i], before)
        objective = loss * scale
        if gradient is None:
            final = State(*(x.detach() for x in after))
        else:
            objective = objective + sum((x * dx).sum() for x, dx in zip(after, gradient, strict=True))
        engine.backward(objective, scale_wrt_gas=False)
        engine.step()
        gradient = [x.grad for x in before]
        nats = nats + loss.detach().double()
    return nats, final


def _forward(engine: "deepspeed.DeepSpeedEngine", batch: Batch, carried: State) -> tuple[Tensor, State]:
    """The sum of the nats, and each stream's state after the window."""
    loss, state = engine(**batch.arguments(), state=document_states(carried, batch), reduction="sum")
    return loss, state.rows(batch.edges.last)


def _empty_unless_finite(x: Tensor) -> Tensor:
    """x [L, B, ...] with the rows of the second axis that hold a value that is not finite set to 0."""
    finite = x.isfinite().movedim(1, 0).flatten(1).all(1)
    return torch.where(finite.view(1, -1, *[1] * (x.dim() - 2)), x, 0)
