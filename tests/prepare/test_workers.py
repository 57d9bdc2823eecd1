"""The process pool: ordered answers; crashes, hangs and exceptions cost one item each, on a busy computer too."""

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
        if item == "loop":
            while True:
                pass
        if item == "memory":
            return bytearray(8 << 30)
        if item == "wait":
            time.sleep(60)
        if item == "raise":
            raise ValueError("odd")
        time.sleep(0.02 * (item % 3))
        return item + offset

    return work


def make_sleeper():
    return time.sleep


def make_fragile_worker(log):
    """A worker that records its items and is killed in its first try at each "kill"."""

    def work(item):
        with open(log, "a") as file:
            file.write(f"{item}\n")
        if item.startswith("kill") and log.read_text().split().count(item) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return work


def make_killed_worker(log, kills):
    """A worker that is killed during the set-up of its first `kills` processes."""
    with open(log, "a") as file:
        file.write(".")
    if len(log.read_text()) <= kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return str


def make_limit_reader(log):
    """A worker that exceeds its limit in the first try at an item and answers with the limit in the second one."""

    def work(item):
        limit = round(signal.getitimer(signal.ITIMER_PROF)[0])
        with open(log, "a") as file:
            file.write(item)
        if log.read_text().count(item) == 1:
            signal.setitimer(signal.ITIMER_PROF, 1e-6)
            while True:
                pass
        return limit

    return work


def make_slow_worker():
    """A worker that gets a tenth of a core, as on a busy computer, until it has used `item` seconds of CPU time."""

    def work(item):
        end = time.process_time() + item
        while time.process_time() < end:
            begun = time.process_time()
            while time.process_time() < begun + 0.02:
                pass
            time.sleep(0.2)
        return item

    return work


def make_broken_worker():
    raise OSError("no library")


def test_answers_are_in_order():
    assert list(map_in_order(make_worker, (100,), range(40), workers=2)) == list(range(100, 140))


def test_no_items():
    assert list(map_in_order(make_worker, (0,), [], workers=1)) == []


def test_bad_item_costs_only_itself():
    items = [1, "die", 2, "raise", 3, "loop", 4, "memory", 5, "wait", 6]
    answers = list(
        map_in_order(make_worker, (0,), items, workers=2, limit_s=0.2, memory_limit_bytes=2 << 30, hang_s=1.0)
    )
    assert answers == [
        1,
        Failure("crashed its worker process"),
        2,
        Failure("failed with ValueError: odd"),
        3,
        Failure("took longer than 0.4 s of CPU time"),
        4,
        Failure("takes too much memory"),
        5,
        Failure("hung for 1 s"),
        6,
    ]


def test_limit_is_cpu_time():
    # Longer than the limit by the clock, as on a busy computer, but without its CPU time.
    assert list(map_in_order(make_sleeper, (), [0.5], workers=1, limit_s=0.1)) == [None]


def test_slow_process_does_not_hang():
    # It takes longer than hang_s by the clock.
    assert list(map_in_order(make_slow_worker, (), [0.4], workers=1, limit_s=1, hang_s=1)) == [0.4]


def test_second_try_has_twice_the_cpu_time(tmp_path):
    answers = list(map_in_order(make_limit_reader, (tmp_path / "items",), ["a", "b"], workers=1, limit_s=30))
    assert answers == [60, 60]


def test_killed_process_costs_no_item(tmp_path):
    log = tmp_path / "items"
    items = ["a", "kill-1", "b", "kill-2", "c"]
    assert list(map_in_order(make_fragile_worker, (log,), items, workers=2)) == items
    assert sorted(log.read_text().split()) == sorted([*items, "kill-1", "kill-2"])


def test_process_killed_during_its_setup_is_replaced(tmp_path):
    assert list(map_in_order(make_killed_worker, (tmp_path / "once", 1), [1, 2], workers=1)) == ["1", "2"]
    with pytest.raises(UserError, match="signal 9 during its set-up.*--workers"):
        list(map_in_order(make_killed_worker, (tmp_path / "always", 99), [1, 2], workers=1))


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
    with pytest.raises(UserError, match="status 1 during its set-up"):
        list(map_in_order(make_broken_worker, (), [1, 2], workers=1))
    assert "no library" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, -1])
def test_invalid_number_of_workers_raises(workers):
    with pytest.raises(UserError, match="from 1 to 1,024"):
        list(map_in_order(make_worker, (0,), [1], workers=workers))
