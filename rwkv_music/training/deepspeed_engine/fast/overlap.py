"""Reduction of gradients during the backward pass, without a race and without idle waits.

With `overlap_comm` DeepSpeed reduces on a stream of its own. This module corrects three things. Those of ZeRO-1 and 2
apply to files with `contiguous_gradients` and without `reduce_scatter`, like those in ds_configs.

- A gradient larger than the bucket is reduced in place and freed at once. torch's allocator has no record that
  the other stream still reads it, and reuses the memory for the next kernel of the backward pass, which overwrites it.
  Here `record_stream` makes that record.
- Before each reduction the computing stream waits for the previous one, whose buffer may be filled next. The gradients
  of a large model's block appear together, each larger than the bucket and in memory of its own. From the third
  gradient on, DeepSpeed's backward pass waits until all earlier reductions but one have finished. Here it waits only
  for the reduction of the last buffer before such a gradient. Before a buffer it still waits for all earlier ones.
- At the end of the backward pass the host waits for the whole device, which is then idle until the host catches up. It
  suffices that the computing stream waits for the reducing one. ZeRO-3 waits on the host there too.

With an offloaded optimizer DeepSpeed already calls `record_stream`, and must synchronize.

Sources: `average_tensor`, `reduce_ipg_grads` and `independent_gradient_partition_epilogue` in
deepspeed/runtime/zero/stage_1_and_2.py and stage3.py of DeepSpeed 0.19.
"""

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def overlap_reduction(zero: DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3) -> None:
    """Correct a ZeRO optimizer that overlaps communication on a GPU and is not offloaded."""
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        zero.reduce_and_partition_stream = _DeviceWaits()
    else:
        _overlap_stage_1_and_2(zero)


class _DeviceWaits(torch.cuda.Stream):
    """A stream whose `synchronize` makes the current stream wait instead of the host."""

    def synchronize(self) -> None:
        torch.cuda.current_stream().wait_stream(self)


def _overlap_stage_1_and_2(zero: DeepSpeedZeroOptimizer) -> None:
    average, finish = zero.average_tensor, zero.independent_gradient_partition_epilogue
    reducing, last_buffer_sent = zero.reduction_stream, torch.cuda.Event()

    def average_tensor(tensor: Tensor, dtype: torch.dtype) -> None:
        if dtype not in zero.extra_large_param_to_reduce:
            average(tensor, dtype)
            last_buffer_sent.record(reducing)
            return
        computing = torch.cuda.current_stream()
        tensor.record_stream(reducing)
        # DeepSpeed switches buffers after this, so it may next fill the buffer that was sent last.
        computing.wait_event(last_buffer_sent)
        reducing.wait_stream(computing)
        with torch.cuda.stream(reducing):
            average(tensor, dtype)  # for `average`, `reducing` is the current stream, so it waits for nothing

    def independent_gradient_partition_epilogue() -> None:
        zero.reduce_ipg_grads()  # the rest of the buckets
        torch.cuda.current_stream().wait_stream(reducing)
        zero._clear_previous_reduced_grads()
        zero.overlap_comm = False  # `finish` finds the buckets empty, and without this would still wait
        try:
            finish()
        finally:
            zero.overlap_comm = True

    zero.average_tensor = average_tensor
    zero.independent_gradient_partition_epilogue = independent_gradient_partition_epilogue
