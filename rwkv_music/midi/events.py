"""Reading and writing the events of Standard MIDI Files.

`parse_midi` reads every MIDI file that this project uses. Its result contains `events` for the tokenizers, and `data`
for mido. The events are those of mido, in the same order, except that some are merged (see `ParsedMidi`). They are
plain tuples, which can be built about ten times as fast as mido's message objects. Files are written with mido.

Many real files break the specification in ways that players tolerate. `parse_midi` repairs them as follows:

- A RIFF header (.rmi), chunks that are not tracks, and bytes between and after the tracks are removed.
- All tracks are read, even if the header declares a different number of tracks. A track ends at its End of Track event,
  even if its length field differs. Bytes after that event are removed.
- Data bytes above 127 become 127.
- Meta events that mido cannot read, such as a key signature with 127 sharps, become empty text events. So do system
  common and real-time messages, which the specification does not allow in files.
- mido drops the delta time of an unknown meta event. An empty text event, which takes over this delta time, is
  therefore inserted before the unknown event.

Source: the Standard MIDI Files 1.0 specification (RP-001).
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import mido

from rwkv_music.errors import explained
from rwkv_music.files import read_file

NOTE_OFF, NOTE_ON, CONTROL_CHANGE, PROGRAM_CHANGE = 0x80, 0x90, 0xB0, 0xC0
# Meta event types. They are below 0x80, so they cannot collide with channel statuses.
TEMPO, TIME_SIGNATURE, END_OF_TRACK, TRACK_NAME = 0x51, 0x58, 0x2F, 0x03
SEQUENCE_NUMBER, CHANNEL_PREFIX, PORT, SMPTE_OFFSET, KEY_SIGNATURE = 0x00, 0x20, 0x21, 0x54, 0x59
OTHER = 0  # any other event; only its tick is kept
SYSEX = 0xF0  # a system exclusive message of GM, GM2, GS or XG that assigns the rhythm parts

BANK, VOLUME, FINE_VOLUME, EXPRESSION, SUSTAIN_PEDAL = 0, 7, 39, 11, 64  # controller numbers
ALL_SOUND_OFF, RESET_CONTROLLERS, ALL_NOTES_OFF = 120, 121, 123
PEDAL_DOWN = 64  # the lowest controller value that means "down"
DRUM_CHANNEL = 9
CHANNELS = 16  # of one port
DRUMS = 128  # the program number that this project uses for percussion, after General MIDI's 0..127

USUAL_HEADER = 14  # bytes of the header chunk; the specification allows a longer one
DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
EMPTY_TEXT = b"\xff\x01\x00"
# The meta events that mido reads. It drops the delta times of all others.
KNOWN_META = {*range(8), 0x09, 0x20, 0x21, 0x2F, 0x51, 0x54, 0x58, 0x59, 0x7F}
MAX_DELTA = (1 << 28) - 1  # the largest variable-length quantity
# What a SYSEX event does, and the standard that it belongs to.
NORMAL_PARTS, RHYTHM_PART, MELODIC_PART = range(3)
GM_MODE, GS_MODE, XG_MODE, GM2_MODE = range(4)

Event = tuple[int, int, int, int, int, int]
Repair = tuple[int, int, bytes]  # (start, end, the bytes that replace this range)
TimedMessage = tuple[int, mido.messages.BaseMessage]  # (absolute tick, message)


class RejectedMidi(Exception):
    """Raised for a MIDI file that is rejected.

    `reason` is a short fixed phrase such as "no notes", so that files can be counted by reason.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ParsedMidi:
    """A readable Standard MIDI File of format 0 or 1.

    An event is (tick, kind, channel, a, b, track). `channel` is 16 * port + the MIDI channel, 0 to 15. The kinds are:

        0x80, 0x90       note-off and note-on, with the data bytes a and b
        0xB0, 0xC0       control change and program change, with the data bytes a and b
        TEMPO            a: microseconds per quarter note
        TIME_SIGNATURE   a: numerator, b: denominator
        SYSEX            a: RHYTHM_PART or MELODIC_PART for one channel, or NORMAL_PARTS, which resets all channels of a
                         port; b: the mode, such as GS_MODE
        OTHER            any other event, such as a pitch bend; a track has at most one per tick
    """

    data: bytes  # the file, repaired so that every parser reads these events
    ticks_per_quarter: int
    tracks: list[list[Event]]
    ends: list[int]  # the tick at which each track ends
    names: list[str]  # the name of each track, decoded as Latin-1, as mido does; "" if it has none

    @cached_property
    def events(self) -> list[Event]:
        """The events of all tracks, ordered by tick, and by track at the same tick."""
        events = [event for track in self.tracks for event in track]
        if len(self.tracks) > 1:
            events.sort(key=itemgetter(0))
        return events

    @cached_property
    def timing(self) -> list[Event]:
        """The tempos and time signatures among `events`."""
        return [event for event in self.events if event[1] == TEMPO or event[1] == TIME_SIGNATURE]


def read_midi(source: Path | bytes) -> bytes:
    """Return the bytes of a MIDI file, repaired so that mido reads the same events as the tokenizers.

    Raises the exceptions of `parse_midi`.
    """
    return parse_midi(source).data


def parse_midi(source: Path | bytes | ParsedMidi) -> ParsedMidi:
    """Read a MIDI file, given as a path or as bytes. A ParsedMidi is returned as it is.

    Raises UserError if the file cannot be opened. Raises RejectedMidi if it is not a MIDI file, its format is not 0 or
    1, its resolution is not in ticks per quarter note, or it has damage that cannot be repaired.
    """
    if isinstance(source, ParsedMidi):
        return source
    data = source
    if not isinstance(source, bytes):
        with explained(f"reading {source}"):
            data = read_file(source)
    if not data:
        raise RejectedMidi("empty file")
    start = data.find(b"MThd", 0, 4096) if data.startswith(b"RIFF") else 0
    if start < 0 or not data.startswith(b"MThd", start):
        raise RejectedMidi("not a MIDI file")
    if len(data) < start + USUAL_HEADER:
        raise RejectedMidi("truncated")
    header_size, midi_format, n_declared, division = struct.unpack_from(">IHHH", data, start + 4)
    if midi_format > 2:
        raise RejectedMidi("damaged header")
    if midi_format == 2:
        raise RejectedMidi("format 2 (independent patterns)")
    if division == 0:
        raise RejectedMidi("zero ticks per quarter note")
    if division & 0x8000:
        raise RejectedMidi("SMPTE time (no beats)")

    tracks: list[list[Event]] = []
    ends: list[int] = []
    names: list[str] = []
    chunks: list[bytes] = []
    position = start + 8 + header_size
    intact = start == 0
    if position != start + USUAL_HEADER and data.startswith(b"MTrk", start + USUAL_HEADER):
        position, intact = start + USUAL_HEADER, False  # the length of the header is wrong
    if not start + USUAL_HEADER <= position <= len(data):
        raise RejectedMidi("damaged header")
    while position < len(data):
        if not data.startswith(b"MTrk", position):
            if len(chunks) < n_declared:
                intact = False  # mido accepts nothing between the tracks
            position = _next_track(data, position)
            continue
        try:
            track = _read_chunk(data, position, len(tracks))
        except RejectedMidi:
            if chunks and len(chunks) >= n_declared:
                break  # these bytes after the last declared track are not another track
            raise
        tracks.append(track.events)
        ends.append(track.end_tick)
        names.append(track.name)
        chunks.append(b"MTrk" + len(track.content).to_bytes(4, "big") + track.content)
        intact &= data.startswith(chunks[-1], position)
        position = track.end
    if not chunks:
        raise RejectedMidi("no tracks")
    if not intact or len(chunks) != n_declared or (midi_format == 0 and len(chunks) > 1):
        midi_format = max(midi_format, int(len(chunks) > 1))
        data = struct.pack(">4sIHHH", b"MThd", 6, midi_format, len(chunks), division) + b"".join(chunks)
    return ParsedMidi(data, division, tracks, ends, names)


def _next_track(data: bytes, position: int) -> int:
    """Return the position at which the next track may start, after bytes at `position` that are not a track."""
    end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
    if data[position : position + 4].isalnum() and (end == len(data) or data.startswith(b"MTrk", end)):
        return end  # the specification allows other chunks
    found = data.find(b"MTrk", position)
    return found if found >= 0 else len(data)


@dataclass(frozen=True)
class _Track:
    events: list[Event]
    end_tick: int
    name: str
    content: bytes  # of the repaired chunk
    end: int  # the position after the track


def _read_chunk(data: bytes, position: int, number: int) -> _Track:
    """Read the track chunk at `position` as track `number`. A length field that does not fit the events is ignored."""
    start = position + 8
    declared = start + int.from_bytes(data[position + 4 : start], "big")
    limit = min(declared, len(data))
    error, track = None, None
    try:
        track = _read_track(data, start, limit, number)
    except RejectedMidi as raised:
        error = raised
    # A length field that is too small cuts an event, or ends the track without End of Track. Read the track without it.
    if (track is None or not track[2]) and limit < len(data) and not data.startswith(b"MTrk", limit):
        try:
            longer = _read_track(data, start, len(data), number)
        except RejectedMidi:
            longer = None
        if longer is not None and longer[2] and (longer[3] == len(data) or data.startswith(b"MTrk", longer[3])):
            track = longer
    if track is None:
        raise error
    (events, repairs, name), end_tick, ended, end = track
    if not ended and declared > len(data):
        raise RejectedMidi("truncated")
    content, copied = [], start
    for repair_start, repair_end, new in repairs:
        content += data[copied:repair_start], new
        copied = repair_end
    content.append(data[copied:end])
    if ended and end < declared <= len(data) and not data.startswith(b"MTrk", end):
        end = declared  # skips the bytes after End of Track
    return _Track(events, end_tick, name, b"".join(content), end)


def _read_track(
    data: bytes, position: int, limit: int, number: int
) -> tuple[tuple[list[Event], list[Repair], str], int, bool, int]:
    """Read events up to End of Track or `limit`.

    Returns ((events, repairs of the bytes, track name), last tick, whether End of Track was found, position after the
    last event). Raises RejectedMidi for events that cannot be read.
    """
    events: list[Event] = []
    repairs: list[Repair] = []
    tick = status = port = 0
    name = b""
    other_tick = -1
    needs_status = False  # mido accepts running status after meta events, but not after system messages
    append = events.append
    try:
        while position < limit:
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
                    if delta > MAX_DELTA:
                        raise RejectedMidi("damaged events (delta time of 2^28 or more)")
                tick += delta
            byte = data[position]
            if byte == 0xFF:
                start, kind = position, data[position + 1]
                length, position = _variable_length(data, position + 2)
                content = data[position : position + length]
                position += length
                if position > limit:
                    break
                if kind == END_OF_TRACK:
                    return (events, repairs, name.decode("latin-1")), tick, True, position
                if kind not in KNOWN_META and (data[start - 1] or data[start - 2] > 0x7F):
                    repairs.append((start, start, EMPTY_TEXT + b"\0"))  # the text event takes the delta time
                if not _is_valid_meta(kind, content):
                    repairs.append((start, position, EMPTY_TEXT))
                    kind = OTHER
                elif kind == TIME_SIGNATURE and length < 4:
                    repairs.append((start, position, b"\xff\x58\x04" + content[:2] + b"\x18\x08"))
                if kind == TEMPO:
                    append((tick, TEMPO, 0, int.from_bytes(content, "big"), 0, number))
                elif kind == TIME_SIGNATURE:
                    append((tick, TIME_SIGNATURE, 0, content[0], 1 << content[1], number))
                else:
                    if kind == PORT and length:
                        port = content[0] * CHANNELS
                    elif kind == TRACK_NAME:
                        name = name or content
                    if tick != other_tick:
                        append((tick, OTHER, 0, 0, 0, number))
                        other_tick = tick
                continue
            if byte < 0xF0:
                if byte >= 0x80:
                    status = byte
                    position += 1
                elif not status:
                    raise RejectedMidi("damaged events (no status byte)")
                elif needs_status:
                    repairs.append((position, position, bytes([status])))
                needs_status = False
                kind = status & 0xF0
                a = data[position]
                position += 1
                if kind == PROGRAM_CHANGE or kind == 0xD0:
                    b = 0
                else:
                    b = data[position]
                    position += 1
                if (a | b) > 0x7F:
                    a, b = min(a, 0x7F), min(b, 0x7F)
                    n = DATA_BYTES[kind]
                    repairs.append((position - n, position, bytes([a, b][:n])))
                if kind <= NOTE_ON or kind == CONTROL_CHANGE or kind == PROGRAM_CHANGE:
                    append((tick, kind, port + (status & 0x0F), a, b, number))
                    continue
            elif byte in (0xF0, 0xF7):
                length, position = _variable_length(data, position + 1)
                content = data[position : position + length]
                body = content.removeprefix(b"\xf0").removesuffix(b"\xf7")
                if not body.isascii():
                    first = position + content.startswith(b"\xf0")
                    repairs.append((first, first + len(body), bytes(min(value, 0x7F) for value in body)))
                position += length
                needs_status = True
                assignment = rhythm_assignment(body)
                if assignment is not None:
                    channel, a, b = assignment
                    append((tick, SYSEX, port + channel, a, b, number))
                    continue
            elif byte in SYSTEM_DATA_BYTES:
                end = position + 1 + SYSTEM_DATA_BYTES[byte]
                repairs.append((position, end, EMPTY_TEXT))
                position = end
                needs_status = True
            else:
                raise RejectedMidi("damaged events (undefined status byte)")
            if tick != other_tick:
                append((tick, OTHER, 0, 0, 0, number))
                other_tick = tick
    except IndexError:
        position = limit + 1
    if position > limit:
        raise RejectedMidi("truncated" if limit == len(data) else "damaged events (one crosses the end of its track)")
    return (events, repairs, name.decode("latin-1")), tick, False, position


def _is_valid_meta(kind: int, content: bytes) -> bool:
    """Return whether a meta event has the length and values that its type allows."""
    n = len(content)
    if kind == TEMPO:
        return n == 3
    if kind == TIME_SIGNATURE:
        return n >= 2 and content[1] <= 16
    if kind == KEY_SIGNATURE:
        return n >= 2 and (content[0] + 7) % 256 <= 14 and content[1] <= 1
    if kind == SMPTE_OFFSET:
        return n >= 5 and content[0] < 0x80 and max(content[1:3]) < 60 and content[4] < 100
    return not ((kind == SEQUENCE_NUMBER and n == 1) or (kind == CHANNEL_PREFIX and n == 0))


def rhythm_assignment(message: bytes) -> tuple[int, int, int] | None:
    """Return (channel, a, b) of the SYSEX event for a system exclusive message (see `ParsedMidi`).

    Return None if the message does not assign rhythm or melodic parts.
    """
    if len(message) == 4 and message[0] == 0x7E and message[2] == 9 and message[3] in (1, 3):
        return 0, NORMAL_PARTS, GM_MODE if message[3] == 1 else GM2_MODE
    if len(message) == 9 and message[0] == 0x41 and message[2:6] == b"\x42\x12\x40\x00" and message[6] == 0x7F:
        return 0, NORMAL_PARTS, GS_MODE
    if len(message) == 9 and message[0] == 0x41 and message[2:5] == b"\x42\x12\x40" and message[6] == 0x15:
        block = message[5] - 0x10
        if 0 <= block < CHANNELS:  # block 0 is part 10; blocks 1 to 9 are parts 1 to 9
            channel = DRUM_CHANNEL if block == 0 else block - (block <= DRUM_CHANNEL)
            return channel, RHYTHM_PART if message[7] else MELODIC_PART, GS_MODE
    if len(message) == 7 and message[0] == 0x43 and message[1] >> 4 == 1 and message[2] == 0x4C:
        if message[3:6] == b"\0\0\x7e":
            return 0, NORMAL_PARTS, XG_MODE
        if message[3] == 8 and message[4] < CHANNELS and message[5] == 7:
            return message[4], RHYTHM_PART if message[6] else MELODIC_PART, XG_MODE
    return None


def _variable_length(data: bytes, position: int) -> tuple[int, int]:
    """Return the variable-length quantity at `position`, and the position after it."""
    value = 0
    while True:
        byte = data[position]
        position += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80 or value > MAX_DELTA:
            return value, position


def timed_messages(track: mido.MidiTrack) -> list[TimedMessage]:
    """Return the messages of a track with absolute ticks, without its end-of-track message."""
    messages, now = [], 0
    for message in track:
        now += message.time
        if message.type != "end_of_track":
            messages.append((now, message))
    return messages


def to_track(messages: list[TimedMessage], note_offs_first: bool = True, end: int = 0) -> mido.MidiTrack:
    """Return a track with delta times that contains `messages`. They have absolute ticks and can be in any order.

    Messages at one tick keep their order, except that note-offs come first if `note_offs_first`. The track ends at tick
    `end`, or with its last message if that is later.
    """
    track, now = mido.MidiTrack(), 0
    for tick, message in sorted(messages, key=lambda m: (m[0], note_offs_first and m[1].type != "note_off")):
        track.append(message.copy(time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track", time=max(end - now, 0)))
    return track
