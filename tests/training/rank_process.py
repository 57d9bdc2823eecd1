"""One rank in a process forked from a server that has imported torch and DeepSpeed already.

Importing them takes a rank longer than a short run. The server is started with the first rank and ends with the tests.
"""

import functools
import gc
import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path

import torch

import train as train_py
from rwkv_music.training import loop, setup  # noqa: F401  what train.py imports after parsing its arguments
from rwkv_music.training.deepspeed_engine import engine
from rwkv_music.training.signals import leave

torch.set_num_threads(1)  # a fork would lose the other threads
# Measure the product that counts as 100% MFU, and parse DeepSpeed's sources, once instead of in every run.
loop.peak_flops = functools.cache(loop.peak_flops)
loop.peak_flops(torch.device("cpu"))
engine.fast_mismatch("auto")
# Imported modules stay until exit: exclude their objects from the garbage collections of every run.
gc.collect()
gc.freeze()

_context = multiprocessing.get_context("forkserver")
# What torch imports with the first optimizer, and DeepSpeed to probe its extensions and with the first engine.
_IMPORTED_LATE = ("torch._dynamo", "setuptools", "deepspeed.runtime.zero.muon.muon_optimizer")
_context.set_forkserver_preload([*_IMPORTED_LATE, __name__])


def run_ranks(line: list[str], ranks: int, environment: dict[str, str], log: Path, seconds: float) -> int:
    """Run `line`, a Python program and its arguments, on `ranks` ranks of this host.

    Args:
        log: receives the standard output and error of all ranks.
        seconds: time limit.

    Returns:
        0, or the status of the first rank that failed; the others are then killed after 10 s.

    Raises:
        TimeoutError: a rank has not ended after `seconds`.
    """
    deadline, failed = time.monotonic() + seconds, 0
    processes = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks} if ranks > 1 else {}
        variables = environment | {name: str(value) for name, value in own.items()}
        processes.append(_context.Process(target=_run_rank, args=(line, variables, log)))
        processes[-1].start()
    try:
        while any(process.is_alive() for process in processes):
            if time.monotonic() > deadline:
                if failed:
                    break
                raise TimeoutError(f"{line} still runs after {seconds} s: {log.read_text()[-2000:]}")
            ended = [process.exitcode for process in processes if process.exitcode]
            if ended and not failed:
                failed, deadline = ended[0], min(deadline, time.monotonic() + 10)
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return failed or next((process.exitcode for process in processes if process.exitcode), 0)


def _run_rank(line: list[str], environment: dict[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch read the server's when it was imported
    sys.argv = line
    if Path(line[0]).samefile(train_py.__file__):
        leave(train_py.main(line[1:]))
    sys.path.insert(0, str(Path(line[0]).parent))
    runpy.run_path(line[0], run_name="__main__")
