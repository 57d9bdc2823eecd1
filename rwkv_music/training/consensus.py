"""Agreement among ranks: an error on one rank is raised on all ranks, and a flag set on one rank reaches all ranks."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from rwkv_music.errors import SharedError, UserError, describe_os_error
from rwkv_music.training.signals import CRASHED, Stopped

T = TypeVar("T")


class RankCrashed(Stopped):
    """A stop because another rank failed with an unexpected exception. That rank prints its traceback."""


def raise_on_any_rank(doing: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank and return its result; if it fails on any rank, raise on all ranks. Collective.

    If `action` raises UserError or OSError on a rank, every rank raises the same SharedError. Any other exception is
    raised unchanged on the rank where it occurred, and the other ranks raise RankCrashed. `doing` describes the action,
    for example "reading X".
    """
    result, fault, unexpected = None, None, None
    try:
        result = action()
    except OSError as error:
        fault = describe_os_error(error, doing)
    except UserError as error:
        fault = str(error)
    except Exception as error:  # raised after the collective below, for which the other ranks wait
        unexpected = error
    crash = unexpected and f"{type(unexpected).__name__}: {unexpected}"
    found: list[tuple[str | None, str | None]] = [(None, None)] * dist.get_world_size()
    dist.all_gather_object(found, (fault, crash))
    if unexpected is not None:
        raise unexpected
    for rank, (_, other) in enumerate(found):
        if other is not None:
            raise RankCrashed(f"rank {rank} crashed while {doing} ({other}); see the traceback it printed", CRASHED)
    for message, _ in found:
        if message is not None:
            raise SharedError(message)
    return result


def on_rank0(action: Callable[[], T]) -> Callable[[], T | None]:
    """Return a function that runs `action` on rank 0 and does nothing on the others."""
    return lambda: action() if dist.get_rank() == 0 else None


def from_rank0(doing: str, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its result on every rank. Collective. Raises as `raise_on_any_rank` does."""
    result = [raise_on_any_rank(doing, on_rank0(action))]
    dist.broadcast_object_list(result, src=0)
    return result[0]


class ConsensusFlags:
    """Flags that the ranks combine with one small all-reduce per step, which also sums their numbers of targets.

    The host does not wait for the end of the step. The sums are copied to the host before the kernels of the step run,
    so the host can read them while the kernels run.
    """

    def __init__(self, device: torch.device, n_flags: int) -> None:
        on_gpu = device.type == "cuda"
        self._sum = torch.zeros(1 + n_flags, dtype=torch.float64, device=device)
        self._on_host = torch.zeros(1 + n_flags, dtype=torch.float64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def start(self, targets: int, *flags: bool) -> Tensor:
        """Start the all-reduce. Return the number of targets of all ranks, float32 [] on the device."""
        for i, value in enumerate((targets, *flags)):
            self._sum[i : i + 1].fill_(value)  # `self._sum[i] = value` would wait for a copy from the host
        dist.all_reduce(self._sum)
        self._on_host.copy_(self._sum, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self._sum[0].float()

    def sync(self) -> list[bool]:
        """Wait for the last all-reduce. Return, for each flag, whether it was set on any rank."""
        if self._copied is not None:
            self._copied.synchronize()
        return [count > 0 for count in self._on_host[1:].tolist()]
