"""Gradients on their way to other ranks while the backward pass goes on: without a race, and without a wait.

With `overlap_comm` DeepSpeed's stages 1 and 2 reduce on a stream of their own. Two things about that are mended here,
for files with `contiguous_gradients` and without `reduce_scatter`, as ours are:

- A gradient larger than the bucket is reduced where it lies, and let go of at once. torch's allocator does not know of
  the other stream and gives the memory to the next kernel of the backward pass, which writes into what other ranks
  still read. Here the allocator is told.
- At the end of the backward pass the host waits for the whole device, and the device for the host after that. It is
  enough that the stream that computes waits for the one that reduces.

Source: deepspeed/runtime/zero/stage_1_and_2.py of DeepSpeed 0.19, `average_tensor`, `reduce_ipg_grads` and
`independent_gradient_partition_epilogue`. With the optimizer offloaded it does the first by itself, and has to wait.
"""

import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def reduce_beside(zero: DeepSpeedZeroOptimizer) -> None:
    """Mend an optimizer of stage 1 or 2 on a GPU that overlaps and is not offloaded."""
    average, finish = zero.average_tensor, zero.independent_gradient_partition_epilogue

    def average_tensor(tensor: Tensor, dtype: torch.dtype) -> None:
        tensor.record_stream(zero.reduction_stream)
        average(tensor, dtype)

    def independent_gradient_partition_epilogue() -> None:
        zero.reduce_ipg_grads()  # what the buckets still hold
        torch.cuda.current_stream().wait_stream(zero.reduction_stream)
        zero._clear_previous_reduced_grads()
        zero.overlap_comm = False  # so that what follows, which finds the buckets empty, does not wait
        try:
            finish()
        finally:
            zero.overlap_comm = True

    zero.average_tensor = average_tensor
    zero.independent_gradient_partition_epilogue = independent_gradient_partition_epilogue
