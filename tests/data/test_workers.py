import os
import signal
import time

import pytest

from rwkv_music.data.workers import ITEMS_AHEAD, Failure, available_cores, map_in_order


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


def make_broken_worker():
    raise OSError("no library")


def test_answers_come_in_order():
    assert list(map_in_order(make_worker, (100,), range(40), workers=2)) == list(range(100, 140))


def test_no_items():
    assert list(map_in_order(make_worker, (0,), [], workers=1)) == []


def test_one_bad_item_costs_itself_alone():
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


def test_runs_only_so_far_ahead():
    begun = []

    def items():
        for i in range(1000):
            begun.append(i)
            yield i

    answers = map_in_order(make_worker, (0,), items(), workers=1)
    next(answers)
    time.sleep(0.2)
    assert len(begun) <= ITEMS_AHEAD + 1
    answers.close()


@pytest.mark.filterwarnings("ignore")
def test_a_broken_setup_ends_it(capfd):
    with pytest.raises(RuntimeError, match="set-up"):
        list(map_in_order(make_broken_worker, (), [1, 2], workers=1))
    assert "no library" in capfd.readouterr().err


def test_available_cores():
    assert 1 <= available_cores() <= os.cpu_count()
