"""Agreement among ranks: an error on one rank is raised on all, and flags that any rank sets reach all."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.errors import SharedError, UserError, describe_os_error

T = TypeVar("T")


def raise_on_any_rank(doing: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank; if it raises UserError or OSError on any, raise the same SharedError on all."""
    fault, result = None, None
    try:
        result = action()
    except OSError as error:
        fault = describe_os_error(error, doing)  # doing is for example "reading X"
    except UserError as error:
        fault = str(error)
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    for message in faults:
        if message is not None:
            raise SharedError(message)
    return result


def on_rank0(action: Callable[[], T]) -> Callable[[], T | None]:
    """Return a function that runs `action` on rank 0 and does nothing on the others."""
    return lambda: action() if dist.get_rank() == 0 else None


class ConsensusFlags:
    """One small all-reduce per step: the step's number of targets, and flags that any rank may set.

    The device is never waited for: the sum is copied to the host while the step computes, and read after it.
    """

    def __init__(self, device: torch.device, n_flags: int) -> None:
        on_gpu = device.type == "cuda"
        self._sum = torch.zeros(1 + n_flags, dtype=torch.float64, device=device)
        self._on_host = torch.zeros(1 + n_flags, dtype=torch.float64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def start(self, targets: int, *flags: bool) -> Tensor:
        """Start the all-reduce; return the targets of all ranks, float32 [] on the device."""
        for i, value in enumerate((targets, *flags)):
            self._sum[i : i + 1].fill_(value)  # `self._sum[i] = value` would copy from the host, and wait
        dist.all_reduce(self._sum)
        self._on_host.copy_(self._sum, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self._sum[0].float()

    def sync(self) -> list[bool]:
        """Wait for the last all-reduce; return for each flag whether any rank had set it."""
        if self._copied is not None:
            self._copied.synchronize()
        return [count > 0 for count in self._on_host[1:].tolist()]
