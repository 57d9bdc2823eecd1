"""RWKV-Music: trains RWKV v8 "Heron" models on MIDI with DeepSpeed, and completes pieces with them.

`RWKV`, `ModelConfig` and `wkv7s` are imported when they are first asked for: the workers that read MIDI, and the doctor
on a machine whose torch is broken, need none of them.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["RWKV", "ModelConfig", "wkv7s", "__version__"]

_HOMES = {"RWKV": "model_v8", "ModelConfig": "config", "wkv7s": "wkv7s"}


class _Package(ModuleType):
    """This package: its public names are imported on demand."""

    def __getattr__(self, name: str):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __setattr__(self, name: str, value) -> None:
        # Importing the module wkv7s puts it here under its name, which is the operator's public one.
        if name == "wkv7s" and isinstance(value, ModuleType):
            value = value.wkv7s
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
