"""Gathering under ZeRO-3 with less host time: all blocks of a small model at once, and no wait for local weights.

- A single rank has nothing to gather, but DeepSpeed's handle synchronizes the device anyway. The handle here does not.
- DeepSpeed allows at most two gathered tensors in flight. Gathering all blocks at once takes more tensors than that, so
  the host would wait before the forward pass for work that the GPU and the other ranks have not done yet. Here the
  tensors of two complete gatherings may be in flight.

Sources: `NoGatherCoalescedHandle.wait` in deepspeed/runtime/zero/partition_parameters.py and `_fetch_sub_module_impl`
in partitioned_param_coordinator.py of DeepSpeed 0.19.
"""

from collections.abc import Iterable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import partition_parameters

from rwkv_music.training.deepspeed_file import offloads, quantizes

# The largest model, in elements, whose blocks ZeRO-3 gathers at once. Its weights take 1 GiB and its gradients 1 GiB.
# If the step is replayed as CUDA graphs, a copy of the weights takes another 1 GiB.
GATHER_AT_ONCE_LIMIT = 2**29

# None if DeepSpeed lacks the function. This module is then not used, but it must still be importable.
_no_gather_of_deepspeed = getattr(partition_parameters, "_no_gather_coalesced", None)


def may_gather_at_once(zero: dict[str, Any], parameters: int) -> bool:
    """Return whether ZeRO-3 may hold the weights of all blocks, and their gradients until the last one exists.

    This takes more memory than gathering block by block, but DeepSpeed's host work is done once instead of per block.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".
        parameters: elements of the whole model.
    """
    saves_memory = offloads(zero) or offloads(zero, "param") or quantizes(zero)
    limit = min(GATHER_AT_ONCE_LIMIT, int(zero.get("stage3_max_live_parameters", GATHER_AT_ONCE_LIMIT)))
    return zero["stage"] == 3 and not saves_memory and parameters <= limit


def reduce_host_waits(engine: deepspeed.DeepSpeedEngine, at_once: bool, communicates: bool) -> None:
    """Let ZeRO-3's host run ahead of the device.

    `partition_parameters` looks the first function up in its own namespace, so it is replaced for the whole process,
    which has one engine.

    Args:
        at_once: whether all blocks are gathered at once.
        communicates: whether weights come from other ranks or from the host.
    """
    partition_parameters._no_gather_coalesced = _no_gather_of_deepspeed if communicates else _no_gather
    if at_once:
        gathered = sum(not parameter.ds_persist for parameter in engine.module.blocks.parameters())
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        coordinator._PartitionedParameterCoordinator__max_ongoing_fetch_events *= max(1, gathered)


def _no_gather(parameters: Iterable[torch.nn.Parameter]) -> Any:
    """Return DeepSpeed's handle for a single rank's parameters, with a `wait` that does not synchronize the device.

    The parameters are views of this rank's own tensors, written and read in order on the same stream.
    """
    parameters = list(parameters)
    handle = _no_gather_of_deepspeed(parameters)

    def wait(**_: object) -> None:
        while parameters:  # mark each once: a parameter released since must not be marked available again
            parameters.pop().ds_status = partition_parameters.ZeroParamStatus.AVAILABLE

    handle.wait = wait
    return handle
