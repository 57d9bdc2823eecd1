"""The model's many parameters in a few large flat ones, so that DeepSpeed's cost per tensor becomes negligible.

DeepSpeed's stages 1 and 2 do a fixed amount of host work per parameter tensor: a hook and a copy into a bucket in the
backward pass, and a dozen kernel launches for the overflow check and the norm in the step. RWKV has 34 tensors per
layer. For a small model, this work takes longer than the computation. Here the parameters of an optimizer group are
concatenated into a few flat parameters, and the model's own weights are views of these.

Notable choices:
- State dicts and checkpoints use the names of the model's parameters, not those of the flat ones. `ZeroShards` uses
  `layout` to find the model's parameters in the optimizer's master weights and moments.
- A flat parameter collects the parameters of neighboring layers until it has MIN_ELEMENTS elements. With a single flat
  parameter for the whole model, no gradient could be reduced before the end of the backward pass.
- Autograd runs backward nodes in reverse order of creation. If all views were created at the start of the forward pass,
  every flat gradient would be complete only at the end of the backward pass. If gradients are to be reduced during the
  backward pass, the views of a flat parameter are therefore created when the forward pass reaches the first block that
  uses them. Otherwise all views are created at the start.
- Frozen parameters stay as they are, because DeepSpeed does no work for them.
- `FlatParams` is not used under ZeRO-3, which gathers parameters module by module: see `zero3_flat_params`.
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

# Minimum size of a flat parameter. On a tensor of this size, DeepSpeed's fixed cost is below a tenth of the work.
MIN_ELEMENTS = 2**25


class FlatParams(nn.Module):
    """A module that is called like `model`, with the model's parameters in a few flat ones.

    Args:
        model: the model. Its trainable parameters are moved into flat ones. Afterwards, it can only be used through
            this module.
        groups: optimizer groups from `RWKV.parameter_groups`. Parameters of different groups never share a flat one.
        overlaps: whether each flat gradient must be complete as early in the backward pass as possible.

    Attributes:
        groups: the given groups, with flat parameters in place of the model's.
        layout: for each name of a flat parameter, the names and shapes of its members, in order.
        replayed_loss: if steps are replayed (cuda_graphs.py), the function that computes a batch's summed loss.
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
        self._shapes: list[list[Tensor]] = []  # meta tensors of the members' shapes
        self._needed_by: list[int] = []  # for each flat parameter, the first block that uses it
        self._to_view: list[Tensor | None] = []  # flat parameters not yet viewed in this forward pass
        self._overlaps = overlaps
        if overlaps:
            for number, block in enumerate(model.blocks):
                block.register_forward_pre_hook(partial(self._view_at, number))
        for group in groups:
            first = len(self.flat)
            for members in _runs(group["params"]):
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
        self.register_state_dict_post_hook(_unflatten_state_dict)
        self.register_load_state_dict_pre_hook(_flatten_state_dict)

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
        """Set the model's weights to views of the flat parameters, and return the model.

        The weights remain set, because activation checkpointing needs them in the backward pass.

        Args:
            flat: tensors to use instead of the flat parameters, with the same layout.
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
        """Create the views of a flat parameter, unless this forward pass has already created them.

        If activation checkpointing repeats the forward pass of a block, the block's hook runs again.
        """
        parameter, self._to_view[number] = self._to_view[number], None
        if parameter is not None:
            views = Views.apply(parameter, self._shapes[number])
            for (module, name), weight in zip(self._places[number], views, strict=True):
                module.__dict__[name] = weight


def _block(name: str, n_blocks: int) -> int:
    """Return the index of the block before which the views of parameter `name` must exist."""
    place = re.match(r"blocks\.(\d+)\.", name)
    if place is None:
        return 0 if name == "emb.weight" else n_blocks - 1
    return int(place[1])


def unflatten(tensors: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Divide flat tensors into views with the members' names and shapes, as `layout` lists them."""
    out = {}
    for flat_name, members in layout.items():
        sizes = [torch.Size(shape).numel() for _, shape in members]
        for (name, shape), piece in zip(members, tensors[flat_name].split(sizes), strict=True):
            out[name] = piece.view(shape)
    return out


def _unflatten_state_dict(module: FlatParams, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    flat = {name: state.pop(prefix + name) for name in module.layout}
    for name in [name for name in state if name.startswith(prefix + "model.")]:  # frozen parameters
        state[prefix + name.removeprefix(prefix + "model.")] = state.pop(name)
    state.update({prefix + name: weight for name, weight in unflatten(flat, module.layout).items()})


def _flatten_state_dict(module: FlatParams, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for flat_name, members in module.layout.items():
        if all(prefix + name in state for name, _ in members):  # the caller reports missing names
            pieces = [state.pop(prefix + name).reshape(-1) for name, _ in members]
            state[prefix + flat_name] = torch.cat(pieces)
    for name, _ in module.model.named_parameters():
        if prefix + name in state:
            state[f"{prefix}model.{name}"] = state.pop(prefix + name)


def _runs(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Divide a group's parameters, in order, into runs of at least MIN_ELEMENTS. A remainder joins the last run."""
    runs: list[list[nn.Parameter]] = []
    size = MIN_ELEMENTS
    for parameter in parameters:
        if size >= MIN_ELEMENTS:
            runs.append([])
            size = 0
        runs[-1].append(parameter)
        size += parameter.numel()
    if len(runs) > 1 and size < MIN_ELEMENTS:
        last = runs.pop()
        runs[-1] += last
    return iter(runs)


class Views(torch.autograd.Function):
    """Views of a flat tensor as one autograd node. Its backward concatenates the gradients of the views.

    Slicing and viewing each parameter separately would create two nodes per parameter, which cost host time in every
    step.
    """

    @staticmethod
    def forward(ctx, flat: Tensor, shapes: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(_unflatten_dense_tensors(flat.detach(), shapes))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return _flatten_dense_tensors(grads), None
