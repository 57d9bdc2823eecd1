import os

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.stats import RECORD
from rwkv_music.prepare.prepare_log import PrepareLog

SETTINGS = {"tokenizer": "x", "paths": ["a"]}


def add(prepare_log: PrepareLog, number: int) -> None:
    """A piece, or every third time something that is none."""
    if number % 3 == 2:
        prepare_log.add_rejected({"file": f"{number}.mid", "reason": "odd"})
        return
    tokens, bars = np.arange(number + 1, dtype=np.uint16), np.array([1, number], np.uint16)
    record = np.zeros(1, RECORD)
    record["notes"] = number
    line = {"file": f"{number}.mid", "n_tokens": len(tokens), "n_bars": 2}
    prepare_log.add_piece(line, tokens, bars, record)


def contents(prepare_log: PrepareLog) -> tuple[list, list]:
    pieces = [(t.tolist(), b.tolist(), int(r["notes"][0])) for t, b, r in prepare_log.pieces()]
    return [line["file"] for _, line in prepare_log.lines()], pieces


def expected(n: int) -> tuple[list, list]:
    numbers = [i for i in range(n) if i % 3 != 2]
    return [f"{i}.mid" for i in range(n)], [(list(range(i + 1)), [1, i], i) for i in numbers]


def test_what_was_put_in(tmp_path):
    with PrepareLog(tmp_path / "j", SETTINGS, resume=False) as prepare_log:
        for number in range(20):
            add(prepare_log, number)
        prepare_log.checkpoint()
        assert contents(prepare_log) == expected(20)
        starts = [start for start, _ in prepare_log.lines()]
        assert prepare_log.line_at(starts[7])["file"] == "7.mid"


def test_cut_anywhere_it_goes_on(tmp_path):
    """As a kill leaves it: every file ends somewhere after the last checkpoint, the log perhaps within a line."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        folder = tmp_path / "j"
        with PrepareLog(folder, SETTINGS, resume=False) as prepare_log:
            for number in range(12):
                add(prepare_log, number)
        kept = int(rng.integers(0, 12))
        with open(folder / "log.jsonl", "rb+") as log:
            lines = log.read().splitlines(keepends=True)
            log.truncate(sum(map(len, lines[:kept])) + int(rng.integers(0, len(lines[kept]))))
        with PrepareLog(folder, SETTINGS, resume=True) as prepare_log:
            assert prepare_log.n_sources == kept and contents(prepare_log) == expected(kept)
            for number in range(kept, 20):
                add(prepare_log, number)
            prepare_log.checkpoint()
            assert contents(prepare_log) == expected(20)


def test_without_resume_it_begins_anew(tmp_path):
    for n in (9, 4):
        with PrepareLog(tmp_path, SETTINGS, resume=False) as prepare_log:
            for number in range(n):
                add(prepare_log, number)
            prepare_log.checkpoint()
            assert contents(prepare_log) == expected(n)


def test_an_interrupt_keeps_what_is_done_and_a_failure_does_not_add(tmp_path):
    for error, kept in ((KeyboardInterrupt, 5), (ValueError, 0)):
        with pytest.raises(error), PrepareLog(tmp_path, SETTINGS, resume=False) as prepare_log:
            for number in range(5):
                add(prepare_log, number)
            raise error
        with PrepareLog(tmp_path, SETTINGS, resume=True) as prepare_log:
            assert prepare_log.n_sources == kept


def test_other_settings(tmp_path):
    with PrepareLog(tmp_path, SETTINGS, resume=True) as prepare_log:
        add(prepare_log, 0)
    with pytest.raises(UserError, match="other settings .filters, tokenizer."):
        PrepareLog(tmp_path, {**SETTINGS, "tokenizer": "y", "filters": {}}, resume=True).__enter__()
    with PrepareLog(tmp_path, SETTINGS, resume=True) as prepare_log:
        assert prepare_log.n_sources == 1


def test_only_one_at_a_time(tmp_path):
    with PrepareLog(tmp_path, SETTINGS, resume=False) as prepare_log:
        add(prepare_log, 0)
        with pytest.raises(UserError, match="Another process is preparing"):
            PrepareLog(tmp_path, SETTINGS, resume=True).__enter__()
        prepare_log.checkpoint()
        assert contents(prepare_log) == expected(1)


def test_files_that_lost_their_end(tmp_path):
    with PrepareLog(tmp_path, SETTINGS, resume=False) as prepare_log:
        add(prepare_log, 7)
    os.truncate(tmp_path / "tokens.bin", 3)
    with pytest.raises(UserError, match="tokens.bin is shorter than its log says"):
        PrepareLog(tmp_path, SETTINGS, resume=True).__enter__()
