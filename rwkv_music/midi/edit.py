"""Cutting MIDI files at a tick."""

from collections import defaultdict

import mido

from rwkv_music.midi.events import PEDAL_DOWN, SUSTAIN_PEDAL, TimedMessage, timed_messages, to_track
from rwkv_music.midi.notes import is_note_on

SETTINGS = ("set_tempo", "time_signature", "key_signature", "track_name", "instrument_name", "midi_port")
CHANNEL_SETTINGS = ("program_change", "pitchwheel", "aftertouch", "control_change")


def cut_before(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """Return the events of `midi` from `tick` on, shifted so that `tick` becomes tick 0.

    Notes that start earlier are removed. Tempo, time signature, key, names, ports, programs, controllers and pitch
    bends get the values that they have at `tick`. Earlier system exclusive messages are kept.
    """
    cut = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        settings: dict[tuple, mido.messages.BaseMessage] = {}
        removed: dict[tuple[int, int], int] = defaultdict(int)  # number of removed notes that still sound, by key
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
                if not starts and removed[key]:  # overlapping notes of one pitch end in the order in which they start
                    removed[key] -= 1
                    continue
            elif now < tick and message.type != "end_of_track":
                if message.type in SETTINGS:
                    settings[message.type,] = message
                elif message.type == "sysex":
                    settings[message.type, message.data] = message
                elif message.type in CHANNEL_SETTINGS:
                    settings[message.type, message.channel, getattr(message, "control", None)] = message
                continue
            kept.append(message.copy(time=max(now - max(last, tick), 0)))
            last = now
        cut.tracks.append(mido.MidiTrack([*(message.copy(time=0) for message in settings.values()), *kept]))
    return cut


def lengthen(midi: mido.MidiFile, tick: int) -> None:
    """Move the end of the first track to `tick` if the track ends earlier. `midi` is changed in place."""
    track = midi.tracks[0]
    length = sum(message.time for message in track)
    if length < tick:
        if not track or track[-1].type != "end_of_track":
            track.append(mido.MetaMessage("end_of_track"))
        track[-1] = track[-1].copy(time=track[-1].time + tick - length)


def cut_after(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """Return the events of `midi` before `tick`. Notes and pedals that are held at `tick` are not released."""
    cut = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        earlier = [(now, message) for now, message in timed_messages(track) if now < tick]
        cut.tracks.append(to_track(earlier, note_offs_first=False))
    return cut


def releases(midi: mido.MidiFile, tick: int) -> list[list[TimedMessage]]:
    """Return, for each track, the events from `tick` on that release the notes and sustain pedals held at `tick`.

    A note without a note-off is released at the end of its track.
    """
    found = []
    for track in midi.tracks:
        held: dict[tuple[int, int], int] = defaultdict(int)
        pedals: set[int] = set()  # channels
        messages, end = [], max(tick, sum(message.time for message in track))
        for now, message in timed_messages(track):
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                if is_note_on(message):
                    held[key] += now < tick
                elif held[key]:  # overlapping notes of one pitch end in the order in which they start
                    held[key] -= 1
                    messages.append((now, message))
            elif message.type == "control_change" and message.control == SUSTAIN_PEDAL:
                if message.value < PEDAL_DOWN and message.channel in pedals:
                    pedals.remove(message.channel)
                    messages.append((now, message))
                elif message.value >= PEDAL_DOWN and now < tick:
                    pedals.add(message.channel)
        for (channel, pitch), count in held.items():
            messages += [(end, mido.Message("note_off", channel=channel, note=pitch))] * count
        found.append([(now, message) for now, message in messages if now >= tick])
    return found
