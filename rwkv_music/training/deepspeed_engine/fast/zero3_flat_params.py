"""Each block's parameters in a few flat ones, so that ZeRO-3 gathers and partitions a block with little host work.

ZeRO-3 gathers the parameters of a module before the module is called, releases them afterwards, and gathers them again
for the backward pass. It does this tensor by tensor. RWKV has 34 tensors per layer, and with several ranks the GPUs
would wait for this host work. Here a block has one flat parameter per optimizer group. During a call of the block, the
model's own weights are views of the flat parameters.

Notable choices:
- The parameters are replaced inside the model. The names of modules do not change, and the model can generate and
  validate as before.
- For the backward pass, autograd saves only the position of a weight in its flat parameter. A saved view would keep the
  gathered memory alive, so that ZeRO-3 could not free it.
- A replayed step reads copies of the weights at fixed addresses (`read_from`). Autograd saves these like any tensor.
- Between two calls, a block has meta tensors instead of views, because views would keep the gathered memory alive.
- This module is not used in three cases: with quantized weights, because neighboring parameters would share a scale;
  with quantized gradients, because DeepSpeed quantizes only matrices; and with frozen parameters, because a tuned run
  trains few parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rwkv_music.model_v8 import RWKV, Block
from rwkv_music.training.deepspeed_engine.fast.flat_params import Views
from rwkv_music.training.deepspeed_engine.zero_shards import Layout

Place = tuple[int, int, torch.Size, tuple[int, ...]]  # a weight's flat parameter, offset in it, shape and strides


class Zero3FlatParams:
    """Flat parameters in the blocks of `model`, which may be on the meta device.

    Args:
        model: the model. The parameters of its blocks are moved into flat ones.
        groups: optimizer groups from `RWKV.parameter_groups`.

    Attributes:
        layout: the model's parameters in each flat parameter, as for `flat_params.unflatten`.
        small: sizes in elements of all flat parameters, except the largest one of each block, which has the matrices.
    """

    def __init__(self, model: RWKV, groups: list[dict[str, Any]]) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        group_of = {parameter: number for number, group in enumerate(groups) for parameter in group["params"]}
        self._model = model
        self._viewed: Block | None = None
        self._instead: dict[Block, list[Tensor]] = {}
        self._members: dict[Block, list[list[tuple[nn.Module, str]]]] = {}
        self._shapes: dict[Block, list[list[Tensor]]] = {}  # meta tensors of the members' shapes
        self.layout: Layout = {}
        of_groups: list[list[str]] = [[] for _ in groups]  # names, because materializing replaces parameters
        for index, block in enumerate(model.blocks):
            places = {p: (module, name) for module in block.modules() for name, p in module._parameters.items()}
            self._members[block], self._shapes[block] = [], []
            parameters = list(block.parameters())
            for number, of_group in enumerate(of_groups):
                members = [p for p in parameters if group_of[p] == number]
                if not members:  # with Muon, the group of the embedding and the head
                    continue
                name = f"flat_{number}"
                self.layout[f"blocks.{index}.{name}"] = [(names[p], list(p.shape)) for p in members]
                self._members[block].append([places[p] for p in members])
                self._shapes[block].append([torch.empty(p.shape, device="meta") for p in members])
                for parameter in members:
                    module, own_name = places[parameter]
                    del module._parameters[own_name]
                block.register_parameter(name, nn.Parameter(torch.cat([p.detach().reshape(-1) for p in members])))
                of_group.append(f"blocks.{index}.{name}")
            self._set(block, self._shapes[block])
            block.forward = partial(self._forward, block, block.forward)
            block.ffn.forward = partial(self._ffn_forward, block, block.ffn.forward)
        self.small = [size for block in model.blocks for size in sorted(p.numel() for p in _flat(block))[:-1]]
        inside = {name for names in self.layout.values() for name, _ in names}
        self._groups = [
            {**group, "params": [names[p] for p in group["params"] if names[p] not in inside] + of_group}
            for group, of_group in zip(groups, of_groups, strict=True)
        ]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The given optimizer groups, with flat parameters in place of those of the blocks."""
        return [
            {**group, "params": [self._model.get_parameter(name) for name in group["params"]]} for group in self._groups
        ]

    def read_from(self, tensors: Sequence[Tensor] | None) -> None:
        """Make the weights views of `tensors` instead of the flat parameters; None restores the flat parameters.

        There is one tensor per flat parameter of the blocks. The tensors must keep their addresses until the backward
        pass ends. With activation checkpointing, do not call this method again before the backward pass ends.
        """
        rest = iter(tensors or ())
        self._instead = {block: [next(rest) for _ in _flat(block)] for block in self._members} if tensors else {}

    @contextmanager
    def viewed(self, block: Block) -> Iterator[None]:
        """A context in which the weights of `block` are views of its flat parameters, or of the `read_from` tensors."""
        self._viewed = block
        flat = self._instead.get(block) or _flat(block)
        self._set(block, [Views.apply(*one) for one in zip(flat, self._shapes[block], strict=True)])
        try:
            yield
        finally:
            self._set(block, self._shapes[block])
            self._viewed = None

    def _set(self, block: Block, weights: list[Sequence[Tensor]]) -> None:
        for members, values in zip(self._members[block], weights, strict=True):
            for (module, name), weight in zip(members, values, strict=True):
                module.__dict__[name] = weight

    def _ffn_forward(self, block: Block, forward: Callable, *args: Any) -> Tensor:
        if self._viewed is block:
            return forward(*args)
        with self.viewed(block):  # in the backward pass, when only channel mixing is recomputed
            return forward(*args)

    def _forward(self, block: Block, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        # ZeRO-3 reduces a block's gradients when the gradient of the block's input is computed. Because the views are
        # created inside the call, autograd completes the flat gradients before it computes that gradient.
        with self.viewed(block), self._saved_as_places(block):
            return forward(*args, **kwargs)

    def _saved_as_places(self, block: Block) -> AbstractContextManager:
        """A context in which autograd saves weights as places in the flat parameters, and reads them from there."""
        # `read_from` tensors are not released, so autograd can save views of them. If whole blocks are recomputed,
        # autograd saves no weights.
        if self._instead or not torch.is_grad_enabled() or self._model.recompute == "block":
            return nullcontext()
        flat = _flat(block)
        spans = [(p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in flat]

        def pack(x: Tensor) -> Tensor | Place:
            address = x.data_ptr()
            for number, (start, end) in enumerate(spans):
                if start <= address < end:
                    return number, (address - start) // x.element_size(), x.shape, x.stride()
            return x

        def unpack(saved: Tensor | Place) -> Tensor:
            if isinstance(saved, Tensor):
                return saved
            number, offset, shape, stride = saved
            gathered = flat[number].detach()
            return gathered.as_strided(shape, stride, gathered.storage_offset() + offset)

        return saved_tensors_hooks(pack, unpack)


def _flat(block: Block) -> list[nn.Parameter]:
    """Return the flat parameters of a block."""
    return list(block.parameters(recurse=False))
