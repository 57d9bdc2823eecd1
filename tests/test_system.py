"""Cores and memory of the host, and numbers as text."""

import os
import subprocess
import sys

from rwkv_music import system
from rwkv_music.errors import plural
from rwkv_music.system import available_cores, available_memory, gib, share_cores, used_cores


def test_available_cores_and_memory():
    assert 1 <= available_cores() <= os.cpu_count()
    assert 2**20 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    """Threads spin longer on an idle host, and never on a shared one or against the user's environment."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

    def shared(processes: int = 1, used: float = 0.0, **environment: str) -> tuple[str | None, ...]:
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(system, "used_cores", lambda: used)
            share_cores(processes)
            found = tuple(os.environ.get(name) for name in names)
            for name in set(names) - set(environment):
                os.environ.pop(name, None)
        return found

    half = str(max(1, available_cores() // 2))
    assert shared() == (None, None, "10000")
    assert shared(used=0.9) == (None, None, "1000")
    assert shared(2) == (half, None, "1000")
    assert shared(2, OMP_NUM_THREADS="7", OMP_WAIT_POLICY="active") == ("7", "active", None)
    assert shared(GOMP_SPINCOUNT="5") == (None, None, "5")


def test_used_cores_are_those_of_other_processes():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        assert 0.2 < used_cores(0.5) <= os.cpu_count() + 0.5
        busy.kill()


def test_memory_limit_raises_memory_error():
    program = "from rwkv_music.system import limit_memory; limit_memory(2**30); bytearray(2**31)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "MemoryError" in done.stderr


def test_numbers_as_text():
    assert gib(23.7 * 2**20) == "23.7 MiB" and gib(3 * 2**30) == "3.00 GiB"
    assert plural(1, "rank") == "1 rank" and plural(1024, "row") == "1,024 rows"
