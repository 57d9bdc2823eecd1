"""Cores and memory of the host, and numbers as text."""

import os
import subprocess
import sys
import time

import pytest

from rwkv_music.errors import plural
from rwkv_music.system import available_cores, available_memory, cpu_seconds, gib


def test_available_cores_and_memory():
    assert 1 <= available_cores() <= os.cpu_count()
    assert 2**20 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_memory_limit_raises_memory_error():
    program = "from rwkv_music.system import limit_memory; limit_memory(2**30); bytearray(2**31)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "MemoryError" in done.stderr


def test_cpu_time_of_a_process():
    assert cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert cpu_seconds(ended.pid) is None


def test_numbers_as_text():
    assert gib(23.7 * 2**20) == "23.7 MiB" and gib(3 * 2**30) == "3.00 GiB"
    assert plural(1, "rank") == "1 rank" and plural(1024, "row") == "1,024 rows"
