"""Helpers that build MIDI files for tests."""

import io
from collections.abc import Iterator

import mido

from rwkv_music.midi.events import TimedMessage, to_track


def note(start: int, end: int, pitch: int, velocity: int = 80, channel: int = 0) -> list[TimedMessage]:
    """Return the note-on and note-off of a note, with absolute ticks."""
    return [
        (start, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)),
        (end, mido.Message("note_off", note=pitch, velocity=0, channel=channel)),
    ]


def make_midi(*tracks: list[TimedMessage], ticks_per_beat: int = 480) -> mido.MidiFile:
    """Return a file with the given tracks."""
    tracks = [to_track(messages, note_offs_first=False) for messages in tracks]
    return mido.MidiFile(ticks_per_beat=ticks_per_beat, tracks=tracks)


def file_of(midi: mido.MidiFile) -> bytes:
    """Return the bytes of a file."""
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def numbers(seed: int) -> Iterator[int]:
    """Yield numbers in 0..2^31 - 1 that do not depend on library versions (Knuth's MMIX generator)."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 33


def odd_piece(seed: int) -> bytes:
    """Return a random file with unusual contents.

    It has tracks that share channels, sustain pedals, volume, tempo and program changes, drums, overlapping notes,
    notes that end twice or never, long silences, and messages that encoders ignore.
    """
    draws = numbers(seed)

    def draw(n: int) -> int:
        return next(draws) % n

    midi = mido.MidiFile(type=1, ticks_per_beat=[96, 120, 480, 1000, 10080][draw(5)])
    for _ in range(1 + draw(4)):
        track = mido.MidiTrack()
        midi.tracks.append(track)
        channels = [draw(16), draw(16), 9]
        struck: list[tuple[int, int]] = []
        for _ in range(40 + draw(160)):
            wait = [0, 0, 1, 3, midi.ticks_per_beat // 4, midi.ticks_per_beat, draw(midi.ticks_per_beat)][draw(7)]
            if draw(40) == 0:
                wait += 30 * midi.ticks_per_beat
            channel = channels[draw(3)]
            kind = draw(20)
            if kind < 9:
                struck.append((channel, 30 + draw(60)))
                message = mido.Message("note_on", channel=channel, note=struck[-1][1], velocity=draw(128))
            elif kind < 14 and struck:
                channel, note = struck.pop(draw(len(struck)))
                if draw(2):
                    message = mido.Message("note_off", channel=channel, note=note, velocity=draw(128))
                else:
                    message = mido.Message("note_on", channel=channel, note=note, velocity=0)
            elif kind == 14:
                message = mido.Message("program_change", channel=channel, program=draw(128))
            elif kind == 15:
                message = mido.MetaMessage("set_tempo", tempo=200_000 + draw(1_000_000))
            elif kind == 16:
                message = mido.MetaMessage("time_signature", numerator=1 + draw(12), denominator=2 ** draw(5))
            elif kind == 17:
                control = [7, 39, 11, 1, 123][draw(5)]
                message = mido.Message("control_change", channel=channel, control=control, value=draw(128))
            elif kind == 18:
                message = mido.Message("control_change", channel=channel, control=64, value=[0, 63, 64, 127][draw(4)])
            else:
                message = [
                    mido.Message("pitchwheel", channel=channel, pitch=draw(8000)),
                    mido.Message("aftertouch", channel=channel, value=draw(128)),
                    mido.Message("sysex", data=(1, 2, 3)),
                    mido.MetaMessage("lyrics", text="la"),
                ][draw(4)]
            track.append(message.copy(time=wait))
    return file_of(midi)
