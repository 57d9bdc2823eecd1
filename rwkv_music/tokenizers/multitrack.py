"""The `multitrack` codec: bars of cells, where a cell is one part in one bar.

    piece   BOS Tag* (Bar TimeSig [Tempo] cell*)* EOS
    cell    Part ([Program] Position (Pitch [Velocity] Duration)+)+
    fill    a piece with `Part Hole` in place of some cells, then Fill, then the holes' contents (multitrack_cells.py)

A moment is a Position with its notes. The cells of a bar are sorted by part, the moments of a cell by time, and the
notes of a moment by pitch, duration and velocity. The same music in the same tracks therefore has the same ids.

Notable choices:
- A part is one channel of one track (midi/parts.py). Voices with the same instrument stay separate, so that unisons
  between them are kept.
- In a part, a note ends at the latest where its pitch starts again. Some music software merges the tracks of several
  voices, whose unisons are then in one part. Up to MAX_UNISON notes of one pitch can therefore start together. If more
  of them start together, which is rare, the longest are kept.
- If the vocabulary has tags, every piece has one Tag of each column (tags.py). Otherwise, no piece has tags.
- A Program token occurs only in the first cell of a part and where the program changes. A Velocity token occurs only at
  the first note of a cell and where the velocity changes. Most scores need few such tokens, so that more music fits
  into the model's context.
- Positions and durations have 24 steps per quarter note in every meter. Note values down to a thirty-second note and
  their triplets are exact. Durations above 16 quarter notes have steps of a quarter note.
- The TimeSig token of a bar gives the actual length of the bar, even if a change of meter cuts the bar short. A Tempo
  token gives the mean tempo of a bar. It occurs only where this mean changes.
- A note that the sustain pedal holds lasts until the pedal is released or its pitch starts again. Pitch bends and other
  controllers are dropped.

Source: the cells are this project's; bars, positions and durations follow Huang and Yang, "Pop Music Transformer"
(2020).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import cycle
from math import log2
from pathlib import Path
from typing import Any

import mido
import numpy as np

from rwkv_music.midi.events import (
    CHANNELS,
    DRUM_CHANNEL,
    DRUMS,
    TIME_SIGNATURE,
    ParsedMidi,
    RejectedMidi,
    TimedMessage,
    parse_midi,
    to_track,
)
from rwkv_music.midi.instruments import ends_by_pedal, played_notes
from rwkv_music.midi.notes import MAX_UNISON, remove_overlaps
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.midi.time import DEFAULT_SIGNATURE, BarGrid, TempoMap, time_messages
from rwkv_music.tokenizers.codec import EMPTY_NOTES, BarLines, Codec, Piece, check_length
from rwkv_music.tokenizers.multitrack_cells import read_excerpt, write_bars
from rwkv_music.tokenizers.multitrack_grammar import MultitrackGrammar, MultitrackRules
from rwkv_music.tokenizers.multitrack_vocabulary import (
    BAR,
    BAR_STEPS,
    BOS,
    DURATION,
    DURATIONS,
    EOS,
    FILL,
    HOLE,
    MAX_BAR,
    MAX_DURATION,
    MAX_PARTS,
    N_TEMPOS,
    PAD,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    SLOWEST,
    STEPS,
    STEPS_PER_OCTAVE,
    TEMPO,
    TEMPOS,
    TIME_SIG,
    TIME_SIGNATURES,
    VELOCITIES,
    VELOCITY,
    VELOCITY_STEP,
    VOCABULARY,
)
from rwkv_music.tokenizers.tags import UNKNOWN, tag_tokens
from rwkv_music.tokenizers.vocabulary import NONE, Vocabulary, ranks

TICKS_PER_STEP = 20  # of decoded files, which have 480 ticks per quarter note
MELODIC_CHANNELS = [channel for channel in range(CHANNELS) if channel != DRUM_CHANNEL]

MOST_BARS = 4  # `_equal_bars` returns at most this many times the necessary number of bars

# Keys of `Piece.lost`
DOUBLE_NOTES = f"notes beyond the {MAX_UNISON} longest that start together on one pitch in a part"
OTHER_METERS = "bars of a length that the vocabulary lacks"


class Multitrack(Codec):
    """The codec `multitrack`, described in the module docstring."""

    name = "multitrack"
    pad_id, bos_id, eos_id = PAD, BOS, EOS

    def __init__(
        self,
        tags: Mapping[str, Sequence[str]] | None = None,  # the values of each column
        vocabulary: list[str] | None = None,
    ):
        options: dict[str, Any] = {"tags": {column: list(values) for column, values in tags.items()}} if tags else {}
        own = [*VOCABULARY, *tag_tokens(options.get("tags", {}))]
        if vocabulary not in (None, own):
            raise ValueError("the vocabulary is not that of the multitrack tokenizer of this version")
        super().__init__(options, own)

    def encode_piece(self, source: Path | bytes | ParsedMidi) -> Piece:
        midi = parse_midi(source)
        notes = played_notes(midi)
        if not len(notes):
            raise RejectedMidi("no notes")
        parts, part = read_parts(midi)
        if len(parts) > MAX_PARTS:
            raise RejectedMidi(f"more than {MAX_PARTS} parts")
        check_length(notes.end.max() / midi.ticks_per_quarter)
        division = midi.ticks_per_quarter
        grid = self.bar_grid(midi)
        bar = grid.bar(notes.start)
        lines = grid.lines(int(bar.max()) + 2)  # one more bar, because a note may be rounded to the start of that bar
        signatures, bar_steps, n_odd = _time_signatures(lines, grid.signatures(len(lines) - 1), division)

        # Express the onsets as rounded steps since the first bar line. Each bar has its encoded length, which can
        # differ from its length in the file.
        step = _rounded(notes.start - lines[bar], division)
        bar_start = np.concatenate([[0], np.cumsum(bar_steps)])
        start = np.where(step < bar_steps[bar], bar_start[bar] + step, bar_start[bar + 1])
        duration = np.maximum(_rounded(ends_by_pedal(notes) - notes.start, division), 1)
        # Overlaps are removed in each part. For this, part and pitch are packed into one value, and so are velocity and
        # program.
        start, duration, pitch, velocity = remove_overlaps(
            start, duration, part << 7 | notes.pitch, notes.velocity << 8 | notes.program, MAX_UNISON
        )
        part, pitch, velocity, program = pitch >> 7, pitch & 127, velocity >> 8, velocity & 255
        bar = np.searchsorted(bar_start, start, side="right") - 1
        n_bars = int(bar[-1]) + 1
        tempos = _tempos(TempoMap.from_events(midi.events, division), lines[: n_bars + 1], division)
        ids, bar_starts = _assemble(
            signatures[:n_bars], tempos, bar, part, start - bar_start[bar], program, pitch, velocity, duration
        )
        lost = {DOUBLE_NOTES: len(notes) - len(pitch), OTHER_METERS: int(n_odd[:n_bars].sum())}
        lost[EMPTY_NOTES] = notes.n_without_length
        head = self.empty_piece().ids
        ids = np.concatenate([head, ids, [self.eos_id]]).astype(np.uint16)
        return Piece(
            ids, bar_starts + len(head), lost={reason: n for reason, n in lost.items() if n}, parts=tuple(parts)
        )

    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None, parts: tuple[Part, ...] = ()) -> mido.MidiFile:
        """See `Codec.decode`. If `parts[k - 1]` exists, it gives the name and the drum kit of part k."""
        score = read_tokens(np.asarray(ids))
        midi = mido.MidiFile(type=1, ticks_per_beat=STEPS * TICKS_PER_STEP)
        lines = score.bar_start[:-1] * TICKS_PER_STEP
        midi.tracks.append(to_track(time_messages(lines, score.tempo, score.signature)))
        channels = cycle(MELODIC_CHANNELS)
        numbers = np.unique(score.part).tolist()
        drums = {number: bool((score.program[score.part == number] == DRUMS).all()) for number in numbers}
        shared = len(numbers) - sum(drums.values()) > len(MELODIC_CHANNELS)
        for number in numbers:
            own = np.flatnonzero(score.part == number)
            part = parts[number - 1] if number <= len(parts) else Part(number, 0, int(score.program[own[0]]))
            channel = DRUM_CHANNEL if drums[number] else next(channels)
            midi.tracks.append(_part_track(score, own, part, channel, shared and not drums[number]))
        return midi

    def excerpt(self, ids: np.ndarray, start: int, split: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        written = write_bars(read_excerpt(ids, start, stop))
        n_opening = len(write_bars(read_excerpt(ids, start, split)))
        return written[:n_opening], np.append(written[n_opening:], ids[stop - 1 : stop][ids[stop - 1 : stop] == EOS])

    def empty_piece(self) -> Piece:
        unknown = self.token_properties.unknown_tag
        ids = np.concatenate([[BOS], np.unique(unknown[unknown != NONE])])
        return Piece(ids.astype(np.uint16), np.empty(0, np.int64))

    def with_tags(self, ids: np.ndarray, tags: Mapping[str, str]) -> np.ndarray:
        ids = np.array(ids)
        first = len(VOCABULARY)
        for place, (column, values) in enumerate(self.tags.items(), start=1):
            if column in tags:
                ids[place] = first + [UNKNOWN, *values].index(tags[column])
            first += 1 + len(values)
        if missing := set(tags) - set(self.tags):
            raise ValueError(f"the vocabulary has no column {min(missing)!r}")
        return ids

    @staticmethod
    def bar_grid(midi: ParsedMidi) -> BarGrid:
        """Return the bars of a file. Bars that the vocabulary lacks are divided as `_equal_bars` describes."""
        changes = [
            (tick, n // _equal_bars(n, d), d)
            for tick, kind, _, n, d, _ in midi.events
            if kind == TIME_SIGNATURE and n > 0
        ]
        return BarGrid(changes, midi.ticks_per_quarter)

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.asarray(ids) == BAR)

    def count_notes(self, ids: np.ndarray) -> int:
        return int(self.token_properties.is_onset[np.asarray(ids)].sum())

    def grammar(
        self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False
    ) -> MultitrackGrammar:
        return MultitrackGrammar(self.rules, prompt.ids, rows, bars, may_end)

    @cached_property
    def rules(self) -> MultitrackRules:
        return MultitrackRules(self.vocabulary)

    @cached_property
    def token_properties(self) -> Vocabulary:
        V = self.vocab_size
        kinds = np.array([token.split("_")[0] for token in self.vocabulary])
        pitch, program, part = np.full(V, NONE), np.full(V, NONE), np.full(V, NONE)
        velocity, tempo = np.full(V, np.nan), np.full(V, np.nan)
        pitch[kinds == "Pitch"] = pitch[kinds == "PitchDrum"] = np.arange(128)
        program[kinds == "PitchDrum"] = DRUMS
        program[kinds == "Program"] = np.arange(DRUMS + 1)
        part[kinds == "Part"] = np.arange(1, MAX_PARTS + 1)
        velocity[kinds == "Velocity"] = VELOCITIES
        tempo[kinds == "Tempo"] = TEMPOS
        unknown_tag, first = np.full(V, NONE), len(VOCABULARY)
        for values in self.tags.values():
            stop = first + 1 + len(values)
            unknown_tag[first:stop] = first
            first = stop
        return Vocabulary(
            kinds=kinds,
            pitch=pitch,
            is_onset=pitch != NONE,
            program=program,
            part=part,
            loudness=ranks(velocity),
            tempo=ranks(tempo),
            tempo_steps_per_octave=STEPS_PER_OCTAVE,
            wait_ms=np.full(V, NONE),
            unknown_tag=unknown_tag,
        )


def _rounded(ticks: np.ndarray, division: int) -> np.ndarray:
    """Convert ticks to steps, int64 [n]. Halves are rounded up."""
    return (2 * STEPS * ticks + division) // (2 * division)


def _time_signatures(lines: np.ndarray, meters: np.ndarray, division: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the index and the length in steps of each bar's encoded time signature, and whether the length is inexact.

    `lines`, int64 [bars + 1], are the ticks of the file's bar lines, and `meters`, int64 [bars, 2], are the file's time
    signatures. The three results are [bars] each.
    """
    kinds, which = np.unique(np.column_stack([meters, np.diff(lines)]), axis=0, return_inverse=True)
    found = [_time_signature(d, Fraction(STEPS * ticks, division)) for _, d, ticks in kinds.tolist()]
    index, is_odd = np.array(found, np.int64).T[:, which.ravel()]
    return index, BAR_STEPS[index], is_odd


@lru_cache(maxsize=4096)
def _time_signature(denominator: int, steps: Fraction) -> tuple[int, bool]:
    """Return the index of the time signature closest to `steps` steps, and whether it is off by a step or more.

    Differences below one step do not count. Of equally close time signatures, return the one whose denominator is
    closest to `denominator`.
    """

    def distance(i: int) -> tuple:
        error = abs(int(BAR_STEPS[i]) - steps)
        return (error if error >= 1 else 0), abs(log2(TIME_SIGNATURES[i][1] / denominator)), i

    best = min(range(len(TIME_SIGNATURES)), key=distance)
    return best, distance(best)[0] > 0


def _tempos(tempos: TempoMap, lines: np.ndarray, division: int) -> np.ndarray:
    """Return the index of the mean tempo of each bar between `lines` [bars + 1]: int64 [bars]."""
    quarters = np.diff(lines) / division
    bpm = 60 * quarters / np.maximum(np.diff(tempos.seconds(lines)), 1e-9)
    index = np.rint(STEPS_PER_OCTAVE * np.log2(np.maximum(bpm, 1e-9) / SLOWEST))
    return np.clip(index, 0, N_TEMPOS - 1).astype(np.int64)


def _assemble(
    signatures: np.ndarray,  # int64 [bars], indices
    tempos: np.ndarray,  # int64 [bars], indices
    bar: np.ndarray,  # int64 [n]; this array and the ones below describe the notes, in any order
    part: np.ndarray,
    step: np.ndarray,
    program: np.ndarray,
    pitch: np.ndarray,
    velocity: np.ndarray,
    duration: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a piece, int64, and the index of each bar's first token, int64 [bars]."""
    velocity = (velocity - 1) // VELOCITY_STEP
    duration = np.searchsorted(DURATIONS, np.minimum(duration, MAX_DURATION), side="right") - 1
    order = np.lexsort((velocity, duration, pitch, step, part, bar))
    bar, part, step, program, pitch, velocity, duration = (
        x[order] for x in (bar, part, step, program, pitch, velocity, duration)
    )
    first = np.ones(1, bool)
    new_cell = np.concatenate([first, (np.diff(bar) != 0) | (np.diff(part) != 0)])
    new_moment = new_cell | np.concatenate([first, np.diff(step) != 0])
    # All notes of a moment get the program of its first note.
    program = program[np.maximum.accumulate(np.where(new_moment, np.arange(len(bar)), 0))]
    by_part = np.argsort(part, kind="stable")
    changes = np.concatenate([first, (np.diff(part[by_part]) != 0) | (np.diff(program[by_part]) != 0)])
    new_program = np.empty(len(bar), bool)
    new_program[by_part] = changes

    new_tempo = np.concatenate([first, np.diff(tempos) != 0])
    headers = 2 + new_tempo
    new_velocity = new_cell | np.concatenate([first, np.diff(velocity) != 0])
    n_own = 2 + new_velocity + new_moment + new_program + new_cell
    n_before = np.concatenate([[0], np.cumsum(n_own)])  # the number of tokens of earlier notes
    bar_starts = np.cumsum(headers) - headers + n_before[np.searchsorted(bar, np.arange(len(signatures)))]
    place = n_before[:-1] + np.cumsum(headers)[bar]  # the index of each note's first token

    ids = np.empty(int(headers.sum() + n_before[-1]), np.int64)
    ids[bar_starts] = BAR
    ids[bar_starts + 1] = TIME_SIG + signatures
    ids[bar_starts[new_tempo] + 2] = TEMPO + tempos[new_tempo]
    for is_new, tokens in ((new_cell, PART + part), (new_program, PROGRAM + program), (new_moment, POSITION + step)):
        ids[place[is_new]] = tokens[is_new]
        place = place + is_new
    ids[place] = np.where(program == DRUMS, PITCH_DRUM, PITCH) + pitch
    ids[place[new_velocity] + 1] = VELOCITY + velocity[new_velocity]
    ids[place + 1 + new_velocity] = DURATION + duration
    return ids, bar_starts


@dataclass(frozen=True)
class QuantizedScore:
    """Bars and notes decoded from tokens. Times are in steps. Each note has a positive length and starts in its bar."""

    bar_start: np.ndarray  # int64 [bars + 1]: the start of each bar, and the end of the last one
    signature: np.ndarray  # int64 [bars, 2], (numerator, denominator)
    tempo: np.ndarray  # int64 [bars], microseconds per quarter note
    bar: np.ndarray  # int64 [n]; this array and the ones below describe the notes, in the order of their tokens
    part: np.ndarray
    start: np.ndarray  # from the start of the bar
    duration: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    program: np.ndarray  # DRUMS for percussion


def read_tokens(ids: np.ndarray) -> QuantizedScore:
    """Return the music that `ids` [n] encode before the first Fill token.

    Any ids are accepted. Tokens that are invalid in their context are ignored. Notes before the first bar, outside
    their bar, or without a part are left out.
    """
    bars: list[list[int]] = []  # index of the time signature, tempo
    notes: list[tuple[int, ...]] = []
    programs: dict[int, int] = {}
    tempo = int(round(STEPS_PER_OCTAVE * log2(120 / SLOWEST)))
    signature = TIME_SIGNATURES.index(DEFAULT_SIGNATURE)
    part = step = pitch = velocity = NONE
    is_drum = False
    for token in ids.tolist():
        if token < BAR:
            continue
        if token >= HOLE:
            if token == FILL:
                break
            part = NONE
        elif token >= DURATION:
            if pitch != NONE and velocity != NONE:
                program = DRUMS if is_drum else min(programs.get(part, 0), DRUMS - 1)
                steps = int(DURATIONS[token - DURATION])
                notes.append((len(bars) - 1, part, step, steps, pitch, velocity, program))
            pitch = NONE
        elif token >= VELOCITY:
            velocity = int(VELOCITIES[token - VELOCITY])
        elif token >= PITCH:
            is_drum = token >= PITCH_DRUM
            if part != NONE and step != NONE:
                pitch = token - (PITCH_DRUM if is_drum else PITCH)
        elif token >= POSITION:
            step = token - POSITION
            if step >= BAR_STEPS[signature]:
                step = NONE
        elif token >= PROGRAM:
            programs[part] = token - PROGRAM
        elif token >= PART:
            part, step, pitch, velocity = token - PART + 1 if bars else NONE, NONE, NONE, NONE
        elif token >= TEMPO:
            tempo = token - TEMPO
            if bars:
                bars[-1][1] = tempo
        elif token >= TIME_SIG:
            signature = token - TIME_SIG
            if bars:
                bars[-1][0] = signature
        else:
            bars.append([signature, tempo])
            part = step = pitch = velocity = NONE
    index, tempos = np.array(bars, np.int64).reshape(-1, 2).T
    bar, part, step, duration, pitch, velocity, program = np.array(notes, np.int64).reshape(-1, 7).T
    inside = step < BAR_STEPS[index][bar]
    return QuantizedScore(
        np.concatenate([[0], np.cumsum(BAR_STEPS[index])]),
        np.array(TIME_SIGNATURES)[index],
        np.rint(60e6 / TEMPOS[tempos]).astype(np.int64),
        *(x[inside] for x in (bar, part, step, duration, pitch, velocity, program)),
    )


def _part_track(score: QuantizedScore, own: np.ndarray, part: Part, channel: int, shared: bool) -> mido.MidiTrack:
    """Return a track with the notes of a score that have the indices `own`.

    If the channel is `shared`, a program change precedes each note.
    """
    start = score.bar_start[score.bar[own]] + score.start[own]
    packed = score.velocity[own] << 8 | score.program[own]
    # Notes of one pitch that start together are sorted by duration, because readers of the file match the first
    # note-off to the first note-on.
    start, duration, pitch, packed = remove_overlaps(start, score.duration[own], score.pitch[own], packed, MAX_UNISON)
    messages: list[TimedMessage] = []
    if part.name:
        messages.append((0, mido.MetaMessage("track_name", name=part.name)))
    last = NONE
    rows = np.stack([start, start + duration, pitch, packed >> 8, packed & 255], axis=1)
    for on, off, note, velocity, program in rows.tolist():
        program = part.kit if program == DRUMS else program
        if shared or program != last:
            at = 0 if last == NONE and not shared else on * TICKS_PER_STEP
            messages.append((at, mido.Message("program_change", channel=channel, program=program)))
            last = program
        message = mido.Message("note_on", channel=channel, note=note, velocity=velocity)
        messages.append((on * TICKS_PER_STEP, message))
        message = mido.Message("note_off", channel=channel, note=note, velocity=0)
        messages.append((off * TICKS_PER_STEP, message))
    return to_track(messages)


def _equal_bars(n: int, d: int) -> int:
    """Return the number of equal bars into which a bar of n/d is divided.

    Let k be the smallest divisor of n for which the bars are not longer than MAX_BAR. Return the smallest divisor of n
    from k to MOST_BARS * k that gives bars of a length in the vocabulary. If there is none, return k.
    """
    divisors = [k for k in range(1, n + 1) if n % k == 0 and 4 * STEPS * (n // k) <= MAX_BAR * d]
    exact = (k for k in divisors if k <= MOST_BARS * divisors[0] and np.isin(4 * STEPS * (n // k) / d, BAR_STEPS))
    return next(exact, divisors[0])
