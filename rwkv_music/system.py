"""Resources of the host: CPU cores and memory available to this process, and the limits of a process."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

# Times that a waiting OpenMP thread of libgomp checks before it sleeps; 1,000 take 10 to 70 microseconds.
SPINS_SHARED, SPINS_IDLE = 1_000, 10_000
IDLE_CORES = 0.5  # cores that other programs may use on a host that counts as idle


def available_cores() -> int:
    """Return the number of cores this process may use, which a scheduler or a container can restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(processes: int = 1) -> None:
    """Set how torch's CPU threads use the cores, unless the user's environment does. Call it before torch is imported.

    The cores are divided among `processes` of this host. A thread that waits for others spins, then sleeps. Where other
    programs use the cores, it thereby keeps the thread that it waits for from its core, so it spins for microseconds;
    libgomp's default is milliseconds. On a host that is idle now it spins longer than most of the pauses between two
    parallel loops, because waking up takes longer than the loops.
    """
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        shared = processes > 1 or used_cores() > IDLE_CORES
        os.environ["GOMP_SPINCOUNT"] = str(SPINS_SHARED if shared else SPINS_IDLE)


def used_cores(seconds: float = 0.1) -> float:
    """Return the number of cores that all programs of this host use while this one waits `seconds` (Linux; else 0)."""
    before, start = _cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    return (_cpu_seconds() - before) / (time.perf_counter() - start)


def _cpu_seconds() -> float:
    """Return the CPU time of all cores since the host started, without idle time (Linux; else 0)."""
    try:
        user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    except OSError:
        return 0.0
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def available_memory() -> int:
    """Return the bytes of memory available to new programs, or all memory where the system does not report that."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parent(process: int) -> int | None:
    """Return the number of a process's parent (Linux); None if the process has ended."""
    found = _process_facts(process)
    return found and int(found[1])


def start_time(process: int) -> int | None:
    """Return when a process started, in clock ticks after the host (Linux); None if the process has ended.

    Process numbers are reused; a number and a start time identify a process.
    """
    found = _process_facts(process)
    return found and int(found[19])


def _process_facts(process: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third, the state, on; None if the process has ended."""
    try:
        facts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if facts[0] in "ZX" else facts  # Z: its parent has not read its status yet


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
