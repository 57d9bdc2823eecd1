"""The notes of MIDI files."""

from collections import defaultdict, deque
from dataclasses import dataclass

import mido
import numpy as np

from rwkv_music.midi.events import DRUM_CHANNEL
from rwkv_music.midi.time import TempoMap

INSTRUMENT_FAMILIES = (  # of General MIDI, eight programs each
    "piano, mallets, organ, guitar, bass, strings, ensemble, brass, reeds, pipes, synth lead, synth pad, "
    "synth effects, folk, percussion, sound effects"
).split(", ")


@dataclass(frozen=True)
class Notes:
    """The notes of a piece, sorted by start. Each array has length n.

    A voice is one channel of one track. `voice` indexes `voice_names`, which holds track names or instrument families.
    """

    start: np.ndarray  # float64, seconds
    end: np.ndarray  # float64, seconds
    start_tick: np.ndarray  # int64
    end_tick: np.ndarray  # int64
    pitch: np.ndarray  # int64, 60 is C4
    velocity: np.ndarray  # int64, 1 .. 127
    voice: np.ndarray  # int64
    voice_names: list[str]

    def __len__(self) -> int:
        return len(self.start)


def read_notes(midi: mido.MidiFile) -> Notes:
    """Return the notes of a file.

    A note without a note-off ends with its track. Overlapping notes of one pitch end in the order in which they start.
    A voice without a program of its own is named after the program that another track sets for its channel.
    """
    set_up = _first_programs(midi)
    rows: list[tuple[int, int, int, int, int]] = []
    voice_names: list[str] = []
    for track in midi.tracks:
        sounding: dict[tuple[int, int], deque[tuple[int, int]]] = defaultdict(deque)
        voices: dict[int, int] = {}
        programs: dict[int, int] = {}
        tick = port = 0
        for message in track:
            tick += message.time
            if is_note_on(message):
                voices.setdefault(message.channel, len(voice_names) + len(voices))
                sounding[message.channel, message.note].append((tick, message.velocity))
            elif message.type in ("note_on", "note_off") and sounding[message.channel, message.note]:
                start, velocity = sounding[message.channel, message.note].popleft()
                rows.append((start, tick, message.note, velocity, voices[message.channel]))
            elif message.type == "program_change":
                programs.setdefault(message.channel, message.program)
            elif message.type == "midi_port":
                port = message.port
        for (channel, pitch), held in sounding.items():
            rows.extend((start, tick, pitch, velocity, voices[channel]) for start, velocity in held)
        for channel in voices:
            program = programs.get(channel, set_up.get((port, channel), 0))
            family = "drums" if channel == DRUM_CHANNEL else INSTRUMENT_FAMILIES[program // 8]
            voice_names.append(track.name.strip() if len(voices) == 1 and track.name.strip() else family)
    start_tick, end_tick, pitch, velocity, voice = np.array(sorted(rows), dtype=np.int64).reshape(-1, 5).T
    tempo_map = TempoMap.from_midi(midi)
    start, end = tempo_map.seconds(start_tick), tempo_map.seconds(end_tick)
    return Notes(start, end, start_tick, end_tick, pitch, velocity, voice, voice_names)


def _first_programs(midi: mido.MidiFile) -> dict[tuple[int, int], int]:
    """Return the first program of each port and channel, in the order of the tracks."""
    programs: dict[tuple[int, int], int] = {}
    for track in midi.tracks:
        port = 0
        for message in track:
            if message.type == "midi_port":
                port = message.port
            elif message.type == "program_change":
                programs.setdefault((port, message.channel), message.program)
    return programs


def is_note_on(message: mido.messages.BaseMessage) -> bool:
    """Return whether a message starts a note; a note-on of velocity 0 ends one."""
    return message.type == "note_on" and message.velocity > 0


def remove_overlaps(
    start: np.ndarray, duration: np.ndarray, pitch: np.ndarray, velocity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the notes of one instrument, sorted by start and pitch, such that no two notes of one pitch overlap.

    A note ends where the next note of its pitch starts. Of several that start together the longest is kept, then the
    loudest. The arguments are [n] each, the results int64 [m], m <= n.
    """
    notes = np.stack([start, duration, pitch, velocity]).astype(np.int64)
    notes = notes[:, np.lexsort((notes[3], notes[1], notes[0], notes[2]))]
    start, _, pitch, _ = notes
    repeated = pitch[1:] == pitch[:-1]  # the next note has the same pitch
    notes = notes[:, np.append(~repeated | (start[1:] > start[:-1]), True)[: len(start)]]
    start, duration, pitch, velocity = notes
    repeated = pitch[1:] == pitch[:-1]
    np.minimum(duration[:-1], start[1:] - start[:-1], out=duration[:-1], where=repeated)
    return tuple(notes[:, np.lexsort((pitch, start))])
