"""What a run says of itself before it starts."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rwkv_music.errors import plural
from rwkv_music.system import gib
from rwkv_music.training.metrics import model_state_bytes

if TYPE_CHECKING:
    from rwkv_music.training.loop import Trainer


def summary(trainer: "Trainer") -> str:
    """What is about to happen: model, data, schedule, memory; a line or two each."""
    train_data, val_data = trainer.train_data, trainer.validation and trainer.validation.data
    m, d, t = trainer.config.model, trainer.config.data, trainer.config.train
    name = "v8 Heron" if m.channel_mix == "x080" else "v7 Goose"
    rows = f"{t.batch_size} rows x {d.ctx_len:,} tokens"
    if d.tbptt:
        rows += f" x {plural(d.tbptt, 'window')} with states carried"
        passes = t.steps * d.tbptt / trainer.streams.windows_per_pass
    else:
        passes = t.steps * t.batch_size / train_data.n_windows
    bf16 = bool(trainer.plan.deepspeed.get("bf16", {}).get("enabled"))
    states = model_state_bytes(trainer.parameters, trainer.trained, trainer.zero_stage, trainer.plan.world_size, bf16)
    device = (
        torch.cuda.get_device_name(trainer.device)
        if trainer.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    memory = f"{gib(states)} a rank for weights, gradients and AdamW under ZeRO-{trainer.zero_stage}"
    if trainer.device.type == "cuda":
        memory += f"; {gib(trainer.memory.peak)} at the peak of a step, by estimate, of {gib(trainer.memory_there)}"
        memory += f" (recompute {trainer.recompute})"
    start = f"resumed from {trainer.resumed_from}" if trainer.resumed_from else "from scratch"
    if trainer.initial is not None and not trainer.resumed_from:
        told = f" ({trainer.initial.told})" if trainer.initial.told else ""
        start = f"with the weights of {trainer.initial.weights.source}{told}"
    if t.warmup_steps >= t.steps:
        warm_up = f"warm-up {t.warmup_steps}, longer than the run: the learning rate will only rise"
    else:
        warm_up = f"warm-up {t.warmup_steps}"
    falls = "" if t.schedule == "cosine" else f" over the last {t.decay_fraction:.0%}"
    val = f"{val_data.n_documents:,} pieces, {val_data.n_tokens:,} tokens" if val_data else "none"
    trained = f"{trainer.trained:,} parameters, {trainer.trained / trainer.parameters:.2%}: {t.tune}"
    if t.tune == "lora":
        trained += f" of rank {t.lora_rank} on {t.lora_targets}"
    capacity = t.micro_batch_size * trainer.plan.world_size * trainer.plan.accumulation
    at_most = "at most " if capacity > t.batch_size else ""
    lines = {
        "model": f"RWKV {name}, {m.n_layer} layers x {m.n_embd}, {trainer.parameters:,} parameters, "
        f"vocabulary {m.vocab_size:,}",
        "trains": trained,
        "data": f"{d.data}: train {train_data.n_documents:,} pieces, {train_data.n_tokens:,} tokens; validation {val}",
        "batch": f"{rows} = {trainer.rows_a_step * d.ctx_len:,} tokens a step: "
        f"{plural(trainer.plan.world_size, 'rank')} x {at_most}{plural(t.micro_batch_size, 'row')} "
        f"x {trainer.plan.accumulation} accumulated",
        "schedule": f"{t.steps:,} steps ({passes:.2f} passes over the data), "
        f"lr {t.lr:g} -> {t.lr_final:g} by {t.schedule}{falls}, {warm_up}",
        "precision": "bf16 weights, fp32 master weights" if bf16 else "fp32",
        "memory": memory,
        "device": f"{device}; MFU counts against {trainer.flops / 1e12:,.1f} TFLOP/s ({trainer.flops_source})",
        "start": f"{start}, step {trainer.progress.step:,}; run folder {trainer.folder}",
    }
    if t.tune == "all":
        del lines["trains"]
    return "\n".join(f"  {key:<10}{value}" for key, value in lines.items())


# Settings that change where and how often a run writes, not what it learns.
BOOKKEEPING = (
    "out", "stop_after", "log_every", "val_every", "val_rows", "save_every", "save_minutes", "keep", "hang_minutes",
    "max_skipped_steps", "profile", "sample_every", "sample_context_bars", "sample_bars", "log", "resume",
)  # fmt: skip


def hyperparameters(trainer: "Trainer") -> dict[str, bool | float | str]:
    """What runs are compared by: all settings that a run's course depends on, folders by their last name."""
    config = trainer.config
    settings = {**asdict(config.model), **asdict(config.data), **asdict(config.train)}
    values = {name: value for name, value in settings.items() if name not in BOOKKEEPING}
    folders = {name: Path(values[name]).name for name in ("data", "init")}
    ranks = {"ranks": trainer.plan.world_size, "zero_stage": trainer.zero_stage}
    return {**values, **folders, **ranks, "parameters": trainer.parameters, "trained_parameters": trainer.trained}
