"""Filters of `prepare`: bounds on measures of a piece, such as its length or its share of repeated bars.

MEASURES lists all measures. Each one has an option of `prepare`: `notes_per_second` has --notes-per-second MIN:MAX.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.events import ParsedMidi
from rwkv_music.midi.score import ROUNDING, Score, read_score
from rwkv_music.midi.stats import N_PROGRAMS, STEPS_PER_QUARTER, MidiStats
from rwkv_music.midi.time import TempoMap
from rwkv_music.tokenizers.codec import check_length

GRID_PER_QUARTER = 24  # positions per quarter note, enough for thirty-second notes and triplets of sixteenths
LONGEST_LOOP = 16  # bars
SHORTEST_PART_S = 1.0  # minimum length of a part, so that a part with a single short note does not count as dense


class Music:
    """A piece to be measured. Values that several measures need are computed only once."""

    def __init__(self, midi: ParsedMidi, stats: MidiStats):
        self.midi, self.stats = midi, stats

    @cached_property
    def score(self) -> Score:
        check_length(self.stats.quarters)  # limits the number of bars
        return read_score(self.midi)

    @cached_property
    def bar_contents(self) -> np.ndarray:
        """A number for the content of each bar, int64 [bars]. Bars with the same notes have the same number.

        Two notes are the same if they have the same part, pitch, position in the bar and length. A bar without onsets
        has the number 0.
        """
        notes, lines = self.score.notes, self.score.lines
        bar = self.score.bars()
        times = np.stack([notes["start"] - lines[bar], notes["end"] - notes["start"]])
        position, length = np.rint(times * STEPS_PER_QUARTER).astype(np.int64)
        rows = np.stack([bar, position, notes["part"], notes["pitch"], length], axis=1)
        rows = rows[np.lexsort(rows.T[::-1])]
        ends = np.searchsorted(rows[:, 0], np.arange(self.score.n_bars + 1))
        numbers = {b"": 0}
        contents = (rows[start:end, 1:].tobytes() for start, end in pairwise(ends.tolist()))
        return np.array([numbers.setdefault(content, len(numbers)) for content in contents], np.int64)


def _repeated_bars(music: Music) -> float:
    filled = music.bar_contents[music.bar_contents > 0]
    return 100 * (1 - len(np.unique(filled)) / len(filled))


def _loops(music: Music) -> float:
    contents = music.bar_contents
    n_filled = np.append(0, np.cumsum(contents > 0))  # for each bar, the number of earlier bars with onsets
    times = 1
    for period in range(1, min(LONGEST_LOOP, len(contents) // 2) + 1):
        same = np.concatenate([[False], contents[period:] == contents[:-period], [False]])
        starts, ends = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2).T  # of the passages that are repeated
        has_notes = n_filled[ends + period] > n_filled[starts]
        times = max(times, (ends - starts)[has_notes].max(initial=0) // period + 1)
    return float(times)


def _same_pitch(music: Music) -> float:
    notes = music.score.notes[~music.score.notes["drums"]]
    if not len(notes):
        return float("nan")
    sounding = np.bincount(notes["pitch"], weights=np.maximum(notes["end"] - notes["start"], ROUNDING))
    return 100 * sounding.max() / sounding.sum()


def _empty_bars(music: Music) -> float:
    notes, lines = music.score.notes, music.score.lines
    first = music.score.bars()
    last = np.searchsorted(lines[:-1], notes["end"] - ROUNDING, side="right") - 1
    changes = np.bincount(first, minlength=len(lines)) - np.bincount(np.maximum(last, first) + 1, minlength=len(lines))
    return 100 * float((np.cumsum(changes)[:-1] == 0).mean())


def _on_grid(music: Music) -> float:
    start, lines = music.score.notes["start"], music.score.lines
    steps = (start - lines[music.score.bars()]) * GRID_PER_QUARTER
    ticks = np.abs(steps - np.rint(steps)) * music.midi.ticks_per_quarter / GRID_PER_QUARTER
    return 100 * float((ticks <= 0.5 + ROUNDING).mean())  # a position between two ticks is rounded to one of them


def _part_notes_per_second(music: Music) -> np.ndarray:
    notes = music.score.notes
    tempo_map = TempoMap.from_events(music.midi.timing, music.midi.ticks_per_quarter)
    start, end = (tempo_map.seconds(notes[name] * music.midi.ticks_per_quarter) for name in ("start", "end"))
    first, last = np.full(music.score.n_parts, np.inf), np.zeros(music.score.n_parts)
    np.minimum.at(first, notes["part"], start)
    np.maximum.at(last, notes["part"], end)
    return np.bincount(notes["part"]) / np.maximum(last - first, SHORTEST_PART_S)


@dataclass(frozen=True)
class Measure:
    """A number that describes a piece. A filter keeps the pieces whose number is between two bounds, inclusive."""

    name: str
    of: Callable[[Music], float | np.ndarray]  # an array has a value for each part; NaN is within any bounds
    unit: str  # follows the bound in the reason for a rejection, as in "longer than 60 s"
    text: str  # for --help, with the unit
    less: str = "less"  # the beginning of the reason if the number is too small
    more: str = "more"  # the beginning of the reason if the number is too large

    @property
    def option(self) -> str:
        """The option of `prepare` that sets the bounds."""
        return "--" + self.name.replace("_", "-")


MEASURES = (
    Measure("seconds", lambda music: music.stats.seconds, " s", "duration in seconds", "shorter", "longer"),
    Measure(
        "notes_per_second",
        lambda music: music.stats.notes / max(music.stats.seconds, 1e-3),
        " notes/s",
        "mean number of notes per second",
        "sparser",
        "denser",
    ),
    Measure(
        "part_notes_per_second",
        _part_notes_per_second,
        " notes/s",
        "mean number of notes per second of a part, from its first note to its last. The filter applies to every "
        "part; a part of less than one second counts as one second",
        "a part sparser",
        "a part denser",
    ),
    Measure(
        "tracks",
        lambda music: music.stats.tracks,
        "",
        "number of tracks with notes. A track with several channels or programs counts once for each combination of "
        "them",
        "fewer tracks",
        "more tracks",
    ),
    Measure(
        "drum_notes",
        lambda music: 100 * float(music.score.notes["drums"].mean()),
        "% drum notes",
        "the number of drum notes, in percent of all notes; :99 excludes pieces that have only drums",
    ),
    Measure(
        "same_pitch",
        _same_pitch,
        "% of one pitch",
        "the share of the total duration of all notes that falls on the most sustained pitch, in percent; drums do not "
        "count; :60 excludes drones on one note",
    ),
    Measure(
        "empty_bars",
        _empty_bars,
        "% empty bars",
        "the number of bars in which no note sounds, in percent of the bars from the start of the file to the last "
        "note",
    ),
    Measure(
        "repeated_bars",
        _repeated_bars,
        "% repeated bars",
        "the number of bars with exactly the notes of an earlier bar, in percent of the bars with notes; loudness does "
        "not matter",
    ),
    Measure(
        "loops",
        _loops,
        "",
        f"largest number of times in a row that a passage of 1 to {LONGEST_LOOP} bars is played without a change; 1 if "
        "nothing repeats; loudness does not matter",
        "a passage played fewer times in succession",
        "a passage played more times in succession",
    ),
    Measure(
        "on_grid",
        _on_grid,
        "% of onsets on the grid",
        f"the number of notes that start on the grid of {GRID_PER_QUARTER} positions per quarter note, in percent of "
        "all notes; 95: keeps quantized music, and :50 keeps recorded performances",
    ),
)


@dataclass(frozen=True)
class Filters:
    """Conditions that a piece must meet to be kept. Raises UserError if a condition is invalid.

    A piece is rejected if it has a program that is not in `programs`. None accepts every program.
    """

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # (minimum, maximum) by name of a measure
    programs: tuple[int, ...] | None = None  # General MIDI's 0..127, and 128 for drums

    def __post_init__(self) -> None:
        names = [measure.name for measure in MEASURES]
        for name, (least, most) in self.bounds.items():
            if name not in names:
                raise UserError(f"There is no filter {name}: choose from {', '.join(names)}.")
            if not least <= most:
                raise UserError(f"The bounds of {name} are {least:g}:{most:g}; give the minimum first.")
        wrong = [program for program in self.programs or () if not 0 <= program < N_PROGRAMS]
        if wrong:
            raise UserError(f"--programs contains {wrong[0]}: give numbers from 0 to 127, or 128 for drums.")

    def measure(self, midi: ParsedMidi, stats: MidiStats) -> dict[str, float | np.ndarray]:
        """Return the measures for which there are bounds, by name. `midi` and `stats` are the piece and its statistics.

        Raises RejectedMidi if a measure needs the score and the piece is longer than tokenizers accept.
        """
        music = Music(midi, stats)
        return {measure.name: measure.of(music) for measure in MEASURES if measure.name in self.bounds}

    def reason(self, measured: Mapping[str, float | np.ndarray], stats: MidiStats) -> str | None:
        """Return why a piece is rejected, or None if it is kept. `measured` is the result of `measure`."""
        for measure in MEASURES:
            if measure.name in measured:
                least, most = self.bounds[measure.name]
                values = measured[measure.name]
                if np.min(values) < least:
                    return f"{measure.less} than {least:g}{measure.unit}"
                if np.max(values) > most:
                    return f"{measure.more} than {most:g}{measure.unit}"
        if self.programs is not None and set(np.flatnonzero(stats.programs).tolist()) - set(self.programs):
            return "other programs"
        return None

    def as_options(self) -> dict:
        """Return the active filters as JSON values for dataset.json, with null for infinite bounds."""
        options = {measure.name: self.bounds.get(measure.name) for measure in MEASURES} | {"programs": self.programs}
        return {
            name: [None if number == float("inf") else number for number in value]
            for name, value in options.items()
            if value is not None
        }
