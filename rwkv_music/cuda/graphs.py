"""Warm-up and capture of CUDA graphs.

A CUDA graph launches all kernels of a captured function at once. To capture `function` and replay it:

    graphs.warm_up(function)
    graph, outputs = graphs.capture(function)
    graph.replay()  # runs the kernels again on the same memory; `outputs` then have the new values

A captured function must read and write tensors at fixed addresses, and must not wait for the GPU. `warm_up` and
`capture` use the current device.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
WARM_UP_RUNS = 2  # runs in which libraries choose their kernels and allocate their workspaces


def warm_up(function: Callable[[], T]) -> T:
    """Run `function` WARM_UP_RUNS times on a side stream, as capture requires, and return the last result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(function: Callable[[], T], pool: tuple[int, int] | None = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture one call of `function`. Return the graph and the result of the call, which each replay overwrites.

    Graphs with the same `pool` (a `torch.cuda.graph_pool_handle()`) share memory, and only one of them may be replayed
    at a time. If `pool` is None, the graph has its own memory. Other threads may use the GPU during the capture.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return graph, result
