"""RWKV-Music: trains RWKV v8 "Heron" models on MIDI with DeepSpeed, and completes pieces with them.

    RWKV, ModelConfig    the model: `from_pretrained`, logits, `loss`, `generate`; its shape
    find_codec           what a model's tokens mean: the codec that lies with its weights
    complete, Completion, Sampling
                         pieces of music continued bar by bar; how tokens are drawn
    export               weights for other programs
    wkv7s                the recurrence alone
    UserError            what all of these raise for a user's mistake, one sentence with the remedy

They are imported when they are first asked for: the workers that read MIDI, and the doctor on a machine whose torch is
broken, need none of them.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_HOMES = {
    "RWKV": "model_v8",
    "ModelConfig": "config",
    "find_codec": "weights",
    "complete": "generation",
    "Completion": "generation",
    "Sampling": "sampling",
    "export": "export",
    "wkv7s": "wkv7s",
    "UserError": "errors",
}
__all__ = [*_HOMES, "__version__"]


class _Package(ModuleType):
    """This package: its public names are imported on demand."""

    def __getattr__(self, name: str):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __setattr__(self, name: str, value) -> None:
        # Importing the modules wkv7s and export puts them here under their names, which are those of public functions.
        if name in ("wkv7s", "export") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
