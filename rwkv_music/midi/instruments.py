"""The notes of a parsed MIDI file, each with the instrument that plays it.

A program belongs to a channel of a port. If any track changes the program of a channel, all tracks that use the channel
play the new program. A track without notes can therefore set the programs of other tracks, and both staves of a piano
share one program. Messages of GS, XG and GM2 can turn channels other than the tenth into rhythm parts.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rwkv_music.midi.events import (
    ALL_NOTES_OFF,
    ALL_SOUND_OFF,
    BANK,
    CHANNELS,
    CONTROL_CHANGE,
    DRUM_CHANNEL,
    DRUMS,
    GM2_MODE,
    GM_MODE,
    NORMAL_PARTS,
    NOTE_OFF,
    NOTE_ON,
    PEDAL_DOWN,
    PROGRAM_CHANGE,
    RESET_CONTROLLERS,
    RHYTHM_PART,
    SUSTAIN_PEDAL,
    SYSEX,
    XG_MODE,
    ParsedMidi,
)

DRUM_BANKS = {XG_MODE: (126, 127), GM2_MODE: (120,)}  # values of bank select that select drums, by mode


@dataclass(frozen=True)
class PlayedNotes:
    """The notes of a piece, in the order of their note-ons. Each array is int64 [n]. Times are in ticks."""

    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    program: np.ndarray  # the General MIDI program at the start of the note, or DRUMS
    channel: np.ndarray  # 16 * port + channel
    track: np.ndarray
    pedals: dict[int, list[tuple[int, int]]]  # for each channel, (tick, value) of its sustain pedal events
    n_without_length: int  # the number of notes that are left out because their note-off comes before them

    def __len__(self) -> int:
        return len(self.start)


class ChannelPrograms(dict):
    """A map from each channel to its current program, or to DRUMS, while events are read in order."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: dict[int, int] = {}  # the last program change of each channel
        self._is_rhythm: dict[int, bool] = {}  # whether each channel that messages have assigned is a rhythm part
        self._banks: dict[int, int] = {}
        self._modes: dict[int, int] = {}  # by port

    def __missing__(self, channel: int) -> int:
        is_rhythm = self._is_rhythm.get(channel, channel % CHANNELS == DRUM_CHANNEL)
        self[channel] = DRUMS if is_rhythm else self.programs.get(channel, 0)
        return self[channel]

    def select_bank(self, channel: int, bank: int) -> None:
        self._banks[channel] = bank

    def change_program(self, channel: int, program: int) -> None:
        self.programs[channel] = program
        banks = DRUM_BANKS.get(self._modes.get(channel // CHANNELS, GM_MODE))
        if banks and channel in self._banks and channel % CHANNELS != DRUM_CHANNEL:
            self._is_rhythm[channel] = self._banks[channel] in banks
        self.pop(channel, None)

    def assign(self, channel: int, part: int, mode: int) -> None:
        port = channel // CHANNELS
        self._modes[port] = mode
        if part == NORMAL_PARTS:
            self._is_rhythm = {other: is_on for other, is_on in self._is_rhythm.items() if other // CHANNELS != port}
        else:
            self._is_rhythm[channel] = part == RHYTHM_PART
        self.clear()


@lru_cache(maxsize=1)  # `prepare` needs the notes of a file twice, for statistics and for tokens
def played_notes(midi: ParsedMidi) -> PlayedNotes:
    """Return the notes of a file.

    Notes of one pitch in one channel of a track end in the order in which they start. A note without a note-off ends at
    the next All Notes Off or All Sound Off of its channel. If there is none, it ends at the end of the music.

    Some software writes the note-off of a note of length 0 before its note-on. Notes that follow an unmatched note-off
    of their pitch at the same tick may be such notes. If k note-offs of the pitch follow before it starts again at a
    later tick, only the last k of these notes are kept.
    """
    channels = ChannelPrograms()
    programs = channels.programs
    rows: list[list[int]] = []  # start, end, pitch, velocity, program, channel, track
    sounding: dict[tuple[int, int, int], deque[list[int]]] = defaultdict(deque)
    unmatched: dict[tuple[int, int, int], int] = {}  # the tick of the last note-off without a note
    # By key: the notes that start after an unmatched note-off at the same tick, and the ticks of the note-offs that
    # follow these notes.
    after_off: dict[tuple[int, int, int], tuple[list[list[int]], list[int]]] = {}
    unset: dict[int, list[list[int]]] = defaultdict(list)  # notes of channels without a program so far
    pedals: dict[int, list[tuple[int, int]]] = defaultdict(list)
    silenced: dict[int, list[int]] = defaultdict(list)  # ticks of All Sound Off and All Notes Off, by channel
    for tick, kind, channel, a, b, track in midi.events:
        if kind == NOTE_ON and b:
            row = [tick, -1, a, b, channels[channel], channel, track]
            if channel not in programs:
                unset[channel].append(row)
            rows.append(row)
            key = track, channel, a
            if after_off and key in after_off and after_off[key][0][0][0] != tick:
                _end_last(*after_off.pop(key))
            if after_off and key in after_off:
                after_off[key][0].append(row)
            elif unmatched and unmatched.get(key) == tick:
                after_off[key] = [row], []
            else:
                sounding[key].append(row)
        elif kind == NOTE_OFF or kind == NOTE_ON:
            key = track, channel, a
            held = sounding[key]
            if held:
                held.popleft()[1] = tick
            elif after_off and key in after_off:
                notes, offs = after_off[key]
                offs.append(tick)
                if len(offs) == len(notes):
                    _end_last(*after_off.pop(key))
            else:
                unmatched[key] = tick
        elif kind == PROGRAM_CHANGE:
            is_first = channel not in programs
            channels.change_program(channel, a)
            if is_first:  # a later track may set the program at the tick of the first notes
                for row in unset.pop(channel, []):
                    if row[0] == tick:
                        row[4] = channels[channel]
        elif kind == CONTROL_CHANGE:
            if a == BANK:
                channels.select_bank(channel, b)
            elif a == SUSTAIN_PEDAL:
                pedals[channel].append((tick, b))
            elif a == RESET_CONTROLLERS:
                pedals[channel].append((tick, 0))
            elif a in (ALL_SOUND_OFF, ALL_NOTES_OFF):
                silenced[channel].append(tick)
        elif kind == SYSEX:
            channels.assign(channel, a, b)
    for notes, offs in after_off.values():
        _end_last(notes, offs)
    last = max((row[1] for row in rows), default=0)
    for (track, channel, _), held in sounding.items():
        for row in held:
            start = row[0]
            stops = (tick for tick in silenced[channel] if tick > start)
            row[1] = next(stops, max(last, midi.ends[track], start))
    kept = [row for row in rows if row[1] >= 0]
    arrays = np.array(kept, np.int64).reshape(-1, 7).T
    return PlayedNotes(*arrays, pedals=pedals, n_without_length=len(rows) - len(kept))


def _end_last(rows: list[list[int]], ends: list[int]) -> None:
    """Set the ends of the last rows. If there are fewer ends than rows, the first rows get no end."""
    for row, end in zip(rows[len(rows) - len(ends) :], ends, strict=True):
        row[1] = end


def ends_by_pedal(notes: PlayedNotes) -> np.ndarray:
    """Return the ticks at which the notes stop sounding, int64 [n].

    A note that ends while the sustain pedal is down sounds until the pedal is released.
    """
    ends = notes.end.copy()
    for channel, events in notes.pedals.items():
        own = notes.channel == channel
        if not own.any():
            continue
        released = notes.end[own]
        ticks, values = np.array(events, np.int64).T
        down = values >= PEDAL_DOWN
        # The next release from each pedal event on. If there is none, the pedal is released where the last note ends.
        never = np.iinfo(np.int64).max
        next_release = np.minimum.accumulate(np.where(down, never, ticks)[::-1])[::-1]
        next_release[next_release == never] = released.max()
        last = np.searchsorted(ticks, released) - 1  # the last pedal event before each note ends
        held = (last >= 0) & down[last]
        ends[own] = np.where(held, np.maximum(next_release[last], released), released)
    return ends
