import os

import numpy as np
import pytest

from rwkv_music.data.journal import Journal
from rwkv_music.data.survey import RECORD
from rwkv_music.errors import UserError

SETTINGS = {"tokenizer": "x", "paths": ["a"]}


def add(journal: Journal, number: int) -> None:
    """A piece, or every third time something that is none."""
    if number % 3 == 2:
        journal.add_rejected({"file": f"{number}.mid", "reason": "odd"})
        return
    tokens, bars = np.arange(number + 1, dtype=np.uint16), np.array([1, number], np.uint16)
    record = np.zeros(1, RECORD)
    record["notes"] = number
    line = {"file": f"{number}.mid", "n_tokens": len(tokens), "n_bars": 2}
    journal.add_piece(line, tokens, bars, record)


def contents(journal: Journal) -> tuple[list, list]:
    pieces = [(t.tolist(), b.tolist(), int(r["notes"][0])) for t, b, r in journal.pieces()]
    return [line["file"] for _, line in journal.lines()], pieces


def expected(n: int) -> tuple[list, list]:
    numbers = [i for i in range(n) if i % 3 != 2]
    return [f"{i}.mid" for i in range(n)], [(list(range(i + 1)), [1, i], i) for i in numbers]


def test_what_was_put_in(tmp_path):
    with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
        for number in range(20):
            add(journal, number)
        journal.checkpoint()
        assert contents(journal) == expected(20)
        starts = [start for start, _ in journal.lines()]
        assert journal.line_at(starts[7])["file"] == "7.mid"


def test_cut_anywhere_it_goes_on(tmp_path):
    """As a kill leaves it: every file ends somewhere after the last checkpoint, the log perhaps within a line."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        folder = tmp_path / "j"
        with Journal(folder, SETTINGS, resume=False) as journal:
            for number in range(12):
                add(journal, number)
        kept = int(rng.integers(0, 12))
        with open(folder / "log.jsonl", "rb+") as log:
            lines = log.read().splitlines(keepends=True)
            log.truncate(sum(map(len, lines[:kept])) + int(rng.integers(0, len(lines[kept]))))
        with Journal(folder, SETTINGS, resume=True) as journal:
            assert journal.n_sources == kept and contents(journal) == expected(kept)
            for number in range(kept, 20):
                add(journal, number)
            journal.checkpoint()
            assert contents(journal) == expected(20)


def test_without_resume_it_begins_anew(tmp_path):
    for n in (9, 4):
        with Journal(tmp_path, SETTINGS, resume=False) as journal:
            for number in range(n):
                add(journal, number)
            journal.checkpoint()
            assert contents(journal) == expected(n)


def test_an_interrupt_keeps_what_is_done_and_a_failure_does_not_add(tmp_path):
    for error, kept in ((KeyboardInterrupt, 5), (ValueError, 0)):
        with pytest.raises(error), Journal(tmp_path, SETTINGS, resume=False) as journal:
            for number in range(5):
                add(journal, number)
            raise error
        with Journal(tmp_path, SETTINGS, resume=True) as journal:
            assert journal.n_sources == kept


def test_other_settings(tmp_path):
    with Journal(tmp_path, SETTINGS, resume=True) as journal:
        add(journal, 0)
    with pytest.raises(UserError, match="other settings .filters, tokenizer."):
        Journal(tmp_path, {**SETTINGS, "tokenizer": "y", "filters": {}}, resume=True).__enter__()
    with Journal(tmp_path, SETTINGS, resume=True) as journal:
        assert journal.n_sources == 1


def test_only_one_at_a_time(tmp_path):
    with Journal(tmp_path, SETTINGS, resume=False) as journal:
        add(journal, 0)
        with pytest.raises(UserError, match="Another process is preparing"):
            Journal(tmp_path, SETTINGS, resume=True).__enter__()
        journal.checkpoint()
        assert contents(journal) == expected(1)


def test_files_that_lost_their_end(tmp_path):
    with Journal(tmp_path, SETTINGS, resume=False) as journal:
        add(journal, 7)
    os.truncate(tmp_path / "tokens.bin", 3)
    with pytest.raises(UserError, match="tokens.bin is shorter than its log says"):
        Journal(tmp_path, SETTINGS, resume=True).__enter__()
