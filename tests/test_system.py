"""Byte counts as text."""

from rwkv_music.system import gib


def test_sizes_are_readable():
    assert gib(23.7 * 2**20) == "23.7 MiB" and gib(3 * 2**30) == "3.00 GiB"
