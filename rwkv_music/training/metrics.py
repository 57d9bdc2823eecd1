"""Metrics: TensorBoard curves, throughput and model FLOP utilization (MFU), memory, and traces."""

import re
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.profiler import ProfilerActivity
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rwkv_music.errors import explained, plural
from rwkv_music.training.wandb_run import WandbRun

# Dense bf16 matrix rates with fp32 accumulation, FLOP/s, by the name that the driver reports. The names must match in
# full: the variants of a chip (PCIe, NVL, laptop, a MIG slice) have other rates. H800 and A800 have those of H100 and
# A100. Sources: NVIDIA's datasheets of HGX B200, GB200 NVL72, GH200, H200 and H100, which state rates with sparsity,
# twice the dense ones (4.5, 5 and 1.979 PFLOP/s; NVL 1.671, H100 PCIe 1.513); those of A100 (312 TFLOP/s) and L40S
# (362.05); its architecture whitepapers of RTX Blackwell (209.5), Ada (165.2) and GA102 (71). Some were read in
# copies; those of H200 NVL, GH200, RTX 5090 and RTX 3090 could not be confirmed again.
PEAK_FLOPS = {
    r"NVIDIA B200": 2250e12,
    r"NVIDIA GB200": 2500e12,
    r"NVIDIA GH200 (96GB|120GB|144GB|144G|480GB)( HBM3e?)?": 989e12,
    r"NVIDIA H200": 989e12,
    r"NVIDIA H200 NVL": 836e12,
    r"NVIDIA H[18]00( 80GB HBM3)?": 989e12,
    r"NVIDIA H[18]00 PCIe": 756e12,
    r"NVIDIA H100 NVL": 836e12,
    r"(NVIDIA )?A[18]00(-SXM4|-PCI[Ee])?-(40|80)GB": 312e12,
    r"(NVIDIA )?A[18]00 80GB PCIe": 312e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA GeForce RTX 5090": 209e12,
    r"NVIDIA GeForce RTX 4090": 165e12,
    r"NVIDIA GeForce RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> tuple[float, str]:
    """Return the FLOP/s that count as 100% on one device, and where the figure is from.

    A CPU, or a GPU that no name in `PEAK_FLOPS` matches, is measured with a large matrix product, in under a second.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for known, rate in PEAK_FLOPS.items():
        if re.fullmatch(known, name):
            return rate, f"{name} datasheet"
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    own = torch.Generator(device).manual_seed(0)  # leaves the run's random state alone
    a = torch.randn(size, size, dtype=dtype, device=device, generator=own)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"{name}, measured matrix product"


def model_flop_utilization(matrix_parameters: int, tokens_per_second: float, flops: float) -> float:
    """Return the MFU: 6 FLOP per matrix parameter and token (forward and backward), over the peak rate."""
    return 6 * matrix_parameters * tokens_per_second / flops


@dataclass
class Stopwatch:
    """A stopwatch of training time; pauses (validation, saving, samples) do not count."""

    tokens: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def pause(self) -> None:
        self.seconds += time.perf_counter() - self.started

    def resume(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Return the tokens per second since the last lap."""
        self.pause()
        rate = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds = 0, 0.0
        self.resume()
        return rate


class Trace:
    """A trace of some steps, RUN/profile/rank_NN.json.gz, for Perfetto (ui.perfetto.dev) or chrome://tracing.

    It starts after `WARM_UP` steps, in which caches fill and kernels are selected. With 0 steps nothing is traced.
    """

    WARM_UP = 10

    def __init__(self, run: str | Path, rank: int, steps: int, device: torch.device) -> None:
        self._path = Path(run) / "profile" / f"rank_{rank:02d}.json.gz"
        self._steps, self._done = steps, 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profiler = torch.profiler.profile(activities=activities) if steps else None

    def step(self, last: bool = False) -> bool:
        """Note the end of a step, and whether it is the last; return whether the trace ends with it."""
        self._done += 1
        if self._profiler is None:
            return False
        traced = self._done - self.WARM_UP
        if traced == 0 and not last:
            self._profiler.start()
        return last or traced >= self._steps

    def write(self) -> str:
        """End and write the trace, and return a line about it."""
        profiler, self._profiler = self._profiler, None
        traced = self._done - self.WARM_UP
        if traced <= 0:
            return (
                f"--profile starts after {self.WARM_UP} steps, and there were only {self._done}: no trace was written"
            )
        profiler.stop()
        with explained(f"writing {self._path}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._path))
        return f"The trace of the last {plural(traced, 'step')} is in {self._path}"


# The charts of TensorBoard's tab CUSTOM SCALARS, in order: {category: {title: tags}}. Tags are patterns. A run gets no
# charts for curves that it does not have: they would be empty.
LAYOUT = {
    "Loss": {
        "loss, nats per token": ["train/loss$", "val/loss$", "val/bigram_loss$"],
        "validation loss of each dataset": ["val/loss_.+$"],
        "validation, bits per note": ["val/bits_per_note$"],
        "completions, nats per token": ["val/completion_loss$"],
        "holes, nats per token": ["val/infill_loss$"],
    },
    "Progress": {
        "seconds per step": ["speed/step_seconds$"],
        "tokens seen": ["train/tokens$"],
        "learning rate": ["train/lr$"],
        "gradient norm": ["train/grad_norm$"],
        "skipped steps": ["train/skipped_steps$"],
        "tokens per second": ["speed/tokens_per_second$"],
        "model FLOP utilization": ["speed/mfu$"],
    },
    "Memory": {"peak GPU memory, GiB": ["vram/peak_gib$"]},
}


class Curves:
    """The writer of TensorBoard's event files in the run folder; it writes only if enabled.

    `absent` names curves that the run does not have, which get no chart in the tab CUSTOM SCALARS.

    After a resume, points that an earlier process wrote past the checkpoint are purged, so that there is one curve.
    TensorBoard writes in a thread; if that fails, the next call here, or `close`, raises UserError.
    """

    def __init__(
        self,
        folder: str | Path,
        first_step: int,
        enabled: bool,
        wandb: WandbRun | None = None,
        absent: Collection[str] = (),
    ) -> None:
        self._writer, self._wandb = None, wandb  # wandb also receives scalars and images
        if enabled:
            with explained(f"opening TensorBoard's event file in {folder}"):
                self._writer = SummaryWriter(str(folder), purge_step=first_step)
                self._writer.add_custom_scalars(_layout(absent))
            _silence_writer_thread_errors()

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
        """Write an image, uint8 [height, width, 3]."""
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_image(tag, pixels, step, dataformats="HWC")
            if self._wandb is not None:
                self._wandb.image(step, tag, pixels)

    def sound(self, step: int, tag: str, samples: np.ndarray, sample_rate: int) -> None:
        """Write sound, float32 [1, n] in -1 .. 1."""
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_audio(tag, samples, step, sample_rate)

    def text(self, tag: str, markdown: str) -> None:
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_text(tag, markdown)

    def hyperparameters(
        self,
        step: int,
        values: dict[str, bool | float | str],
        metrics: tuple[str, ...],
        first: Collection[str] = (),
    ) -> None:
        """Write this run's row of the HParams tab: `values`, and the last points of the curves `metrics`.

        The columns of the values `first` come first.

        torch's `add_hparams` would write them, and copies of the points, into a folder that looks like another run.
        """
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                experiment, *session = hparams(values, dict.fromkeys(metrics))
                for summary in (_marked(experiment, first), *session):
                    self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        if self._writer is not None:
            with explained("closing TensorBoard's event file"):
                self._writer.flush()  # raises the thread's error; close does not
                self._writer.close()


def _layout(absent: Collection[str]) -> dict[str, dict[str, list]]:
    """Return `LAYOUT` without the curves `absent` and without empty charts and categories, as torch expects it."""
    layout: dict[str, dict[str, list]] = {}
    for category, charts in LAYOUT.items():
        for title, tags in charts.items():
            if known := [tag for tag in tags if tag.rstrip("$") not in absent]:
                layout.setdefault(category, {})[title] = ["Multiline", known]
    return layout


def _marked(experiment: Summary, first: Collection[str]) -> Summary:
    """Mark the hyperparameters `first` as those that differ among runs; TensorBoard sorts by this, then by name."""
    [value] = experiment.value
    data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in first
    value.metadata.plugin_data.content = data.SerializeToString()
    return experiment


def _silence_writer_thread_errors() -> None:
    """Suppress the traceback of a disk error in TensorBoard's thread, which is raised again by the next write."""
    before = threading.excepthook
    if getattr(before, "silences_writer", False):
        return

    def hook(raised: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(raised.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(raised.exc_value, OSError)):
            before(raised)

    hook.silences_writer = True
    threading.excepthook = hook


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory, in bytes, that torch has held on the device since the start; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
