"""Progress bars: lines in log files, redrawn on terminals."""

import io

import pytest

from rwkv_music import progress
from rwkv_music.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test changes them."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_log_has_a_line_every_30_seconds(clock):
    log = io.StringIO()
    with progress_bar(None, "work", 1000, file=log, delay_s=0) as bar:
        for step in range(100):
            clock[0] += 1
            bar.update()
            bar.set_postfix_str(f"loss {step}")
    lines = log.getvalue().splitlines()
    assert len(lines) == 5 and "\r" not in log.getvalue()  # at 0, 30, 60, 90 and 100 s
    assert "0/1000" in lines[0] and "100/1000" in lines[-1] and "loss 99" in lines[-1]
    assert all(line.startswith("work:") for line in lines)


def test_short_work_adds_nothing_to_a_log(clock):
    log = io.StringIO()
    for _ in progress_bar(range(20), "work", file=log):
        clock[0] += 1
    assert log.getvalue() == ""


def test_terminal_shows_every_change():
    terminal = Terminal()
    with progress_bar(None, "work", 3, file=terminal) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix_str("loss")
    assert terminal.getvalue().count("\r") >= 4
