"""The `midi-llm` codecs, which use the vocabulary of the RWKV community's music checkpoints and players.

    0 <pad>   1 <start>   2 <end>   3..127 t1..t125, waits in units of 8 ms
    128 and up: one token for each instrument, pitch and loudness, such as `pi:3c:8` (the first letters of the
    instrument, then pitch and loudness in hexadecimal). Loudness 0 is a note-off.

`midi-llm` has 13 instruments and 12 loudness levels (20,096 tokens). `midi-llm-piano` has only the keyboards, with 16
loudness levels (2,176 tokens). With the exceptions under "Notable choices", files get the same ids as from
MIDI-LLM-tokenizer. This module therefore follows its rules:

- All tracks are merged. Simultaneous tokens are sorted by instrument, then pitch. Silence before the first token is
  removed, and other silences are cut to ten seconds. Each wait is rounded separately and dropped if it rounds to 0.
- Loudness is computed from velocity times the channel's volume and expression. Loud bins are wider than soft ones.
- While the sustain pedal is down, a note-off is delayed until the pedal is released. It is dropped if the same pitch
  starts again before that.
- Synth effects, sound effects, orchestra hits and reverse cymbals are removed. `midi-llm-piano` removes everything
  except keyboards.

Notable choices:
- A file is one piece. MIDI-LLM-tokenizer can also split a file at long silences and drop short parts.
- As in MIDI-LLM-tokenizer, ports are ignored, and so are messages that turn a channel other than the tenth into a
  rhythm part. `Piece.lost` counts the notes that get another instrument for these reasons.
- Unlike in MIDI-LLM-tokenizer, the delta time of an unknown meta event counts as elapsed time.
- When decoding, a note ends at its note-off or where its pitch starts again. Without either, it ends after five seconds
  or at the end of the piece, whichever is first. A note of length 0 gets the length of one tick; encoding rounds it to
  0 again. Unmatched note-offs are dropped. Such a note-off can divide a silence of more than ten seconds. Encoding the
  decoded file then cuts the whole silence to ten seconds.
- The tokens contain no bars. Bars are read from the file's time signatures, and converted to the tokens' clock
  (`BarLines`). When decoding, they are written as time signatures and tempos.

Source: https://github.com/briansemrau/MIDI-LLM-tokenizer (vocab_config.json, vocab_config_piano.json, midi_util.py).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, log
from pathlib import Path
from typing import ClassVar

import mido
import numpy as np

from rwkv_music.midi.events import (
    ALL_NOTES_OFF,
    CHANNELS,
    CONTROL_CHANGE,
    DRUM_CHANNEL,
    DRUMS,
    EXPRESSION,
    FINE_VOLUME,
    NOTE_OFF,
    NOTE_ON,
    PEDAL_DOWN,
    PROGRAM_CHANGE,
    SUSTAIN_PEDAL,
    SYSEX,
    TEMPO,
    VOLUME,
    Event,
    ParsedMidi,
    RejectedMidi,
    parse_midi,
    to_track,
)
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.notes import remove_overlaps
from rwkv_music.midi.time import DEFAULT_SIGNATURE, DEFAULT_TEMPO, BarGrid, TempoMap, time_messages
from rwkv_music.tokenizers.codec import BarLines, Codec, Piece, check_length
from rwkv_music.tokenizers.midi_llm_bars import (
    DEFAULT_BAR_MS,
    MAX_WAIT_MS,
    MAX_WAITS,
    TICKS_PER_QUARTER,
    WAIT_LEVELS,
    WAIT_MS,
    Moments,
    place_bars,
    tick_map,
)
from rwkv_music.tokenizers.midi_llm_grammar import MidiLlmGrammar, MidiLlmRules
from rwkv_music.tokenizers.vocabulary import NONE, Vocabulary

PAD, START, END, FIRST_WAIT = range(4)
FIRST_NOTE = FIRST_WAIT + WAIT_LEVELS
PITCHES = 128
VELOCITIES = 128
NO_INSTRUMENT = -1
# Keys of `Piece.lost`
SILENT_NOTES = "notes silenced by volume or expression"
OTHER_NOTES = "notes of other instruments"
MISREAD_NOTES = "notes read as another instrument"  # because MIDI-LLM-tokenizer ignores ports and rhythm parts
MAX_UNENDED_NOTE_MS = 5000  # the length of a note without a note-off


@dataclass(frozen=True)
class Instrument:
    """A group of General MIDI programs."""

    name: str
    program: int  # the program with which `decode` plays the group
    programs: tuple[range, ...]


def _span(*bounds: tuple[int, int]) -> tuple[range, ...]:
    """Return ranges of programs from pairs of first and last program, counted from 0."""
    return tuple(range(first, last + 1) for first, last in bounds)


KEYBOARDS = _span((0, 7), (17, 23))
PERCUSSION = Instrument("percussion", 0, ())  # the drum channel with any program
INSTRUMENTS = (
    PERCUSSION,
    Instrument("drum", 118, _span((47, 47), (116, 118))),
    Instrument("tuba", 58, _span((57, 58))),
    Instrument("marimba", 12, _span((8, 16), (112, 115))),
    Instrument("bass", 32, _span((32, 39), (42, 43))),
    Instrument("guitar", 25, _span((24, 31), (104, 108))),
    Instrument("violin", 40, _span((40, 41), (44, 46), (48, 54), (85, 85), (91, 91), (110, 110))),
    Instrument("trumpet", 56, _span((56, 56), (59, 63), (69, 69))),
    Instrument("piano", 0, KEYBOARDS),
    Instrument("sax", 66, _span((64, 68), (70, 71), (109, 109), (111, 111))),
    Instrument("flute", 73, _span((72, 79))),
    Instrument("lead", 80, _span((80, 84), (86, 87))),
    Instrument("pad", 88, _span((88, 90), (92, 95))),
)
PIANO = (Instrument("piano", 0, KEYBOARDS),)


class MidiLlm(Codec):
    """The codec with 13 instruments."""

    name = "midi-llm"
    pad_id, bos_id, eos_id = PAD, START, END
    instruments: ClassVar[tuple[Instrument, ...]] = INSTRUMENTS
    velocity_bins: ClassVar[int] = 12
    velocity_base: ClassVar[float] = 0.5  # a smaller base makes soft bins finer and loud bins coarser
    velocities_include_volume = True

    def __init__(self, vocabulary: list[str] | None = None):
        super().__init__({}, vocabulary or self._vocabulary())

    def encode_piece(self, source: Path | bytes | ParsedMidi) -> Piece:
        midi = parse_midi(source)
        ticks_per_quarter, events = midi.ticks_per_quarter, midi.events
        ids, moments, last_note_tick, lost = self._encode_events(events, ticks_per_quarter)
        check_length(last_note_tick / ticks_per_quarter)
        grid = BarGrid.from_events(midi.timing, ticks_per_quarter)
        n_bars = int(grid.bar(last_note_tick)) + 1
        tempo_map = TempoMap.from_events(midi.timing, ticks_per_quarter)
        bar_starts, start_ms = place_bars(grid.lines(n_bars), moments, tempo_map)
        n_misread = self._count_misread(midi)
        if n_misread:
            lost[MISREAD_NOTES] = n_misread
        # `place_bars` drops the silent bars before the first token.
        signatures = grid.signatures(n_bars)[n_bars - len(bar_starts) :]
        return Piece(np.array(ids, np.uint16), bar_starts, BarLines(start_ms, signatures), lost)

    def _encode_events(
        self, events: list[Event], ticks_per_quarter: int
    ) -> tuple[list[int], Moments, int, dict[str, int]]:
        """Return (ids, their moments, the tick at which the last note starts, `Piece.lost`).

        Times are added up as in MIDI-LLM-tokenizer, without `TempoMap`, so that waits are rounded in the same way.
        """
        first_token, loudness, n_bins, order = self._first_token, self._loudness, self.velocity_bins, self._order
        programs, volumes, expressions = [0] * 16, [127] * 16, [127] * 16
        pedal_is_down = [False] * 16
        sounding: list[dict[int, None]] = [{} for _ in range(16)]  # pitches by channel, ordered by start
        under_pedal: list[dict[tuple[int, int], None]] = [{} for _ in range(16)]  # (pitch, program)

        ids = [START]
        moments = Moments()
        keys: list[int] = []  # the note tokens of the current moment
        seconds_per_tick = DEFAULT_TEMPO * 1e-6 / ticks_per_quarter
        now = 0
        last_tick = last_note_tick = -1
        wait_ms = 0.0
        any_note = False
        n_silent = n_other = 0  # notes that the tokens do not contain

        def add(token: int) -> None:
            nonlocal keys, wait_ms, last_tick
            if last_tick < 0:
                moments.begin(now, 1, [])
            elif wait_ms and (waits := _split_wait(wait_ms)):
                if len(keys) > 1:
                    keys.sort(key=order)
                ids.extend(keys)
                keys = []
                moments.last_ticks.append(last_tick)
                moments.begin(now, len(ids), waits)
                ids.extend([FIRST_WAIT - 1 + wait for wait in waits])
            wait_ms = 0.0
            last_tick = now
            keys.append(token)

        def release(channel: int, program: int, pitch: int) -> None:
            if pedal_is_down[channel]:
                under_pedal[channel][pitch, program] = None
                return
            token = first_token[channel][program]
            if token >= 0:
                add(token + pitch * n_bins)
            sounding[channel].pop(pitch, None)

        for tick, kind, channel, a, b, _ in events:
            channel %= CHANNELS  # MIDI-LLM-tokenizer ignores ports
            if tick != now:
                wait_ms += (tick - now) * seconds_per_tick * 1000.0
                now = tick
            if kind == NOTE_ON and b:
                program = programs[channel]
                under_pedal[channel].pop((a, program), None)
                token = first_token[channel][program]
                if token >= 0:
                    loud = loudness[b, volumes[channel], expressions[channel]]
                    add(token + a * n_bins + loud)
                    if loud:
                        last_note_tick = tick
                    else:
                        n_silent += 1
                else:
                    n_other += 1
                sounding[channel][a] = None
                any_note = True
            elif kind == NOTE_OFF or kind == NOTE_ON:
                release(channel, programs[channel], a)
            elif kind == PROGRAM_CHANGE:
                programs[channel] = a
            elif kind == TEMPO:
                seconds_per_tick = a * 1e-6 / ticks_per_quarter
            elif kind == CONTROL_CHANGE:
                if a == VOLUME or a == FINE_VOLUME:
                    volumes[channel] = b
                elif a == EXPRESSION:
                    expressions[channel] = b
                elif a == SUSTAIN_PEDAL:
                    pedal_is_down[channel] = b >= PEDAL_DOWN
                    if not pedal_is_down[channel]:
                        for pitch, program in under_pedal[channel]:
                            release(channel, program, pitch)
                        under_pedal[channel] = {}
                elif a == ALL_NOTES_OFF:  # MIDI-LLM-tokenizer applies it to all channels
                    for other in range(16):
                        for pitch in list(sounding[other]):
                            release(other, programs[other], pitch)
        if last_note_tick < 0:
            reason = (
                "all notes silenced by volume or expression" if n_silent else "no notes of the tokenizer's instruments"
            )
            raise RejectedMidi(reason if any_note else "no notes")
        moments.last_ticks.append(last_tick)
        keys.sort(key=order)
        lost = {SILENT_NOTES: n_silent, OTHER_NOTES: n_other}
        return [*ids, *keys, END], moments, last_note_tick, {reason: n for reason, n in lost.items() if n}

    def _count_misread(self, midi: ParsedMidi) -> int:
        """Return the number of notes that have another instrument in the tokens than in the file."""
        if not any(kind == SYSEX or channel >= CHANNELS for _, kind, channel, *_ in midi.events):
            return 0
        programs = [0] * CHANNELS
        read: Counter[tuple[int, int, int]] = Counter()  # (tick, pitch, first token of the instrument)
        for tick, kind, channel, a, b, _ in midi.events:
            channel %= CHANNELS
            if kind == PROGRAM_CHANGE:
                programs[channel] = a
            elif kind == NOTE_ON and b:
                read[tick, a, self._first_token[channel][programs[channel]]] += 1
        notes = played_notes(midi)
        # The first token of each program's instrument. The last element is for DRUMS.
        token_of = [*self._first_token[0], self._first_token[DRUM_CHANNEL][0]]
        tokens = (token_of[program] for program in notes.program.tolist())
        played = Counter(zip(notes.start.tolist(), notes.pitch.tolist(), tokens, strict=True))
        return (played - read).total()

    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None) -> mido.MidiFile:
        notes, end = self._decode_notes(np.asarray(ids))
        line_ms, line_ticks, tempos, signatures = tick_map(bar_lines, end * WAIT_MS)
        midi = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_QUARTER)
        midi.tracks.append(to_track(time_messages(line_ticks[:-1], tempos, signatures)))

        start, stop, key, loud = np.array(notes, np.int64).reshape(-1, 4).T
        start, stop = (np.rint(np.interp(t * WAIT_MS, line_ms, line_ticks)).astype(np.int64) for t in (start, stop))
        instrument, pitch = np.divmod(key, PITCHES)
        played = np.stack([start, np.maximum(stop - start, 1), pitch, np.array(self._velocities)[loud]])
        for number in np.unique(instrument).tolist():
            channel = self._channel(number)
            events = [(0, mido.Message("program_change", channel=channel, program=self.instruments[number].program))]
            rows = np.stack(remove_overlaps(*played[:, instrument == number]), axis=1)
            for tick, length, note, velocity in rows.tolist():
                events.append((tick, mido.Message("note_on", channel=channel, note=note, velocity=velocity)))
                events.append((tick + length, mido.Message("note_off", channel=channel, note=note, velocity=0)))
            midi.tracks.append(to_track(events))
        return midi

    def excerpt(self, ids: np.ndarray, start: int, split: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        opening, rest = ids[start:split], ids[split:stop]
        if not self._is_note[ids[:start]].any():
            return ids[:split], rest
        onsets = np.flatnonzero(self._is_note[opening])
        # The result starts with the first note, without the silence before it.
        return np.concatenate([[START], opening[onsets[0] if len(onsets) else len(opening) :]]), rest

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        waits = self._wait_ms[ids]
        clocks = np.cumsum(waits) - waits  # the time at which each token starts
        notes = np.flatnonzero(self._is_note[ids])
        if not len(notes):
            return np.empty(0, np.int64)
        lines = np.arange(0, clocks[notes[-1]] + 1, DEFAULT_BAR_MS)
        music = np.flatnonzero(ids >= FIRST_WAIT)
        return np.maximum(np.searchsorted(clocks, lines), music[0]).astype(np.int64)

    def decoded_program(self, program: int) -> int | None:
        if program == DRUMS:
            return DRUMS if PERCUSSION in self.instruments else None
        groups = (i.program for i in self.instruments if any(program in span for span in i.programs))
        return next(groups, None)

    def count_notes(self, ids: np.ndarray) -> int:
        return int(self._is_note[np.asarray(ids)].sum())

    def grammar(self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False) -> MidiLlmGrammar:
        lines, n = prompt.bar_lines, len(prompt.bar_starts)
        line_ms, bar_ms = n * DEFAULT_BAR_MS, DEFAULT_BAR_MS
        if lines is not None:
            line_ms, bar_ms = float(lines.start_ms[n]), float(lines.start_ms[-1] - lines.start_ms[-2])
        clock = self._wait_ms[prompt.ids].sum()
        return MidiLlmGrammar(self._rules, int(prompt.ids[-1]), clock - line_ms, bar_ms, rows, bars, may_end)

    @cached_property
    def token_properties(self) -> Vocabulary:
        V = self.vocab_size
        keys, loudness = np.divmod(np.arange(V) - FIRST_NOTE, self.velocity_bins)
        is_key = keys >= 0
        programs = np.array(
            [DRUMS if instrument is PERCUSSION else instrument.program for instrument in self.instruments]
        )
        kinds = np.where(is_key, "Key", "Wait")
        kinds[[PAD, START, END]] = "PAD", "BOS", "EOS"
        return Vocabulary(
            kinds=kinds,
            pitch=np.where(is_key, keys % PITCHES, NONE),
            is_onset=self._is_note,
            program=np.where(is_key, programs[np.maximum(keys, 0) // PITCHES], NONE),
            part=np.full(self.vocab_size, NONE),
            loudness=np.where(self._is_note, loudness - 1, NONE),
            tempo=np.full(V, NONE),
            tempo_steps_per_octave=0.0,
            wait_ms=np.where(self._wait_ms > 0, self._wait_ms, NONE),
            unknown_tag=np.full(V, NONE),
        )

    def bar_lines(self, ids: np.ndarray, bar_starts: np.ndarray) -> BarLines:
        """Return 4/4 bar lines at the times of the bars' first tokens. A time can be off by at most one wait."""
        clock = np.append(0, np.cumsum(self._wait_ms[ids]))
        tokens, first = np.unique(np.append(bar_starts, len(ids)), return_index=True)
        # Bars without tokens are spaced evenly between their neighbors.
        start_ms = np.interp(np.arange(len(bar_starts) + 1), first, clock[tokens])
        # The tokens end with the last note, which can be before the end of the last bar.
        previous_bar_ms = start_ms[-2] - start_ms[-3] if len(bar_starts) > 1 else 0.0
        start_ms[-1] = max(start_ms[-1], start_ms[-2] + previous_bar_ms, start_ms[-2] + WAIT_MS)
        return BarLines(start_ms, np.tile(DEFAULT_SIGNATURE, (len(bar_starts), 1)))

    def _decode_notes(self, ids: np.ndarray) -> tuple[list[tuple[int, int, int, int]], int]:
        """Return ((start, end, key, loudness) of each note, the length of the piece), with times in units of 8 ms.

        A key is instrument * 128 + pitch.
        """
        # (start, key): (end, loudness). Of two notes with the same start and key, the later one is kept.
        notes: dict[tuple[int, int], tuple[int, int]] = {}
        sounding: dict[int, tuple[int, int]] = {}  # key: (start, loudness)
        clock = 0
        for token in ids.tolist():
            if token >= FIRST_NOTE:
                key, loud = divmod(token - FIRST_NOTE, self.velocity_bins)
                if key in sounding:
                    start, loudness = sounding.pop(key)
                    notes[start, key] = clock, loudness
                if loud:
                    sounding[key] = clock, loud
            elif token >= FIRST_WAIT:
                clock += token - (FIRST_WAIT - 1)
        for key, (start, loudness) in sounding.items():
            notes[start, key] = min(start + MAX_UNENDED_NOTE_MS // WAIT_MS, max(clock, start + 1)), loudness
        return [(start, end, key, loudness) for (start, key), (end, loudness) in notes.items()], clock

    def _channel(self, instrument: int) -> int:
        """Return the drum channel for percussion. The other instruments get the other channels in order."""
        if self.instruments[instrument] is PERCUSSION:
            return DRUM_CHANNEL
        channel = instrument - (PERCUSSION in self.instruments[:instrument])
        return channel + (channel >= DRUM_CHANNEL)

    @classmethod
    def _vocabulary(cls) -> list[str]:
        n_keys = PITCHES * cls.velocity_bins  # of one instrument
        names: list[str] = []
        for instrument in cls.instruments:
            length = next(n for n in range(1, 99) if instrument.name[:n] not in names)
            names.append(instrument.name[:length])
        waits = [f"t{n}" for n in range(1, WAIT_LEVELS + 1)]
        keys = [f"{name}:{i // cls.velocity_bins:x}:{i % cls.velocity_bins:x}" for name in names for i in range(n_keys)]
        return ["<pad>", "<start>", "<end>", *waits, *keys]

    @cached_property
    def _first_token(self) -> list[list[int]]:
        """For each channel and program, the first token of its instrument (note-off of pitch 0), or NO_INSTRUMENT."""
        first = [FIRST_NOTE + i * PITCHES * self.velocity_bins for i in range(len(self.instruments))]
        token_of = {p: t for i, t in zip(self.instruments, first, strict=True) for span in i.programs for p in span}
        melodic = [token_of.get(program, NO_INSTRUMENT) for program in range(128)]
        drums = first[self.instruments.index(PERCUSSION)] if PERCUSSION in self.instruments else NO_INSTRUMENT
        return [[drums] * 128 if channel == DRUM_CHANNEL else melodic for channel in range(16)]

    @cached_property
    def _order(self) -> Callable[[int], int]:
        """The sort key of simultaneous tokens."""
        return self._key.tolist().__getitem__

    @cached_property
    def _key(self) -> np.ndarray:
        """The key (instrument * 128 + pitch) of each note token, int64 [V]; -1 for other tokens."""
        return np.maximum((np.arange(self.vocab_size) - FIRST_NOTE) // self.velocity_bins, -1)

    @cached_property
    def _is_note(self) -> np.ndarray:
        """Whether each token is a note-on, bool [V]."""
        tokens = np.arange(self.vocab_size)
        return (tokens >= FIRST_NOTE) & ((tokens - FIRST_NOTE) % self.velocity_bins > 0)

    @cached_property
    def _wait_ms(self) -> np.ndarray:
        """The wait in milliseconds of each wait token, int64 [V]; 0 for other tokens."""
        tokens = np.arange(self.vocab_size)
        return np.where((tokens >= FIRST_WAIT) & (tokens < FIRST_NOTE), (tokens - FIRST_WAIT + 1) * WAIT_MS, 0)

    @cached_property
    def _rules(self) -> MidiLlmRules:
        return MidiLlmRules(self._key, self._wait_ms, self.eos_id)

    @cached_property
    def _loudness(self) -> "_Loudness":
        return _Loudness(self.velocity_bins, self.velocity_base)

    @cached_property
    def _velocities(self) -> list[int]:
        """The velocity to which `decode` converts each loudness: the highest velocity of its bin."""
        width, base = VELOCITIES / (self.velocity_bins - 1), self.velocity_base
        return [
            max(0, ceil(VELOCITIES * log((base - 1) * width * loud / VELOCITIES + 1, base) - 1))
            for loud in range(self.velocity_bins)
        ]


class MidiLlmPiano(MidiLlm):
    """The codec with only keyboards and more loudness levels."""

    name = "midi-llm-piano"
    instruments = PIANO
    velocity_bins = 16
    velocity_base = 0.33


class _Loudness(dict):
    """A cache of the loudness for each (velocity, volume, expression), 0..127 each."""

    def __init__(self, n_bins: int, base: float):
        super().__init__()
        self.width, self.base = VELOCITIES / (n_bins - 1), base

    def __missing__(self, key: tuple[int, int, int]) -> int:
        velocity, volume, expression = key
        scaled = velocity * (volume / 127.0) * (expression / 127.0)
        self[key] = ceil(VELOCITIES * ((self.base ** (scaled / VELOCITIES) - 1.0) / (self.base - 1.0)) / self.width)
        return self[key]


def _split_wait(ms: float) -> list[int]:
    """Return waits of 1 to 125 units that add up to `ms` milliseconds, or to 10 s if `ms` is longer.

    The sum is rounded to units. The list is empty if it rounds to 0.
    """
    ms = min(ms, MAX_WAITS * MAX_WAIT_MS)
    waits = [WAIT_LEVELS] * floor(ms / MAX_WAIT_MS)
    rest = ceil(ms % MAX_WAIT_MS / WAIT_MS - 0.5)
    if rest > 0:
        waits.append(rest)
    return waits
