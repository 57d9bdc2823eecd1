"""Start without importing torch.compile, which training does not use.

The import takes several seconds of CPU time on every rank. PyTorch imports torch.compile at the first call of some
methods of an optimizer, in order to exclude them from compilation. DeepSpeed imports it together with DeepSpeed's own
Muon, which is decorated with torch.compile. The hooks of ZeRO-3 also import it, so this module is not used under
ZeRO-3.
"""

from collections.abc import Callable
from typing import Any

from deepspeed.runtime import compiler
from torch.optim import Optimizer

# The methods that `torch._disable_dynamo` wraps. Each wrapper looks up `_ATTRIBUTE` on the wrapped function, and
# imports torch.compile only if the attribute is missing.
_METHODS = (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict)
_ATTRIBUTE = "__dynamo_disable"


def avoid_torch_compile() -> None:
    """Keep optimizers and DeepSpeed's Muon from importing torch.compile. Call this before creating an optimizer."""
    for method in _METHODS:
        if (plain := getattr(method, "__wrapped__", None)) is not None and not hasattr(plain, _ATTRIBUTE):
            setattr(plain, _ATTRIBUTE, plain)

    def compile_nothing(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda function: function

    compile_, compiler.compile = compiler.compile, compile_nothing
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compile_
