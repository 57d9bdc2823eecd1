"""Cutting MIDI files at a tick and joining them there, event by event.

A completion is decoded from tokens, which are coarser than the file that prompted it. So the joined piece takes its
first bars from that file: every event of theirs stays as it was, at its own time. What the model added follows in
tracks of its own.
"""

import io
from collections import defaultdict
from math import gcd

import mido
import numpy as np

from rwkv_music.midi.events import RejectedMidi
from rwkv_music.midi.piano_roll import bar_ticks, read_notes
from rwkv_music.tokenizers.codec import Codec, Piece

FINEST_DIVISION = 32767  # ticks a quarter note, at most, in a MIDI file
SETTINGS = ("set_tempo", "time_signature", "key_signature", "track_name", "instrument_name")
CHANNEL_SETTINGS = ("program_change", "pitchwheel", "aftertouch", "control_change")
VOLUME, EXPRESSION, SUSTAIN_PEDAL = 7, 11, 64
AS_A_FILE_BEGINS = {VOLUME: 100, EXPRESSION: 127, SUSTAIN_PEDAL: 0}  # General MIDI
HALF_STEPS = (0, 48, 96)  # a grid's half step is that part of a quarter note

Timed = tuple[int, mido.messages.BaseMessage]


def cut_before(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """What of `midi` begins at `tick` or later, moved to the beginning.

    Notes begun before are left out whole; tempo, meter, key, names, programs, controllers and pitch bends keep the
    value that they have at `tick`.
    """
    cut = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        settings: dict[tuple, mido.messages.BaseMessage] = {}
        left_sounding: dict[tuple[int, int], int] = {}
        kept = mido.MidiTrack()
        now = last = 0
        for message in track:
            now += message.time
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                begins = _begins(message)
                if now < tick:
                    left_sounding[key] = max(0, left_sounding.get(key, 0) + (1 if begins else -1))
                    continue
                if not begins and left_sounding.get(key):  # notes of one pitch close in order
                    left_sounding[key] -= 1
                    continue
            elif now < tick and message.type != "end_of_track":
                if message.type in SETTINGS:
                    settings[message.type,] = message
                elif message.type in CHANNEL_SETTINGS:
                    settings[message.type, message.channel, getattr(message, "control", None)] = message
                continue
            kept.append(message.copy(time=max(now - max(last, tick), 0)))
            last = now
        cut.tracks.append(mido.MidiTrack([*(message.copy(time=0) for message in settings.values()), *kept]))
    return cut


def lengthen(midi: mido.MidiFile, tick: int) -> None:
    """Let `midi` last until `tick` at least, by the end of its first track, in place."""
    track = midi.tracks[0]
    length = sum(message.time for message in track)
    if length < tick:
        if not track or track[-1].type != "end_of_track":
            track.append(mido.MetaMessage("end_of_track"))
        track[-1] = track[-1].copy(time=track[-1].time + tick - length)


def file_of_prompt(codec: Codec, source: mido.MidiFile, prompt: Piece) -> tuple[mido.MidiFile, int] | None:
    """(`source` without the notes that `prompt` has not, the tick at which the prompt's bars end).

    None where its first bars are not, note for note, what the prompt says: it was cut elsewhere, or is something else.
    """
    starts = [int(note) for note in read_notes(source).start_tick[:1]]
    n_bars = len(prompt.bar_starts)
    for leading in {0, *(np.searchsorted(bar_ticks(source, 10_000), start, side="right") - 1 for start in starts)}:
        line = int(bar_ticks(source, leading + n_bars)[-1])
        for part in HALF_STEPS:  # a note just before the line may belong to the bar after it
            opening = _without_notes_from(source, line - (-(-source.ticks_per_beat // part) if part else 0))
            if _says(codec, opening, prompt):
                return opening, line
    return None


def join(opening: mido.MidiFile, line: int, decoded: mido.MidiFile, decoded_line: int) -> mido.MidiFile:
    """The events of `opening` up to `line`, then what `decoded` has from `decoded_line` on, both in ticks of their own.

    Notes of the opening that sound over the line end as `decoded` has it. At the line pedals are let go, and volumes,
    expressions and bends are as where a file begins, which is what `decoded` takes for granted.
    """
    division = opening.ticks_per_beat * decoded.ticks_per_beat // gcd(opening.ticks_per_beat, decoded.ticks_per_beat)
    if division > FINEST_DIVISION:
        division = FINEST_DIVISION // opening.ticks_per_beat * opening.ticks_per_beat
    finer = division // opening.ticks_per_beat
    line *= finer

    def moved(tick: int) -> int:
        return line + round((tick - decoded_line) * division / decoded.ticks_per_beat)

    heard = read_notes(decoded)
    over = (heard.start_tick < decoded_line) & (heard.end_tick > decoded_line)
    held = zip(heard.pitch[over].tolist(), heard.end_tick[over].tolist(), strict=True)
    ends = {pitch: moved(end) for pitch, end in held}
    added = []
    struck: dict[tuple[int, int], int] = {}  # when the added notes strike each key first
    for track in cut_before(decoded, decoded_line).tracks:
        events = [(moved(tick + decoded_line), message) for tick, message in _timed(track)]
        for tick, message in events:
            if _begins(message):
                key = (message.channel, message.note)
                struck[key] = min(struck.get(key, tick), tick)
        added.append(events)

    joined = mido.MidiFile(type=1, ticks_per_beat=division)
    for track in opening.tracks:
        events, last_setting = [], {}
        sounding: dict[tuple[int, int], int] = defaultdict(int)
        for tick, message in _timed(track):
            tick *= finer
            if tick > line or (tick == line and message.type not in ("note_on", "note_off")):
                continue
            events.append((tick, message))
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                sounding[key] = max(0, sounding[key] + (1 if _begins(message) else -1))
            elif message.type == "control_change" and message.control in AS_A_FILE_BEGINS:
                last_setting[message.channel, message.control] = message
            elif message.type == "pitchwheel":
                last_setting[message.channel, None] = message
        for (channel, pitch), count in sounding.items():
            end = max(line, min(ends.get(pitch, line), struck.get((channel, pitch), line + (1 << 40))))
            events += [(end, mido.Message("note_off", channel=channel, note=pitch))] * count
        for (_, control), message in last_setting.items():
            reset = message.copy(pitch=0) if control is None else message.copy(value=AS_A_FILE_BEGINS[control])
            if reset != message:
                events.append((line, reset))
        joined.tracks.append(_track(events))
    joined.tracks += [_track(events) for events in added]
    return joined


def _without_notes_from(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """`midi` without the notes that begin at `tick` or later. All else stays: the notes before end as they did."""
    kept = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        left_out: dict[tuple[int, int], int] = defaultdict(int)
        sounding: dict[tuple[int, int], int] = defaultdict(int)
        events = []
        for now, message in _timed(track):
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                if _begins(message):
                    if now >= tick:
                        left_out[key] += 1
                        continue
                    sounding[key] += 1
                elif sounding[key]:  # notes of one pitch close in order
                    sounding[key] -= 1
                elif left_out[key]:
                    left_out[key] -= 1
                    continue
            events.append((now, message))
        kept.tracks.append(_track(events))
    return kept


def _says(codec: Codec, opening: mido.MidiFile, prompt: Piece) -> bool:
    """Whether `opening` encodes to the tokens of `prompt`, as far as those have notes."""
    file = io.BytesIO()
    try:
        opening.save(file=file)
        ids = codec.encode_piece(file.getvalue()).ids
    except (RejectedMidi, ValueError):  # no notes, or events that mido reads and does not write
        return False
    n = min(len(ids) - 1, len(prompt.ids))  # without the EOS
    return np.array_equal(ids[:n], prompt.ids[:n]) and codec.count_notes(ids) == codec.count_notes(prompt.ids)


def _begins(message: mido.messages.BaseMessage) -> bool:
    return message.type == "note_on" and message.velocity > 0


def _timed(track: mido.MidiTrack) -> list[Timed]:
    """The messages of a track at absolute ticks, without its end."""
    events, now = [], 0
    for message in track:
        now += message.time
        if message.type != "end_of_track":
            events.append((now, message))
    return events


def _track(events: list[Timed]) -> mido.MidiTrack:
    """A track of events at absolute ticks, which may be given out of order."""
    track, now = mido.MidiTrack(), 0
    for tick, message in sorted(events, key=lambda event: event[0]):
        track.append(message.copy(time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track"))
    return track
