"""The trainer: sets a run up, says what it is about to do, and does it.

A step is `batch_size` rows named by one counter. Each rank takes its share in micro-batches; the loss is summed over
targets and divided by how many there are in the whole step, so that neither the number of ranks nor the accumulation
changes what a step computes. With `carry` a row is a lane of whole pieces, and a step several windows of it.

What may end a run before its last step: a signal (`signals`: one more checkpoint, then `Stopped`), too many steps with
a gradient that is not finite (`health`), a rank that hangs (`watchdog`), a fault of the machine (a sentence). All leave
the last checkpoint whole.
"""

import dataclasses
import gc
import json
import math
import os
import secrets
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import distributed as dist
from tqdm import tqdm

from rwkv_music.config import RunConfig
from rwkv_music.data.codecs import load_codec
from rwkv_music.data.dataset import Batch, MusicDataset
from rwkv_music.data.lanes import Lanes
from rwkv_music.errors import SharedError, UserError, explained
from rwkv_music.files import atomic_path, write_text
from rwkv_music.model_v8 import RWKV
from rwkv_music.run_folder import (
    CHECKPOINTS,
    Progress,
    check_resumable,
    checkpoint_name,
    checkpoints,
    fault,
    find_checkpoint,
    passed_over,
    remove_checkpoint,
    remove_unfinished,
)
from rwkv_music.training import graphs
from rwkv_music.training.agreement import Wishes, only_on_first, together
from rwkv_music.training.carrying import LaneStates
from rwkv_music.training.checkpoint import damaged_files, load_checkpoint
from rwkv_music.training.engine import (
    Plan,
    check_quantisation,
    device_of_rank,
    divided,
    make_engine,
    make_plan,
    offloads,
    optimizer_bytes,
    playing,
    rank,
    read_deepspeed_file,
    sum_over_ranks,
    wait_for_compilations,
)
from rwkv_music.training.health import SkippedSteps, SpikeDetector
from rwkv_music.training.initial import allocate, fill_frozen, open_base, open_initial
from rwkv_music.training.memory import (
    Carried,
    MemoryEstimate,
    available_bytes,
    check_host_memory,
    estimate,
    least_recompute,
)
from rwkv_music.training.metrics import (
    Curves,
    Stopwatch,
    Trace,
    model_flop_utilisation,
    peak_flops,
    peak_memory_bytes,
)
from rwkv_music.training.optimizer import learning_rate, set_learning_rate
from rwkv_music.training.rendezvous import meet, ranks_share_a_host
from rwkv_music.training.samples import HeldOut, show
from rwkv_music.training.saving import Saver, take_over
from rwkv_music.training.signals import CRASHED, GO_ON_LATER, INTERRUPTED, Stopped, StopSignals
from rwkv_music.training.summary import count, hyperparameters, summary
from rwkv_music.training.validation import Validation
from rwkv_music.training.wandb_run import WandbRun, check_wandb
from rwkv_music.training.watchdog import Watchdog
from rwkv_music.tuning import BaseNote, add_trained, freeze
from rwkv_music.weights import open_weights, unread_tensors

ROLLBACKS = 3  # to one checkpoint
METRICS = ("val/loss", "val/bits_per_note", "train/loss", "speed/tokens_per_second")  # that runs are compared by


class Trainer:
    """A run from its configuration to its last checkpoint.

    Args:
        config: the run; `config.model.vocab_size` may be 0 and is then the dataset's.
        deepspeed_file: the DeepSpeed JSON file.
        given: the names of the settings that the user set himself; the DeepSpeed file may set the others.

    Raises:
        UserError: whatever of it does not fit together, before anything is written or allocated.
    """

    def __init__(self, config: RunConfig, deepspeed_file: str | os.PathLike, given: set[str]) -> None:
        file = read_deepspeed_file(deepspeed_file)
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        train = config.train
        if "micro_batch_size" not in given and train.micro_batch_size and not train.elastic:
            most = train.micro_batch_size  # of a run that may have had another number of ranks
            train = dataclasses.replace(train, micro_batch_size=divided(train.batch_size, world_size, most))
        windows = max(1, config.data.carry)
        self.plan: Plan = make_plan(train, given, file, deepspeed_file, world_size, windows)
        if train.log == "wandb":
            check_wandb()
        data = config.data
        self.train_data = MusicDataset.of(data, "train")
        if not (Path(data.data) / "tokenizer.json").is_file():
            raise UserError(f"{data.data} is damaged (no tokenizer.json): prepare the data again.")
        if config.model.vocab_size not in (0, self.train_data.vocab_size):
            raise UserError(
                f"The model's vocabulary is {config.model.vocab_size} tokens, "
                f"but that of {data.data} is {self.train_data.vocab_size}: "
                f"prepare the data with the model's tokenizer, or start a new run."
            )
        model_config = dataclasses.replace(config.model, vocab_size=self.train_data.vocab_size)
        self.config = RunConfig(model_config, data, self.plan.train)
        train = self.config.train
        self.rows_a_step = train.batch_size * windows
        self.lanes = Lanes(self.train_data, train.batch_size, data.carry) if data.carry else None
        self.validation = Validation.of(self.config, world_size)
        self.run = Path(train.out)
        self.zero_stage: int = file["zero_optimization"]["stage"]
        self.progress, self.data_before = Progress(0, 0, 0, world_size, self.zero_stage), ""
        self.resumed_from = find_checkpoint(self.run, train.resume)
        self.passed_over = passed_over(self.run, self.resumed_from) if train.resume == "auto" else []
        if self.resumed_from is not None:
            self._check_tokenizer()
            check_resumable(self.resumed_from, self.config)
        tuned = train.tune != "all"
        self.initial = self.base = self.base_note = None
        if train.init and (self.resumed_from is None or tuned):
            self.initial = open_initial(train.init, model_config, self.train_data.fingerprint)
            self.base = open_base(self.initial, model_config, train.tune) if tuned else None
        self.held_out = HeldOut(self.config, "val" if self.validation else "train") if train.sample_every else None
        if (self.run / "config.json").exists():
            RunConfig.load(self.run / "config.json")  # a folder of something else is not written into

        # Longer than the watchdog's patience, so that it is the one who speaks.
        store = meet(collective_minutes=train.hang_minutes + 5 if train.hang_minutes else 7 * 24 * 60)
        self.device = device_of_rank()
        check_quantisation(file["zero_optimization"], self.device)
        wait_for_compilations(file["zero_optimization"])
        self.first = rank() == 0
        self.watchdog = Watchdog(store, rank(), world_size, train.hang_minutes)
        self.wishes = Wishes(self.device, n_wishes=4)
        self.signals = StopSignals(says=self.first)
        self._check_all_see_alike()
        if self.resumed_from is not None:
            self.resumed_from = self._whole(self.resumed_from)
            saved = check_resumable(self.resumed_from, self.config)
            self.data_before = RunConfig.load(self.resumed_from / "config.json").data.data
            self.progress = dataclasses.replace(saved, world_size=world_size, zero_stage=self.zero_stage)
        if self.initial is not None:
            self.initial.verify()
        torch.manual_seed(data.seed)
        with torch.device("meta"):
            model = RWKV(model_config)
        freeze(model, train)
        if self.device.type == "cpu":
            check_host_memory(model, self.zero_stage, self.plan)
        self.matrix_parameters = model.matrix_parameters()
        fresh = self.initial.fresh if self.initial else None if self.resumed_from is None else frozenset()
        allocate(model, self.device, self.plan, fresh)
        add_trained(model, train, data.seed)
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
        self.parameters = sum(size for size, _ in sizes)
        self.trained = sum(size for size, trains in sizes if trains)  # of them
        zero, one_host = file["zero_optimization"], ranks_share_a_host()
        host_bound = graphs.host_bound(self.config, self.device, one_host, self.matrix_parameters)
        replayed = host_bound and graphs.recordable(self.config, zero)
        overlaps = world_size > 1 and not replayed
        self.memory_there = available_bytes(self.device)
        model.recompute, self.memory = least_recompute(
            train.recompute, lambda level: self._estimate_memory(zero, model, level, overlaps), self.memory_there
        )
        self.recompute: str = model.recompute
        self.engine = make_engine(model, self.plan, self.device, overlaps, host_bound)
        if replayed:
            packed = self.engine.module
            packed.graphs = graphs.Graphs(packed, accumulates=self.plan.accumulation > 1)
        if self.base is not None:
            fill_frozen(self.engine, self.base)
        self.lane_states = LaneStates(self.engine, model_config, self._own_rows(0)) if data.carry else None
        if self.resumed_from is not None:
            load_checkpoint(self.engine, self.resumed_from, self.lane_states)
        elif self.initial is not None:
            self.initial.fill(self.engine)
        if self.base is not None:
            together(f"reading {self.base.weights.source}", only_on_first(self._check_base))
        self.token = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        if self.first:
            self._make_run_folder()
        self.saver = Saver(self.engine, self.config, self.token, self.lane_states, self._unread_tensors())
        self.saved_at = time.monotonic()
        self.skipped = SkippedSteps(self.engine, self.device, self.progress.skipped)
        self.spikes = SpikeDetector()
        self.rollbacks: dict[str, int] = {}
        self.calm_step = self.progress.step  # the last one whose loss was no spike
        self.hyperparameters = hyperparameters(self)
        self.wandb = WandbRun(self.run, self.hyperparameters) if self.first and train.log == "wandb" else None
        self.curves = Curves(self.run, self.progress.step + 1, self.first, self.wandb)
        self.flops, self.flops_source = peak_flops(self.device)
        # What set-up left stays to the end, and the garbage collector need not hold steps up to look through it again.
        gc.collect()
        gc.freeze()

    # ---- set-up -----------------------------------------------------------------------------------------------------

    def _check_tokenizer(self) -> None:
        run_codec = load_codec(self.resumed_from / "tokenizer.json")
        if run_codec.fingerprint != self.train_data.fingerprint:
            raise UserError(
                f"{self.config.data.data} was prepared with another tokenizer than {self.run} was trained with: "
                f"prepare the data with the run's tokenizer, or choose another --out."
            )

    def _check_all_see_alike(self) -> None:
        """On a file system of several machines one may not see yet what another has just written or removed."""
        found: list[str | None] = [None] * self.plan.world_size
        dist.all_gather_object(found, self.resumed_from and self.resumed_from.name)
        other = next((i for i, name in enumerate(found) if name != found[0]), None)
        if other is not None:
            raise Stopped(
                f"not begun, as the ranks do not see the same newest checkpoint in {self.run} (rank 0 {found[0]}, "
                f"rank {other} {found[other]}); the same command goes on when the file system shows all of them one",
                CRASHED,
            )

    def _check_base(self) -> None:
        """Note what the base is, or hold it against what the run noted when it started."""
        self.base_note = BaseNote(self.config.train.init, self.base.sha256())
        if self.resumed_from is not None:
            self.base.check(BaseNote.read(self.resumed_from).sha256, self.resumed_from)

    def _whole(self, checkpoint: Path) -> Path:
        """`checkpoint` if its tensors are as they were written; with --resume auto else the newest one before it."""
        while wrong := damaged_files(checkpoint):
            if self.config.train.resume != "auto":
                raise SharedError(f"{checkpoint} is damaged ({wrong}): name another one with --resume.")
            self.passed_over.append(f"{checkpoint.name}: {wrong}")
            checkpoint = find_checkpoint(self.run, before=checkpoint)
        return checkpoint

    def _unread_tensors(self) -> dict[str, torch.Tensor]:
        """What the file that the run began with holds and nothing reads, to be given back by `export`; on rank 0."""
        source = self.resumed_from or (self.initial and self.initial.weights.source)
        if source is None or self.config.train.tune != "all":  # what is tuned leaves its base as it is
            return {}
        weights = only_on_first(lambda: unread_tensors(open_weights(source, verify=False)))
        return together(f"reading {source}", weights) or {}

    def _make_run_folder(self) -> None:
        with explained(f"making the run folder {self.run}"):
            self.run.mkdir(parents=True, exist_ok=True)
            if self.progress.step < self._stop:  # else nothing will be done under it
                self.config.save(self.run / "config.json")
                write_text(self.run / "deepspeed.json", json.dumps(self.plan.deepspeed, indent=2) + "\n")
            if self.base_note is not None:
                self.base_note.write(self.run)
            with atomic_path(self.run / "tokenizer.json") as partial:
                partial.write_bytes((Path(self.config.data.data) / "tokenizer.json").read_bytes())
            remove_unfinished(self.run)
            if other := take_over(self.run, self.token):
                self._say(f"Process {other}, which had this run before, still runs: from now on it saves no more.")

    def _estimate_memory(self, zero: dict, model: RWKV, recompute: str, overlaps: bool) -> MemoryEstimate:
        carried, rows = None, self.config.train.micro_batch_size
        if self.lanes:
            documents = rows * self.lanes.documents_a_window
            carried = Carried(rows * self.plan.accumulation, rows, documents, self.config.data.carry)
        return estimate(
            self.config.model,
            self.parameters,
            self.trained,
            zero_stage=self.zero_stage,
            ranks=self.plan.world_size,
            tokens=rows * self.config.data.ctx_len,
            recompute=recompute,
            bucket=int(zero.get("reduce_bucket_size", 5e8)),
            offload=offloads(zero),
            live=int(zero.get("stage3_max_live_parameters", 1e9)),
            overlaps=overlaps and bool(zero.get("overlap_comm")),
            accumulates=self.plan.accumulation * max(1, self.config.data.carry) > 1,
            carried=carried,
        )

    @property
    def _stop(self) -> int:
        """The last step of this start."""
        t = self.config.train
        return min(t.steps, t.stop_after or t.steps)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last step, or to `stop_after`.

        Raises Stopped when a signal asked for it, and UserError for what makes going on pointless.
        """
        t = self.config.train
        text = summary(self)
        self._say(f"RWKV-Music\n{text}")
        for damaged in self.passed_over:
            self._say(f"Passed over {damaged}.")
        if self.data_before and Path(self.data_before) != Path(self.config.data.data):
            self._say(f"The data were {self.data_before} up to here.")
        stop = self._stop
        if self.progress.step >= stop:
            bound = "--steps" if stop == t.steps else "--stop_after"
            self._say(f"Step {self.progress.step:,} is reached already: raise {bound} to go on.")
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
        self._say(f"Trained to step {self.progress.step:,}; the checkpoint is in {self.run / CHECKPOINTS}.")

    def _loop(self, stop: int, bar: tqdm, reader: ThreadPoolExecutor) -> None:
        t = self.config.train
        watch = Stopwatch()
        trace = Trace(self.run, rank(), t.profile, self.device)
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
            go_on_later, interrupted, save_due, writing = self.wishes.granted()
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
                self._say(f"{said}.")
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
            self._say(f"step {self.progress.step:,}: no checkpoint, as the gradient was not finite just now")
            return
        self.progress = dataclasses.replace(self.progress, skipped=skipped)
        self.watchdog.saves(self.progress.step)
        self.saver.save(self.progress)
        self.saved_at = time.monotonic()

    def _hopeless(self, skipped_in_a_row: int) -> SharedError:
        self.saver.finish()
        return SharedError(
            f"The last {count(skipped_in_a_row, 'step')} changed nothing because the gradient was not finite, up to "
            f"step {self.progress.step:,}: start again {self._where()} with a lower --lr or a longer --warmup_steps."
        )

    def _roll_back(self, loss: float) -> bool:
        """Go back to the last checkpoint from before the spike, but not back in the data; False if there is none."""
        self.watchdog.pause()
        self.saver.finish()
        kept = [path for path in checkpoints(self.run) if path.name <= checkpoint_name(self.calm_step)]
        chosen = [[path for path in kept if fault(path) is None]]
        dist.broadcast_object_list(chosen, src=0)  # what rank 0 sees of the file system holds
        [whole] = chosen
        target = next((path for path in reversed(whole) if not damaged_files(path)), None)
        said = f"step {self.progress.step:,}: the loss has risen to {loss:.3f}"
        if target is None:
            self._say(f"{said}; there is no checkpoint from before that to go back to")
            return False
        self.rollbacks[target.name] = self.rollbacks.get(target.name, 0) + 1
        if self.rollbacks[target.name] > ROLLBACKS:
            raise SharedError(
                f"The loss rose again, to {loss:.3f} at step {self.progress.step:,}, after {ROLLBACKS} returns to "
                f"{target.name}: go on from there with a lower --lr."
            )
        self._say(f"{said}; back to {target.name}, on with other rows")

        def remove_newer() -> None:
            for newer in checkpoints(self.run):
                if newer.name > target.name:
                    remove_checkpoint(newer)

        together(f"going back to {target}", only_on_first(remove_newer))
        load_checkpoint(self.engine, target)
        if self.lane_states:
            self.lane_states.forget()  # they are of these rows, but of the weights that were left
        step = check_resumable(target, self.config).step
        self.progress = dataclasses.replace(self.progress, step=step)
        self.curves.close()
        self.curves = Curves(self.run, step + 1, self.first, self.wandb)
        return True

    def where_it_stands(self) -> str:
        """After an interruption: how far it got and where the same command goes on from."""
        return f"after step {self.progress.step:,}; the same command goes on {self._where()}"

    def _where(self) -> str:
        kept = next((path for path in reversed(checkpoints(self.run)) if fault(path) is None), None)
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
        """This rank's micro-batches of the step that begins with `first_sample`; of lanes, the windows of each."""
        if self.lanes:
            first_window = first_sample // self.lanes.n_lanes
            windows = range(first_window, first_window + self.config.data.carry)
            batches = [self.lanes.batch(w, rows.start, rows.stop) for rows in self._own_rows(0) for w in windows]
        else:
            batches = [self.train_data.batch(rows.start, rows.stop) for rows in self._own_rows(first_sample)]
        return [batch.pinned() for batch in batches] if self.device.type == "cuda" else batches

    def _own_rows(self, first: int) -> list[range]:
        """This rank's share of the `batch_size` rows that begin with number `first`, by micro-batches."""
        shares = self.plan.world_size * self.plan.accumulation
        ends = [first + self.config.train.batch_size * i // shares for i in range(shares + 1)]
        return [range(ends[i], ends[i + 1]) for i in range(rank(), shares, self.plan.world_size)]

    def step(self, batches: list[Batch], lr: float) -> torch.Tensor:
        """One optimizer step; float64 [2]: the nats and the targets of this rank."""
        set_learning_rate(self.engine.optimizer, lr)
        counted = sum(batch.n_targets for batch in batches)
        minutes = (time.monotonic() - self.saved_at) / 60
        save_due = self.first and 0 < self.config.train.save_minutes <= minutes
        everywhere = self.wishes.exchange(
            counted, self.signals.go_on_later, self.signals.interrupted, save_due, self.saver.writing
        )
        if self.lane_states:
            nats = self.lane_states.step(self.engine, batches, self.plan.world_size / everywhere.clamp_min(1))
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
        self._say(said)
        return figures["val/loss"]

    def sample(self) -> None:
        """Complete a held-out piece: piano roll and sound in TensorBoard, a .mid in RUN/samples.

        Every rank takes part (under ZeRO-3 none has all the weights); rank 0 writes.
        """
        with playing(self.engine) as model:
            completion = self.held_out.complete(model)
        if completion is not None and self.first:
            show(completion, self.curves, self.progress.step, self.run / "samples")

    def _say(self, text: str) -> None:
        if self.first:
            tqdm.write(text, file=sys.stdout)
