"""Hundreds of small parameters as a few large ones, so that DeepSpeed's cost for each tensor stops mattering.

DeepSpeed's stages 1 and 2 do a fixed amount of host work for every parameter tensor: a hook and a copy into a bucket in
backward, and a dozen launches for the overflow check and the norm in the step. RWKV has 36 tensors a layer, and for a
small model that work outlasts the mathematics. Here the parameters of an optimizer group lie one after the other in a
few flat ones, and the model's own are views of them.

Notable choices:
- The model's names stay: a state dict has them, not the flat ones, and by `layout` a checkpoint cuts the optimizer's
  master weights and moments into the model's parameters too.
- A flat parameter takes neighbouring layers until it is large enough. One for all would do for a single GPU, but then
  no gradient could be on its way to other ranks before the backward pass has ended.
- Where gradients are to go to other ranks beside the backward pass, a flat parameter is viewed when the forward pass
  reaches the first block that has a part in it. Of what it can do autograd takes first what was made last: views made
  at the beginning wait for the end of the backward pass, and all the gradients with them. Elsewhere they may, as there
  is more room for them then.
- Frozen parameters stay as they are: nothing is done with each of them but to compute with it.
- ZeRO-3 shares out each module's own parameters, and gathers them when it is called: see `zero3_flat_params`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine.zero_shards import Layout

LARGE_ENOUGH = 2**25  # elements; DeepSpeed's cost for a tensor is then below a tenth of what is done with it


class FlatParams(nn.Module):
    """`model`, called as it is called, with its parameters in a few flat ones.

    Args:
        model: the parameters of its groups are taken over; it is usable through this module alone afterwards.
        groups: of the optimizer, as `RWKV.parameter_groups` makes them. Parameters of different groups never share a
            flat one.
        overlaps: whether each flat parameter's gradient is to come as soon as the backward pass has it.

    Attributes:
        groups: the same groups with the flat parameters.
        layout: see `unpack`.
        replayed_loss: if training steps are replayed (cuda_graphs.py), the function that computes a batch's summed loss.
    """

    def __init__(self, model: RWKV, groups: list[dict[str, Any]], overlaps: bool = False) -> None:
        super().__init__()
        places = {
            parameter: (module, name) for module in model.modules() for name, parameter in module._parameters.items()
        }
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.model = model
        self.flat = nn.ParameterList()
        self.layout: Layout = {}
        self.replayed_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.groups: list[dict[str, Any]] = []
        self._places: list[list[tuple[nn.Module, str]]] = []
        self._shapes: list[list[Tensor]] = []  # as tensors without content, which is how torch wants them
        self._needed_by: list[int] = []  # the block that each flat parameter is viewed at
        self._to_view: list[Tensor | None] = []  # what is still to be viewed in the forward pass under way
        self._overlaps = overlaps
        if overlaps:
            for number, block in enumerate(model.blocks):
                block.register_forward_pre_hook(partial(self._view_at, number))
        for group in groups:
            first = len(self.flat)
            for members in _cut(group["params"]):
                flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in members]))
                self.layout[f"flat.{len(self.flat)}"] = [(names[p], list(p.shape)) for p in members]
                self.flat.append(flat)
                self._places.append([places[p] for p in members])
                self._shapes.append([torch.empty(p.shape, device="meta") for p in members])
                self._needed_by.append(min(_block(names[p], len(model.blocks)) for p in members))
                for parameter in members:
                    module, name = places[parameter]
                    del module._parameters[name]
            self.groups.append({**group, "params": list(self.flat)[first:]})
        self.register_state_dict_post_hook(_show_the_models_names)
        self.register_load_state_dict_pre_hook(_take_the_models_names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.unpacked()(*args, **kwargs)
        if self.replayed_loss is not None:
            return self.replayed_loss(kwargs["input_ids"], kwargs["targets"], kwargs["cu_seqlens"])
        if not self._overlaps:
            return self.unpacked()(*args, **kwargs)
        self._to_view = list(self.flat)
        self._view_at(0)  # the embedding comes before the first block
        return self.model(*args, **kwargs)

    def unpacked(self, flat: Sequence[Tensor] | None = None) -> RWKV:
        """The model, with views of the flat parameters, as they are now, for its weights.

        They stay in place, because what is recomputed in the backward pass needs them then. `flat` may name other
        tensors to view, laid out as the flat parameters are.
        """
        self._to_view = list(flat or self.flat)
        for number in range(len(self.flat)):
            self._view(number)
        return self.model

    def _view_at(self, block: int, *_: object) -> None:
        for number, needed_by in enumerate(self._needed_by):
            if needed_by == block:
                self._view(number)

    def _view(self, number: int) -> None:
        """Unless it has been done: the blocks come by again when they are recomputed."""
        parameter, self._to_view[number] = self._to_view[number], None
        if parameter is not None:
            views = Views.apply(parameter, self._shapes[number])
            for (module, name), weight in zip(self._places[number], views, strict=True):
                module.__dict__[name] = weight


def _block(name: str, n_blocks: int) -> int:
    """The number of the block at which the parameter `name` must be there."""
    place = re.match(r"blocks\.(\d+)\.", name)
    if place is None:
        return 0 if name == "emb.weight" else n_blocks - 1
    return int(place[1])


def unpack(tensors: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Flat tensors, by the names that they have in a `FlatParams`, as views by the model's own names and shapes."""
    out = {}
    for flat_name, members in layout.items():
        sizes = [torch.Size(shape).numel() for _, shape in members]
        for (name, shape), piece in zip(members, tensors[flat_name].split(sizes), strict=True):
            out[name] = piece.view(shape)
    return out


def _show_the_models_names(module: FlatParams, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    flat = {name: state.pop(prefix + name) for name in module.layout}
    for name in [name for name in state if name.startswith(prefix + "model.")]:  # the frozen ones
        state[prefix + name.removeprefix(prefix + "model.")] = state.pop(name)
    state.update({prefix + name: weight for name, weight in unpack(flat, module.layout).items()})


def _take_the_models_names(module: FlatParams, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for flat_name, members in module.layout.items():
        if all(prefix + name in state for name, _ in members):  # what is missing is told of by who called
            pieces = [state.pop(prefix + name).reshape(-1) for name, _ in members]
            state[prefix + flat_name] = torch.cat(pieces)
    for name, _ in module.model.named_parameters():
        if prefix + name in state:
            state[f"{prefix}model.{name}"] = state.pop(prefix + name)


def _cut(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters of a group, in order, cut where enough has come together; a remainder joins the last."""
    runs: list[list[nn.Parameter]] = []
    size = LARGE_ENOUGH
    for parameter in parameters:
        if size >= LARGE_ENOUGH:
            runs.append([])
            size = 0
        runs[-1].append(parameter)
        size += parameter.numel()
    if len(runs) > 1 and size < LARGE_ENOUGH:
        last = runs.pop()
        runs[-1] += last
    return iter(runs)


class Views(torch.autograd.Function):
    """A flat tensor as views of the shapes that lie in it; backward puts their gradients together again.

    One node of the graph instead of two for each parameter, which is host time in every step.
    """

    @staticmethod
    def forward(ctx, flat: Tensor, shapes: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(_unflatten_dense_tensors(flat.detach(), shapes))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return _flatten_dense_tensors(grads), None
