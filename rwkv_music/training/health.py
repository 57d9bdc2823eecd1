"""Is the run well? Steps that were skipped, and losses that spike."""

import math
import statistics
from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import deepspeed


class SkippedSteps:
    """Counts the steps that changed nothing because their gradient was not finite.

    Whether a step was skipped is known on the device, on every rank alike; the host asks when it waits anyway.

    Args:
        before: how many had been skipped when the run was last saved.
    """

    def __init__(self, engine: "deepspeed.DeepSpeedEngine", device: torch.device, before: int = 0) -> None:
        self._engine, self._device, self._before = engine, device, before
        self._last = self._count()
        self._in_a_row = torch.zeros_like(self._last)

    def _count(self) -> Tensor:
        """Since the engine was made; int64 []."""
        update = getattr(self._engine, "update_on_device", None)
        if update is not None:
            return update.skipped.clone()
        return torch.full((), self._engine.skipped_steps, dtype=torch.int64, device=self._device)

    def note(self, losses: Tensor) -> Tensor:
        """To be told of every step; its `losses`, or zeros if it was skipped."""
        count = self._count()
        skipped = count != self._last
        self._last = count
        self._in_a_row = torch.where(skipped, self._in_a_row + 1, 0)
        return torch.where(skipped, 0, losses)

    def read(self) -> tuple[int, int]:
        """How many in the whole run, and how many in a row up to now; waits for the device.

        While the second is not 0 the weights may be beyond saving.
        """
        total, in_a_row = torch.stack([self._last, self._in_a_row]).tolist()
        return self._before + total, in_a_row


class SpikeDetector:
    """Tells a loss that has left its course from one that only varies.

    A spike is a loss above the median of the last `LEVEL` ones by more than `DEVIATIONS` standard deviations, and by
    more than `LEAST` nats. The deviation is that of one loss from the next, which a course that falls steadily does not
    widen, estimated from the median, which one outlier does not move. Until half of the `WINDOW` is known nothing is a
    spike.
    """

    WINDOW = 32
    LEVEL = 8
    DEVIATIONS = 8.0
    LEAST = 0.3  # nats a token

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=self.WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is one; if not, it joins the course."""
        known = list(self._losses)
        if len(known) >= self.WINDOW // 2:
            level = statistics.median(known[-self.LEVEL :])
            between = statistics.median(abs(b - a) for a, b in zip(known[:-1], known[1:], strict=True))
            deviation = 1.4826 * between / math.sqrt(2)  # of a normal distribution, from the median of differences
            if not math.isfinite(loss) or loss > level + max(self.DEVIATIONS * deviation, self.LEAST):
                return True
        self._losses.append(loss)
        return False
