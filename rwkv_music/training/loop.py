"""The loop: steps, and what lies between them.

A step is `batch_size` rows named by one counter. Each rank takes its share in micro-batches; the loss is summed over
targets and divided by how many there are in the whole step, so that neither the number of ranks nor the accumulation
changes what a step computes. With `carry` a row is a stream of whole pieces, and a step several windows of it.

What may end a run before its last step: a signal (`signals`: one more checkpoint, then `Stopped`), too many steps with
a gradient that is not finite (`health`), a rank that hangs (`watchdog`), a fault of the machine (a sentence). All leave
the last checkpoint whole.
"""

import dataclasses
import gc
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import distributed as dist
from tqdm import tqdm

from rwkv_music.checkpoint.run_folder import (
    CHECKPOINTS,
    check_resumable,
    checkpoint_name,
    checkpoints,
    fault,
    remove_checkpoint,
)
from rwkv_music.config import RunConfig
from rwkv_music.data.dataset import Batch
from rwkv_music.errors import SharedError, plural
from rwkv_music.training.consensus import ConsensusFlags, on_rank0, raise_on_any_rank
from rwkv_music.training.deepspeed_engine.engine import eval_mode, optimizer_bytes, rank, sum_over_ranks
from rwkv_music.training.health import SkippedSteps, SpikeDetector
from rwkv_music.training.learning_rate import learning_rate, set_learning_rate
from rwkv_music.training.loading import damaged_files, load_checkpoint
from rwkv_music.training.metrics import (
    Curves,
    Stopwatch,
    Trace,
    model_flop_utilisation,
    peak_flops,
    peak_memory_bytes,
)
from rwkv_music.training.samples import show
from rwkv_music.training.setup import Run
from rwkv_music.training.signals import GO_ON_LATER, INTERRUPTED, Stopped, StopSignals
from rwkv_music.training.summary import hyperparameters, summary
from rwkv_music.training.wandb_run import WandbRun
from rwkv_music.training.watchdog import Watchdog

ROLLBACKS = 3  # to one checkpoint
METRICS = ("val/loss", "val/bits_per_note", "train/loss", "speed/tokens_per_second")  # that runs are compared by


class Trainer(Run):
    """A run that is set up, to its last checkpoint."""

    def __init__(self, config: RunConfig, deepspeed_file: str | os.PathLike, given: set[str]) -> None:
        super().__init__(config, deepspeed_file, given)
        self.watchdog = Watchdog(self.store, rank(), self.plan.world_size, self.config.train.hang_minutes)
        self.flags = ConsensusFlags(self.device, n_flags=4)
        self.signals = StopSignals(says=self.first)
        self.saved_at = time.monotonic()
        self.skipped = SkippedSteps(self.engine, self.device, self.progress.skipped)
        self.spikes = SpikeDetector()
        self.rollbacks: dict[str, int] = {}
        self.calm_step = self.progress.step  # the last one whose loss was no spike
        self.flops, self.flops_source = peak_flops(self.device)
        self.hyperparameters = hyperparameters(self)
        with_wandb = self.first and self.config.train.log == "wandb"
        self.wandb = WandbRun(self.folder, self.hyperparameters) if with_wandb else None
        self.curves = Curves(self.folder, self.progress.step + 1, self.first, self.wandb)
        # What set-up left stays to the end, and the garbage collector need not hold steps up to look through it again.
        gc.collect()
        gc.freeze()

    def train(self) -> None:
        """Train to the last step, or to `stop_after`.

        Raises Stopped when a signal asked for it, and UserError for what makes going on pointless.
        """
        t = self.config.train
        text = summary(self)
        self.say(f"RWKV-Music\n{text}")
        for damaged in self.passed_over:
            self.say(f"Passed over {damaged}.")
        if self.data_before and Path(self.data_before) != Path(self.config.data.data):
            self.say(f"The data were {self.data_before} up to here.")
        stop = self.stop
        if self.progress.step >= stop:
            bound = "--steps" if stop == t.steps else "--stop_after"
            self.say(f"Step {self.progress.step:,} is reached already: raise {bound} to go on.")
            return
        bar = tqdm(
            total=t.steps,
            initial=self.progress.step,
            unit="step",
            disable=not self.first,
            dynamic_ncols=True,
            file=sys.stdout,
        )
        self.curves.text("run", f"```\n{text}\n```")
        self.watchdog.start()
        try:
            with self.signals, ThreadPoolExecutor(1) as reader:
                self._loop(stop, bar, reader)
        finally:
            self.watchdog.stop()
            bar.close()
        self.say(f"Trained to step {self.progress.step:,}; the checkpoint is in {self.folder / CHECKPOINTS}.")

    def _loop(self, stop: int, bar: tqdm, reader: ThreadPoolExecutor) -> None:
        t = self.config.train
        watch = Stopwatch()
        trace = Trace(self.folder, rank(), t.profile, self.device)
        window = torch.zeros(2, dtype=torch.float64, device=self.device)  # nats, targets since the curve's last point
        coming = reader.submit(self.read_step, self.progress.samples)
        while self.progress.step < stop:
            self.watchdog.reads(self.progress.step + 1)
            batches = coming.result()
            samples = self.progress.samples + self.rows_a_step
            coming = reader.submit(self.read_step, samples)
            lr = learning_rate(self.progress.step, t)
            self.watchdog.computes(self.progress.step + 1)
            window += self.skipped.note(self.step(batches, lr))
            go_on_later, interrupted, save_due, writing = self.flags.sync()
            step = self.progress.step + 1
            self.progress = dataclasses.replace(self.progress, step=step, samples=samples)
            watch.tokens += self.plan.world_size * sum(batch.input_ids.numel() for batch in batches)
            bar.update()
            if step % t.log_every == 0 or step == stop:
                loss = self._log(window, lr, watch.lap(), bar)
                window.zero_()
                if t.on_spike == "rollback" and loss is not None:
                    if self.spikes.is_spike(loss) and self._roll_back(loss):
                        bar.n = bar.last_print_n = self.progress.step
                        continue
                    self.calm_step = step
            watch.pause()
            last, asked = step == stop, go_on_later or interrupted
            if said := trace.step(last or asked):
                self.say(f"{said}.")
            self.watchdog.pause()
            if not writing:
                self.saver.finish()
            if self.validation and (last or (step % t.val_every == 0 and not asked)):
                self.validate()
            if self.held_out and (last or (step % t.sample_every == 0 and not asked)):
                self.sample()
            if last or asked or save_due or (t.save_every and step % t.save_every == 0):
                self._save(last)
            if last or asked:
                self.saver.finish()
            watch.go_on()
            if asked and not last:
                raise Stopped(
                    ("interrupted " if interrupted else "asked to stop ") + self.where_it_stands(),
                    INTERRUPTED if interrupted else GO_ON_LATER,
                )

    def _save(self, last: bool) -> None:
        """A checkpoint, unless the last steps were skipped: then the weights may be lost and are not to be kept."""
        skipped, in_a_row = self.skipped.read()
        if in_a_row:
            if last:
                raise self._hopeless(in_a_row)
            self.say(f"step {self.progress.step:,}: no checkpoint, as the gradient was not finite just now")
            return
        self.progress = dataclasses.replace(self.progress, skipped=skipped)
        self.watchdog.saves(self.progress.step)
        self.saver.save(self.progress)
        self.saved_at = time.monotonic()

    def _hopeless(self, skipped_in_a_row: int) -> SharedError:
        self.saver.finish()
        return SharedError(
            f"The last {plural(skipped_in_a_row, 'step')} changed nothing because the gradient was not finite, up to "
            f"step {self.progress.step:,}: start again {self._where()} with a lower --lr or a longer --warmup_steps."
        )

    def _roll_back(self, loss: float) -> bool:
        """Go back to the last checkpoint from before the spike, but not back in the data; False if there is none."""
        self.watchdog.pause()
        self.saver.finish()
        kept = [path for path in checkpoints(self.folder) if path.name <= checkpoint_name(self.calm_step)]
        chosen = [[path for path in kept if fault(path) is None]]
        dist.broadcast_object_list(chosen, src=0)  # what rank 0 sees of the file system holds
        [whole] = chosen
        target = next((path for path in reversed(whole) if not damaged_files(path)), None)
        said = f"step {self.progress.step:,}: the loss has risen to {loss:.3f}"
        if target is None:
            self.say(f"{said}; there is no checkpoint from before that to go back to")
            return False
        self.rollbacks[target.name] = self.rollbacks.get(target.name, 0) + 1
        if self.rollbacks[target.name] > ROLLBACKS:
            raise SharedError(
                f"The loss rose again, to {loss:.3f} at step {self.progress.step:,}, after {ROLLBACKS} returns to "
                f"{target.name}: go on from there with a lower --lr."
            )
        self.say(f"{said}; back to {target.name}, on with other rows")

        def remove_newer() -> None:
            for newer in checkpoints(self.folder):
                if newer.name > target.name:
                    remove_checkpoint(newer)

        raise_on_any_rank(f"going back to {target}", on_rank0(remove_newer))
        load_checkpoint(self.engine, target)
        if self.stream_states:
            self.stream_states.forget()  # they are of these rows, but of the weights that were left
        step = check_resumable(target, self.config).step
        self.progress = dataclasses.replace(self.progress, step=step)
        self.curves.close()
        self.curves = Curves(self.folder, step + 1, self.first, self.wandb)
        return True

    def where_it_stands(self) -> str:
        """After an interruption: how far it got and where the same command goes on from."""
        return f"after step {self.progress.step:,}; the same command goes on {self._where()}"

    def _where(self) -> str:
        kept = next((path for path in reversed(checkpoints(self.folder)) if fault(path) is None), None)
        return f"from {kept.name}" if kept else "from the beginning, as there is no checkpoint yet"

    def close(self) -> None:
        """Close the curves and leave the process group, together: not after an error, when others may be gone."""
        self.saver.close()
        self.curves.hyperparameters(self.progress.step, self.hyperparameters, METRICS)
        self.curves.close()
        if self.wandb is not None:
            self.wandb.finish()
        dist.destroy_process_group()

    def read_step(self, first_sample: int) -> list[Batch]:
        """This rank's micro-batches of the step that begins with `first_sample`; of streams, the windows of each."""
        if self.streams:
            first_window = first_sample // self.streams.n_streams
            windows = range(first_window, first_window + self.config.data.tbptt)
            batches = [self.streams.batch(w, rows.start, rows.stop) for rows in self.own_rows(0) for w in windows]
        else:
            batches = [self.train_data.batch(rows.start, rows.stop) for rows in self.own_rows(first_sample)]
        return [batch.pinned() for batch in batches] if self.device.type == "cuda" else batches

    def step(self, batches: list[Batch], lr: float) -> torch.Tensor:
        """One optimizer step; float64 [2]: the nats and the targets of this rank."""
        set_learning_rate(self.engine.optimizer, lr)
        counted = sum(batch.n_targets for batch in batches)
        minutes = (time.monotonic() - self.saved_at) / 60
        save_due = self.first and 0 < self.config.train.save_minutes <= minutes
        everywhere = self.flags.exchange(
            counted, self.signals.go_on_later, self.signals.interrupted, save_due, self.saver.writing
        )
        if self.stream_states:
            nats = self.stream_states.step(self.engine, batches, self.plan.world_size / everywhere.clamp_min(1))
            return torch.stack([nats, torch.full_like(nats, counted)])
        # DeepSpeed averages over ranks and accumulated micro-batches; this undoes it and takes the mean over targets.
        scale = self.plan.world_size * self.plan.accumulation / everywhere.clamp_min(1)
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            loss = self.engine(**batch.to(self.device).arguments(), reduction="sum")
            self.engine.backward(loss * scale)
            self.engine.step()
            nats += loss.detach()
        return torch.stack([nats, torch.full_like(nats, counted)])

    def _log(self, window: torch.Tensor, lr: float, tokens_per_second: float, bar: tqdm) -> float | None:
        """A point of the training curves; the mean loss, None if every step of the window was skipped."""
        nats, targets = sum_over_ranks(window.clone()).tolist()
        loss = nats / targets if targets else None
        if loss is not None and not math.isfinite(loss):
            self.saver.finish()
            raise SharedError(
                f"The loss is {loss} at step {self.progress.step:,}, so the weights are lost: "
                f"start again {self._where()} with a lower --lr or a longer --warmup_steps."
            )
        skipped, in_a_row = self.skipped.read()
        if in_a_row > self.config.train.max_skipped_steps:
            raise self._hopeless(in_a_row)
        norm = self.engine.get_global_grad_norm()
        memory = peak_memory_bytes(self.device)
        rate = tokens_per_second / self.plan.world_size
        self.curves.scalars(
            self.progress.step,
            {
                "train/loss": loss,
                "train/lr": lr,
                "train/grad_norm": None if norm is None else float(norm),
                "train/skipped_steps": skipped,
                "speed/tokens_per_second": tokens_per_second,
                "speed/mfu": model_flop_utilisation(self.matrix_parameters, rate, self.flops),
                "memory/peak_gib": None if memory is None else memory / 2**30,
                "memory/optimizer_bytes": optimizer_bytes(self.engine),
            },
        )
        shown = "skipped" if loss is None else f"loss {loss:.3f}"
        bar.set_postfix_str(f"{shown}, lr {lr:.1e}, {tokens_per_second:,.0f} tokens/s")
        return loss

    def validate(self) -> float:
        """Mean loss over the validation split in nats a token, written to its curve; in a mix, of completions too."""
        figures = self.validation.measure(self.engine, self.device)
        self.curves.scalars(self.progress.step, figures)
        said = f"step {self.progress.step:,}: validation loss {figures['val/loss']:.4f} nats a token"
        if "val/completion_loss" in figures:
            said += f", {figures['val/completion_loss']:.4f} of completions"
        self.say(said)
        return figures["val/loss"]

    def sample(self) -> None:
        """Complete a held-out piece: piano roll and sound in TensorBoard, a .mid in RUN/samples.

        Every rank takes part (under ZeRO-3 none has all the weights); rank 0 writes.
        """
        with eval_mode(self.engine) as model:
            completion = self.held_out.complete(model)
        if completion is not None and self.first:
            show(completion, self.curves, self.progress.step, self.folder / "samples")
