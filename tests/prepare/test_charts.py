"""The charts of report.html: sizes, positions and labels."""

import re

import mido
import numpy as np
import pytest

from rwkv_music.prepare.charts import Histogram, _log_ticks, _ticks, draw_histogram, draw_roll
from tests.midi.midi_files import make_midi, note


def test_drawing_of_a_histogram():
    histogram = Histogram("x (units)", np.arange(0, 101, 10))
    for value in (42, 44, 58, 59):
        histogram.add(0, value)
    svg = draw_histogram(histogram)
    assert 'class="train"' in svg and 'class="val"' not in svg
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert labels == [*"0 10 20 30 40 50".split(), *"30 40 50 60 70".split(), "x (units)", "pieces (% of the split)"]
    # Four bins of equal width from x = 52 to 418; half of the pieces in two of them.
    [area] = re.findall(r'class="train" d="M52.0 166V([\d.]+)H([\d.]+)V([\d.]+)H([\d.]+)V', svg)
    assert [float(number) for number in area] == pytest.approx([166, 143.5, 166 - 156 / 1.05, 235], abs=0.06)
    assert "none" in draw_histogram(Histogram("x", np.arange(3)))


def test_ticks_are_round():
    assert _ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert _ticks(0, 23.1) == [0, 5, 10, 15, 20]
    assert _ticks(17, 90, step=12) == [24, 36, 48, 60, 72, 84]
    assert _log_ticks(0.8, 40) == [1, 2, 5, 10, 20]
    assert _log_ticks(1, 20_000) == [1, 10, 100, 1000, 10_000]


def test_piano_roll_shows_the_notes_of_each_part_and_cuts_the_end():
    signature = [(0, mido.MetaMessage("time_signature", numerator=3, denominator=4))]
    melody = [*note(0, 480, 60), *note(480, 960, 64), *note(60 * 480, 80 * 480, 62), *note(64 * 480, 65 * 480, 62)]
    svg = draw_roll(make_midi(signature, melody, note(0, 480, 36, channel=9), note(480, 960, 48, channel=1)))
    paths = re.findall(r'd="([^"]*)" stroke="#\w+" stroke-width="3.4"', svg)
    boxes = [re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", path) for path in paths]
    assert [len(part) for part in boxes] == [3, 1, 1]
    first, second, cut = ([float(number) for number in box] for box in boxes[0])
    quarter = (880 - 42 - 4) / 64
    assert first[0] == 42 and second[0] == pytest.approx(42 + quarter, abs=0.1)
    assert first[1] - second[1] == 4 * 4 and cut[2] == pytest.approx(4 * quarter - 0.8, abs=0.1)
    assert float(boxes[1][0][1]) > float(boxes[2][0][1]) > first[1]  # drums are below the pitches
    assert svg.count("</i>piano") == 2 and "drums" in svg
    assert "<path" in draw_roll(make_midi([]))  # without notes
