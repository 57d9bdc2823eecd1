"""Resources of the host: CPU cores and memory available to this process, and limits on a process."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def available_cores() -> int:
    """Return the number of cores that this process may use; a scheduler or a container can restrict it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_of_this_host() -> int:
    """Return how many ranks the launcher of this rank started on this host; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)  # LOCAL_SIZE: DeepSpeed's


def available_memory() -> int:
    """Return the bytes of memory available to new programs, or the total memory if the system does not report this."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parent_pid(pid: int) -> int | None:
    """Return the process ID of a process's parent (Linux); None if the process has ended."""
    found = _stat_fields(pid)
    return found and int(found[1])


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after the host's boot (Linux); None if the process has ended.

    Process IDs are reused. A process ID together with a start time identifies a process.
    """
    found = _stat_fields(pid)
    return found and int(found[19])


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has used (Linux); None if the process has ended."""
    found = _stat_fields(pid)
    return found and (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK")


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third one (the state) on; None if the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields  # Z: the process has ended, but its parent has not read its status


def limit_memory(n_bytes: int) -> None:
    """Limit this process's address space to `n_bytes`, where supported. Allocations beyond it raise MemoryError."""
    with suppress(ImportError, ValueError, OSError):  # only Unix has such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def limit_cpu_time(seconds: float) -> None:
    """End this process with SIGPROF after `seconds` more of CPU time, where supported. 0 removes the limit.

    The signal also ends library code that never returns to Python.
    """
    if hasattr(signal, "setitimer"):  # only Unix has such timers
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def gib(n_bytes: float) -> str:
    """Return a number of bytes as text, in GiB, or in MiB below a quarter of a GiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**28 else f"{n_bytes / 2**20:.1f} MiB"
