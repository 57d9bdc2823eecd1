"""Detect skipped steps and loss spikes."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from rwkv_music.training.deepspeed_engine.engine import Engine


class SkippedSteps:
    """A counter of the steps that were skipped because their gradient was not finite.

    The counts stay on the device and are the same on every rank. The host reads them only when it waits for the device
    anyway.
    """

    def __init__(self, engine: Engine, before: int = 0, in_a_row: int = 0) -> None:
        self._engine, self._before = engine, before  # steps skipped up to the checkpoint that the run resumes from
        self._last = engine.skipped_steps()
        self._in_a_row = torch.full_like(self._last, in_a_row)  # consecutive skipped steps up to now

    def note(self, losses: Tensor) -> Tensor:
        """Update the count after a step. Return the step's `losses`, or zeros if the step was skipped."""
        count = self._engine.skipped_steps()
        skipped = count != self._last
        self._last = count
        self._in_a_row = torch.where(skipped, self._in_a_row + 1, 0)
        return torch.where(skipped, 0, losses)

    def read(self) -> tuple[int, int]:
        """Return the number of skipped steps in the whole run, and in a row up to now. Waits for the device."""
        total, in_a_row = torch.stack([self._last, self._in_a_row]).tolist()
        return self._before + total, in_a_row


class SpikeDetector:
    """A detector of losses far above the recent losses.

    A spike is a loss that is not finite, or that exceeds the median of the last `LEVEL` losses by more than
    `DEVIATIONS` standard deviations and by more than `MINIMUM` nats. The standard deviation is estimated from the
    median of the differences between consecutive losses. Neither a steadily falling loss nor a single outlier therefore
    increases it much. No loss counts as a spike until `WINDOW` / 2 losses are known.
    """

    WINDOW = 32
    LEVEL = 8
    DEVIATIONS = 8.0
    MINIMUM = 0.3  # nats per token

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=self.WINDOW)

    @property
    def losses(self) -> tuple[float, ...]:
        """The last losses that were not spikes, oldest first."""
        return tuple(self._losses)

    def is_spike(self, loss: float) -> bool:
        """Return whether `loss` is a spike; if not, add it to the known losses."""
        known = list(self._losses)
        if len(known) >= self.WINDOW // 2:
            level = statistics.median(known[-self.LEVEL :])
            between = statistics.median(abs(b - a) for a, b in zip(known[:-1], known[1:], strict=True))
            deviation = 1.4826 * between / math.sqrt(2)  # exact for independent, normally distributed losses
            if not math.isfinite(loss) or loss > level + max(self.DEVIATIONS * deviation, self.MINIMUM):
                return True
        self._losses.append(loss)
        return False
