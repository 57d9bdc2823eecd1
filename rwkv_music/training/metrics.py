"""What a run shows: curves for TensorBoard, throughput and model FLOP utilisation, memory."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rwkv_music.errors import explained

if TYPE_CHECKING:
    from rwkv_music.training.wandb_run import WandbRun

# Dense bf16 matrix rates by the vendors' datasheets, FLOP/s; the first name found in the device's name counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> tuple[float, str]:
    """FLOP/s that count as 100% on one device, and where the figure is from.

    For a GPU in `PEAK_FLOPS` the datasheet's; else the rate of a large matrix product measured now, which takes under
    a second.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for known, rate in PEAK_FLOPS.items():
        if known in name:
            return rate, f"{name} datasheet"
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    own = torch.Generator(device).manual_seed(0)  # the run's random state is not to be touched
    a = torch.randn(size, size, dtype=dtype, device=device, generator=own)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"{name}, a matrix product measured here"


def model_flop_utilisation(matrix_parameters: int, tokens_per_second: float, flops: float) -> float:
    """MFU by the usual definition: 6 FLOP a matrix parameter and token (forward and backward) over the peak rate."""
    return 6 * matrix_parameters * tokens_per_second / flops


@dataclass
class Stopwatch:
    """Tokens a second over the training alone: pauses (validation, saving, samples) do not count."""

    tokens: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def pause(self) -> None:
        self.seconds += time.perf_counter() - self.started

    def go_on(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Tokens a second since the last lap."""
        self.pause()
        rate = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds = 0, 0.0
        self.go_on()
        return rate


class Trace:
    """A trace of some steps, RUN/profile/rank_NN.json.gz: for Perfetto (ui.perfetto.dev) or chrome://tracing.

    Args:
        steps: how many to trace, after `SETTLED` others, in which caches fill and kernels are chosen; 0 for none.
    """

    SETTLED = 10

    def __init__(self, run: str | Path, rank: int, steps: int, device: torch.device) -> None:
        self._path = Path(run) / "profile" / f"rank_{rank:02d}.json.gz"
        self._steps, self._done = steps, 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profiler = torch.profiler.profile(activities=activities) if steps else None

    def step(self, last: bool = False) -> str | None:
        """Told after every step, and of the last one that it is; what there is to say of the trace."""
        self._done += 1
        if self._profiler is None:
            return None
        traced = self._done - self.SETTLED
        if traced == 0 and not last:
            self._profiler.start()
        if traced < self._steps and not last:
            return None
        profiler, self._profiler = self._profiler, None
        if traced <= 0:
            return f"--profile begins after {self.SETTLED} steps of a start, and there were only {self._done}: no trace"
        profiler.stop()
        with explained(f"writing {self._path}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._path))
        return f"The last {traced} {'steps are' if traced > 1 else 'step is'} traced in {self._path}"


class Curves:
    """TensorBoard's event files in the run folder. On ranks other than 0 it writes nothing.

    After a resume, what an earlier process had written past the checkpoint is purged, so that there is one curve.

    A thread of TensorBoard's writes them. If the disk fails it, the next call here, or `close`, raises UserError.

    Args:
        wandb: where scalars and images go besides.
    """

    def __init__(self, folder: str | Path, first_step: int, enabled: bool, wandb: "WandbRun | None" = None) -> None:
        self._writer, self._wandb = None, wandb
        if enabled:
            with explained(f"opening TensorBoard's event file in {folder}"):
                self._writer = SummaryWriter(str(folder), purge_step=first_step)
            _leave_disk_errors_to_the_caller()

    def scalars(self, step: int, values: dict[str, float | None]) -> None:
        if self._writer is None:
            return
        known = {tag: value for tag, value in values.items() if value is not None}
        with explained("writing TensorBoard's event file"):
            for tag, value in known.items():
                self._writer.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.scalars(step, known)

    def image(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3]."""
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_image(tag, pixels, step, dataformats="HWC")
            if self._wandb is not None:
                self._wandb.image(step, tag, pixels)

    def sound(self, step: int, tag: str, samples: np.ndarray, sample_rate: int) -> None:
        """float32 [1, n] in -1 .. 1."""
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_audio(tag, samples, step, sample_rate)

    def text(self, tag: str, markdown: str) -> None:
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_text(tag, markdown)

    def hyperparameters(self, step: int, values: dict[str, bool | float | str], metrics: tuple[str, ...]) -> None:
        """This run's row in the HParams tab: `values`, and of the curves `metrics` the last points.

        torch's own `add_hparams` would write them, and copies of the points, into a folder that looks like another run.
        """
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                for summary in hparams(values, dict.fromkeys(metrics)):
                    self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        if self._writer is not None:
            with explained("closing TensorBoard's event file"):
                self._writer.flush()  # raises what its thread has met; close does not
                self._writer.close()


def _leave_disk_errors_to_the_caller() -> None:
    """Keep Python from printing the traceback of a disk error that TensorBoard's thread hands on to who writes next."""
    before = threading.excepthook
    if getattr(before, "leaves_disk_errors", False):
        return

    def hook(raised: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(raised.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(raised.exc_value, OSError)):
            before(raised)

    hook.leaves_disk_errors = True
    threading.excepthook = hook


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that torch has held on the device since the start; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def model_state_bytes(parameters: int, trained: int, zero_stage: int, world_size: int, bf16: bool) -> int:
    """Bytes of weights, gradients and AdamW's states on one rank, without activations (ZeRO, arXiv 1910.02054).

    AdamW keeps 12 bytes for each parameter that is trained (fp32 master weight and two moments); stage 1 shares them
    out, stage 2 the gradients as well, stage 3 the weights too.
    """
    size = 2 if bf16 else 4
    weights = parameters * size / (world_size if zero_stage == 3 else 1)
    gradients = trained * size / (world_size if zero_stage >= 2 else 1)
    return round(weights + gradients + trained * 12 / world_size)
