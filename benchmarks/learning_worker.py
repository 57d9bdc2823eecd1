"""Run the jobs of learning.py on one GPU, in one process. Started by learning.py.

    python benchmarks/learning_worker.py < jobs

Each line of the standard input is a job in JSON. Each line of the standard output is a JSON object: after each
validation the points so far, and at the end of a job its result. What the jobs print goes to the standard error.

RWKV is trained in the same way as by `train.py`, with DeepSpeed's engine and the project's kernels, but without saving
checkpoints. The Transformer is trained by the loop in this file, on the same batches.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rwkv_music.openmp import share_cores

if __name__ == "__main__":  # before torch is imported
    share_cores(int(os.environ.get("LEARNING_WORKERS", "1")))

import torch
import transformer
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import PRESETS, DataConfig, TrainConfig
from rwkv_music.data.dataset import Batch, MusicDataset
from rwkv_music.errors import UserError
from rwkv_music.training import setup as setup_module
from rwkv_music.training.arguments import configure, parse
from rwkv_music.training.learning_rate import learning_rate
from rwkv_music.training.loop import Loop
from rwkv_music.training.process_group import init_process_group
from rwkv_music.training.setup import Context, setup
from rwkv_music.training.signals import leave

PROJECT = Path(__file__).parent.parent
WARM_UP = 10  # step times that the median leaves out


class Recorder:
    """The curves and the step times of a run. `note` receives the points so far after each validation."""

    def __init__(self, note: Callable[[dict], None]) -> None:
        self._note, self._ends = note, []
        self.validation: list[list[float]] = []  # step, nats per token
        self.training: list[list[float]] = []  # step, mean nats per token since the point before
        self.on_gpu = torch.cuda.is_available()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def step_ended(self) -> None:
        """Record the end of a step, as the GPU reaches it."""
        if self.on_gpu:
            self._ends.append(torch.cuda.Event(enable_timing=True))
            self._ends[-1].record()
        else:
            self._ends.append(time.perf_counter())

    def interrupted(self) -> None:
        """Exclude the time until the next end of a step, which contains more than the step."""
        self._ends.append(None)

    def validated(self, step: int, loss: float) -> None:
        self.validation.append([step, round(loss, 5)])
        self._note({"validation": self.validation, "training": self.training, "step_ms": self.step_ms()})

    def step_ms(self) -> float | None:
        """Return the median milliseconds per step. Waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()
        pairs = zip(self._ends, self._ends[1:], strict=False)
        times = [
            a.elapsed_time(b) if self.on_gpu else 1e3 * (b - a) for a, b in pairs if a is not None and b is not None
        ]
        times = times[WARM_UP:] or times
        return statistics.median(times) if times else None

    def figures(self) -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None
        return {
            "validation": self.validation,
            "training": self.training,
            "step_ms": self.step_ms(),
            "peak_gib": peak and round(peak, 2),
        }


# ---- RWKV ------------------------------------------------------------------------------------------------------------


class RecordedLoop(Loop):
    """The training loop, recorded. It saves no checkpoints and keeps the process group for the next run."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        super().__init__(context)
        self._recorder = recorder

    def step(self, batches: list[Batch], lr: float, unreadable: bool = False) -> Tensor:
        result = super().step(batches, lr, unreadable)
        self._recorder.step_ended()
        return result

    def validate(self) -> None:
        super().validate()
        self._recorder.interrupted()

    def write_scalars(self, values: dict[str, float | None]) -> None:
        step = self.progress.step
        if values.get("train/loss") is not None:
            self._recorder.training.append([step, round(values["train/loss"], 5)])
        if "val/loss" in values:
            self._recorder.validated(step, values["val/loss"])

    def save(self) -> None:
        self.saved_step = self.progress.step

    def close(self) -> None:
        self.saver.close()
        self.curves.close()


def process_group(backend: str, minutes: float) -> dist.Store:
    """Form the process group at the first run and keep it: DeepSpeed holds references to it."""
    return dist.HashStore() if dist.is_initialized() else init_process_group(backend, minutes)


def train_rwkv(job: dict[str, Any], note: Callable[[dict], None]) -> dict[str, Any]:
    recorder = Recorder(note)
    with tempfile.TemporaryDirectory() as run:
        line = ["--out", run, "--deepspeed_config", PROJECT / "ds_configs" / "zero2.json", "--preset", job["preset"]]
        line += ["--optimizer", job["optimizer"], "--channel_mix", job["channel_mix"], "--seed", job["seed"]]
        for name in SHARED:
            line += [f"--{name}", job[name]]
        line += ["--lr", job["lr"], "--lr_final", job["lr"] * FINAL, "--log_every", job["val_every"], "--save_every", 0]
        options = parse(list(map(str, line)))
        context = setup(configure(options), options.deepspeed_config, given=set(vars(options)))
        loop = RecordedLoop(context, recorder)
        try:
            loop.run()
        finally:
            loop.close()
        facts = {"parameters": context.size.parameters, "matrix_parameters": context.size.matrix_parameters}
        return {**facts, **recorder.figures()}


# ---- Transformer -----------------------------------------------------------------------------------------------------

# Settings of train.py that both have.
SHARED = ("data", "ctx_len", "batch_size", "steps", "warmup_steps", "weight_decay", "augment", "val_every")
FINAL = 0.1  # the learning rate at the last step, as a fraction of the highest
# Models by their settings, so that a worker compiles each once: the model, its training function, its attention.
models: dict[tuple, tuple[transformer.Transformer, Callable, str]] = {}


def train_transformer(job: dict[str, Any], note: Callable[[dict], None]) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = DataConfig(job["data"], job["ctx_len"], job["seed"], augment=job["augment"])
    rows, held_out = MusicDataset.of(data, "train"), MusicDataset.of(data, "val")
    train = TrainConfig(
        out="unused", steps=job["steps"], batch_size=job["batch_size"], warmup_steps=job["warmup_steps"], lr=job["lr"],
        lr_final=job["lr"] * FINAL, weight_decay=job["weight_decay"],
    )  # fmt: skip
    batch_size = train.batch_size

    def arguments(batch: Batch) -> tuple[Tensor, ...]:
        """Return the model's arguments, on a GPU in pinned memory."""
        tensors = batch.input_ids, batch.targets, batch.cu_seqlens
        return tuple(x.pin_memory() for x in tensors) if device.type == "cuda" else tensors

    def read(step: int) -> tuple[tuple[Tensor, ...], int]:
        batch = rows.batch(step * batch_size, (step + 1) * batch_size)
        return arguments(batch), batch.n_targets

    def on_device(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        moved = tuple(x.to(device, non_blocking=True) for x in tensors)
        torch._dynamo.mark_dynamic(moved[-1], 0)  # the number of documents: compile once for all
        return moved

    model, compute, attention = compiled_model(job, rows.vocab_size, device, on_device(read(0)[0]))
    optimizer = transformer.MixedPrecision(model, model.init_weights(job["seed"]), train.weight_decay, train.grad_clip)
    torch.manual_seed(job["seed"])  # of dropout
    recorder = Recorder(note)

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        total, targets = torch.zeros((), dtype=torch.float64, device=device), 0
        for batch in held_out.validation_batches(batch_size):
            total += model(*on_device(arguments(batch))).double()
            targets += batch.n_targets
        model.train()
        return total.item() / targets

    total, targets = torch.zeros((), dtype=torch.float64, device=device), 0
    gc.collect()
    gc.freeze()  # as the trainer does
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(read, 0)
        for step in range(train.steps):
            tensors, counted = upcoming.result()
            upcoming = reader.submit(read, step + 1)
            nats = compute(*on_device(tensors))
            (nats / counted).backward()
            optimizer.step(learning_rate(step, train))
            total, targets = total + nats.detach(), targets + counted
            recorder.step_ended()
            done = step + 1
            if done % job["val_every"] == 0 or done == train.steps:
                recorder.training.append([done, round(total.item() / targets, 5)])
                total, targets = torch.zeros_like(total), 0
                recorder.validated(done, validate())
                recorder.interrupted()
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"parameters": parameters, "matrix_parameters": parameters - model.emb.weight.numel()}
    return {**facts, "attention": attention, **recorder.figures()}


def compiled_model(
    job: dict[str, Any], vocab_size: int, device: torch.device, example: tuple[Tensor, ...]
) -> tuple[transformer.Transformer, Callable, str]:
    """Return a model, the function that computes its loss in training, and its attention: the first one that works."""
    torch._dynamo.config.automatic_dynamic_shapes = False  # longer rows have a compiled function of their own
    key = tuple(job[name] for name in ("preset", "ctx_len", "batch_size", "dropout", "attention"))
    if key in models:
        return models[key]
    *_, last = tried = list(transformer.candidates(job["attention"], device))
    for attention in tried:
        try:
            if attention not in ("sdpa", "mask"):
                transformer.check_attention(attention, device)
            model = transformer.make_model(
                PRESETS[job["preset"]], vocab_size, job["ctx_len"], job["dropout"], attention, device
            )
            model.init_weights(0)
            compute = torch.compile(model, fullgraph=True) if job["compile"] else model
            for _ in range(2):
                compute(*example).mean().backward()
                model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            break
        except Exception:
            if attention == last:
                raise
            traceback.print_exc()
            print(f"attention {attention} failed: trying the next", file=sys.stderr, flush=True)
            torch._dynamo.reset()
    models[key] = model, compute, attention
    return models[key]


# ---- process ---------------------------------------------------------------------------------------------------------


def release_memory() -> float:
    """Free what a run has left; return the GiB of GPU memory that are still held."""
    gc.unfreeze()
    gc.collect()
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() / 2**30


def main(train_rwkv: Callable[[dict, Callable], dict] = train_rwkv) -> int:
    """Run the jobs of the standard input. `train_rwkv` runs those of the kind "rwkv"."""
    setup_module.init_process_group = process_group
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the jobs' own output, and that of libraries

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    for line in sys.stdin:
        job = json.loads(line)
        print(f"\n--- {job}", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        run = train_transformer if job["kind"] == "transformer" else train_rwkv
        try:
            result = run(job, lambda points: answer(points=points))
        except UserError as error:  # for example a loss that is not finite
            result = {"failed": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer(result={"failed": f"{type(error).__name__}: {error}"[:300], "crashed": True})
            return 1
        held = release_memory()  # learning.py replaces a process that holds much
        answer(result={**result, "seconds": round(time.perf_counter() - begun, 1), "held_gib": round(held, 2)})
    return 0


if __name__ == "__main__":
    leave(main())
