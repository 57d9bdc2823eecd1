"""Tests of the locks of torch's compiled extensions: finding them, their age, and waiting for them."""

import os
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from rwkv_music.cuda.extension_locks import Lock, extensions_folder, find_lock, find_locks, wait_for
from rwkv_music.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return extensions_folder()


def lock(folder: Path, extension: str, minutes: float = 0) -> FileBaton:
    """Create the lock that torch creates when it starts to compile, `minutes` ago."""
    path = folder / extension / "lock"
    path.parent.mkdir()
    baton = FileBaton(str(path))
    assert baton.try_acquire()
    os.utime(path, (time.time() - 60 * minutes,) * 2)
    return baton


def test_finds_all_locks_except_this_projects(folder):
    assert find_locks(folder) == []
    lock(folder, "cpu_adam", minutes=11)
    lock(folder, "async_io", minutes=3)
    lock(folder, "rwkv_music", minutes=100)
    (folder / "quantizer").mkdir()
    young, old = find_locks(folder)
    assert (young.path, young.abandoned) == (folder / "async_io" / "lock", False)
    assert (old.path, old.abandoned) == (folder / "cpu_adam" / "lock", True)
    assert find_lock(folder, "quantizer") is None and find_lock(folder, "no_such_thing") is None
    assert str(old) == "cpu_adam, locked for 11 min"
    assert str(Lock(old.path, 40.2)) == "cpu_adam, locked for 40 s"


def test_folder_depends_on_python_version(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert extensions_folder().parent == tmp_path / "torch_extensions"


def test_abandoned_lock_raises_at_once(folder):
    lock(folder, "cpu_adam", minutes=11)
    messages = []
    with pytest.raises(UserError, match=f"cpu_adam.* remove {folder}/cpu_adam/lock"):
        wait_for(["cpu_adam"], messages.append)
    assert messages == []
    wait_for(["async_io"], messages.append)  # another extension


def test_young_lock_is_waited_for_and_reported_once(folder):
    baton = lock(folder, "cpu_adam", minutes=1)
    messages = []
    threading.Timer(0.7, baton.release).start()
    start = time.monotonic()
    wait_for(["cpu_adam"], messages.append)
    assert time.monotonic() - start > 0.5
    assert len(messages) == 1 and f"remove {folder}/cpu_adam/lock" in messages[0]


def test_young_lock_that_stays_becomes_abandoned(folder):
    lock(folder, "cpu_adam", minutes=10 - 0.5 / 60)
    messages = []
    with pytest.raises(UserError, match="remove .*cpu_adam/lock"):
        wait_for(["cpu_adam"], messages.append)
    assert len(messages) == 1
