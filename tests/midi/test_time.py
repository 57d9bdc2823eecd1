"""Tempo maps and bar grids."""

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import TEMPO, TIME_SIGNATURE
from rwkv_music.midi.time import BarGrid, TempoMap, bar_ticks, first_bar_number, time_messages
from tests.midi.midi_files import make_midi


def test_tempo_map_follows_tempo_changes():
    events = [
        (0, TEMPO, 0, 1_000_000, 0),
        (96, TEMPO, 0, 7, 0),
        (96, TEMPO, 0, 500_000, 0),
        (192, TEMPO, 0, 250_000, 0),
    ]
    tempo_map = TempoMap.from_events(events, ticks_per_quarter=96)
    np.testing.assert_allclose(tempo_map.ms(np.array([0, 48, 96, 192, 288])), [0, 500, 1000, 1500, 1750])
    np.testing.assert_allclose(tempo_map.seconds(np.array([0, 48, 288])), [0, 0.5, 1.75])
    np.testing.assert_allclose(TempoMap([], 480).ms(np.array([960])), [1000])
    assert tempo_map.durations(48, 288).tolist() == [0, 500_000, 0, 500_000, 250_000]


@pytest.mark.parametrize(
    ("signatures", "last", "lines"),
    [
        ([], 0, [0, 384]),
        ([], 383, [0, 384]),
        ([], 384, [0, 384, 768]),
        ([(0, 3, 4)], 500, [0, 288, 576]),
        ([(0, 4, 4), (500, 3, 4)], 700, [0, 384, 500, 788]),  # a change inside a bar starts a new one
        ([(0, 4, 4), (500, 3, 4)], 450, [0, 384, 500]),
        ([(0, 4, 4), (500, 3, 4)], 300, [0, 384]),
        ([(0, 1, 4), (96, 4, 4)], 100, [0, 96, 480]),
        ([(0, 0, 4), (50, 4, 128)], 100, [0, 384]),  # invalid signatures are ignored
        ([(0, 3, 4), (0, 2, 4)], 100, [0, 192]),
    ],
)
def test_bars_up_to_a_tick(signatures, last, lines):
    events = [(tick, TIME_SIGNATURE, 0, a, b) for tick, a, b in signatures]
    grid = BarGrid.from_events(events, 96)
    n_bars = int(grid.bar(last)) + 1
    assert grid.lines(n_bars).tolist() == lines and len(grid.signatures(n_bars)) == n_bars
    assert grid.bar(np.array(lines[:-1])).tolist() == list(range(n_bars))


def test_bar_ticks_follow_the_time_signatures():
    def meter(tick: int, numerator: int, denominator: int) -> tuple[int, mido.MetaMessage]:
        return tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)

    assert bar_ticks(make_midi([]), 2).tolist() == [0, 1920, 3840]
    changing = make_midi([meter(0, 4, 4), meter(3840, 6, 8), meter(3840 + 1440, 2, 4)])
    assert bar_ticks(changing, 5).tolist() == [0, 1920, 3840, 5280, 6240, 7200]
    assert bar_ticks(changing, 1).tolist() == [0, 1920]
    upbeat = make_midi([meter(0, 1, 4), meter(480, 3, 4)])
    assert bar_ticks(upbeat, 2).tolist() == [0, 480, 1920]
    inside = make_midi([meter(0, 4, 4), meter(2400, 3, 4)])
    assert bar_ticks(inside, 3).tolist() == [0, 1920, 2400, 3840]


@pytest.mark.parametrize(
    "signatures, has_upbeat",
    [([], False), ([(0, 1, 4), (96, 4, 4)], True), ([(0, 4, 4), (96, 4, 4)], True), ([(0, 4, 4), (384, 3, 4)], False)],
)
def test_upbeats_and_ranges_of_bars(signatures, has_upbeat):
    grid = BarGrid(signatures, 96)
    assert grid.has_upbeat == has_upbeat
    assert np.array_equal(grid.lines(3, 2), grid.lines(5)[2:])
    assert np.array_equal(grid.signatures(3, 2), grid.signatures(5)[2:])


def test_time_messages_only_where_values_change():
    signatures = np.array([[4, 4], [4, 4], [3, 4]])
    messages = time_messages(np.array([0, 384, 768]), np.array([500_000, 400_000, 400_000]), signatures)
    assert [(tick, message.type) for tick, message in messages] == [
        (0, "time_signature"),
        (0, "set_tempo"),
        (384, "set_tempo"),
        (768, "time_signature"),
    ]


@pytest.mark.parametrize(
    "changes, first",
    [
        ([], 1),
        ([(0, 4, 4), (480, 4, 4)], 0),  # cut short
        ([(0, 1, 4), (480, 3, 4)], 0),
        ([(0, 4, 4), (1920, 3, 4)], 1),
        ([(0, 3, 4), (4 * 1440, 4, 4)], 1),  # a later change of the meter
    ],
)
def test_an_upbeat_is_bar_0(changes, first):
    assert first_bar_number(BarGrid(changes, 480)) == first
