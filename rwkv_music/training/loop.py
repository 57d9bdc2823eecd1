"""The training loop: steps, and what happens between them.

A step reads `batch_size` rows, numbered by a single counter. Each rank takes its share in micro-batches. The loss is
summed over targets and divided by the number of targets in the whole step. What a step computes therefore depends
neither on the number of ranks nor on gradient accumulation. With `tbptt`, a row is a document stream, and a step reads
several windows of each stream.

These events end a run before its last step: a signal (`signals`), a loss or gradient that diverges (`health`),
validations without improvement (`--patience`), a rank that hangs (`watchdog`), or an error such as a full disk. The
last checkpoint stays valid.
"""

import dataclasses
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from tqdm import tqdm

from rwkv_music.checkpoint.run_folder import (
    CHECKPOINTS,
    Rollback,
    check_resumable,
    checkpoint_name,
    checkpoints,
    fault,
    remove_checkpoint,
    write_rollbacks,
)
from rwkv_music.checkpoint.validations import VALIDATIONS, Validated
from rwkv_music.data.dataset import Batch
from rwkv_music.errors import SharedError, UserError, plural
from rwkv_music.progress import progress_bar
from rwkv_music.training.consensus import ConsensusFlags, RankCrashed, from_rank0, on_rank0, raise_on_any_rank
from rwkv_music.training.health import SkippedSteps, SpikeDetector
from rwkv_music.training.learning_rate import learning_rate
from rwkv_music.training.loading import damaged_files, load_checkpoint
from rwkv_music.training.metrics import (
    Curves,
    Stopwatch,
    Trace,
    model_flop_utilization,
    peak_flops,
    peak_memory_bytes,
)
from rwkv_music.training.process_group import is_loss_of_a_rank
from rwkv_music.training.reader_processes import ReaderProcesses, useful_processes
from rwkv_music.training.samples import Sample, show
from rwkv_music.training.setup import Context
from rwkv_music.training.signals import CRASHED, EXIT_RESUMABLE, INTERRUPTED, Stopped, StopSignals
from rwkv_music.training.summary import FIRST, hyperparameters, run_texts, summary
from rwkv_music.training.wandb_run import WandbRun
from rwkv_music.training.watchdog import Watchdog

ROLLBACK_LIMIT = 3  # maximum number of returns to the same checkpoint
METRICS = ("val/loss", "val/bits_per_note", "train/loss", "speed/tokens_per_second")  # in the HParams tab


def train(context: Context) -> None:
    """Train to the last step of this invocation, and close the run. Collective.

    Raises UserError if the loss diverges or if a file cannot be read or written. Raises Stopped after a signal to stop
    and if another rank is lost.
    """
    loop = Loop(context)
    try:
        loop.run()
    except SharedError:
        with suppress(UserError):  # only the first error is reported
            loop.saver.finish()  # all ranks raise a SharedError, so they can complete the unfinished checkpoint
        raise
    except RankCrashed:
        raise
    except Stopped:
        try:
            loop.close()
        except UserError as error:  # writing the curves failed; the checkpoint is already complete
            if context.rank == 0:
                print(f"train.py: {error}", file=sys.stderr)
        raise
    except KeyboardInterrupt:  # second Ctrl-C: exit immediately
        raise Stopped(f"interrupted {loop.position()}", INTERRUPTED, on_every_rank=True) from None
    except Exception as error:
        if not isinstance(error, UserError) and is_loss_of_a_rank(error):
            cause = " ".join(str(error).partition(". This is typically")[0].split())  # without gloo's advice
            message = f"rank {context.rank} lost another rank {loop.position()} ({type(error).__name__}: {cause})"
            # A stop signal kills a rank that is still in set-up, because that rank has no signal handler yet. If this
            # rank has received a stop signal too, the loss of the other rank is not a crash.
            status = EXIT_RESUMABLE if loop.signals.stop_later else CRASHED
            raise Stopped(message, status, on_every_rank=True) from error
        raise
    loop.close()


class StopRequested(Exception):
    """A signal to stop that arrived during validation or sampling. Raised on all ranks at the same point."""

    def __init__(self, interrupted: bool) -> None:
        super().__init__()
        self.interrupted = interrupted  # whether any rank received Ctrl-C


class Loop:
    """The state of a run during training."""

    def __init__(self, context: Context) -> None:
        self.context, self.config, self.plan = context, context.config, context.plan
        self.engine, self.saver = context.engine, context.saver
        self.progress = context.start.progress  # steps and rows done so far
        first = context.rank == 0
        self.watchdog = Watchdog(context.store, context.rank, self.plan.world_size, self.config.train.hang_minutes)
        self.flags = ConsensusFlags(context.device, n_flags=5)
        self.signals = StopSignals(announce=first)
        self.skipped = SkippedSteps(self.engine, self.progress.skipped, self.progress.skipped_in_a_row)
        self.spikes = SpikeDetector(self.progress.losses)
        self.rollbacks = dict(context.start.rollbacks)
        self.validations = context.start.validations
        before = self.progress.last_step_without_spike
        self.last_step_without_spike = self.progress.step if before is None else before
        self.saved_at, self.saved_step = time.monotonic(), self.progress.step
        self.stopwatch = Stopwatch()
        self.trace = Trace(context.folder, context.rank, self.config.train.profile, context.device)
        self.window = torch.zeros(2, dtype=torch.float64, device=context.device)  # nats and targets since the last log
        self.flops, flops_source = peak_flops(context.device)
        self.summary = summary(context, self.flops, flops_source)
        self.hyperparameters = hyperparameters(context)
        with_wandb = first and self.config.train.log == "wandb"
        self.wandb = raise_on_any_rank(
            "starting wandb", lambda: WandbRun(context.folder, self.hyperparameters) if with_wandb else None
        )
        self.curves = self.open_curves()
        self.bar: tqdm | None = None
        n_readers = 0 if context.data.streams else useful_processes(context.data.train, context.device)
        self.readers = ReaderProcesses(context.data.train, self.config.data, n_readers) if n_readers else None
        # Objects created in set-up live until exit: exclude them from garbage collection.
        gc.collect()
        gc.freeze()

    def run(self) -> None:
        """Train to the last step of this invocation."""
        context, t = self.context, self.config.train
        context.say(f"RWKV-Music\n{self.summary}")
        if context.fast_mismatch:
            context.say(f"Training runs on DeepSpeed's own code paths, because {context.fast_mismatch}.")
        for damaged in context.start.skipped_checkpoints:
            context.say(f"Skipped the damaged checkpoint {damaged}.")
        previous = context.start.previous_data
        if previous and Path(previous).absolute() != Path(self.config.data.description):
            context.say(f"Up to step {self.progress.step:,}, the run was trained on {previous}.")
        steps_left = self.progress.step < context.last_step
        validation, known = context.data.validation, self.validations.measured_on
        measured_on = validation.measured_on if validation else known
        # If no steps are left, losses on other data must not replace the recorded ones.
        comparable = steps_left or known in ("", measured_on)
        if comparable:
            self.update_validations(lambda: self.validations.resume(self.progress.step, measured_on))
        unvalidated = comparable and self.is_unvalidated()
        if not steps_left:
            limit = "--steps" if context.last_step == t.steps else "--stop_after"
            context.say(f"Step {self.progress.step:,} has been reached: raise {limit} to continue.")
            if not unvalidated:
                return
        for tag, markdown in run_texts(context, self.summary).items():
            self.curves.text(tag, markdown)
        bar = progress_bar(
            None, None, t.steps, unit="step", initial=self.progress.step, disable=context.rank != 0, file=sys.stdout,
            delay_s=0,
        )  # fmt: skip
        readers = self.readers or nullcontext()
        with bar as self.bar, self.watchdog, self.signals, readers, ThreadPoolExecutor(1) as reader:
            self.stopwatch.resume()
            upcoming = reader.submit(self.read_step, self.progress.samples)
            if unvalidated:
                self.validate_and_stop(last=not steps_left)
            while self.progress.step < context.last_step and not self.out_of_patience:
                self.watchdog.reads(self.progress.step + 1)
                batches, unreadable = upcoming.result()
                samples = self.progress.samples + context.rows_per_step
                upcoming = reader.submit(self.read_step, samples)
                lr = learning_rate(self.progress.step, t)
                self.watchdog.computes(self.progress.step + 1)
                self.window += self.skipped.note(self.step(batches, lr, unreadable is not None))
                *flags, unreadable_on_any = self.flags.sync()
                if unreadable_on_any:
                    raise_on_any_rank(f"reading the rows of step {self.progress.step + 1:,}", raiser(unreadable))
                self.progress = dataclasses.replace(self.progress, step=self.progress.step + 1, samples=samples)
                self.stopwatch.tokens += self.plan.world_size * sum(batch.input_ids.numel() for batch in batches)
                bar.update()
                self.after_step(lr, *flags)
        if self.out_of_patience:
            context.say(
                f"The run ends because the last {plural(self.validations.without_improvement, 'validation')} did not "
                "lower the best loss: raise --patience to continue."
            )
        context.say(f"Trained to step {self.progress.step:,}; {self.describe_best()}.")

    def after_step(self, lr: float, stop_later: bool, interrupted: bool, save_due: bool, writing: bool) -> None:
        """Log, save, validate, sample and stop, in this order, each if due. A flag is true if it is set on any rank."""
        context, t, step = self.context, self.config.train, self.progress.step
        last, stopping = step == context.last_step, stop_later or interrupted

        if step % t.log_every == 0 or last:
            loss = self.log(lr)
            if t.on_spike == "rollback" and loss is not None:
                if self.spikes.is_spike(loss) and self.roll_back(loss):
                    return
                self.last_step_without_spike = step
        self.stopwatch.pause()
        self.watchdog.pause()
        if self.trace.step(last or stopping):
            context.say(f"{raise_on_any_rank('writing the trace', self.trace.write)}.")

        if not writing:
            self.saver.finish()
        if last or stopping or save_due or (t.save_every and step % t.save_every == 0):
            self.save()

        self.watchdog.pause()
        self.validate_and_stop(last, stopping, interrupted, samples=True)
        self.stopwatch.resume()

    def validate_and_stop(
        self, last: bool, stopping: bool = False, interrupted: bool = False, samples: bool = False
    ) -> None:
        """Validate, sample (if `samples`) and stop, in this order, each if due."""
        context, t, step = self.context, self.config.train, self.progress.step
        try:
            if not stopping and self.validation_is_due():
                self.validate()
                if self.validations.without_improvement == 0 and self.saved_step != step:
                    self.save()
                    self.watchdog.pause()
                last = last or self.out_of_patience
            if samples and not stopping and context.data.held_out and (last or step % t.sample_every == 0):
                self.sample()
        except StopRequested as request:
            stopping, interrupted = True, request.interrupted
        if (stopping or last) and self.saved_step != step:
            self.save()

        if stopping or last:
            self.watchdog.saves(step)
            self.saver.finish()
            # Since the last save, a validation may have changed which checkpoint is the best.
            prune = on_rank0(lambda: self.saver.prune(self.progress))
            raise_on_any_rank(f"deleting checkpoints in {context.folder / CHECKPOINTS}", prune)
        if stopping and not last:
            reason, status = ("interrupted", INTERRUPTED) if interrupted else ("stopped by a signal", EXIT_RESUMABLE)
            raise Stopped(f"{reason} {self.position()}", status)

    def validation_is_due(self) -> bool:
        """Return whether the weights must be validated after this step."""
        step = self.progress.step
        every = self.config.train.val_every
        return bool(self.context.data.validation) and (step == self.context.last_step or step % every == 0)

    def is_unvalidated(self) -> bool:
        """Return whether the run resumes from a checkpoint of its own whose validation was due but never finished."""
        checkpoint = self.context.start.checkpoint
        of_this_run = checkpoint and checkpoint.resolve().parent == (self.context.folder / CHECKPOINTS).resolve()
        due = bool(of_this_run) and self.validation_is_due()
        return due and not self.validations.contains(self.progress.step)

    @property
    def out_of_patience(self) -> bool:
        return 0 < self.config.train.patience <= self.validations.without_improvement

    def describe_best(self) -> str:
        """Return a clause about the checkpoints: where they are, and which one is the best."""
        folder, best = self.context.folder / CHECKPOINTS, self.validations.best()
        if best is None:
            return f"the checkpoint is in {folder}"
        count = plural(len(self.validations.entries), "validation")
        return (
            f"the best of {count} is that of step {best.step:,} ({best.loss:.4f} nats per token); other commands use "
            f"its checkpoint unless --checkpoint is given; the checkpoints are in {folder}"
        )

    def update_validations(self, update: Callable[[], None]) -> None:
        """Change and write the record of validations on rank 0, and copy it to the other ranks. Collective."""

        def change() -> tuple[Validated, ...]:
            update()
            self.validations.link_best()
            return self.validations.entries

        self.validations.entries = from_rank0(f"writing {self.context.folder / VALIDATIONS}", change)

    def read_step(self, first_sample: int) -> tuple[list[Batch], Exception | None]:
        """Read this rank's micro-batches (with streams: windows) of the step that starts with row `first_sample`.

        Return the batches and None. If reading fails, return batches without rows and the error: this rank must still
        take part in the collectives of the step, and then all ranks raise the error.
        """
        parts, error = self.plan.row_ranges(self.context.rank, 0 if self.context.data.streams else first_sample), None
        try:
            batches = self.read_rows(first_sample, parts)
        except Exception as failure:
            batches, error = self.read_rows(first_sample, [range(0)] * len(parts)), failure
        on_gpu = self.context.device.type == "cuda"
        return [batch.pinned() for batch in batches] if on_gpu else batches, error

    def read_rows(self, first_sample: int, parts: list[range]) -> list[Batch]:
        """Read the given rows of the step, one range per micro-batch; with streams, all windows of each range.

        With context parallelism, return this rank's part of each micro-batch.
        """
        data, group = self.context.data, self.context.group
        if data.streams:
            first_window = first_sample // data.streams.n_streams
            windows = range(first_window, first_window + self.config.data.tbptt)
            batches = [data.streams.batch(w, part.start, part.stop) for part in parts for w in windows]
        else:
            batches = self.readers.read(parts) if self.readers else None
            batches = batches or [data.train.batch(part.start, part.stop) for part in parts]
        return batches if group is None else [batch.part(group) for batch in batches]

    def step(self, batches: list[Batch], lr: float, unreadable: bool = False) -> Tensor:
        """Take one optimizer step. Return float64 [2]: this rank's summed loss in nats, and its number of targets.

        `unreadable` means that this rank could not read its rows. In that case no rank may use the result.
        """
        self.engine.set_learning_rate(lr)
        counted = sum(batch.n_targets for batch in batches)
        targets = self.start_flags(counted, unreadable)
        if self.context.stream_states:
            scale = self.plan.world_size / targets.clamp_min(1)
            nats = self.context.stream_states.step(self.engine, batches, scale)
            return torch.stack([nats, torch.full_like(nats, counted)])
        # DeepSpeed averages over ranks and micro-batches. This factor cancels that average and divides by the number of
        # targets instead.
        scale = self.plan.world_size * self.plan.accumulation / targets.clamp_min(1)
        nats = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for batch in batches:
            loss = self.engine(**batch.to(self.context.device).arguments(), reduction="sum")
            self.engine.backward(loss * scale)
            self.engine.step()
            nats += loss.detach()
        return torch.stack([nats, torch.full_like(nats, counted)])

    def start_flags(self, targets: int, event: bool) -> Tensor:
        """Start the exchange of flags, including `event`. Return the number of targets of all ranks, float32 []."""
        minutes = (time.monotonic() - self.saved_at) / 60
        save_due = self.context.rank == 0 and 0 < self.config.train.save_minutes <= minutes
        signals = self.signals.stop_later, self.signals.interrupted
        return self.flags.start(targets, *signals, save_due, self.saver.writing, event)

    def poll(self, event: bool = False) -> bool:
        """Return whether `event` is true on any rank. Collective. Raises StopRequested after a signal to stop.

        Also completes the current checkpoint if all ranks have written it. Validation and sampling call this method
        repeatedly, because they can take longer than the time that a job has between its stop signal and its end.
        """
        self.start_flags(0, event)
        stop_later, interrupted, _, writing, event_on_any = self.flags.sync()
        if not writing:
            self.saver.finish()
        if stop_later or interrupted:
            raise StopRequested(interrupted)
        return event_on_any

    def polled(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield `batches`, and call `poll` before each. Collective. An error on one rank is raised on all ranks.

        Every rank must have the same number of batches.
        """
        while True:
            error, batch = None, None
            try:
                batch = next(batches, None)
            except Exception as failure:
                error = failure
            if self.poll(event=error is not None):
                raise_on_any_rank("reading the rows of the validation", raiser(error))
            if batch is None:
                return
            yield batch

    def log(self, lr: float) -> float | None:
        """Write a point of the training curves. Return the mean loss since the last point.

        Return None if all steps since then were skipped. Collective. Raises SharedError if the loss has diverged or
        too many successive steps were skipped.
        """
        context, tokens_per_second = self.context, self.stopwatch.lap()
        total = self.window.clone()
        self.window.zero_()
        dist.all_reduce(total)
        nats, targets = total.tolist()
        loss = nats / targets if targets else None
        if loss is not None and not math.isfinite(loss):
            self.saver.finish()
            raise SharedError(
                f"The loss is {loss} at step {self.progress.step:,}, so the weights have diverged: lower --lr or "
                f"lengthen --warmup_steps and restart; the run resumes {self._newest_checkpoint()}."
            )
        skipped, in_a_row = self.skipped.read()
        if in_a_row > self.config.train.max_skipped_steps:
            raise self._diverged(in_a_row)
        memory = peak_memory_bytes(context.device)
        rate = tokens_per_second / self.plan.world_size
        self.write_scalars(
            {
                "train/loss": loss,
                "train/lr": lr,
                "train/grad_norm": self.engine.grad_norm(),
                "train/skipped_steps": skipped,
                "train/tokens": self.progress.samples * self.config.data.ctx_len,
                "speed/step_seconds": context.rows_per_step * self.config.data.ctx_len / max(tokens_per_second, 1e-9),
                "speed/tokens_per_second": tokens_per_second,
                "speed/mfu": model_flop_utilization(context.size.matrix_parameters, rate, self.flops),
                "vram/peak_gib": None if memory is None else memory / 2**30,  # so named that TensorBoard lists it last
            },
        )
        shown = "skipped" if loss is None else f"loss {loss:.3f}"
        self.bar.set_postfix_str(f"{shown}, lr {lr:.1e}, {tokens_per_second:,.0f} tokens/s")
        return loss

    def write_scalars(self, values: dict[str, float | None]) -> None:
        """Write a point of each curve on rank 0. Collective: an error of rank 0 is raised on all ranks."""
        raise_on_any_rank("writing the curves", lambda: self.curves.scalars(self.progress.step, values))

    def open_curves(self) -> Curves:
        """Open the curves for points from the next step on. Collective."""
        context, validation = self.context, self.context.data.validation
        absent = set() if context.device.type == "cuda" else {"vram/peak_gib"}
        absent |= {"val/loss", "val/bits_per_note", "val/bigram_loss"} if validation is None else set()
        absent |= {f"val/{task}_loss" for task in ("completion", "infill")} - (
            set() if validation is None else {f"val/{task}_loss" for task in validation.other_tasks}
        )
        absent |= set() if validation and validation.names else {"val/loss_.+"}
        arguments = context.folder, self.progress.step + 1, context.rank == 0, self.wandb, absent
        return raise_on_any_rank("opening the curves", lambda: Curves(*arguments))

    def save(self) -> None:
        """Save a checkpoint, also after a skipped step, which leaves the weights unchanged. Collective."""
        skipped, in_a_row = self.skipped.read()
        self.progress = dataclasses.replace(
            self.progress,
            skipped=skipped,
            skipped_in_a_row=in_a_row,
            last_step_without_spike=self.last_step_without_spike,
            losses=self.spikes.losses,
        )
        self.watchdog.saves(self.progress.step)
        self.saver.save(self.progress)
        self.saved_at, self.saved_step = time.monotonic(), self.progress.step

    def validate(self) -> None:
        """Measure the loss on the validation split, and write it to its curves. Collective. Raises as `poll` does."""
        validation = self.context.data.validation
        figures = validation.measure(self.engine, self.polled, self.context.group)
        self.write_scalars({**figures, **(validation.bigram_losses if self.context.rank == 0 else {})})
        step, loss = self.progress.step, figures["val/loss"]
        self.update_validations(lambda: self.validations.add(step, loss, saved=self.saved_step == step))
        text = f"step {self.progress.step:,}: validation loss {figures['val/loss']:.4f} nats per token"
        of_each = ", ".join(f"{name} {figures[f'val/loss_{name}']:.4f}" for name in validation.names)
        text += f" ({of_each})" if of_each else ""
        for task, name in (("completion", "completions"), ("infill", "holes")):
            if f"val/{task}_loss" in figures:
                text += f", {figures[f'val/{task}_loss']:.4f} on {name}"
        self.context.say(text)

    def sample(self) -> None:
        """Complete and fill in the held-out piece, for TensorBoard and RUN/samples. Collective. Raises as `poll` does.

        Every rank computes the samples, because ZeRO-3 partitions the weights.
        """
        folder = self.context.folder / "samples"

        def draw() -> list[Sample]:
            samples, error = [], None
            try:
                samples = self.context.data.held_out.draw(model, lambda: self.poll(event=True))
            except StopRequested:  # raised on all ranks
                raise
            except Exception as failure:
                error = failure
            # Another rank may still be drawing tokens: on another type of GPU, a sample can be longer. Such a rank
            # polls after each token, and polls are collective.
            while self.poll(event=False):
                pass
            raiser(error)()
            return samples

        with self.engine.eval_mode() as model:
            samples = raise_on_any_rank("drawing samples", draw)
        for sample in samples:
            write = on_rank0(lambda sample=sample: show(sample, self.curves, self.progress.step, folder))
            raise_on_any_rank(f"writing a sample to {folder}", write)

    def roll_back(self, loss: float) -> bool:
        """Return to the last checkpoint from before the loss spike, and continue with other rows. Collective.

        Return False if there is no such checkpoint. Raises SharedError after too many returns to the same one.
        """
        context, step = self.context, self.progress.step
        self.watchdog.pause()
        self.saver.finish()
        newest = checkpoint_name(self.last_step_without_spike)

        def valid_checkpoints() -> list[Path]:
            return [path for path in checkpoints(context.folder) if path.name <= newest and fault(path) is None]

        valid = from_rank0("looking for an earlier checkpoint", valid_checkpoints)
        target = next((path for path in reversed(valid) if not damaged_files(path)), None)
        event = f"step {step:,}: the loss has risen to {loss:.3f}"
        if target is None:
            context.say(f"{event}; there is no earlier checkpoint to return to")
            return False
        before = self.rollbacks.get(target.name)
        count = 1 if before is None else before.count + 1
        if count > ROLLBACK_LIMIT:
            raise SharedError(
                f"The loss rose again, to {loss:.3f} at step {step:,}, after {ROLLBACK_LIMIT} returns to "
                f"{target.name}: resume from there with a lower --lr."
            )
        context.say(f"{event}; returning to {target.name} and continuing with other rows")
        self.rollbacks[target.name] = Rollback(count, self.progress.samples)

        restored = raise_on_any_rank(f"reading {target}", lambda: check_resumable(target, self.config)).step
        # First remove the validation losses of later steps, and then the checkpoints of these steps. The run will save
        # other weights under these step numbers, and the removed losses do not belong to those weights.
        self.update_validations(lambda: self.validations.resume(restored, self.validations.measured_on))

        def remove_newer() -> None:
            write_rollbacks(context.folder, self.rollbacks)  # a restart must not read the same rows again
            for newer in checkpoints(context.folder):
                if newer.name > target.name:
                    remove_checkpoint(newer)

        raise_on_any_rank(f"going back to {target}", on_rank0(remove_newer))
        load_checkpoint(self.engine, target)
        if context.stream_states:
            context.stream_states.reset()  # the states were computed with the discarded weights
        self.progress = dataclasses.replace(self.progress, step=restored)
        self.saved_step = restored
        raise_on_any_rank("writing the curves", self.curves.close)
        self.curves = self.open_curves()
        self.bar.n = self.bar.last_print_n = restored
        return True

    def position(self) -> str:
        """Return a clause: the last completed step, and the checkpoint from which the same command resumes."""
        return f"after step {self.progress.step:,}; the same command resumes {self._newest_checkpoint()}"

    def close(self) -> None:
        """Close the curves and leave the process group. Collective: do not call it if an error may have ended ranks."""
        self.saver.close()
        self.curves.hyperparameters(self.progress.step, self.hyperparameters, METRICS, FIRST)
        self.curves.close()
        if self.wandb is not None:
            self.wandb.finish()
        dist.destroy_process_group()

    def _newest_checkpoint(self, up_to: int | None = None) -> str:
        """Return "from" and the name of the newest valid checkpoint, or of the newest one up to step `up_to`."""
        known = [
            path for path in checkpoints(self.context.folder) if up_to is None or path.name <= checkpoint_name(up_to)
        ]
        newest = next((path for path in reversed(known) if fault(path) is None), None)
        return f"from {newest.name}" if newest else "from the beginning, as there is no checkpoint yet"

    def _diverged(self, skipped_in_a_row: int) -> SharedError:
        self.saver.finish()
        step, last_good = self.progress.step, self.progress.step - skipped_in_a_row
        since = [path for path in checkpoints(self.context.folder) if path.name > checkpoint_name(last_good)]
        # Skipped steps do not change the weights, so these checkpoints contain the weights of step `last_good`.
        delete = f"delete the checkpoints after step {last_good:,}, " if since else ""
        return SharedError(
            f"The last {plural(skipped_in_a_row, 'step')}, up to step {step:,}, were skipped because the gradient was "
            f"not finite: {delete}lower --lr or lengthen --warmup_steps, and restart; the run then resumes "
            f"{self._newest_checkpoint(last_good)}."
        )


def raiser(error: Exception | None) -> Callable[[], None]:
    """Return a function that raises `error`, or does nothing if it is None."""

    def raise_error() -> None:
        if error is not None:
            raise error

    return raise_error
