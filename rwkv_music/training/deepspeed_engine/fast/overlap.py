"""Gradients on their way to other ranks while the backward pass goes on: without a race, and without a wait.

With `overlap_comm` DeepSpeed reduces on a stream of its own. Some things about that are mended here; of ZeRO-1 and 2,
for files with `contiguous_gradients` and without `reduce_scatter`, as ours are:

- A gradient larger than the bucket is reduced where it lies, and let go of at once. torch's allocator does not know of
  the other stream and gives the memory to the next kernel of the backward pass, which writes into what other ranks
  still read. Here the allocator is told.
- Before each reduction the stream that computes waits for the one before, which may have been out of the buffer that is
  filled next. The gradients of a large model's block come together, each larger than the bucket and with memory of its
  own: after the second, the backward pass stood still until all but the last had gone. Here such a gradient waits for
  the last buffer alone; a buffer still waits for all that went before.
- At the end of the backward pass the host waits for the whole device, and the device for the host after that. It is
  enough that the stream that computes waits for the one that reduces. ZeRO-3's host waits there too.

Sources: `average_tensor`, `reduce_ipg_grads` and `independent_gradient_partition_epilogue` in
deepspeed/runtime/zero/stage_1_and_2.py and stage3.py of DeepSpeed 0.19. With the optimizer offloaded it does the first
by itself, and has to wait.
"""

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def reduce_beside(zero: DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3) -> None:
    """Mend an optimizer on a GPU that overlaps and is not offloaded."""
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        zero.reduce_and_partition_stream = _Awaited()
    else:
        _reduce_in_turn(zero)


class _Awaited(torch.cuda.Stream):
    """Who computes waits for it where the host would."""

    def synchronize(self) -> None:
        torch.cuda.current_stream().wait_stream(self)


def _reduce_in_turn(zero: DeepSpeedZeroOptimizer) -> None:
    average, finish = zero.average_tensor, zero.independent_gradient_partition_epilogue
    reducing, last_buffer_sent = zero.reduction_stream, torch.cuda.Event()

    def average_tensor(tensor: Tensor, dtype: torch.dtype) -> None:
        if dtype not in zero.extra_large_param_to_reduce:
            average(tensor, dtype)
            last_buffer_sent.record(reducing)
            return
        computing = torch.cuda.current_stream()
        tensor.record_stream(reducing)
        # After this one DeepSpeed changes buffers too, and so may fill the one that was sent last.
        computing.wait_event(last_buffer_sent)
        reducing.wait_stream(computing)
        with torch.cuda.stream(reducing):
            average(tensor, dtype)  # to which the stream that computes is the one that reduces: nothing to wait for

    def independent_gradient_partition_epilogue() -> None:
        zero.reduce_ipg_grads()  # what the buckets still hold
        torch.cuda.current_stream().wait_stream(reducing)
        zero._clear_previous_reduced_grads()
        zero.overlap_comm = False  # so that what follows, which finds the buckets empty, does not wait
        try:
            finish()
        finally:
            zero.overlap_comm = True

    zero.average_tensor = average_tensor
    zero.independent_gradient_partition_epilogue = independent_gradient_partition_epilogue
