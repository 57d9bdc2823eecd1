"""A model with the interface of `Engine` that `StreamStates` uses, without DeepSpeed."""

from typing import Any

from torch import Tensor

from rwkv_music.model_v8 import RWKV


class PlainEngine:
    """Calls the model and PyTorch's autograd. Gradients accumulate in the parameters."""

    def __init__(self, module: RWKV) -> None:
        self.module, self.device = module, module.device

    def __call__(self, **arguments: Any) -> Any:
        return self.module(**arguments)

    def backward(self, loss: Tensor, average_over_micro_batches: bool) -> None:
        loss.backward()

    def step(self) -> None:
        pass
