"""The process pool: ordered answers, and crashes, hangs and exceptions that cost one item each."""

import os
import signal
import time

import pytest

from rwkv_music.errors import UserError
from rwkv_music.prepare.workers import ITEMS_AHEAD, Failure, map_in_order


def make_worker(offset):
    def work(item):
        if item == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "hang":
            time.sleep(60)
        if item == "raise":
            raise ValueError("odd")
        time.sleep(0.02 * (item % 3))
        return item + offset

    return work


def make_sleeper():
    return time.sleep


def make_broken_worker():
    raise OSError("no library")


def test_answers_are_in_order():
    assert list(map_in_order(make_worker, (100,), range(40), workers=2)) == list(range(100, 140))


def test_no_items():
    assert list(map_in_order(make_worker, (0,), [], workers=1)) == []


def test_bad_item_costs_only_itself():
    items = [1, "die", 2, "raise", 3, "hang", 4, 5, "die", 6]
    answers = list(map_in_order(make_worker, (0,), items, workers=2, limit_s=1.0))
    assert answers == [
        1,
        Failure("crashed the reader"),
        2,
        Failure("failed with ValueError: odd"),
        3,
        Failure("took longer than 1 s"),
        4,
        5,
        Failure("crashed the reader"),
        6,
    ]


def test_items_ahead_are_limited():
    begun = []

    class Items(list):
        def __iter__(self):
            for item in super().__iter__():
                begun.append(item)
                yield item

    # While the first item is slow, the other process must not consume all items.
    answers = map_in_order(make_sleeper, (), Items([1.5, *[0.0] * 999]), workers=2)
    next(answers)
    assert 10 < len(begun) <= 2 * ITEMS_AHEAD
    answers.close()


@pytest.mark.filterwarnings("ignore")
def test_failed_setup_raises(capfd):
    with pytest.raises(RuntimeError, match="set-up"):
        list(map_in_order(make_broken_worker, (), [1, 2], workers=1))
    assert "no library" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, -1])
def test_invalid_number_of_workers_raises(workers):
    with pytest.raises(UserError, match="at least 1"):
        list(map_in_order(make_worker, (0,), [1], workers=workers))
