"""The trainer: sets a run up, says what it is about to do, and does it.

A step is `batch_size` rows named by one counter. Each rank takes its share in micro-batches; the loss is summed over
targets and divided by how many there are in the whole step, so that neither the number of ranks nor the accumulation
changes what a step computes.
"""

import dataclasses
import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from deepspeed import comm as dist
from tqdm import tqdm

from rwkv_music import generation, pianoroll
from rwkv_music.config import RunConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.codecs import load_codec
from rwkv_music.data.dataset import Batch, MusicDataset, read_dataset_json
from rwkv_music.errors import UserError, explained
from rwkv_music.evaluation import summed_loss
from rwkv_music.files import atomic_path, write_text
from rwkv_music.model_v8 import RWKV
from rwkv_music.run_folder import CHECKPOINTS, Progress, check_resumable, checkpoint_name, find_checkpoint
from rwkv_music.training.checkpoint import load_checkpoint, save_checkpoint
from rwkv_music.training.engine import (
    Plan,
    init_process_group,
    make_engine,
    make_plan,
    optimizer_bytes,
    rank,
    read_deepspeed_file,
    sum_over_ranks,
)
from rwkv_music.training.metrics import (
    Curves,
    Stopwatch,
    gib,
    model_flop_utilisation,
    model_state_bytes,
    peak_flops,
    peak_memory_bytes,
)
from rwkv_music.training.optimizer import learning_rate, set_learning_rate


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
        self.plan: Plan = make_plan(config.train, given, file, deepspeed_file, world_size)
        data = config.data
        self.train_data = MusicDataset(data.data, "train", data.ctx_len, data.seed)
        self.val_data = _open_val(config)
        if config.model.vocab_size not in (0, self.train_data.vocab_size):
            raise UserError(
                f"The model's vocabulary is {config.model.vocab_size} tokens, "
                f"but that of {data.data} is {self.train_data.vocab_size}: "
                f"prepare the data with the model's tokenizer, or start a new run."
            )
        model_config = dataclasses.replace(config.model, vocab_size=self.train_data.vocab_size)
        self.config = RunConfig(model_config, data, self.plan.train)
        train = self.config.train
        self.run = Path(train.out)
        self.zero_stage: int = file["zero_optimization"]["stage"]
        self.progress = Progress(0, 0, world_size, self.zero_stage)
        self.resumed_from = find_checkpoint(self.run, train.resume)
        if self.resumed_from is not None:
            self._check_tokenizer()
            self.progress = check_resumable(self.resumed_from, self.config, world_size, self.zero_stage)
        self.codec = self._codec_for_samples()
        if (self.run / "config.json").exists():
            RunConfig.load(self.run / "config.json")  # a folder of something else is not written into

        self.device = init_process_group()
        self.first = rank() == 0
        torch.manual_seed(data.seed)
        with self.device:
            model = RWKV(model_config)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.matrix_parameters = model.matrix_parameters()
        self.engine = make_engine(model, self.plan, self.device)
        if self.resumed_from is not None:
            load_checkpoint(self.engine, self.resumed_from)
        if self.first:
            self._make_run_folder()
        self.curves = Curves(self.run, self.progress.step + 1, enabled=self.first)
        self.flops, self.flops_source = peak_flops(self.device)

    # ---- set-up -----------------------------------------------------------------------------------------------------

    def _check_tokenizer(self) -> None:
        run_codec = load_codec(self.resumed_from / "tokenizer.json")
        if run_codec.fingerprint != self.train_data.fingerprint:
            raise UserError(
                f"{self.config.data.data} was prepared with another tokenizer than {self.run} was trained with: "
                f"prepare the data with the run's tokenizer, or choose another --out."
            )

    def _codec_for_samples(self):
        if not self.config.train.sample_every:
            return None
        try:
            import matplotlib  # noqa: F401
            import miditok  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"Samples need {error.name}: pip install 'rwkv-music[music]', or train with --sample_every 0."
            ) from error
        return load_codec(Path(self.config.data.data) / "tokenizer.json")

    def _make_run_folder(self) -> None:
        with explained(f"making the run folder {self.run}"):
            self.run.mkdir(parents=True, exist_ok=True)
            self.config.save(self.run / "config.json")
            write_text(self.run / "deepspeed.json", json.dumps(self.plan.deepspeed, indent=2) + "\n")
            with atomic_path(self.run / "tokenizer.json") as partial:
                partial.write_bytes((Path(self.config.data.data) / "tokenizer.json").read_bytes())

    def summary(self) -> str:
        """What is about to happen: model, data, schedule, memory; a line or two each."""
        m, d, t = self.config.model, self.config.data, self.config.train
        name = "v8 Heron" if m.channel_mix == "x080" else "v7 Goose"
        passes = t.steps * t.batch_size / self.train_data.n_windows
        bf16 = bool(self.plan.deepspeed.get("bf16", {}).get("enabled"))
        states = model_state_bytes(self.parameters, self.zero_stage, self.plan.world_size, bf16)
        device = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        start = f"resumed from {self.resumed_from}" if self.resumed_from else "from scratch"
        falls = "" if t.schedule == "cosine" else f" over the last {t.decay_fraction:.0%}"
        val = f"{self.val_data.n_documents:,} pieces, {self.val_data.n_tokens:,} tokens" if self.val_data else "none"
        lines = {
            "model": f"RWKV {name}, {m.n_layer} layers x {m.n_embd}, {self.parameters:,} parameters, "
            f"vocabulary {m.vocab_size:,}",
            "data": f"{d.data}: train {self.train_data.n_documents:,} pieces, {self.train_data.n_tokens:,} tokens; "
            f"validation {val}",
            "batch": f"{t.batch_size} rows x {d.ctx_len:,} tokens = {t.batch_size * d.ctx_len:,} tokens a step: "
            f"{_count(self.plan.world_size, 'rank')} x {_count(t.micro_batch_size, 'row')} "
            f"x {self.plan.accumulation} accumulated",
            "schedule": f"{t.steps:,} steps ({passes:.2f} passes over the data), "
            f"lr {t.lr:g} -> {t.lr_final:g} by {t.schedule}{falls}, warm-up {t.warmup_steps}",
            "precision": "bf16 weights, fp32 master weights" if bf16 else "fp32",
            "memory": f"{gib(states)} a rank for weights, gradients and AdamW under ZeRO-{self.zero_stage}; "
            f"activations come on top",
            "device": f"{device}; MFU counts against {self.flops / 1e12:,.1f} TFLOP/s ({self.flops_source})",
            "start": f"{start}, step {self.progress.step:,}; run folder {self.run}",
        }
        return "\n".join(f"  {key:<10}{value}" for key, value in lines.items())

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last step, or to `stop_after`."""
        t = self.config.train
        if self.first:
            print(f"RWKV-Music\n{self.summary()}", flush=True)
            self.curves.text("run", f"```\n{self.summary()}\n```")
        stop = min(t.steps, t.stop_after or t.steps)
        if self.progress.step >= stop:
            self._say(f"Step {self.progress.step:,} is reached already: raise --steps to go on.")
            return
        bar = tqdm(
            total=t.steps,
            initial=self.progress.step,
            unit="step",
            disable=not self.first,
            dynamic_ncols=True,
            file=sys.stdout,
        )
        watch = Stopwatch()
        window = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # nats and targets since the curve's last point
        self.stop_asked = False
        handler = signal.signal(signal.SIGINT, self._ask_to_stop)
        try:
            with ThreadPoolExecutor(1) as reader:
                coming = reader.submit(self._read_step, self.progress.samples)
                while self.progress.step < stop:
                    batches = coming.result()
                    samples = self.progress.samples + t.batch_size
                    if self.progress.step + 1 < stop:
                        coming = reader.submit(self._read_step, samples)
                    lr = learning_rate(self.progress.step, t)
                    window += self._step(batches, lr)
                    self.progress = dataclasses.replace(self.progress, step=self.progress.step + 1, samples=samples)
                    watch.tokens += t.batch_size * self.config.data.ctx_len
                    bar.update()
                    step = self.progress.step
                    if step % t.log_every == 0 or step == stop:
                        self._log(window, lr, watch.lap(), bar)
                        window.zero_()
                    watch.pause()
                    last = step == stop
                    if self.val_data and (last or step % t.val_every == 0):
                        self.validate()
                    if self.codec and (last or step % t.sample_every == 0):
                        self.sample()
                    if last or (t.save_every and step % t.save_every == 0):
                        save_checkpoint(self.engine, self.config, self.progress)
                    watch.go_on()
                    if self.stop_asked and not last:
                        raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGINT, handler)
            bar.close()
        self._say(f"Trained to step {self.progress.step:,}; the checkpoint is in {self.run / CHECKPOINTS}.")

    def _ask_to_stop(self, _signal: int, _frame: object) -> None:
        """Stop after the step under way, whose code may swallow an interruption; at once when asked again."""
        self.stop_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def where_it_stands(self) -> str:
        """After an interruption: how far it got and where the same command goes on from."""
        return f"after step {self.progress.step:,}; the same command goes on {self._where()}"

    def _where(self) -> str:
        kept = find_checkpoint(self.run)
        return f"from {kept.name}" if kept else "from the beginning, as there is no checkpoint yet"

    def close(self) -> None:
        """Close the curves and leave the process group, together: not after an error, when others may be gone."""
        self.curves.close()
        dist.destroy_process_group()

    def _read_step(self, first_sample: int) -> list[Batch]:
        """This rank's micro-batches of the step that begins with `first_sample`."""
        t = self.config.train
        rows = t.micro_batch_size
        starts = (first_sample + (i * self.plan.world_size + rank()) * rows for i in range(self.plan.accumulation))
        return [self.train_data.batch(start, start + rows) for start in starts]

    def _step(self, batches: list[Batch], lr: float) -> torch.Tensor:
        """One optimizer step; float64 [2]: the nats and the targets of this rank."""
        set_learning_rate(self.engine.optimizer, lr)
        counted = sum(batch.n_targets for batch in batches)
        everywhere = sum_over_ranks(torch.tensor(counted, dtype=torch.float32, device=self.device))
        # DeepSpeed averages over ranks and accumulated micro-batches; this undoes it and takes the mean over targets.
        scale = self.plan.world_size * self.plan.accumulation / everywhere.clamp_min(1)
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            batch = batch.to(self.device)
            loss = self.engine(batch.input_ids, targets=batch.targets, cu_seqlens=batch.cu_seqlens, reduction="sum")
            self.engine.backward(loss * scale)
            self.engine.step()
            nats += loss.detach()
        return torch.stack([nats, nats.new_tensor(counted)])

    def _log(self, window: torch.Tensor, lr: float, tokens_per_second: float, bar: tqdm) -> None:
        nats, targets = sum_over_ranks(window.clone()).tolist()
        loss = nats / max(targets, 1)
        if not math.isfinite(loss):
            raise UserError(
                f"The loss is {loss} at step {self.progress.step:,}, so the weights are lost: "
                f"start again {self._where()} with a lower --lr or a longer --warmup_steps."
            )
        norm = self.engine.get_global_grad_norm()
        memory = peak_memory_bytes(self.device)
        rate = tokens_per_second / self.plan.world_size
        self.curves.scalars(
            self.progress.step,
            {
                "train/loss": loss,
                "train/lr": lr,
                "train/grad_norm": None if norm is None else float(norm),
                "speed/tokens_per_second": tokens_per_second,
                "speed/mfu": model_flop_utilisation(self.matrix_parameters, rate, self.flops),
                "memory/peak_gib": None if memory is None else memory / 2**30,
                "memory/optimizer_bytes": optimizer_bytes(self.engine),
            },
        )
        bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {tokens_per_second:,.0f} tokens/s")

    def validate(self) -> float:
        """Mean loss over the validation split in nats a token, written to its curve."""
        t = self.config.train
        self.engine.eval()
        total = summed_loss(
            self.engine.module, self.val_data, t.micro_batch_size, self.device, t.val_rows, rank(), self.plan.world_size
        )
        self.engine.train()
        nats, targets = sum_over_ranks(total).tolist()
        loss = nats / max(targets, 1)
        self.curves.scalars(self.progress.step, {"val/loss": loss})
        self._say(f"step {self.progress.step:,}: validation loss {loss:.4f} nats a token")
        return loss

    def sample(self) -> None:
        """Complete the opening of a held-out piece: a piano roll in TensorBoard, a .mid in RUN/samples.

        Every rank takes part (under ZeRO-3 none has all the weights); rank 0 writes.
        """
        t = self.config.train
        pieces = BinIdx(Path(self.config.data.data) / ("val" if self.val_data else "train"))
        long_enough = (
            p
            for p in map(pieces.__getitem__, range(len(pieces)))
            if len(self.codec.bar_starts(p)) >= t.sample_context_bars
        )
        prompt = next(long_enough, None)
        if prompt is None:
            return
        self.engine.eval()
        [completion] = generation.complete(
            self.engine.module,
            self.codec,
            prompt,
            context_bars=t.sample_context_bars,
            bars=t.sample_bars,
            sampling=generation.Sampling(seed=self.config.data.seed),
        )
        self.engine.train()
        if self.first:
            midi = completion.midi()
            title = f"step {self.progress.step:,}: {t.sample_context_bars} bars given, {completion.bars} completed"
            self.curves.image(
                self.progress.step,
                "samples/completion",
                pianoroll.figure_array(midi, completion.prompt_end_seconds(), title),
            )
            generation.save_completions(
                [completion], self.run / "samples" / f"{checkpoint_name(self.progress.step)}.mid"
            )

    def _say(self, text: str) -> None:
        if self.first:
            tqdm.write(text, file=sys.stdout)


def _open_val(config: RunConfig) -> MusicDataset | None:
    """The validation split, or None where the dataset was prepared without one or no validation is asked for."""
    data = config.data
    if not config.train.val_every or not read_dataset_json(data.data)["splits"]["val"]["pieces"]:
        return None
    return MusicDataset(data.data, "val", data.ctx_len, data.seed)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
