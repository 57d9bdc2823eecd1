"""Truncated backpropagation through time: states pass from window to window, gradients flow back through N windows.

Notable choices:
- A step over N windows holds the activations of only one window. First, all windows except the last run forward without
  autograd, and only the states between them are kept. Then each window, from the last to the first, runs forward and
  backward. The backward pass of a window takes the gradient of its final state and computes the gradient of its initial
  state. The cost is one additional forward pass of every window except the last.
- DeepSpeed differentiates a scalar. For each window, this scalar is the loss plus the dot product of the final states
  with their gradients, which count as constants. The gradient of this sum is the one that the step needs.
- Each rank saves the states of its streams in the checkpoint under the numbers of the streams. A resumed run is
  therefore exact on any number of ranks.
- With context parallelism, every rank of a group has the states of all streams of the group. The rank that holds the
  end of a row computes the final state of the row's stream. The rank that holds the start of the row computes the
  gradient of the stream's initial state. A rank's results for all other streams are zero. After each window, the ranks
  therefore add up their results.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import ModelConfig
from rwkv_music.data.dataset import Batch
from rwkv_music.data.streams import document_states, final_states, sum_over_ranks
from rwkv_music.model_v8 import State
from rwkv_music.training.deepspeed_engine.engine import Engine


class StreamStates:
    """The states of this rank's document streams between one step and the next."""

    def __init__(
        self, engine: Engine, config: ModelConfig, streams: list[range], group: dist.ProcessGroup | None = None
    ) -> None:
        self._group = group  # the ranks that have the same streams; None without context parallelism
        dtype = next(engine.module.parameters()).dtype
        self._streams = streams  # for each micro-batch of a step, the numbers of its streams; a range can be empty
        self._states = [State.empty(config, len(numbers), dtype, engine.device) for numbers in streams]

    def step(self, engine: Engine, batches: list[Batch], scale: Tensor) -> Tensor:
        """Take one optimizer step; return the summed loss in nats, float64 [].

        `batches` contains the windows of the first micro-batch in order, then those of the next one. Each rank's
        summed loss is multiplied by `scale` before DeepSpeed averages over the ranks.
        """
        windows = len(batches) // len(self._streams)
        nats = torch.zeros((), dtype=torch.float64, device=scale.device)
        for i, before in enumerate(self._states):
            own = [batch.to(scale.device) for batch in batches[i * windows : (i + 1) * windows]]
            loss, after = _backward(engine, own, before, scale)
            nats += loss
            # If a step is skipped because a value is not finite, that value must not reach the next step.
            self._states[i] = State(*(_zero_unless_finite(x) for x in after))
        return nats

    def reset(self) -> None:
        """Set the states of all streams to zero."""
        for state in self._states:
            for x in state:
                x.zero_()

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint; none if an earlier rank of the group saves the same streams."""
        return {} if self._group is not None and self._group.rank() else self.tensors()

    def tensors(self) -> dict[str, Tensor]:
        """Return views of all states, named "STREAM.FIELD". Loading a checkpoint writes into these views.

        STREAM is the number of a stream, and FIELD is a field of `State`.
        """
        return {
            f"{stream}.{kind}": x[:, i]
            for streams, state in zip(self._streams, self._states, strict=True)
            for i, stream in enumerate(streams)
            for kind, x in state._asdict().items()
        }


def _backward(engine: Engine, windows: list[Batch], state: State, scale: Tensor) -> tuple[Tensor, State]:
    """Run forward and backward over consecutive windows of some streams; return the summed loss and final state."""
    befores = [state]
    with torch.no_grad():
        for batch in windows[:-1]:
            befores.append(sum_over_ranks(_forward(engine, batch, befores[-1])[1], batch))
    nats, final, gradient = 0.0, None, None
    for i in reversed(range(len(windows))):
        before = State(*(x.detach().requires_grad_(i > 0) for x in befores.pop()))
        loss, after = _forward(engine, windows[i], before)
        objective = loss * scale
        if gradient is None:
            final = sum_over_ranks(State(*(x.detach() for x in after)), windows[i])
        else:
            objective = objective + sum((x * dx).sum() for x, dx in zip(after, gradient, strict=True))
        engine.backward(objective, average_over_micro_batches=False)
        engine.step()
        if i > 0:
            gradient = sum_over_ranks(State(*(x.grad for x in before)), windows[i])
        nats = nats + loss.detach().double()
    return nats, final


def _forward(engine: Engine, batch: Batch, before: State) -> tuple[Tensor, State]:
    """Return the summed nats of a window, and each stream's state after it (see `final_states`)."""
    loss, state = engine(**batch.arguments(), state=document_states(before, batch), reduction="sum")
    return loss, final_states(state, batch, before.wkv.shape[1])


def _zero_unless_finite(x: Tensor) -> Tensor:
    """Return x [L, B, ...] with all values of a stream (axis 1) set to 0 if any value of the stream is not finite."""
    finite = x.isfinite().movedim(1, 0).flatten(1).all(1)
    return torch.where(finite.view(1, x.shape[1], *[1] * (x.dim() - 2)), x, 0)
