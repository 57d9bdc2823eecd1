"""The prepare log: it keeps exactly what was committed, whatever ends the process, and refuses wrong settings."""

import os
import shutil

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.stats import RECORD
from rwkv_music.prepare.prepare_log import DATABASE, PrepareLog

SETTINGS = {"tokenizer": "x", "paths": ["a"]}


def add(log: PrepareLog, number: int) -> None:
    """Add source `number`: a piece, or every third time a rejected file."""
    if number % 3 == 2:
        log.add({"file": f"{number}.mid", "reason": "odd"})
        return
    tokens, bars = np.arange(number + 1, dtype=np.uint16), np.array([1, number], np.uint16)
    record = np.zeros(1, RECORD)
    record["notes"] = number
    log.add({"file": f"{number}.mid"}, tokens, bars, record)


def contents(log: PrepareLog) -> tuple[list, list]:
    pieces = [(t.tolist(), b.tolist(), int(r["notes"][0])) for t, b, r in log.pieces()]
    return [line["file"] for line in log.lines()], pieces


def expected(n: int) -> tuple[list, list]:
    numbers = [i for i in range(n) if i % 3 != 2]
    return [f"{i}.mid" for i in range(n)], [(list(range(i + 1)), [1, i], i) for i in numbers]


def test_contents_are_read_back(tmp_path):
    with PrepareLog(tmp_path / "j", SETTINGS, resume=False) as log:
        for number in range(20):
            add(log, number)
        assert contents(log) == expected(20) and log.line(7)["file"] == "7.mid"
        assert (log.n_sources, log.n_pieces) == (20, 14)


def test_crash_at_any_moment_leaves_the_last_checkpoint(tmp_path):
    """A copy of the folder is what a kill leaves at that moment, with rows that are written but not committed."""
    rng = np.random.default_rng(0)
    with PrepareLog(tmp_path / "j", SETTINGS, resume=False) as log:
        log._database.execute("PRAGMA cache_size = 1")  # write pages before the commit too
        kept = 0
        for number in range(60):
            add(log, number)
            if rng.random() < 0.2:
                log.checkpoint()
                kept = number + 1
            copy = tmp_path / f"copy{number}"
            shutil.copytree(tmp_path / "j", copy)
            with PrepareLog(copy, SETTINGS, resume=True) as resumed:
                assert resumed.n_sources == kept and contents(resumed) == expected(kept)
                for later in range(kept, kept + 5):
                    add(resumed, later)
            with PrepareLog(copy, SETTINGS, resume=True) as resumed:
                assert contents(resumed) == expected(kept + 5)


def test_without_resume_the_log_is_emptied(tmp_path):
    for n in (9, 4):
        with PrepareLog(tmp_path, SETTINGS, resume=False) as log:
            for number in range(n):
                add(log, number)
            assert contents(log) == expected(n)


def test_interrupt_commits_and_error_does_not(tmp_path):
    for error, kept in ((KeyboardInterrupt, 5), (ValueError, 0)):
        with pytest.raises(error), PrepareLog(tmp_path, SETTINGS, resume=False) as log:
            for number in range(5):
                add(log, number)
            raise error
        with PrepareLog(tmp_path, SETTINGS, resume=True) as log:
            assert log.n_sources == kept


def test_other_settings_are_named(tmp_path):
    with PrepareLog(tmp_path, SETTINGS, resume=True) as log:
        add(log, 0)
    with pytest.raises(UserError, match="filters, tokenizer"):
        PrepareLog(tmp_path, {**SETTINGS, "tokenizer": "y", "filters": {}}, resume=True).__enter__()
    with PrepareLog(tmp_path, SETTINGS, resume=True) as log:
        assert log.n_sources == 1


def test_second_process_is_refused(tmp_path):
    with PrepareLog(tmp_path, SETTINGS, resume=False) as log:
        add(log, 0)
        for _ in range(2):  # before a commit and after it
            with pytest.raises(UserError, match="Another process"):
                PrepareLog(tmp_path, SETTINGS, resume=True).__enter__()
            log.checkpoint()
        assert contents(log) == expected(1)


@pytest.mark.parametrize("size", [20_000, 5_000, 100])
def test_truncated_log_is_an_error(tmp_path, size):
    with PrepareLog(tmp_path, SETTINGS, resume=False) as log:
        for number in range(100):
            add(log, number)
    os.truncate(tmp_path / DATABASE, size)
    with pytest.raises(UserError, match=DATABASE):
        PrepareLog(tmp_path, SETTINGS, resume=True).__enter__()
