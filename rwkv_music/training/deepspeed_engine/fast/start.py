"""Start without importing torch.compile, which training does not use.

The import takes several seconds of CPU time on every rank. PyTorch imports it with the first call of an optimizer's
method, in order to exclude the method from compilation, and DeepSpeed with its Muon, which is decorated with it. The
hooks of ZeRO-3 import it, too, so a run with ZeRO-3 is not changed.
"""

from collections.abc import Callable
from typing import Any

from deepspeed.runtime import compiler
from torch.optim import Optimizer

# The methods that `torch._disable_dynamo` wraps. It looks up this attribute of the wrapped function and imports
# torch.compile only if the attribute is missing.
_METHODS = (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict)
_ATTRIBUTE = "__dynamo_disable"


def avoid_torch_compile() -> None:
    """Let optimizers and DeepSpeed's Muon run without importing torch.compile. Call it before the first optimizer."""
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
