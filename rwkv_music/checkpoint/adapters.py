"""Low-rank adapters by the `peft` library: made, named and saved as it does, computed in our own fused way.

An adapted layer's `weight` is the base's plus scale x B A, made when it is read. Whoever reads a layer's weight, the
fused halves among them, so computes with the adapter, and autograd brings the weight's gradient to A and B.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_music.checkpoint.safetensors_io import write_tensors
from rwkv_music.config import TrainConfig
from rwkv_music.errors import UserError
from rwkv_music.files import atomic_folder
from rwkv_music.model_v8 import RWKV

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners import lora
except ImportError as error:
    raise UserError("Low-rank adapters need the peft library: pip install 'rwkv-music[lora]'.") from error

ADAPTER = "default"


class AdaptedLinear(lora.Linear):
    """peft's layer around a linear one, with the sum of both as its weight."""

    @property
    def weight(self) -> Tensor:
        """[out, in]; a new tensor each time it is read."""
        down, up = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        return torch.addmm(self.base_layer.weight, up, down, alpha=self.scaling[ADAPTER])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def adapter_config(train: TrainConfig) -> LoraConfig:
    """What peft keeps as adapter_config.json."""
    return LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        target_modules=train.lora_targets.split(","),
        base_model_name_or_path=train.init,
    )


def save_adapter(trained: dict[str, Tensor], train: TrainConfig, out: Path) -> None:
    """Write adapters, by the names that they train under, as the folder that peft loads."""
    named = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weight for name, weight in trained.items()}
    with atomic_folder(out) as partial:
        write_tensors(partial / "adapter_model.safetensors", named)
        adapter_config(train).save_pretrained(str(partial))


def add_adapters(model: RWKV, train: TrainConfig) -> None:
    """Wrap the matrices that `train.lora_targets` names. B is zero, so the model computes what it did."""
    config = adapter_config(train)
    config._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(config, model, ADAPTER)
