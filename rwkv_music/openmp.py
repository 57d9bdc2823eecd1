"""Control how many CPU threads torch uses, and how they wait for work.

torch's threads are those of an OpenMP library, on Linux libgomp. While they wait for the next parallel computation,
they first run a loop ("spin") for milliseconds, and then sleep. This is fastest as long as every thread has a core. If
other programs need the cores, spinning threads occupy cores that computing threads need, and a computation can take
many times as long.

libgomp hardly spins if a process has more OpenMP threads than cores (`do_spin` in libgomp's config/linux/wait.h). When
other programs leave too few cores for torch's threads, this module therefore starts additional threads that only sleep.
The number of threads that compute does not change, and so the results do not depend on the load.
"""

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

from rwkv_music.system import available_cores

CPU_TIMES = Path("/proc/stat")  # on Linux, how long each core has been busy
CHECK_S = 0.25  # seconds between two measurements of the load
TOLERANCE = 0.25  # cores by which the demand may exceed the available cores before torch's threads stop spinning
CHUNK = 2**15  # torch divides a computation among its threads in chunks of at least this many elements


def share_cores(processes: int = 1) -> None:
    """Divide the cores among `processes` processes of this host, and adapt the waiting of torch's threads to the load.

    Call this function before importing torch. It sets the environment variable OMP_NUM_THREADS if there are several
    processes. Variables that the user has set are not changed. If OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, the waiting
    is not adapted.
    """
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        _start_adapting()


@functools.cache  # one thread in a process, however many commands it runs
def _start_adapting() -> None:
    if CPU_TIMES.exists():
        threading.Thread(target=_adapt_waiting, daemon=True).start()


def _adapt_waiting() -> None:
    """Measure the load again and again. Let torch's threads spin only as long as there are cores for all threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread handles them
    others, sleepers = OtherPrograms(), SleepingThreads()
    while True:
        time.sleep(CHECK_S)
        cores_of_others = others.used_cores()
        if "torch" in sys.modules:
            import torch  # waits until it is imported completely

            sleepers.keep(cores_of_others + torch.get_num_threads() > available_cores() + TOLERANCE)


class OtherPrograms:
    """A measurement of the CPU time that other programs use on the cores that this process may use (Linux)."""

    def __init__(self) -> None:
        self._cores = [f"cpu{core}" for core in os.sched_getaffinity(0)]
        self._file = CPU_TIMES.open("rb", buffering=0)
        self._last = self._now()

    def used_cores(self) -> float:
        """Return how many cores other programs have used on average since the last call."""
        before, self._last = self._last, self._now()
        busy, own, elapsed = (now - then for now, then in zip(self._last, before, strict=True))
        return max(0.0, busy - own) / max(elapsed, 1e-3)

    def _now(self) -> tuple[float, float, float]:
        """Return the CPU time of all programs, that of this process, and the time, in seconds."""
        self._file.seek(0)
        ticks = 0
        for name, *times in map(str.split, self._file.read().decode().splitlines()):
            if name in self._cores:
                user, nice, system, _idle, _iowait, irq, softirq = map(int, times[:7])
                ticks += user + nice + system + irq + softirq
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.monotonic()


class SleepingThreads:
    """Additional OpenMP threads that only sleep. With them, this process has more OpenMP threads than cores."""

    def __init__(self) -> None:
        self._end: threading.Event | None = None

    def keep(self, wanted: bool) -> None:
        """Start the threads if they are wanted and do not exist; end them if they exist and are not wanted."""
        if wanted and self._end is None:
            self._end = threading.Event()
            self._start(self._end)
        elif not wanted and self._end is not None:
            self._end.set()
            self._end = None

    @staticmethod
    def _start(end: threading.Event) -> None:
        import torch  # not at the top: commands that do not need torch should start at once

        def sleep() -> None:
            torch.zeros(CHUNK * team, dtype=torch.uint8).add_(1)  # makes libgomp start a team for this Python thread
            end.wait()

        team, cores = torch.get_num_threads(), available_cores()
        if team > 1:  # a single thread waits for none
            for _ in range((cores - team) // (team - 1) + 1):  # each adds team - 1 threads to those that compute
                threading.Thread(target=sleep, daemon=True).start()
