"""The user's DeepSpeed JSON file: read it, check it, and query its settings.

The file is a plain DeepSpeed file, which train.py never changes. It must not define an optimizer or a schedule, because
train.py sets the learning rates of RWKV's parameter groups.
"""

import os
from typing import Any

import torch

from rwkv_music.errors import SharedError, UserError
from rwkv_music.files import read_json

# Keys of a DeepSpeed file that mean the same as a field of TrainConfig.
SHARED_KEYS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "grad_clip",
}
QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def read_deepspeed_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read the DeepSpeed configuration at `path`; raise UserError if train.py does not support it."""
    config = read_json(path, "give a DeepSpeed file such as ds_configs/zero2.json")
    for section in ("zero_optimization", "bf16", "fp16", "data_types"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(f'{path} sets "{section}" to {config[section]!r}: make it an object, as in ds_configs.')
    for name in ("offload_optimizer", "offload_param"):
        section = config.get("zero_optimization", {}).get(name)
        if not isinstance(section, dict | None):
            raise UserError(f'{path} sets "{name}" to {section!r}: make it an object, as in ds_configs.')
    for key in (*SHARED_KEYS, "gradient_accumulation_steps"):
        value = config.get(key, "auto")
        number = isinstance(value, int | float) if key == "gradient_clipping" else isinstance(value, int) and value > 0
        if value != "auto" and (isinstance(value, bool) or not number):
            kind = "a number" if key == "gradient_clipping" else "an integer above 0"
            raise UserError(f'{path} sets "{key}" to {value!r}: make it {kind}, or remove it.')
    for section, options in {
        "optimizer": "--lr, --beta1, --weight_decay ...",
        "scheduler": "--schedule, --warmup_steps ...",
    }.items():
        if section in config:
            raise UserError(
                f'{path} has a section "{section}", which train.py sets itself because of RWKV\'s parameter groups: '
                f"remove it and use {options}."
            )
    if config.get("fp16", {}).get("enabled"):
        raise UserError(f'{path} enables fp16, but the kernels run in bf16: use "bf16": {{"enabled": true}} instead.')
    if config.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
        raise UserError(f'{path} sets no ZeRO stage: set "zero_optimization": {{"stage": 1}}, 2 or 3.')
    bucket = config["zero_optimization"].get("reduce_bucket_size", 1)
    if isinstance(bucket, bool) or not isinstance(bucket, int | float) or bucket < 1:
        raise UserError(f'{path} sets "reduce_bucket_size" to {bucket!r}: make it a number of elements above 0.')
    zero, sums = config["zero_optimization"], config.get("data_types", {}).get("grad_accum_dtype")
    in_fp32 = sums in ("fp32", "float32", "torch.float32", "float")
    if in_fp32 and zero["stage"] == 1 and not offloads(zero) and uses_bf16(config):
        raise UserError(
            f'{path} sets "grad_accum_dtype" to fp32 under ZeRO-1, for which DeepSpeed uses an optimizer that '
            f'checkpoints do not support: set "stage": 2, or remove "grad_accum_dtype".'
        )
    return config


def uses_bf16(config: dict[str, Any]) -> bool:
    """Return whether the DeepSpeed configuration enables bf16."""
    return bool(config.get("bf16", {}).get("enabled"))


def offloads(zero: dict[str, Any], what: str = "optimizer") -> bool:
    """Return whether the section "zero_optimization" offloads `what`: "optimizer" or "param"."""
    return (zero.get(f"offload_{what}") or {}).get("device", "none") != "none"


def quantizes(zero: dict[str, Any]) -> bool:
    """Return whether the section "zero_optimization" quantizes weights or gradients in communication (ZeRO++)."""
    return any(zero.get(name) for name in QUANTIZED)


def check_quantization(zero: dict[str, Any], device: torch.device) -> None:
    """Raise SharedError if the section "zero_optimization" quantizes on a CPU, for which DeepSpeed has no kernels."""
    requested = [name for name in QUANTIZED if zero.get(name)]
    if requested and device.type == "cpu":
        raise SharedError(
            f"The DeepSpeed file sets {requested[0]}, for which DeepSpeed has GPU kernels only: use another file on a "
            f"CPU, such as ds_configs/zero3.json."
        )
