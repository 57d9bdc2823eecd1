"""train.py with one trouble put in:   python troubled.py TROUBLE ARGUMENTS OF train.py

TROUBLE is nan-gradient, spike, damaged-spike, hang, thread, slow-disk or full-disk; it comes on one rank
alone, where there are several.
"""

import errno
import os
import sys
import threading
import time

import torch

import train as train_py
from rwkv_music.checkpoint.run_folder import checkpoints
from rwkv_music.training import loop as loop_module
from rwkv_music.training import saving
from rwkv_music.training.loop import Loop
from rwkv_music.training.signals import leave

LAST_RANK = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
undisturbed_step = Loop.step
undisturbed_read = Loop.read_step
undisturbed_write = saving.write_tensors
undisturbed_roll_back = Loop.roll_back
undisturbed_rate = loop_module.learning_rate


def step_with_a_nan(first: int, last: int):
    """Steps whose gradient has one NaN in it."""

    def step(loop: Loop, batches, lr, unreadable):
        hook = None
        if LAST_RANK and first <= loop.progress.step + 1 <= last:
            parameter = next(p for p in loop.engine.module.parameters() if p.requires_grad)
            hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
        try:
            return undisturbed_step(loop, batches, lr, unreadable)
        finally:
            if hook:
                hook.remove()

    return step


def read_that_hangs(loop: Loop, first_sample: int):
    if LAST_RANK and first_sample >= 5 * loop.config.train.batch_size:
        time.sleep(3600)
    return undisturbed_read(loop, first_sample)


def rate_that_is_too_high_once():
    """A learning rate that throws the weights off their course, the first time that step 31 is taken."""
    struck = []

    def rate(step: int, train) -> float:
        if step == 30 and not struck:
            struck.append(step)
            return 0.3
        return undisturbed_rate(step, train)

    return rate


def roll_back_after_a_bit_has_flipped(loop: Loop, loss: float) -> bool:
    loop.saver.finish()
    path = checkpoints(loop.context.folder)[-1] / "weights_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return undisturbed_roll_back(loop, loss)


def write_to_a_slow_disk(path, tensors):
    time.sleep(2)
    return undisturbed_write(path, tensors)


def write_to_a_disk_that_fills(path, tensors):
    if LAST_RANK and "step_00000010" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return undisturbed_write(path, tensors)


def let_go_of_tensors_for_ever() -> None:
    """As gloo does in its threads: give the interpreter up and want it back, at the last moment too."""
    while True:
        torch.ones(10_000).add_(1)


if __name__ == "__main__":
    trouble = sys.argv[1]
    if trouble == "nan-gradient":
        Loop.step = step_with_a_nan(7, 7)
    elif trouble in ("spike", "damaged-spike"):
        loop_module.learning_rate = rate_that_is_too_high_once()
        if trouble == "damaged-spike":
            Loop.roll_back = roll_back_after_a_bit_has_flipped
    elif trouble == "hang":
        Loop.read_step = read_that_hangs
    elif trouble == "slow-disk":
        saving.write_tensors = write_to_a_slow_disk
    elif trouble == "full-disk":
        saving.write_tensors = write_to_a_disk_that_fills
    elif trouble == "thread":
        threading.Thread(target=let_go_of_tensors_for_ever, daemon=True).start()
    leave(train_py.main(sys.argv[2:]))
