"""Each block's parameters as a few flat ones of its own, so that ZeRO-3 gathers and shares out a block as one.

ZeRO-3 gathers what a module holds before it is called, lets go of it afterwards, and gathers it again for the backward
pass; DeepSpeed does that tensor by tensor. RWKV has 36 of them a layer, and with several ranks the GPUs waited for that
work of the host's. Here a block holds one flat parameter for each optimizer group, and while it is computed the model's
own weights are views of these.

Notable choices:
- In place: names of modules stay, and the engine's module is the model, which plays and validates as it did.
- What autograd keeps of a weight for the backward pass is where it lies in the flat one. A view would hold on to the
  memory of what was gathered, and ZeRO-3 would free nothing.
- A replayed step reads copies that stay where they are (`read_from`), and keeps them as any tensor is kept.
- A block has views for as long as it is called, for the same reason, and at other times shapes without content.
- Not with quantised weights: neighbours share a scale there, and different tensors should not. Nor with quantised
  gradients: DeepSpeed quantises matrices alone. Nor where parameters are frozen: a tuned run has little else.
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

Place = tuple[int, int, torch.Size, tuple[int, ...]]  # of a weight: its flat one's number, offset, shape, strides


class Zero3FlatParams:
    """The blocks of `model`, whose parameters are taken over; they may be on the meta device.

    Args:
        groups: of the optimizer, as `RWKV.parameter_groups` makes them.

    Attributes:
        layout: see `packing.unpack`.
        small: elements of each flat parameter but the largest of its block, which has the matrices.
    """

    def __init__(self, model: RWKV, groups: list[dict[str, Any]]) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        group_of = {parameter: number for number, group in enumerate(groups) for parameter in group["params"]}
        self._model = model
        self._viewed: Block | None = None
        self._instead: dict[Block, list[Tensor]] = {}
        self._members: dict[Block, list[list[tuple[nn.Module, str]]]] = {}
        self._shapes: dict[Block, list[list[Tensor]]] = {}  # without content, which is how torch wants them
        self.layout: Layout = {}
        of_groups: list[list[str]] = [[] for _ in groups]  # names, as the parameters are others when they have memory
        for index, block in enumerate(model.blocks):
            places = {p: (module, name) for module in block.modules() for name, p in module._parameters.items()}
            self._members[block], self._shapes[block] = [], []
            parameters = list(block.parameters())
            for number, of_group in enumerate(of_groups):
                members = [p for p in parameters if group_of[p] == number]
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
        """Of the optimizer: those that were given, of the flat parameters and of those that are in no block."""
        return [
            {**group, "params": [self._model.get_parameter(name) for name in group["params"]]} for group in self._groups
        ]

    def read_from(self, tensors: Sequence[Tensor] | None) -> None:
        """From now on the weights are views of these, one for each of the blocks' parameters; None: of the parameters.

        These must stay where they are until the backward pass has ended, and be read from until then if blocks are
        recomputed in it.
        """
        rest = iter(tensors or ())
        self._instead = {block: [next(rest) for _ in _flat(block)] for block in self._members} if tensors else {}

    @contextmanager
    def viewed(self, block: Block) -> Iterator[None]:
        """In it `block` has its weights: views of its flat parameters as they are now, or of what is read instead."""
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
        with self.viewed(block):  # it is recomputed, without the rest of the block
            return forward(*args)

    def _forward(self, block: Block, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        # Within the call, so that in the backward pass the flat gradients come before that of the block's input, with
        # which ZeRO-3 is done with the block, or of the first one's with all of them.
        with self.viewed(block), self._kept_as_places(block):
            return forward(*args, **kwargs)

    def _kept_as_places(self, block: Block) -> AbstractContextManager:
        """In it autograd keeps weights as where they lie in the flat ones, and takes them from there again."""
        # What is read instead is not lost, and with recomputed blocks autograd keeps none at all.
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

        def unpack(kept: Tensor | Place) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            number, offset, shape, stride = kept
            gathered = flat[number].detach()
            return gathered.as_strided(shape, stride, gathered.storage_offset() + offset)

        return saved_tensors_hooks(pack, unpack)


def _flat(block: Block) -> list[nn.Parameter]:
    """The parameters that a block has itself."""
    return list(block.parameters(recurse=False))
