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

# Dense bf16 matrix rates with fp32 accumulation, in FLOP/s, by the GPU name that the driver reports. The whole name
# must match, because variants of a chip (PCIe, NVL, laptop, a MIG slice) have other rates. H800 and A800 have the rates
# of H100 and A100. Sources, all by NVIDIA:
# - datasheets with rates for sparse matrices, which are twice the dense rates: HGX B200 (4.5 PFLOP/s), GB200 NVL72 (5),
#   GH200, H200 and H100 (1.979), H200 NVL and H100 NVL (1.671), H100 PCIe (1.513);
# - datasheets with dense rates: A100 (312 TFLOP/s), L40S (362.05);
# - architecture whitepapers: RTX Blackwell (209.5 TFLOP/s), Ada (165.2), GA102 (71).
# The rates of H200 NVL, GH200, RTX 5090 and RTX 3090 come from publications that quote these documents. The documents
# themselves have not been checked.
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
    """Return the FLOP/s of one device that count as 100% MFU, and where the number comes from.

    If `PEAK_FLOPS` has no entry for the device, its rate is measured with a large matrix product, in under a second.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for known, rate in PEAK_FLOPS.items():
        if re.fullmatch(known, name):
            return rate, f"{name}, published rate"
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    own = torch.Generator(device).manual_seed(0)  # does not change torch's global random state
    a = torch.randn(size, size, dtype=dtype, device=device, generator=own)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"{name}, measured matrix product"


def model_flop_utilization(matrix_parameters: float, tokens_per_second: float, flops: float) -> float:
    """Return the MFU: 6 FLOP per matrix parameter and token (forward and backward), divided by the peak `flops`."""
    return 6 * matrix_parameters * tokens_per_second / flops


@dataclass
class Stopwatch:
    """A stopwatch for training time. Validation, saving and sampling do not count."""

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
    """A trace of `steps` steps in RUN/profile/rank_NN.json.gz, for Perfetto (ui.perfetto.dev) or chrome://tracing.

    It starts after `WARM_UP` steps, in which caches fill and kernels are selected. If `steps` is 0, nothing is traced.
    """

    WARM_UP = 10

    def __init__(self, run: str | Path, rank: int, steps: int, device: torch.device) -> None:
        self._path = Path(run) / "profile" / f"rank_{rank:02d}.json.gz"
        self._steps, self._done = steps, 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profiler = torch.profiler.profile(activities=activities) if steps else None

    def step(self, last: bool = False) -> bool:
        """Count a step that has ended. Return whether the trace ends with this step; `last` ends it in any case."""
        self._done += 1
        if self._profiler is None:
            return False
        traced = self._done - self.WARM_UP
        if traced == 0 and not last:
            self._profiler.start()
        return last or traced >= self._steps

    def write(self) -> str:
        """End and write the trace. Return a sentence about it, without a full stop.

        Raises UserError if the file cannot be written.
        """
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


# The charts of TensorBoard's tab CUSTOM SCALARS, in order: {category: {title: tags}}. A tag is a regular expression.
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
    """A writer of TensorBoard's event files in the run folder. It writes nothing unless `enabled`.

    Points that an earlier process wrote at `first_step` or later are purged, so that a resumed run continues its
    curves. `absent` names the curves that the run does not have, so that the tab CUSTOM SCALARS shows no empty charts.

    TensorBoard writes in a thread. If the thread fails, the next method call raises UserError.
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
        """Write an image, uint8 [height, width, 3] (RGB)."""
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                self._writer.add_image(tag, pixels, step, dataformats="HWC")
            if self._wandb is not None:
                self._wandb.image(step, tag, pixels)

    def sound(self, step: int, tag: str, samples: np.ndarray, sample_rate: int) -> None:
        """Write mono sound, float32 [1, n], from -1 to 1."""
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

        `first` names the values that are shown in the first columns.

        torch's `add_hparams` is not used: it would write the values, and copies of the points, into a subfolder that
        TensorBoard shows as another run.
        """
        if self._writer is not None:
            with explained("writing TensorBoard's event file"):
                experiment, *session = hparams(values, dict.fromkeys(metrics))
                for summary in (_marked(experiment, first), *session):
                    self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        if self._writer is not None:
            with explained("closing TensorBoard's event file"):
                self._writer.flush()  # raises an error of the thread, which `close` would not
                self._writer.close()


def _layout(absent: Collection[str]) -> dict[str, dict[str, list]]:
    """Return `LAYOUT`, in torch's form, without the curves `absent` and without empty charts and categories."""
    layout: dict[str, dict[str, list]] = {}
    for category, charts in LAYOUT.items():
        for title, tags in charts.items():
            if known := [tag for tag in tags if tag.rstrip("$") not in absent]:
                layout.setdefault(category, {})[title] = ["Multiline", known]
    return layout


def _marked(experiment: Summary, first: Collection[str]) -> Summary:
    """Mark the hyperparameters `first` as differing among runs. TensorBoard shows these first, then sorts by name."""
    [value] = experiment.value
    data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in first
    value.metadata.plugin_data.content = data.SerializeToString()
    return experiment


def _silence_writer_thread_errors() -> None:
    """Suppress the traceback of a disk error in TensorBoard's thread: the next write raises the error again."""
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
    """Return the peak number of bytes that torch has allocated on the device since the start; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
