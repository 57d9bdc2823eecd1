"""The parts of a MIDI file. Musicians also call them voices.

A part consists of the notes of one channel in one track. Parts are numbered from 1, ordered by track, then by channel.
"""

from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.events import DRUMS, PROGRAM_CHANGE, ParsedMidi
from rwkv_music.midi.general_midi import instrument_name
from rwkv_music.midi.instruments import played_notes


@dataclass(frozen=True)
class Part:
    """A part: the notes of one channel in one track."""

    track: int  # index in the file
    channel: int  # 16 * port + channel
    program: int  # the General MIDI program of its first note, or DRUMS
    kit: int = 0  # the program number that selects the drum kit, if the program is DRUMS
    name: str = ""  # the name of the track, decoded as Latin-1, as mido does

    @property
    def label(self) -> str:
        """The name of the track, decoded as UTF-8 if possible. If it is empty, the name of the instrument."""
        name = self.name.strip()
        try:
            name = name.encode("latin-1").decode()
        except UnicodeError:
            pass
        return name or instrument_name(self.program)


def read_parts(midi: ParsedMidi) -> tuple[list[Part], np.ndarray]:
    """Return the parts of a file, and for each note of `played_notes(midi)` the index of its part, int64 [n]."""
    notes = played_notes(midi)
    if not len(notes):
        return [], np.empty(0, np.int64)
    key = notes.track << 16 | notes.channel
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    parts = []
    for i in first.tolist():
        track, channel, program = (int(values[i]) for values in (notes.track, notes.channel, notes.program))
        kit = _last_program(midi, channel, int(notes.start[i])) if program == DRUMS else 0
        parts.append(Part(track, channel, program, kit, midi.names[track]))
    return parts, number.ravel()


def _last_program(midi: ParsedMidi, channel: int, tick: int) -> int:
    """Return the program number that was last set for a channel up to and including `tick`; 0 if none was set."""
    changes = [a for time, kind, of, a, *_ in midi.events if kind == PROGRAM_CHANGE and of == channel and time <= tick]
    return changes[-1] if changes else 0
