"""RWKV-Music trains RWKV v8 "Heron" models on MIDI with DeepSpeed and generates music with them.

    RWKV, ModelConfig    the model (`from_pretrained`, logits, `loss`, `generate`) and its shape
    find_codec           load the tokenizer stored with a model's weights
    complete, Completion, fill, Filling, NewPart, Sampling
                         continue pieces by whole bars, or fill in bars and parts; sampling settings
    export               convert weights for other programs
    wkv7s                the recurrence of RWKV v7 and v8 as a differentiable operator
    UserError            the exception for usage errors and system faults; its message contains the remedy

Each name is imported on first access. Worker processes that only read MIDI therefore do not import torch, and `doctor`
runs on a machine where torch is broken.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "RWKV": "generation.pretrained",
    "ModelConfig": "config",
    "find_codec": "checkpoint.weights",
    "complete": "generation.completion",
    "Completion": "generation.completion",
    "fill": "generation.fill",
    "Filling": "generation.fill",
    "NewPart": "midi.cells",
    "Sampling": "generation.sampling",
    "export": "checkpoint.export",
    "wkv7s": "ops.wkv7s",
    "UserError": "errors",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
