"""Gathering under ZeRO-3 with less host time: all blocks of a small model at once, and no wait on a single rank.

- A single rank has nothing to gather, but DeepSpeed's handle synchronizes with the device anyway. The handle defined
  here does not.
- DeepSpeed allows at most two tensors to be gathered at the same time. Gathering all blocks at once takes more tensors.
  The host would therefore wait, before the forward pass, for the GPU and the other ranks. Here the limit is raised to
  the number of tensors in two gatherings of all blocks.

Sources: `NoGatherCoalescedHandle.wait` in deepspeed/runtime/zero/partition_parameters.py and `_fetch_sub_module_impl`
in partitioned_param_coordinator.py of DeepSpeed 0.19.
"""

from collections.abc import Iterable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import partition_parameters

from rwkv_music.training.deepspeed_file import offloads, quantizes

# ZeRO-3 gathers all blocks at once if the model has at most this many elements. The weights of such a model take
# up to 1 GiB, and so do its gradients. If the step is replayed as CUDA graphs, so does a copy of the weights.
GATHER_AT_ONCE_LIMIT = 2**29

# None if DeepSpeed lacks the function. In that case this module is not used, but it must still be importable.
_no_gather_of_deepspeed = getattr(partition_parameters, "_no_gather_coalesced", None)


def may_gather_at_once(zero: dict[str, Any], parameters: int) -> bool:
    """Return whether ZeRO-3 may gather the weights of all blocks at once, and reduce all their gradients at once.

    This takes more memory than gathering block by block, but DeepSpeed does its host work once instead of per block.

    Args:
        zero: the DeepSpeed file's section "zero_optimization".
        parameters: elements of the whole model.
    """
    saves_memory = offloads(zero) or offloads(zero, "param") or quantizes(zero)
    limit = min(GATHER_AT_ONCE_LIMIT, int(zero.get("stage3_max_live_parameters", GATHER_AT_ONCE_LIMIT)))
    return zero["stage"] == 3 and not saves_memory and parameters <= limit


def reduce_host_waits(engine: deepspeed.DeepSpeedEngine, at_once: bool, communicates: bool) -> None:
    """Remove host waits from ZeRO-3's gathering, so that the host runs ahead of the device.

    DeepSpeed looks `_no_gather_coalesced` up in its module. The function is therefore replaced for the whole process,
    which has only one engine.

    Args:
        at_once: whether all blocks are gathered at once.
        communicates: whether weights are gathered from other ranks or from host memory.
    """
    partition_parameters._no_gather_coalesced = _no_gather_of_deepspeed if communicates else _no_gather
    if at_once:
        gathered = sum(not parameter.ds_persist for parameter in engine.module.blocks.parameters())
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        coordinator._PartitionedParameterCoordinator__max_ongoing_fetch_events *= max(1, gathered)


def _no_gather(parameters: Iterable[torch.nn.Parameter]) -> Any:
    """Return DeepSpeed's handle for a single rank's parameters, with a `wait` that does not synchronize the device.

    No synchronization is needed: the parameters are views of this rank's own tensors, which are written and read in
    order on one stream.
    """
    parameters = list(parameters)
    handle = _no_gather_of_deepspeed(parameters)

    def wait(**_: object) -> None:
        while parameters:  # mark each only once: a parameter that has been released must not become available again
            parameters.pop().ds_status = partition_parameters.ZeroParamStatus.AVAILABLE

    handle.wait = wait
    return handle
