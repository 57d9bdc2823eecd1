"""RWKV-Music: trains RWKV v8 "Heron" models on MIDI with DeepSpeed, and completes pieces with them.

    RWKV, ModelConfig    the model (`from_pretrained`, logits, `loss`, `generate`) and its shape
    find_codec           the tokenizer stored beside a model's weights
    complete, Completion, Sampling
                         continuing pieces bar by bar, and how tokens are drawn
    export               weights for other programs
    wkv7s                the recurrence as an operator
    UserError            raised by all of these for a user's mistake: one sentence with the remedy

Each name is imported on first access, so that the worker processes that read MIDI, and `doctor` on a machine whose
torch is broken, need none of the others.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "RWKV": "generation.pretrained",
    "ModelConfig": "config",
    "find_codec": "checkpoint.weights",
    "complete": "generation.completion",
    "Completion": "generation.completion",
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
