"""The engine: DeepSpeed's ZeRO over the model, behind one interface.

The training loop uses DeepSpeed only through `Engine`. The replacements in `fast` are used only if `--fast` is `auto`
and the installed DeepSpeed is the tested one (`fast.upstream.mismatch`). Otherwise every step runs on DeepSpeed's own
code paths.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor
from torch import distributed as dist

from rwkv_music.config import RunConfig
from rwkv_music.cuda import build, extension_locks
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import RWKV, Block, Blocks
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.deepspeed_engine.fast import cuda_graphs, gather, paths, start, upstream
from rwkv_music.training.deepspeed_engine.fast.flat_params import FlatParams
from rwkv_music.training.deepspeed_engine.fast.overlap import overlap_reduction
from rwkv_music.training.deepspeed_engine.fast.paths import FastPaths
from rwkv_music.training.deepspeed_engine.fast.update import UpdateOnDevice
from rwkv_music.training.deepspeed_engine.fast.zero3_flat_params import Zero3FlatParams
from rwkv_music.training.deepspeed_engine.muon import Muon
from rwkv_music.training.deepspeed_engine.zero_shards import ZeroShards
from rwkv_music.training.deepspeed_file import offloads, quantizes, uses_bf16
from rwkv_music.training.learning_rate import set_learning_rate

# ZeRO-3 keeps the small flat parameters of all blocks on every rank if they have at most this many elements in total
# (128 MiB in bf16). A threshold in the DeepSpeed file takes precedence.
PERSISTENT_LIMIT = 2**26


class Engine:
    """One rank's model and optimizer, managed by DeepSpeed.

    Attributes:
        module: the module that DeepSpeed wraps: the model, or a `FlatParams` around it.
        device: this rank's device.
        shards: the elements of the parameters that this rank's optimizer holds.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, update: UpdateOnDevice | None) -> None:
        self._engine, self._update = engine, update
        self.module, self.device = engine.module, engine.device
        flat = self.module if isinstance(self.module, FlatParams) else getattr(self.module, "zero3_flat_params", None)
        self.shards = ZeroShards(engine, {} if flat is None else flat.layout)
        if isinstance(engine.optimizer.optimizer, Muon):
            engine.optimizer.optimizer.start(self.shards)
        if update is not None:
            update.start(self.shards)

    def __call__(self, **arguments: Any) -> Any:
        return self.forward(**arguments)

    def forward(self, **arguments: Any) -> Any:
        """Call the model; see `RWKV.forward`."""
        return self._engine(**arguments)

    def backward(self, loss: Tensor, average_over_micro_batches: bool = True) -> None:
        """Run the backward pass. DeepSpeed averages gradients over ranks and, by default, over micro-batches."""
        self._engine.backward(loss, scale_wrt_gas=average_over_micro_batches)

    def step(self) -> None:
        """End a micro-batch. After the last micro-batch of a step, clip the gradient and update the weights."""
        self._engine.step()

    def set_learning_rate(self, lr: float) -> None:
        set_learning_rate(self._engine.optimizer, lr)

    def grad_norm(self) -> float | None:
        """Return the norm of the last step's gradient before clipping, None if there is none. Waits for the device."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def skipped_steps(self) -> Tensor:
        """Return the number of steps skipped because the gradient was not finite, int64 [] on the device."""
        if self._update is not None:
            return self._update.skipped.clone()
        return torch.full((), self._engine.skipped_steps, dtype=torch.int64, device=self.device)

    def optimizer_bytes(self) -> int:
        """Return the bytes of this rank's fp32 master weights and optimizer states."""
        states = self._engine.optimizer.optimizer.state.values()
        tensors = [x for state in states for x in state.values() if torch.is_tensor(x)]
        return sum(x.numel() * x.element_size() for x in [*self.shards.masters, *tensors])

    @contextlib.contextmanager
    def eval_mode(self) -> Iterator[RWKV]:
        """A context that yields the model in evaluation mode, without gradients."""
        self._engine.eval()
        try:
            with torch.no_grad():
                yield self.module.unpacked() if isinstance(self.module, FlatParams) else self.module
        finally:
            self._engine.train()


def communication_backend() -> str:
    """Return the communication backend for DeepSpeed's accelerator: "nccl" on a GPU, "gloo" on a CPU."""
    return get_accelerator().communication_backend_name()


def select_device() -> torch.device:
    """Return this rank's device, and make it current. Also register the existing process group with DeepSpeed."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # DeepSpeed's start-up lines would bury the summary
    # On a CPU, DeepSpeed would compile a shared-memory all-reduce at the first start, and hold a lock meanwhile. If
    # that start is interrupted, the lock remains, and every later start hangs. gloo, which is used instead, needs no
    # compiler, and gives the same sums on one node as on many.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return torch.device(accelerator.current_device_name())


def wait_for_compilations(zero: dict[str, Any]) -> None:
    """Wait until no other process is compiling an extension that DeepSpeed will load. Collective.

    Also rewrites TORCH_CUDA_ARCH_LIST to a form that DeepSpeed can parse.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".

    Raises:
        SharedError: an interrupted compilation left a lock, which DeepSpeed would wait for forever.
    """
    devices = ((zero.get(section) or {}).get("device") for section in ("offload_optimizer", "offload_param"))
    needed = {"cpu_adam": offloads(zero), "async_io": "nvme" in devices, "quantizer": quantizes(zero)}
    first_of_node = os.environ["LOCAL_RANK"] == "0"

    def say(sentence: str) -> None:
        if first_of_node:
            print(sentence, file=sys.stderr, flush=True)

    names = [name for name, wanted in needed.items() if wanted]
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if names and archs:  # DeepSpeed cannot parse architectures such as 9.0a, which some images set
        os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(\d)[af]\b", r"\1", archs)
    if names:
        raise_on_any_rank("looking for locks", lambda: extension_locks.wait_for(names, say))


def fast_mismatch(fast: str) -> str | None:
    """Return, as a clause, why a run with `--fast FAST` uses DeepSpeed's own code paths; None if it does not."""
    return "--fast is off" if fast == "off" else upstream.mismatch()


def choose_paths(
    config: RunConfig, plan: BatchPlan, device: torch.device, one_host: bool, matrix_parameters: float, parameters: int
) -> FastPaths:
    """Choose which replacements of DeepSpeed's code a run uses; see `fast.paths.choose_paths`."""
    if fast_mismatch(plan.train.fast):
        return FastPaths(enabled=False, overlaps=plan.world_size > 1)
    return paths.choose_paths(config, plan, device, one_host, matrix_parameters, parameters)


def materialize(model: RWKV, device: torch.device, plan: BatchPlan, fresh: frozenset[str] | None = None) -> None:
    """Allocate a model that was built on the meta device; under ZeRO-3, only this rank's share of it. Collective.

    All ranks must have the same torch random state. The parts of the model are allocated one after another. Under
    ZeRO-3, each part is partitioned before the next one is allocated, so that no rank ever holds the whole model.

    Args:
        fresh: the parameters that the files to load do not provide; None if no files will be loaded. With None, the
            whole model is initialized here. Otherwise, emb and head are initialized if they are in `fresh`, and all
            other parameters are zero until the weights are loaded.
    """
    zero = plan.zero
    stage3, bf16, flat = zero["stage"] == 3, uses_bf16(plan.deepspeed), None
    all_train = all(p.requires_grad for p in model.parameters())
    if stage3 and all_train and not quantizes(zero) and not fast_mismatch(plan.train.fast):
        flat = model.zero3_flat_params = Zero3FlatParams(model, _parameter_groups(model, plan))
    tables = {model.emb: "emb.weight", model.head: "head.weight"}
    partitioned = None  # the first partitioned parameter; its methods partition the others in the same way
    for part in model.parts():
        drawn = fresh is None or tables.get(part) in fresh
        if stage3 and bf16 and not drawn:
            part.bfloat16()
        for owner in part.modules():  # `to_empty` would import sympy, which takes a second
            for name, p in owner.named_parameters(recurse=False):
                empty = torch.empty(p.shape, dtype=p.dtype, device=device)
                setattr(owner, name, torch.nn.Parameter(empty, requires_grad=p.requires_grad))
        if drawn:
            views: AbstractContextManager = nullcontext()
            if flat is not None and isinstance(part, Block):
                views = flat.viewed(part)
            with views:
                model.init_part(part)
        else:
            for parameter in part.parameters():
                parameter.data.zero_()
        if not stage3:
            continue
        if bf16:
            part.bfloat16()
        if partitioned is None:
            deepspeed.zero.Init(module=part, config_dict_or_path=plan.deepspeed)
            partitioned = next(part.parameters())
        else:
            partitioned.convert_to_zero_parameters(param_list=list(part.parameters()))


def make_engine(model: RWKV, plan: BatchPlan, device: torch.device, fast: FastPaths, ctx_len: int) -> Engine:
    """Build the engine of a materialized `model`, with AdamW or `Muon` for its trainable parameter groups. Collective.

    Under ZeRO-1 and 2, with `fast.enabled`, the engine's module is a `FlatParams` that takes over the model's
    parameters. Otherwise it is the model itself.

    Args:
        fast: the replacements to use.
        ctx_len: tokens per row.

    Raises:
        UserError: DeepSpeed rejects its configuration, or the GPU kernels do not support the model or its dtype.
    """
    if device.type == "cuda":
        if not uses_bf16(plan.deepspeed):
            raise UserError('The kernels run in bf16: add "bf16": {"enabled": true} to the DeepSpeed file.')
        if model.config.head_size != 64:
            raise UserError(f"The kernels need head_size 64, not {model.config.head_size}: leave it at 64.")
        # Load the kernels here, so that a missing compiler is reported before the run writes anything.
        raise_on_any_rank("loading the kernels", build.load)
    train, zero = plan.train, plan.zero
    if fast.enabled and zero["stage"] < 3:
        start.avoid_torch_compile()
    module: torch.nn.Module = model
    groups = _parameter_groups(model, plan)
    # DeepSpeed's throughput timer is off: it synchronizes with the GPU twice per step, and the GPU idles afterwards.
    config = {"timers": {"throughput": {"enabled": False}}, **plan.deepspeed}
    if zero["stage"] == 3:
        flat = getattr(model, "zero3_flat_params", None)
        groups = groups if flat is None else flat.groups
        config["zero_optimization"] = _zero3_section(model, flat, zero, fast.gathers_at_once)
    else:
        if not fast.overlaps:  # in this case, overlap_comm would only add a second bucket and a wait after backward
            config["zero_optimization"] = {**zero, "overlap_comm": False}
        if fast.enabled:
            overlaps = bool(config["zero_optimization"].get("overlap_comm"))
            module = FlatParams(model, groups, overlaps=overlaps)
            groups = module.groups
    options: dict[str, Any] = {"lr": train.lr, "betas": (train.beta1, train.beta2), "eps": train.adam_eps}
    if offloads(zero):
        optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    elif train.optimizer == "muon":
        config["zero_allow_untested_optimizer"] = True
        optimizer = Muon(groups, torch.bfloat16 if uses_bf16(plan.deepspeed) else torch.float32, **options)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **options)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:  # pydantic raises ValueErrors
        what = " ".join(str(error).split())[:300]
        remedy = f"install DeepSpeed {upstream.TESTED_VERSION}" if upstream.mismatch() else "correct it"
        raise UserError(f"DeepSpeed rejects the DeepSpeed file ({type(error).__name__}: {what}): {remedy}.") from error
    if not fast.enabled:
        return Engine(engine, None)
    update = None
    if not offloads(zero) and not offloads(zero, "param"):
        update = UpdateOnDevice(engine)
        if device.type == "cuda" and config["zero_optimization"].get("overlap_comm", zero["stage"] == 3):
            overlap_reduction(engine.optimizer)
    if zero["stage"] == 3:
        communicates = dist.get_world_size() > 1 or offloads(zero, "param")
        gather.reduce_host_waits(engine, fast.gathers_at_once, communicates)
    if fast.replays:
        cuda_graphs.replay_steps(module, ctx_len, accumulates=plan.accumulation > 1)
    return Engine(engine, update)


def _parameter_groups(model: RWKV, plan: BatchPlan) -> list[dict[str, Any]]:
    return model.parameter_groups(plan.train.weight_decay, plan.train.optimizer == "muon")


def _zero3_section(model: RWKV, flat: Zero3FlatParams | None, zero: dict[str, Any], at_once: bool) -> dict[str, Any]:
    """Mark the modules that ZeRO-3 gathers as a whole, and return the section "zero_optimization" for this model."""
    deepspeed.utils.set_z3_leaf_modules(model, [Blocks if at_once else Block])
    if not model.emb.weight.requires_grad and any(p.requires_grad for p in model.blocks.parameters()):
        # DeepSpeed reduces the gradients of a gathered module when the gradient of the module's input is computed. If
        # the embedding is frozen, the input of the first block has no gradient. This hook makes it require one.
        model.emb.register_forward_hook(lambda _module, _inputs, x: x.requires_grad_(torch.is_grad_enabled()))
    key = "stage3_param_persistence_threshold"  # elements; smaller tensors stay on every rank
    given = zero.get(key, "auto")
    threshold = 10**5 if given == "auto" else given
    if flat is not None and given == "auto" and sum(flat.small) <= PERSISTENT_LIMIT:
        # Vectors and gates make up a thirtieth of a block. If they stay on every rank, only one tensor of a block is
        # gathered: the flat parameter of its matrices.
        threshold = max(threshold, *flat.small)
    if model.blocks[0].att.time_state is not None:
        # Keep the initial state on every rank, because it is also read outside its layer, where nothing gathers it.
        threshold = max(threshold, model.blocks[0].att.time_state.numel() + 1)
    return {**zero, key: threshold}
