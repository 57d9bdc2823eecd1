"""What the ranks must know of each other: that something failed on one, and what any of them wishes before a step."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.errors import SharedError, UserError, describe_os_error

T = TypeVar("T")


def raise_on_any_rank(doing: str, action: Callable[[], T]) -> T:
    """Do `action` on every rank; if it fails on any, for a reason that can be told, all raise the same SharedError.

    Args:
        doing: what is being done, for the sentence of an operating-system error.
    """
    fault, result = None, None
    try:
        result = action()
    except OSError as error:
        fault = describe_os_error(error, doing)
    except UserError as error:
        fault = str(error)
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    for said in faults:
        if said is not None:
            raise SharedError(said)
    return result


def on_rank0(action: Callable[[], T]) -> Callable[[], T | None]:
    """`action` on rank 0, nothing on the others."""
    return lambda: action() if dist.get_rank() == 0 else None


class ConsensusFlags:
    """One small sum before every step: the step's targets, and who wishes what after it.

    The device is never waited for: the sum is copied to the host beside the step's work, and read when that is done.
    """

    def __init__(self, device: torch.device, n_flags: int) -> None:
        on_gpu = device.type == "cuda"
        self._sum = torch.zeros(1 + n_flags, dtype=torch.float64, device=device)
        self._on_host = torch.zeros(1 + n_flags, dtype=torch.float64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def exchange(self, targets: int, *wishes: bool) -> Tensor:
        """The targets of all ranks, float32 [], on the device."""
        for i, value in enumerate((targets, *wishes)):
            self._sum[i : i + 1].fill_(value)  # `self._sum[i] = value` would copy it from the host, and wait
        dist.all_reduce(self._sum)
        self._on_host.copy_(self._sum, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self._sum[0].float()

    def sync(self) -> list[bool]:
        """Which wishes any rank had at the last exchange, the same on all."""
        if self._copied is not None:
            self._copied.synchronize()
        return [count > 0 for count in self._on_host[1:].tolist()]
