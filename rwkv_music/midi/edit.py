"""Cutting MIDI files at a tick and joining them, event by event.

A completion is decoded from tokens, which are coarser than the prompt file. A joined piece therefore takes its first
bars from that file, with every event unchanged. The completion follows in separate tracks.
"""

from collections import defaultdict
from math import gcd

import mido

from rwkv_music.midi.events import EXPRESSION, SUSTAIN_PEDAL, VOLUME, timed_messages, to_track
from rwkv_music.midi.notes import is_note_on, read_notes

MAX_TICKS_PER_QUARTER = 32767  # in a MIDI file
SETTINGS = ("set_tempo", "time_signature", "key_signature", "track_name", "instrument_name")
CHANNEL_SETTINGS = ("program_change", "pitchwheel", "aftertouch", "control_change")
INITIAL_CONTROLS = {VOLUME: 100, EXPRESSION: 127, SUSTAIN_PEDAL: 0}  # General MIDI


def cut_before(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """Return the part of `midi` from `tick` on, shifted to tick 0.

    Notes that start earlier are removed. Tempo, time signature, key, names, programs, controllers and pitch bends start
    with the values that they have at `tick`.
    """
    cut = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        settings: dict[tuple, mido.messages.BaseMessage] = {}
        removed: dict[tuple[int, int], int] = defaultdict(int)  # removed notes that still sound, by channel and pitch
        kept = mido.MidiTrack()
        now = last = 0
        for message in track:
            now += message.time
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                starts = is_note_on(message)
                if now < tick:
                    removed[key] = max(0, removed[key] + (1 if starts else -1))
                    continue
                if not starts and removed[key]:  # overlapping notes of one pitch end in order
                    removed[key] -= 1
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
    """Move the end of the first track to `tick`, in place, if it is earlier."""
    track = midi.tracks[0]
    length = sum(message.time for message in track)
    if length < tick:
        if not track or track[-1].type != "end_of_track":
            track.append(mido.MetaMessage("end_of_track"))
        track[-1] = track[-1].copy(time=track[-1].time + tick - length)


def without_notes_from(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """Return `midi` without the notes that start at `tick` or later. All other events stay."""
    kept = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        removed: dict[tuple[int, int], int] = defaultdict(int)
        sounding: dict[tuple[int, int], int] = defaultdict(int)
        messages = []
        for now, message in timed_messages(track):
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                if is_note_on(message):
                    if now >= tick:
                        removed[key] += 1
                        continue
                    sounding[key] += 1
                elif sounding[key]:  # overlapping notes of one pitch end in order
                    sounding[key] -= 1
                elif removed[key]:
                    removed[key] -= 1
                    continue
            messages.append((now, message))
        kept.tracks.append(to_track(messages, note_offs_first=False))
    return kept


def join(opening: mido.MidiFile, line: int, decoded: mido.MidiFile, decoded_line: int) -> mido.MidiFile:
    """Return the events of `opening` before tick `line`, followed by those of `decoded` from tick `decoded_line` on.

    Both ticks are in the resolution of their own file. Notes of `opening` that sound across the line end where they end
    in `decoded`. At the line, the pedals, volumes, expressions and pitch bends of `opening` are reset to their initial
    values, which `decoded` assumes.
    """
    division = opening.ticks_per_beat * decoded.ticks_per_beat // gcd(opening.ticks_per_beat, decoded.ticks_per_beat)
    if division > MAX_TICKS_PER_QUARTER:
        division = MAX_TICKS_PER_QUARTER // opening.ticks_per_beat * opening.ticks_per_beat
    scale = division // opening.ticks_per_beat
    line *= scale

    def moved(tick: int) -> int:
        return line + round((tick - decoded_line) * division / decoded.ticks_per_beat)

    notes = read_notes(decoded)
    crossing = (notes.start_tick < decoded_line) & (notes.end_tick > decoded_line)
    crossing = zip(notes.pitch[crossing].tolist(), notes.end_tick[crossing].tolist(), strict=True)
    ends = {pitch: moved(end) for pitch, end in crossing}
    added = []
    first_added: dict[tuple[int, int], int] = {}  # the tick of the first added note, by channel and pitch
    for track in cut_before(decoded, decoded_line).tracks:
        messages = [(moved(tick + decoded_line), message) for tick, message in timed_messages(track)]
        for tick, message in messages:
            if is_note_on(message):
                key = (message.channel, message.note)
                first_added[key] = min(first_added.get(key, tick), tick)
        added.append(messages)

    joined = mido.MidiFile(type=1, ticks_per_beat=division)
    for track in opening.tracks:
        messages, last_setting = [], {}
        sounding: dict[tuple[int, int], int] = defaultdict(int)
        for tick, message in timed_messages(track):
            tick *= scale
            if tick > line or (tick == line and message.type not in ("note_on", "note_off")):
                continue
            messages.append((tick, message))
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                sounding[key] = max(0, sounding[key] + (1 if is_note_on(message) else -1))
            elif message.type == "control_change" and message.control in INITIAL_CONTROLS:
                last_setting[message.channel, message.control] = message
            elif message.type == "pitchwheel":
                last_setting[message.channel, None] = message
        for (channel, pitch), count in sounding.items():
            end = max(line, min(ends.get(pitch, line), first_added.get((channel, pitch), line + (1 << 40))))
            messages += [(end, mido.Message("note_off", channel=channel, note=pitch))] * count
        for (_, control), message in last_setting.items():
            reset = message.copy(pitch=0) if control is None else message.copy(value=INITIAL_CONTROLS[control])
            if reset != message:
                messages.append((line, reset))
        joined.tracks.append(to_track(messages, note_offs_first=False))
    joined.tracks += [to_track(messages, note_offs_first=False) for messages in added]
    return joined
