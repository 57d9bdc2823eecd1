"""The number of torch's CPU threads, and how they wait while other programs run."""

import os
import subprocess
import sys

from rwkv_music.openmp import share_cores
from rwkv_music.system import available_cores

# Prints the CPU time of a second of waiting, in which torch's threads compute very little: alone, then with
# `SleepingThreads`, then alone again.
WAITING = """
import time, torch
from rwkv_music.openmp import CHUNK, SleepingThreads

x, sleepers = torch.zeros(4 * CHUNK), SleepingThreads()
for wanted in (False, True, False):
    sleepers.keep(wanted)
    time.sleep(0.2)
    begin = time.process_time()
    for _ in range(100):
        x.add_(1)
        time.sleep(0.01)
    print(time.process_time() - begin)
"""
# Prints a line as soon as the process has more threads than before. The second call starts none.
ADAPTING = """
import threading, time
from rwkv_music import openmp

openmp.CHECK_S = 0.05
openmp.share_cores()
alone = threading.active_count()
openmp.share_cores()
assert threading.active_count() == alone
import torch
while threading.active_count() == alone:
    time.sleep(0.05)
print("adapted")
"""


def run(program: str, **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    own |= {"OMP_NUM_THREADS": str(max(2, available_cores())), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=own, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # so that no thread is started
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores()
    assert "OMP_NUM_THREADS" not in os.environ
    share_cores(2)
    assert os.environ["OMP_NUM_THREADS"] == str(max(1, available_cores() // 2))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    share_cores(2)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_threads_hardly_spin_beside_sleeping_threads():
    spinning, sleeping, spinning_again = map(float, run(WAITING).split())
    assert min(spinning, spinning_again) > 2 * sleeping


def test_waiting_adapts_to_other_programs():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(available_cores())]
    try:
        assert run(ADAPTING) == "adapted\n"
    finally:
        for process in busy:
            process.kill()
            process.wait()
