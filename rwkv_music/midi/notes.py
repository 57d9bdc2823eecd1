"""The notes of MIDI files."""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass

import mido
import numpy as np

from rwkv_music.midi.events import BANK, CHANNELS, DRUMS, rhythm_assignment
from rwkv_music.midi.instruments import ChannelPrograms
from rwkv_music.midi.time import TempoMap

INSTRUMENT_FAMILIES = (  # of General MIDI, eight programs each
    "piano, mallets, organ, guitar, bass, strings, ensemble, brass, reeds, pipes, synth lead, synth pad, "
    "synth effects, folk, percussion, sound effects"
).split(", ")


MAX_UNISON = 6  # the maximum number of notes of one pitch that can start together in a part


@dataclass(frozen=True)
class NamedPart:
    """A part: the notes of one channel in one track."""

    track: int
    channel: int  # 16 * port + channel
    program: int  # the General MIDI program at the first note, or DRUMS
    name: str  # the name of the track, if it has one and has no other parts; otherwise the instrument family


@dataclass(frozen=True)
class Notes:
    """The notes of a piece, sorted by start. Each array has length n."""

    start: np.ndarray  # float64, seconds
    end: np.ndarray  # float64, seconds
    start_tick: np.ndarray  # int64
    end_tick: np.ndarray  # int64
    pitch: np.ndarray  # int64, 60 is C4
    velocity: np.ndarray  # int64, 1 .. 127
    program: np.ndarray  # int64, the General MIDI program at the start of the note, or DRUMS
    part: np.ndarray  # int64, an index in `parts`
    parts: list[NamedPart]  # ordered by track, then by channel

    def __len__(self) -> int:
        return len(self.start)


def read_notes(midi: mido.MidiFile) -> Notes:
    """Return the notes of a file.

    A note without a note-off ends with its track. Overlapping notes of one pitch end in the order in which they start.
    A program change in any track applies to all tracks that use its channel.
    """
    messages: list[tuple[int, int, int, mido.Message]] = []  # tick, track, port, message
    ends = []
    for number, track in enumerate(midi.tracks):
        tick = port = 0
        for message in track:
            tick += message.time
            if message.type == "midi_port":
                port = message.port
            elif message.type in ("note_on", "note_off", "program_change", "control_change", "sysex"):
                messages.append((tick, number, port, message))
        ends.append(tick)
    messages.sort(key=lambda message: message[0])

    channels = ChannelPrograms()
    rows: list[list[int]] = []  # start, end, pitch, velocity, program, part
    unset: dict[int, list[list[int]]] = defaultdict(list)  # rows of channels without a program so far
    sounding: dict[tuple[int, int, int], deque[list[int]]] = defaultdict(deque)
    parts: dict[tuple[int, int], int] = {}  # (track, channel): number
    for tick, track, port, message in messages:
        channel = port * CHANNELS + getattr(message, "channel", 0)
        if is_note_on(message):
            part = parts.setdefault((track, channel), len(parts))
            rows.append([tick, ends[track], message.note, message.velocity, channels[channel], part])
            sounding[track, channel, message.note].append(rows[-1])
            if channel not in channels.programs:
                unset[channel].append(rows[-1])
        elif message.type in ("note_on", "note_off"):
            if held := sounding[track, channel, message.note]:
                held.popleft()[1] = tick
        elif message.type == "program_change":
            channels.change_program(channel, message.program)
            for row in unset.pop(channel, []):
                if row[0] == tick:  # a later track may set the program at the tick of the first notes
                    row[4] = channels[channel]
        elif message.type == "control_change" and message.control == BANK:
            channels.select_bank(channel, message.value)
        elif message.type == "sysex" and (assignment := rhythm_assignment(bytes(message.data))):
            rhythm_channel, rhythm_part, mode = assignment
            channels.assign(port * CHANNELS + rhythm_channel, rhythm_part, mode)

    columns = np.array(rows, dtype=np.int64).reshape(-1, 6)
    keys = sorted(parts)
    renumbered = np.zeros(len(parts), dtype=np.int64)
    renumbered[[parts[key] for key in keys]] = np.arange(len(parts))
    columns[:, 5] = renumbered[columns[:, 5]]
    programs = {part: program for *_, program, part in reversed(columns.tolist())}  # at each part's first note
    parts_in_track = Counter(track for track, _ in keys)
    named = [
        NamedPart(*key, programs[i], _name(midi.tracks[key[0]] if parts_in_track[key[0]] == 1 else None, programs[i]))
        for i, key in enumerate(keys)
    ]
    start_tick, end_tick, *others = columns[np.lexsort(columns.T[3::-1])].T
    tempo_map = TempoMap.from_midi(midi)
    start, end = tempo_map.seconds(start_tick), tempo_map.seconds(end_tick)
    return Notes(start, end, start_tick, end_tick, *others, named)


def _name(track: mido.MidiTrack | None, program: int) -> str:
    """Return the name of `track` if it has one, otherwise the name of the program's instrument family."""
    name = track.name.strip() if track is not None else ""
    try:
        name = name.encode("latin-1").decode()  # mido reads UTF-8 as Latin-1
    except UnicodeError:
        pass
    return name or ("drums" if program == DRUMS else INSTRUMENT_FAMILIES[program // 8])


def is_note_on(message: mido.messages.BaseMessage) -> bool:
    """Return whether a message starts a note. A note-on with velocity 0 does not: it ends a note."""
    return message.type == "note_on" and message.velocity > 0


def remove_overlaps(
    start: np.ndarray, duration: np.ndarray, pitch: np.ndarray, velocity: np.ndarray, max_unison: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shorten the notes of one instrument so that notes of one pitch overlap only if they start together.

    A note that is still sounding when its pitch starts again ends there. Of the notes of one pitch that start together,
    the `max_unison` longest are kept. Of equally long ones, the loudest are kept. The arguments are [n] each. The
    results are the same four arrays of the kept notes, int64 [m] each, m <= n, sorted by start, pitch and duration.
    """
    notes = np.stack([start, duration, pitch, velocity]).astype(np.int64)
    notes = notes[:, np.lexsort((notes[3], notes[1], notes[0], notes[2]))]
    start, _, pitch, _ = notes
    has_longer = (pitch[max_unison:] == pitch[:-max_unison]) & (start[max_unison:] == start[:-max_unison])
    notes = notes[:, np.append(~has_longer, np.ones(len(start) - len(has_longer), bool))]
    start, duration, pitch, _ = notes
    # At most `max_unison` notes of a pitch start together, so the next later note of the pitch is at most as far away.
    for k in range(1, max_unison + 1):
        gap = start[k:] - start[:-k]
        np.minimum(duration[:-k], gap, out=duration[:-k], where=(pitch[k:] == pitch[:-k]) & (gap > 0))
    return tuple(notes[:, np.lexsort((pitch, start))])
