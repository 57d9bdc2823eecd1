"""Resources of the host: CPU cores and memory available to this process, and the limits of a process."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def available_cores() -> int:
    """Return the number of cores this process may use, which a scheduler or a container can restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory available to new programs, or all memory where the system does not report that."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_memory(n_bytes: int) -> None:
    """Limit this process's address space to `n_bytes` where supported: allocations beyond it raise MemoryError."""
    with suppress(ImportError, ValueError, OSError):  # only Unix has such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def limit_cpu_time(seconds: float) -> None:
    """End this process by SIGPROF after `seconds` more of CPU time, where supported. 0 removes the limit.

    The signal also ends library code that never returns to Python.
    """
    if hasattr(signal, "setitimer"):  # only Unix has such timers
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def gib(n_bytes: float) -> str:
    """Return a number of bytes as text, in GiB, or in MiB below a quarter of a GiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**28 else f"{n_bytes / 2**20:.1f} MiB"
