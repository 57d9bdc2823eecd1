"""Reduction of gradients during the backward pass, without a race condition and without unnecessary waits.

With `overlap_comm`, DeepSpeed reduces gradients on a separate stream. This module corrects three faults. The first two
occur only under ZeRO-1 and 2, with `contiguous_gradients` and without `reduce_scatter`, as in the files of ds_configs.
The third one occurs under all stages.

- A gradient larger than a bucket is reduced in place and freed immediately. torch's allocator does not know that the
  reducing stream still reads the gradient. It gives the memory to the next kernel of the backward pass, which
  overwrites the gradient. Here `record_stream` informs the allocator.
- DeepSpeed collects small gradients in two alternating buffers, the buckets. Before each reduction, the computing
  stream waits for all earlier reductions, so that the bucket that is filled next is free. At most one reduction can
  therefore overlap with the backward pass. A gradient larger than a bucket uses no bucket, so most of this wait is
  unnecessary for it, and a block of a large model produces several such gradients at once. Here, before the reduction
  of such a gradient, the computing stream waits only for the last reduction of a bucket. Before the reduction of a
  bucket, it still waits for all earlier reductions.
- At the end of the backward pass the host waits for the whole device, or under ZeRO-3 for the reducing stream. The
  computing stream is then idle until the host catches up. Here only the computing stream waits for the reducing stream.

This module is not used with an offloaded optimizer: there DeepSpeed calls `record_stream`, and must synchronize.

Sources: `average_tensor`, `reduce_ipg_grads` and `independent_gradient_partition_epilogue` in
deepspeed/runtime/zero/stage_1_and_2.py and stage3.py of DeepSpeed 0.19.
"""

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def overlap_reduction(zero: DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3) -> None:
    """Correct a ZeRO optimizer that overlaps communication on a GPU and is not offloaded. Changes it in place."""
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
        # DeepSpeed switches buffers after this function, so it may next fill the buffer that was sent last.
        computing.wait_event(last_buffer_sent)
        reducing.wait_stream(computing)
        with torch.cuda.stream(reducing):
            average(tensor, dtype)  # waits for nothing, because the current stream is `reducing`

    def independent_gradient_partition_epilogue() -> None:
        zero.reduce_ipg_grads()  # the rest of the buckets
        torch.cuda.current_stream().wait_stream(reducing)
        zero._clear_previous_reduced_grads()
        zero.overlap_comm = False  # the buckets are empty, but with overlap_comm `finish` would still wait
        try:
            finish()
        finally:
            zero.overlap_comm = True

    zero.average_tensor = average_tensor
    zero.independent_gradient_partition_epilogue = independent_gradient_partition_epilogue
