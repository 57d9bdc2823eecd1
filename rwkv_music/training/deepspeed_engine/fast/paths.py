"""The choice of the replacements in this package that a run uses."""

from dataclasses import dataclass

import torch

from rwkv_music.config import RunConfig
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.deepspeed_engine.fast import cuda_graphs
from rwkv_music.training.deepspeed_engine.fast.gather import may_gather_at_once


@dataclass(frozen=True)
class FastPaths:
    """The replacements that a run uses.

    Attributes:
        enabled: whether the run may use the replacements in this package. `gathers_at_once` and `replays` require it.
        overlaps: whether gradients are reduced during the backward pass, if the DeepSpeed file enables this.
        gathers_at_once: whether ZeRO-3 gathers all blocks at once.
        replays: whether forward and backward are recorded as CUDA graphs and replayed.
    """

    enabled: bool
    overlaps: bool
    gathers_at_once: bool = False
    replays: bool = False


def choose_paths(
    config: RunConfig, plan: BatchPlan, device: torch.device, one_host: bool, matrix_parameters: float, parameters: int
) -> FastPaths:
    """Choose the replacements that pay off for a run.

    Args:
        one_host: whether all ranks run on one host.
        matrix_parameters: see `RWKV.matrix_parameters`.
        parameters: elements of the whole model.
    """
    host_bound = cuda_graphs.is_host_bound(config, device, one_host, matrix_parameters)
    at_once = host_bound and may_gather_at_once(plan.zero, parameters)
    replays = host_bound and cuda_graphs.can_replay(config, plan.zero, at_once)
    return FastPaths(True, plan.world_size > 1 and not replays, at_once, replays)
