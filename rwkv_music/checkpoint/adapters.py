"""Low-rank adapters. The `peft` library creates and names them, and can load the folder that `save_adapter` writes.

The `weight` of an adapted layer is a property that computes the base weight plus scale * B A. Code that reads `weight`,
such as the fused sublayers, therefore applies the adapter, and autograd computes the gradients of A and B.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_music.checkpoint.safetensors_io import write_tensors
from rwkv_music.config import TrainConfig
from rwkv_music.errors import UserError
from rwkv_music.files import output_folder
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops.products import linear

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners import lora
except ImportError as error:
    raise UserError("Low-rank adapters need the peft library: pip install 'rwkv-music[lora]'.") from error

ADAPTER = "default"


class AdaptedLinear(lora.Linear):
    """A peft layer around a Linear. The layer's `weight` includes the adapter."""

    @property
    def weight(self) -> Tensor:
        """The base weight plus the adapter, [out, in], a new tensor on every read."""
        down, up = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        return torch.addmm(self.base_layer.weight, up, down, alpha=self.scaling[ADAPTER])

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def adapter_config(train: TrainConfig) -> LoraConfig:
    """Return peft's configuration of the adapters, which is saved as adapter_config.json."""
    return LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        target_modules=train.lora_targets.split(","),
        base_model_name_or_path=train.init,
    )


def save_adapter(trained: dict[str, Tensor], train: TrainConfig, out: Path) -> None:
    """Write the adapters `trained`, keyed by their names in the model, as a folder that peft loads.

    Raises UserError if `out` contains other files.
    """
    named = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weight for name, weight in trained.items()}
    with output_folder(out) as partial:
        write_tensors(partial / "adapter_model.safetensors", named)
        adapter_config(train).save_pretrained(str(partial))


def add_adapters(model: RWKV, train: TrainConfig) -> None:
    """Add adapters to the matrices in `train.lora_targets`. B is zero at first, so the output does not change."""
    config = adapter_config(train)
    config._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(config, model, ADAPTER)
