"""DeepSpeed's side of a run: the process group, the user's JSON file, and the engine made of both.

The DeepSpeed file is a plain one and stays the user's. Where it and the command line speak of the same thing (batch
sizes, gradient clipping) they must agree; what only one of them says holds. The optimizer and the schedule are the
trainer's, because RWKV's learning-rate groups are.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero import partition_parameters

from rwkv_music.config import TrainConfig
from rwkv_music.cuda import build, extension_locks
from rwkv_music.errors import SharedError, UserError
from rwkv_music.model_v8 import RWKV, Block, Blocks
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams
from rwkv_music.training.deepspeed_engine.fast.overlap import reduce_beside
from rwkv_music.training.deepspeed_engine.fast.update import UpdateOnDevice
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams

# Keys of a DeepSpeed file that say the same as a field of TrainConfig.
SHARED_KEYS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "grad_clip",
}

# Elements of the whole model that ZeRO-3 may leave on every rank unless its file says how large they may be: 128 MiB.
SMALL_IN_ALL = 2**26
# Elements of the largest model whose blocks ZeRO-3 may gather at once: 1 GiB of weights, and as much of gradients and,
# where they are replayed, of a copy.
AT_ONCE = 2**29


def device_of_rank() -> torch.device:
    """This rank's device, made the one in use; DeepSpeed is told of the process group, which is there (`meet`)."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # its start-up lines drown the summary
    # On a CPU DeepSpeed would compile a shared-memory all-reduce at the first start, behind a lock that an interrupted
    # start leaves for good, so that every later one hangs. gloo needs no compiler, and sums alike on one node and many.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return torch.device(accelerator.current_device_name())


def read_deepspeed_file(path: str | os.PathLike) -> dict[str, Any]:
    """The DeepSpeed configuration at `path`.

    Raises UserError if it is not there, is no JSON, or takes over what is the trainer's.
    """
    path = Path(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The DeepSpeed file {path} cannot be read ({error.strerror}): name one, such as ds_configs/zero2.json."
        ) from error
    except ValueError as error:
        raise UserError(f"The DeepSpeed file {path} is not JSON ({error}): correct it.") from error
    if not isinstance(config, dict):
        raise UserError(f"The DeepSpeed file {path} does not hold a JSON object: see ds_configs/zero2.json for one.")
    for section in ("zero_optimization", "bf16", "fp16", "data_types"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(f'{path} sets "{section}" to {config[section]!r}: it takes an object, as in ds_configs.')
    for key in (*SHARED_KEYS, "gradient_accumulation_steps"):
        value = config.get(key, "auto")
        number = isinstance(value, int | float) if key == "gradient_clipping" else isinstance(value, int) and value > 0
        if value != "auto" and (isinstance(value, bool) or not number):
            kind = "a number" if key == "gradient_clipping" else "a whole number above 0"
            raise UserError(f'{path} sets "{key}" to {value!r}: it takes {kind}, or leave it out.')
    for section, options in {
        "optimizer": "--lr, --beta1, --weight_decay ...",
        "scheduler": "--schedule, --warmup_steps ...",
    }.items():
        if section in config:
            raise UserError(
                f"{path} has a section \"{section}\", which is train.py's own because of RWKV's parameter groups: "
                f"remove it and use {options}."
            )
    if config.get("fp16", {}).get("enabled"):
        raise UserError(
            f'{path} asks for fp16, but the kernels run in bf16: write "bf16": {{"enabled": true}} instead.'
        )
    if config.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
        raise UserError(f'{path} names no ZeRO stage: set "zero_optimization": {{"stage": 1}}, 2 or 3.')
    zero, sums = config["zero_optimization"], config.get("data_types", {}).get("grad_accum_dtype")
    in_fp32 = sums in ("fp32", "float32", "torch.float32", "float")
    if in_fp32 and zero["stage"] == 1 and not offloads(zero) and config.get("bf16", {}).get("enabled"):
        raise UserError(
            f"{path} sums gradients in fp32 under ZeRO-1, for which DeepSpeed takes an optimizer that does not save as "
            f'ZeRO\'s do: set "stage": 2, or leave "grad_accum_dtype" out.'
        )
    return config


@dataclass(frozen=True)
class Plan:
    """How a step's rows are shared out, and the two configurations that agree on it."""

    train: TrainConfig
    deepspeed: dict[str, Any]
    world_size: int
    accumulation: int  # micro-batches a rank takes in a step, or in each of its windows where states are carried


def divided(batch_size: int, world_size: int, most: int) -> int:
    """The most rows, up to `most`, that every rank can take at once so that all have as many; 0 if there is none."""
    return next((rows for rows in range(most, 0, -1) if batch_size % (rows * world_size) == 0), 0)


def make_plan(
    train: TrainConfig,
    given: set[str],
    file: dict[str, Any],
    path: str | os.PathLike,
    world_size: int,
    windows: int = 1,
) -> Plan:
    """Bring the command line and the DeepSpeed file together.

    In an elastic run the ranks' shares may differ by a row, and micro_batch_size is the most that one may have. To the
    mathematics that is nothing: the loss is the mean over all targets of the step.

    Args:
        given: the fields of `train` that the user set; the others yield to the file.
        windows: that each row takes one after the other in a step. To DeepSpeed they are accumulation.

    Raises:
        UserError: both say something, and not the same; or the batch does not divide.
    """
    for key, name in SHARED_KEYS.items():
        value = file.get(key, "auto")
        if value == "auto":
            continue
        if name in given and getattr(train, name) != value:
            raise UserError(
                f"{path} sets {key} to {value}, but --{name} is {getattr(train, name)}: remove one of the two."
            )
        train = dataclasses.replace(train, **{name: value})
    accumulation = file.get("gradient_accumulation_steps", "auto")
    if train.elastic and windows == 1:
        if accumulation != "auto":
            raise UserError(
                f"{path} sets gradient_accumulation_steps to {accumulation}, but in an elastic run it follows from how "
                f'many ranks there are: set it to "auto", and use --micro_batch_size.'
            )
        if train.batch_size < world_size:
            raise UserError(f"batch_size {train.batch_size} gives {world_size} ranks not a row each: choose a larger.")
        most = train.micro_batch_size or math.ceil(train.batch_size / world_size)
        shares = math.ceil(train.batch_size / (world_size * most))
        rows = math.ceil(train.batch_size / (world_size * shares))
        train = dataclasses.replace(train, micro_batch_size=most)
        return Plan(train, _engine_file(file, train, rows, world_size, shares), world_size, shares)
    if not train.micro_batch_size:
        rows = world_size * (1 if accumulation == "auto" else accumulation)
        if train.batch_size % rows:
            steps = "" if accumulation == "auto" else f" and {accumulation} accumulation steps"
            raise UserError(
                f"batch_size {train.batch_size} does not divide among {world_size} ranks{steps}: "
                f"choose a multiple of {rows}."
            )
        train = dataclasses.replace(train, micro_batch_size=train.batch_size // rows)
    rows = train.micro_batch_size * world_size
    if train.batch_size % rows:
        raise UserError(
            f"batch_size {train.batch_size} is not a multiple of "
            f"micro_batch_size {train.micro_batch_size} x {world_size} ranks: choose a multiple of {rows}."
        )
    if accumulation not in ("auto", train.batch_size // rows):
        raise UserError(
            f"{path} sets gradient_accumulation_steps to {accumulation}, but batch_size {train.batch_size} "
            f"over {world_size} ranks x micro_batch_size {train.micro_batch_size} needs {train.batch_size // rows}: "
            f"remove one of them."
        )
    shares = train.batch_size // rows
    return Plan(
        train, _engine_file(file, train, train.micro_batch_size, world_size, shares * windows), world_size, shares
    )


def _engine_file(file: dict[str, Any], train: TrainConfig, rows: int, world_size: int, shares: int) -> dict[str, Any]:
    """The DeepSpeed file with its sizes filled in: a rank takes `shares` of `rows` rows one after the other."""
    return {
        **file,
        "train_batch_size": rows * world_size * shares,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": shares,
        "gradient_clipping": train.grad_clip,
    }


QUANTISED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def check_quantisation(zero: dict[str, Any], device: torch.device) -> None:
    """Raises SharedError if the file's section "zero_optimization" asks of a CPU what only a GPU has kernels for."""
    asked = [name for name in QUANTISED if zero.get(name)]
    if asked and device.type == "cpu":
        raise SharedError(
            f"The DeepSpeed file sets {asked[0]}, for which DeepSpeed has kernels for GPUs alone: on a CPU take "
            f"another, such as ds_configs/zero3.json."
        )


def wait_for_compilations(zero: dict[str, Any]) -> None:
    """Return when no other process holds the lock of an extension that DeepSpeed will load, and compile if need be.

    TORCH_CUDA_ARCH_LIST is put into words that DeepSpeed knows.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".

    Raises SharedError on every rank if a lock was left by a compilation that was cut short: DeepSpeed would hang.
    """
    devices = ((zero.get(section) or {}).get("device") for section in ("offload_optimizer", "offload_param"))
    needed = {
        "cpu_adam": offloads(zero),
        "async_io": "nvme" in devices,
        "quantizer": any(zero.get(name) for name in QUANTISED),
    }
    first_of_node = os.environ["LOCAL_RANK"] == "0"

    def say(sentence: str) -> None:
        if first_of_node:
            print(sentence, file=sys.stderr, flush=True)

    names = [name for name, wanted in needed.items() if wanted]
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if names and archs:  # what DeepSpeed compiles for; it cannot read what some images say, such as 9.0a
        os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(\d)[af]\b", r"\1", archs)
    if names:
        raise_on_any_rank("looking for locks", lambda: extension_locks.wait_for(names, say))


def offloads(zero: dict[str, Any], what: str = "optimizer") -> bool:
    """Whether "optimizer" or "param" is kept off the GPU, by the DeepSpeed file's section "zero_optimization"."""
    return (zero.get(f"offload_{what}") or {}).get("device", "none") != "none"


def make_engine(
    model: RWKV, plan: Plan, device: torch.device, overlaps: bool, at_once: bool
) -> deepspeed.DeepSpeedEngine:
    """A DeepSpeed engine over `model`, with AdamW over its parameter groups: those of its parameters that train.

    Args:
        overlaps: whether gradients come while others can be on their way to other ranks. If not, `overlap_comm` is
            turned off under ZeRO-1 and 2: it would take a second bucket, and a wait after every backward pass.
        at_once: whether ZeRO-3 is to gather all blocks at once (see `may_gather_at_once`).

    Under ZeRO-1 and 2 its module is a `FlatParams` that has taken the model's parameters over; under ZeRO-3 it is the
    model, with the `Zero3FlatParams` that `allocate` gave it. Its layers are gathered one whole block at a time or all at
    once.

    Raises UserError for what DeepSpeed does not take, and on a GPU for what our kernels do not.
    """
    if device.type == "cuda":
        if not plan.deepspeed.get("bf16", {}).get("enabled"):
            raise UserError('The kernels run in bf16, but the DeepSpeed file does not: add "bf16": {"enabled": true}.')
        if model.config.head_size != 64:
            raise UserError(f"The kernels are made for head_size 64, not {model.config.head_size}: leave it at 64.")
        build.load()  # so that a compiler that is missing is told before anything is written
    train = plan.train
    module: torch.nn.Module = model
    zero = plan.deepspeed["zero_optimization"]
    # To measure its throughput DeepSpeed would wait for the GPU twice a step, and the GPU for the host after that.
    config = {"timers": {"throughput": {"enabled": False}}, **plan.deepspeed}
    if not overlaps and zero["stage"] < 3:
        config = {**config, "zero_optimization": {**zero, "overlap_comm": False}}
    if zero["stage"] == 3:
        flat = getattr(model, "zero3_flat_params", None)
        groups = model.parameter_groups(train.weight_decay) if flat is None else flat.groups
        config = {**config, "zero_optimization": _gathered(model, flat, zero, at_once)}
    else:
        groups = model.parameter_groups(train.weight_decay)
        module = FlatParams(model, groups, overlaps=bool(config["zero_optimization"].get("overlap_comm")))
        groups = module.groups
    options: dict[str, Any] = {"lr": train.lr, "betas": (train.beta1, train.beta2), "eps": train.adam_eps}
    if offloads(zero):
        optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **options)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:  # pydantic's are ValueErrors
        what = " ".join(str(error).split())[:300]
        raise UserError(f"DeepSpeed does not take its file ({type(error).__name__}: {what}): correct it.") from error
    if not offloads(zero) and not offloads(zero, "param"):
        engine.update_on_device = UpdateOnDevice(engine)
        if device.type == "cuda" and config["zero_optimization"].get("overlap_comm", zero["stage"] == 3):
            reduce_beside(engine.optimizer)
    if zero["stage"] == 3:
        _let_host_run_ahead(engine, at_once, moves=dist.get_world_size() > 1 or offloads(zero, "param"))
    return engine


_deepspeeds_no_gather = partition_parameters._no_gather_coalesced


def _let_host_run_ahead(engine: deepspeed.DeepSpeedEngine, at_once: bool, moves: bool) -> None:
    """Spare ZeRO-3's host some waiting for the GPU.

    A single rank has all at hand and gathers nothing, and yet DeepSpeed's host waits for the GPU to have done all that
    it was asked to. Else it waits for a gathered tensor when two more have been asked for: of a gathering of all blocks
    that is before the forward pass, so that the host would wait for what the GPU and the other ranks have yet to do. It
    may be two such gatherings ahead instead.

    Args:
        moves: whether weights have to come from elsewhere.

    Sources: `NoGatherHandle.wait` in deepspeed/runtime/zero/partition_parameters.py and `_fetch_sub_module_impl` in
    partitioned_param_coordinator.py of DeepSpeed 0.19. The first is called by a function of its module, and so is
    changed for all engines: there is one in a process.
    """
    partition_parameters._no_gather_coalesced = _deepspeeds_no_gather if moves else _at_hand
    if not at_once:
        return
    gathered = sum(not parameter.ds_persist for parameter in engine.module.blocks.parameters())
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    coordinator._PartitionedParameterCoordinator__max_ongoing_fetch_events *= max(1, gathered)


def _at_hand(parameters: Iterable[torch.nn.Parameter]) -> Any:
    """DeepSpeed's handle of a single rank's parameters, for which no one waits.

    They are views of what the rank holds, on the same device, and are read where they were written: in order.
    """
    parameters = list(parameters)
    handle = _deepspeeds_no_gather(parameters)

    def wait(**_: object) -> None:
        while parameters:
            parameters.pop().ds_status = partition_parameters.ZeroParamStatus.AVAILABLE

    handle.wait = wait
    return handle


def may_gather_at_once(zero: dict[str, Any], parameters: int) -> bool:
    """Whether ZeRO-3 may have the weights of all blocks at hand, and their gradients until the last is there.

    That takes more memory than block by block, but DeepSpeed's work of a block is the host's, and is done once.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".
        parameters: of the whole model.
    """
    sparing = offloads(zero) or offloads(zero, "param") or any(zero.get(name) for name in QUANTISED)
    most = min(AT_ONCE, int(zero.get("stage3_max_live_parameters", AT_ONCE)))
    return zero["stage"] == 3 and not sparing and parameters <= most


def _gathered(model: RWKV, flat: Zero3FlatParams | None, zero: dict[str, Any], at_once: bool) -> dict[str, Any]:
    """The section "zero_optimization" of a ZeRO-3 file for this model, whose blocks are gathered whole from now on."""
    deepspeed.utils.set_z3_leaf_modules(model, [Blocks if at_once else Block])
    if not model.emb.weight.requires_grad and any(p.requires_grad for p in model.blocks.parameters()):
        # DeepSpeed takes the gradients of what it gathers when that of its input is made: the first must have one.
        model.emb.register_forward_hook(lambda _module, _inputs, x: x.requires_grad_(torch.is_grad_enabled()))
    key = "stage3_param_persistence_threshold"  # elements, up to which a tensor stays on every rank
    given = zero.get(key, "auto")
    kept = 10**5 if given == "auto" else given
    if flat is not None and given == "auto" and sum(flat.small) <= SMALL_IN_ALL:
        # A block's vectors and gates are a thirtieth of it: with them there, one tensor is gathered for a block.
        kept = max(kept, *flat.small)
    if model.blocks[0].att.time_state is not None:
        # Read outside of their layers too, where nothing gathers them: small enough to stay on every rank.
        kept = max(kept, model.blocks[0].att.time_state.numel() + 1)
    return {**zero, key: kept}


@contextlib.contextmanager
def eval_mode(engine: deepspeed.DeepSpeedEngine) -> Iterator[RWKV]:
    """The engine's model in evaluation mode, for as long as the context lasts."""
    engine.eval()
    try:
        with torch.no_grad():
            yield engine.module.unpacked() if isinstance(engine.module, FlatParams) else engine.module
    finally:
        engine.train()


def optimizer_bytes(engine: deepspeed.DeepSpeedEngine) -> int:
    """Bytes that this rank's optimizer holds: its part of the fp32 master weights and of AdamW's two moments."""
    zero, optimizer = engine.optimizer, engine.optimizer.optimizer
    # DeepSpeed's optimizer wraps ours and gives it flat fp32 partitions, but under stage 3 only while it steps.
    tensors = list(getattr(zero, "fp32_partitioned_groups_flat", ()))
    tensors = tensors or [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
    return sum(x.numel() * x.element_size() for x in tensors)


def rank() -> int:
    return dist.get_rank()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of `values` over all ranks, in place."""
    dist.all_reduce(values)
    return values
