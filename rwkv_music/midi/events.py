"""The events of a Standard MIDI File as plain tuples, read about ten times as fast as message objects can be made.

Source: the Standard MIDI Files 1.0 specification (RP-001). What is read, and in which order the tracks are merged, is
what mido reads and merges; mido writes the files.
"""

import struct
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import mido
import numpy as np

from rwkv_music.errors import explained

NOTE_OFF, NOTE_ON, CONTROL_CHANGE, PROGRAM_CHANGE = 0x80, 0x90, 0xB0, 0xC0
# Meta types: no channel status is so low, so both are kinds.
TEMPO, TIME_SIGNATURE, END_OF_TRACK = 0x51, 0x58, 0x2F
OTHER = 0  # an event that is only a moment in time
DEFAULT_TEMPO = 500_000  # microseconds a quarter note, until a file says otherwise
DEFAULT_SIGNATURE = (4, 4)
FINEST_BEAT = 64

DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}

Event = tuple[int, int, int, int, int]


class RejectedMidi(Exception):
    """A file that cannot become tokens; `reason` is a short phrase, stable from run to run ("no notes")."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_midi(source: Path | bytes) -> bytes:
    """The bytes of a Standard MIDI File whose chunks are whole.

    Raises:
        RejectedMidi: it is empty, not a MIDI file, truncated, or of a kind without beats or a common time line.
        UserError: the file cannot be opened or read.

    Source: the Standard MIDI Files 1.0 specification (RP-001).
    """
    if isinstance(source, bytes):
        data = source
    else:
        with explained(f"reading {source}"):
            data = Path(source).read_bytes()
    if not data:
        raise RejectedMidi("empty file")
    if not data.startswith(b"MThd"):
        raise RejectedMidi("not a MIDI file")
    if len(data) < 14:
        raise RejectedMidi("truncated")
    header_size, midi_format, n_tracks, division = struct.unpack(">IHHH", data[4:14])
    if header_size < 6 or midi_format > 2:
        raise RejectedMidi("damaged header")
    if midi_format == 2:
        raise RejectedMidi("format 2 (independent patterns)")
    if division == 0:
        raise RejectedMidi("zero ticks per quarter note")
    if division & 0x8000:
        raise RejectedMidi("SMPTE time (no beats)")
    position, found = 8 + header_size, 0
    # Bytes after the last declared track are harmless, and chunks of other kinds are allowed between tracks.
    while found < n_tracks:
        if position + 8 > len(data):
            raise RejectedMidi("truncated")
        kind, size = struct.unpack(">4sI", data[position : position + 8])
        position += 8 + size
        if position > len(data):
            raise RejectedMidi("truncated")
        found += kind == b"MTrk"
    return data


def read_events(data: bytes) -> tuple[int, list[Event]]:
    """(ticks a quarter note, events) of a file that `read_midi` has passed, all its tracks in one order of time.

    An event is (tick, kind, channel, a, b): a kind from 0x80 on is a channel message of that status with its data
    bytes; TEMPO has microseconds a quarter note in a, TIME_SIGNATURE has its numerator and denominator; a stretch of
    other events at one tick is one OTHER.

    Raises:
        RejectedMidi: a track does not hold well-formed events.
    """
    n_tracks, ticks_per_quarter = int.from_bytes(data[10:12], "big"), int.from_bytes(data[12:14], "big")
    position = 8 + int.from_bytes(data[4:8], "big")
    events: list[Event] = []
    found = 0
    try:
        while found < n_tracks:
            end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
            if data[position : position + 4] == b"MTrk":
                _read_track(data, position + 8, end, events)
                found += 1
            position = end
    except (IndexError, KeyError) as error:
        raise RejectedMidi("damaged events") from error
    if found > 1:
        events.sort(key=itemgetter(0))  # stable: what falls together stays in the order of the tracks
    return ticks_per_quarter, events


def _read_track(data: bytes, position: int, end: int, events: list[Event]) -> None:
    """Append the events of one track; an IndexError or a KeyError where there are none."""
    tick = status = 0
    other_tick = -1
    append = events.append
    while position < end:
        byte = data[position]
        position += 1
        if byte < 0x80:
            tick += byte
        else:
            delta = byte & 0x7F
            while byte >= 0x80:
                byte = data[position]
                position += 1
                delta = delta << 7 | byte & 0x7F
            tick += delta
        byte = data[position]
        if byte == 0xFF:
            kind = data[position + 1]
            length, position = _variable_length(data, position + 2)
            if kind == TEMPO and length == 3:
                append((tick, TEMPO, 0, int.from_bytes(data[position : position + 3], "big"), 0))
            elif kind == TIME_SIGNATURE and length >= 2:
                append((tick, TIME_SIGNATURE, 0, data[position], 1 << min(data[position + 1], 16)))
            elif kind != END_OF_TRACK and tick != other_tick:
                append((tick, OTHER, 0, 0, 0))
                other_tick = tick
            position += length
            continue
        if byte >= 0x80:
            status = byte
            position += 1
        elif not status:
            raise IndexError("data before any status")
        kind = status & 0xF0
        if kind < 0xF0:
            a = data[position]
            position += 1
            if DATA_BYTES[kind] == 2:
                b = data[position]
                position += 1
            else:
                b = 0
            if (a | b) > 0x7F:
                raise IndexError("a data byte above 127")
            if kind <= NOTE_ON or kind == CONTROL_CHANGE or kind == PROGRAM_CHANGE:
                append((tick, kind, status & 0x0F, a, b))
                continue
        elif status in (0xF0, 0xF7):
            length, position = _variable_length(data, position)
            position += length
        else:
            position += SYSTEM_DATA_BYTES[status]
        if tick != other_tick:
            append((tick, OTHER, 0, 0, 0))
            other_tick = tick
    if position != end:
        raise IndexError("an event that goes on past its track")


def _variable_length(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length quantity and the position after it."""
    value = 0
    while True:
        byte = data[position]
        position += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position


class TickClock:
    """Milliseconds of ticks under a file's tempo changes; the last of several at one tick counts."""

    def __init__(self, events: list[Event], ticks_per_quarter: int):
        changes = {0: DEFAULT_TEMPO} | {tick: a for tick, kind, _, a, _ in events if kind == TEMPO}
        self._ticks = np.array(list(changes), np.int64)
        self._ms_per_tick = np.array(list(changes.values())) / (1000.0 * ticks_per_quarter)
        self._ms = np.concatenate([[0.0], np.cumsum(np.diff(self._ticks) * self._ms_per_tick[:-1])])

    def ms(self, ticks: np.ndarray) -> np.ndarray:
        """float64 [n] of ticks [n]."""
        segment = np.searchsorted(self._ticks, ticks, side="right") - 1
        return self._ms[segment] + (ticks - self._ticks[segment]) * self._ms_per_tick[segment]


def bars_of(events: list[Event], ticks_per_quarter: int, last_tick: int) -> tuple[np.ndarray, np.ndarray]:
    """The bars up to the one that holds `last_tick`: int64 [bars + 1], the ticks of their lines, and their signatures,
    int64 [bars, 2].

    4/4 until a time signature is given; each one begins a bar, as a score has it, even inside one. One that no score
    can have (no beats, or beats finer than a sixty-fourth) is passed over.
    """
    changes = {0: DEFAULT_SIGNATURE} | {
        tick: (a, b) for tick, kind, _, a, b in events if kind == TIME_SIGNATURE and a > 0 and b <= FINEST_BEAT
    }
    lines, signatures = [], []
    for (tick, signature), following in zip(changes.items(), [*list(changes)[1:], None], strict=True):
        length = max(1, ticks_per_quarter * 4 * signature[0] // signature[1])
        # A change after the last note is the end of the last bar, and no bar.
        stop = last_tick + 1 if following is None else min(following, last_tick + 1)
        starts = np.arange(tick, stop, length, dtype=np.int64)
        lines.append(starts)
        signatures.append(np.full((len(starts), 2), signature))
        end = tick + length * len(starts)
        if following is None or following > last_tick:
            end = end if following is None else min(end, following)
            break
    return np.append(np.concatenate(lines), end), np.concatenate(signatures)


def separated(
    start: np.ndarray, duration: np.ndarray, pitch: np.ndarray, velocity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same for one instrument's notes, by start and pitch, no pitch sounding twice at once: int64 [n] each.

    A note ends where its pitch starts again; of several that start together the longest stays, then the loudest.
    """
    notes = np.stack([start, duration, pitch, velocity]).astype(np.int64)
    notes = notes[:, np.lexsort((notes[3], notes[1], notes[0], notes[2]))]
    start, _, pitch, _ = notes
    again = pitch[1:] == pitch[:-1]  # the note after it has the same pitch
    notes = notes[:, np.append(~again | (start[1:] > start[:-1]), True)[: len(start)]]
    start, duration, pitch, velocity = notes
    again = pitch[1:] == pitch[:-1]
    np.minimum(duration[:-1], start[1:] - start[:-1], out=duration[:-1], where=again)
    return tuple(notes[:, np.lexsort((pitch, start))])


def to_track(events: list[tuple[int, mido.Message | mido.MetaMessage]]) -> mido.MidiTrack:
    """Events at absolute ticks as a track of delta times; at one tick notes end before anything else happens."""
    return mido.MidiTrack([*_in_turn(events), mido.MetaMessage("end_of_track")])


def _in_turn(events: list[tuple[int, mido.Message | mido.MetaMessage]]) -> Iterator[mido.Message | mido.MetaMessage]:
    now = 0
    for tick, message in sorted(events, key=lambda event: (event[0], event[1].type != "note_off")):
        yield message.copy(time=tick - now)
        now = tick
