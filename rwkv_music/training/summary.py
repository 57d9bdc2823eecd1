"""The summary that a run prints when it starts, its texts in TensorBoard, and the settings in the HParams tab."""

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

import rwkv_music
from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.data.mixture import Part
from rwkv_music.errors import plural
from rwkv_music.system import gib
from rwkv_music.training.deepspeed_file import uses_bf16
from rwkv_music.training.memory import model_state_bytes
from rwkv_music.training.setup import Context


def summary(context: Context, flops: float, flops_source: str) -> str:
    """Return a summary of the run. `flops` is the rate, in FLOP/s, that counts as 100% MFU."""
    plan, size, start = context.plan, context.size, context.start
    m, d, t = context.config.model, context.config.data, context.config.train
    name = "v8 Heron" if m.channel_mix == "x080" else "v7 Goose"
    rows = f"{plural(t.batch_size, 'row')} x {d.ctx_len:,} tokens"
    if d.tbptt:
        rows += f" x {plural(d.tbptt, 'window')} of document streams"
        passes = f"{t.steps * d.tbptt / context.data.streams.windows_per_pass:.2f} passes over the data"
    else:
        passes = _passes(context)
    bf16, on_gpu = uses_bf16(plan.deepspeed), context.device.type == "cuda"
    states = model_state_bytes(size.parameters, size.trained, plan.zero_stage, plan.world_size, bf16, size.by_muon)
    device = (
        torch.cuda.get_device_name(context.device) if on_gpu else f"CPU, {plural(torch.get_num_threads(), 'thread')}"
    )
    memory = f"{gib(states)} per rank for weights, gradients and optimizer states under ZeRO-{plan.zero_stage}"
    if on_gpu:
        memory += f"; estimated peak {gib(context.memory.estimate.peak)} of {gib(context.memory.available)} available"
        memory += f" (recompute {context.memory.recompute})"
    source = f"resumed from {start.checkpoint}" if start.checkpoint else "from scratch"
    if start.initial is not None and not start.checkpoint:
        note = f" ({start.initial.note})" if start.initial.note else ""
        source = f"with the weights of {start.initial.weights.source}{note}"
    warm_up = f"warm-up {t.warmup_steps}"
    if t.warmup_steps >= t.steps:
        warm_up += ", at least as long as the run: the learning rate will only rise"
    falls = "" if t.schedule == "cosine" else f" over the last {t.decay_fraction:.0%}"
    optimizer = "AdamW"
    if t.optimizer == "muon":
        optimizer = f"Muon for the {size.by_muon:,} parameters of the blocks' large matrices, AdamW for all others"
    trained = f"{size.trained:,} parameters, {size.trained / size.parameters:.2%}: {t.tune}"
    if t.tune == "lora":
        trained += f" of rank {t.lora_rank} on {t.lora_targets}"
    capacity = t.micro_batch_size * plan.groups * plan.accumulation
    ranks = plural(plan.groups, "rank")
    if t.context_parallel > 1:
        ranks = f"{plural(plan.groups, 'group')} of {t.context_parallel} ranks"
    at_most = "at most " if capacity > t.batch_size else ""
    lines = {
        "model": f"RWKV {name}, {plural(m.n_layer, 'layer')} x {m.n_embd}, {size.parameters:,} parameters, "
        f"vocabulary {m.vocab_size:,}",
        "trains": trained,
        "data": f"\n{'':12}".join(_dataset(context, part) for part in context.data.train.parts),
        "batch": f"{rows} = {context.rows_per_step * d.ctx_len:,} tokens per step: "
        f"{ranks} x {at_most}{plural(t.micro_batch_size, 'row')} "
        f"x {plan.accumulation} accumulated",
        "optimizer": f"{optimizer}; weight decay {t.weight_decay:g}",
        "schedule": f"{plural(t.steps, 'step')} ({passes}), lr {t.lr:g} -> {t.lr_final:g} by {t.schedule}{falls}, "
        f"{warm_up}",
        "precision": "bf16 weights, fp32 master weights" if bf16 else "fp32",
        "memory": memory,
        "device": f"{device}; 100% MFU is {flops / 1e12:,.1f} TFLOP/s ({flops_source})",
        "start": f"{source}, step {start.progress.step:,}; run folder {context.folder}",
        "curves": f"tensorboard --logdir {shlex.quote(str(context.folder.absolute().parent))}",
    }
    if t.tune == "all":
        del lines["trains"]
    return "\n".join(f"  {key:<10}{value}" for key, value in lines.items())


def _dataset(context: Context, part: Part) -> str:
    """Return a description of one dataset of the run."""
    train, validation = context.data.train.datasets[part.name], context.data.validation
    val = validation.datasets.get(part.name) if validation else None
    of_val = f"{plural(val.data.n_documents, 'piece')}, {val.data.n_tokens:,} tokens" if val else "none"
    share = "" if part.share == 1 else f" ({part.name}), {float(part.share):.1%} of the rows"
    of_train = f"{plural(train.n_documents, 'piece')}, {train.n_tokens:,} tokens"
    return f"{part.folder}{share}: train {of_train}; validation {of_val}"


def _passes(context: Context) -> str:
    """Return how often the run reads each dataset."""
    t, train = context.config.train, context.data.train
    rows = t.steps * t.batch_size
    passes = {part.name: float(rows * part.share / train.datasets[part.name].n_samples) for part in train.parts}
    one = len(passes) == 1
    return ", ".join(f"{value:.2f} passes over {'the data' if one else name}" for name, value in passes.items())


# Settings that the HParams tab omits, because they do not affect how the model learns.
BOOKKEEPING = (
    "out", "stop_after", "log_every", "val_every", "val_rows", "patience", "save_every", "save_minutes", "keep",
    "hang_minutes", "fast", "max_skipped_steps", "profile", "sample_every", "sample_context_bars", "sample_bars", "log",
    "resume",
)  # fmt: skip


# The first columns of the HParams tab: the settings by which runs are usually compared.
FIRST = ("preset", "parameters", "lr", "optimizer", "batch_size", "tokens", "data")


def hyperparameters(context: Context) -> dict[str, bool | float | str]:
    """Return the settings that affect what a run learns. Paths are shortened to their last component."""
    config = context.config
    settings = {**asdict(config.model), **asdict(config.data), **asdict(config.train)}
    values = {name: value for name, value in settings.items() if name not in BOOKKEEPING}
    folders = {"init": Path(values["init"]).name, "data": Path(config.data.description).name}
    if isinstance(config.data.data, dict):
        folders["data"] = ", ".join(f"{part.name}:{part.weight:g}" for part in context.data.train.parts)
    ranks = {"ranks": context.plan.world_size, "zero_stage": context.plan.zero_stage}
    size = {"preset": preset_of(config.model), "parameters": context.size.parameters}
    size |= {"trained_parameters": context.size.trained}
    tokens = {"tokens": config.train.steps * context.rows_per_step * config.data.ctx_len}
    return {**values, **folders, **ranks, **size, **tokens}


def preset_of(model: ModelConfig) -> str:
    """Return the name of the preset with the model's layers and width; otherwise the two numbers ("6 x 256")."""
    shape = {"n_layer": model.n_layer, "n_embd": model.n_embd}
    return next((name for name, preset in PRESETS.items() if preset == shape), f"{model.n_layer} x {model.n_embd}")


def run_texts(context: Context, summary: str) -> dict[str, str]:
    """Return the texts of TensorBoard's tab TEXT, as Markdown by tag: what is needed to repeat the run."""
    versions = {"python": platform.python_version(), "rwkv_music": rwkv_music.__version__}
    versions |= {name: metadata.version(name) for name in ("torch", "deepspeed", "numpy")}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {
        "run/1_summary": _code(summary),
        "run/2_command": _code(shlex.join(sys.argv)),
        "run/3_commit": commit(Path(__file__).parent),
        "run/4_versions": _code("\n".join(f"{name} {version}" for name, version in versions.items())),
        "run/5_deepspeed": _code(json.dumps(context.plan.deepspeed, indent=2)),
        "run/6_optimizer_states": f"{context.engine.optimizer_bytes():,} bytes on rank 0",
    }


def commit(folder: Path) -> str:
    """Return the commit of the git checkout that contains `folder`, and whether files differ from it.

    Return "unknown" if `folder` is not in a checkout or git is not installed.
    """

    def git(*arguments: str) -> str:
        line = ["git", "-C", str(folder), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (", with uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _code(text: str) -> str:
    return f"```\n{text}\n```"
