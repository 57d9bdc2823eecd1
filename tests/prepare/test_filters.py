"""Filters of `prepare`: the measures of small pieces, the bounds, and the reasons of rejections."""

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.events import RejectedMidi, parse_midi
from rwkv_music.midi.stats import compute_stats
from rwkv_music.prepare.filters import MEASURES, Filters
from tests.midi.midi_files import file_of, make_midi, note

BAR = 1920  # ticks in 4/4
INFINITY = float("inf")


def events(*notes: tuple, channel: int = 0) -> list:
    """Return the messages of notes, (start, end, pitch) each, in ticks; a second is 960 ticks."""
    return [message for start, end, pitch in notes for message in note(start, end, pitch, channel=channel)]


def bars(pattern: str, channel: int = 0) -> list:
    """Return the messages of a track: a letter is a bar whose two notes depend on the letter, "." is an empty bar."""
    notes = []
    for i, letter in enumerate(pattern):
        if letter != ".":
            notes += [(i * BAR, i * BAR + 480, ord(letter) - 50), (i * BAR + 960, i * BAR + 1440, 60)]
    return events(*notes, channel=channel)


def with_meter(messages: list, numerator: int) -> list:
    return [(0, mido.MetaMessage("time_signature", numerator=numerator, denominator=4)), *messages]


TWO_SECONDS = events((0, 480, 60), (960, 1920, 62), (960, 1920, 64))
# (name of a measure, tracks of a piece, its value)
CASES = [
    ("seconds", [TWO_SECONDS], 2),
    ("notes_per_second", [TWO_SECONDS], 1.5),
    ("tracks", [TWO_SECONDS, events((0, 480, 60), channel=1)], 2),
    # A part of 4 notes in 2 s, and one of a single short note, which counts as 1 s.
    ("part_notes_per_second", [events((0, 960, 60), (0, 960, 64), (960, 1920, 62), (960, 1920, 65))], [2]),
    ("part_notes_per_second", [TWO_SECONDS, events((960, 970, 60), channel=1)], [1.5, 1]),
    ("drum_notes", [TWO_SECONDS, events((0, 480, 36), channel=9)], 25),
    ("drum_notes", [events((0, 480, 36), channel=9)], 100),
    ("same_pitch", [TWO_SECONDS], 40),
    ("same_pitch", [events((0, 480, 60), (480, 960, 60))], 100),
    # Drums do not count.
    ("same_pitch", [events((0, 480, 60), (0, 480, 61)), events((0, 9600, 36), channel=9)], 50),
    ("empty_bars", [bars("ab..c")], 40),
    ("empty_bars", [bars("..c.")], 200 / 3),  # the last bar is after the last note
    ("empty_bars", [bars("ab..c"), events((BAR, 4 * BAR, 40), channel=1)], 0),  # a held note sounds
    ("empty_bars", [bars("ab..c"), events((BAR, 3 * BAR, 40), channel=1)], 20),
    ("repeated_bars", [bars("abcd")], 0),
    ("repeated_bars", [bars("abab.c")], 40),
    ("repeated_bars", [bars("abab"), bars("abcd", channel=1)], 0),
    ("repeated_bars", [with_meter(bars("aaaa"), 3)], 20),  # the 8 notes fill 5 bars; only the last is like the first
    ("loops", [bars("abcd")], 1),
    ("loops", [bars("abab.c")], 2),
    ("loops", [bars("abaaaac")], 4),
    ("loops", [bars("xab.ab.ab.a")], 3),
    ("loops", [bars("a.......b")], 1),
    ("loops", [bars("abcdefghijklmnop" * 2)], 2),
    ("loops", [bars("abcdefghijklmnopq" * 2)], 1),  # 17 bars are not a loop
    ("loops", [bars("aaaa"), bars("abcd", channel=1)], 1),
    ("on_grid", [events((0, 9, 60), (20, 30, 60), (80, 90, 60), (1010, 1030, 60))], 75),
    ("on_grid", [events((481, 490, 60), (501, 510, 60))], 0),
]


def measured(name: str, tracks: list) -> float | list:
    midi = parse_midi(file_of(make_midi(*tracks)))
    value = Filters({name: (-INFINITY, INFINITY)}).measure(midi, compute_stats(midi))[name]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(("name", "tracks", "expected"), CASES)
def test_bounds_of_each_measure(name, tracks, expected):
    """A piece is kept if its value is equal to the bounds, and left out if a bound is a little higher or lower."""
    value = measured(name, tracks)
    assert value == pytest.approx(expected)
    least, most = (value, value) if isinstance(value, float | int) else (min(value), max(value))
    midi = parse_midi(file_of(make_midi(*tracks)))
    stats = compute_stats(midi)
    [measure] = [measure for measure in MEASURES if measure.name == name]
    for bounds, reason in (
        ((least, most), None),
        ((least - 1e-6, most + 1e-6), None),
        ((least + 1e-6, INFINITY), f"{measure.less} than {least + 1e-6:g}{measure.unit}"),
        ((-1, most - 1e-6), f"{measure.more} than {most - 1e-6:g}{measure.unit}"),
    ):
        filters = Filters({name: bounds})
        assert filters.reason(filters.measure(midi, stats), stats) == reason


def test_every_measure_has_cases_on_both_sides():
    assert {name for name, *_ in CASES} == {measure.name for measure in MEASURES}


@pytest.mark.parametrize(
    ("resolution", "ticks", "expected"),
    [
        (100, [0, 33, 67, 104, 106], 80),  # positions of triplets, rounded to ticks, and 106
        (36, [0, 1, 2, 3, 4], 100),  # half of the positions are in the middle between two ticks
    ],
)
def test_grid_of_a_resolution_that_it_does_not_divide(resolution, ticks, expected):
    track = events(*((tick, tick + 1, 60) for tick in ticks))
    midi = parse_midi(file_of(make_midi(track, ticks_per_beat=resolution)))
    assert Filters({"on_grid": (0, 100)}).measure(midi, compute_stats(midi)) == {"on_grid": pytest.approx(expected)}


def test_overlong_piece_is_rejected_before_its_bars_are_counted():
    midi = parse_midi(file_of(make_midi(events((0, 480, 60), (2**27, 2**27 + 480, 60)))))
    with pytest.raises(RejectedMidi, match="longer than 20,000 quarter notes"):
        Filters({"empty_bars": (0, 50)}).measure(midi, compute_stats(midi))


def test_drums_alone_have_no_pitch_and_pass_any_bounds():
    midi = parse_midi(file_of(make_midi(events((0, 480, 36), channel=9))))
    stats = compute_stats(midi)
    for bounds in ((0, 50), (50, 100)):
        filters = Filters({"same_pitch": bounds})
        assert filters.reason(filters.measure(midi, stats), stats) is None


def test_quantized_scores_and_jittered_ones(bach_midi):
    midi = mido.MidiFile(min(bach_midi.iterdir()))
    quantized = parse_midi(file_of(midi))
    draws = np.random.default_rng(0)
    for track in midi.tracks:
        for message in track:
            message.time += int(draws.integers(0, 30)) * (message.type == "note_on")
    performed = parse_midi(file_of(midi))
    filters = Filters({"on_grid": (0, 100)})
    assert filters.measure(quantized, compute_stats(quantized))["on_grid"] == 100
    assert filters.measure(performed, compute_stats(performed))["on_grid"] < 20


def test_programs():
    midi = parse_midi(file_of(make_midi(TWO_SECONDS, events((0, 480, 36), channel=9))))
    stats = compute_stats(midi)
    assert Filters().reason({}, stats) is None and Filters().measure(midi, stats) == {}
    assert Filters(programs=(0, 128)).reason({}, stats) is None
    assert Filters(programs=(1, 128)).reason({}, stats) == "other programs"


def test_invalid_filters():
    with pytest.raises(UserError, match="loops.*9:1"):
        Filters({"loops": (9, 1)})
    with pytest.raises(UserError, match="no filter loop: .*loops"):
        Filters({"loop": (1, 9)})
    with pytest.raises(UserError, match="0 to 127"):
        Filters(programs=(129,))


def test_filters_as_json():
    filters = Filters({"loops": (1, 4), "seconds": (5, INFINITY)}, programs=(0, 40))
    assert filters.as_options() == {"seconds": [5, None], "loops": [1, 4], "programs": [0, 40]}
