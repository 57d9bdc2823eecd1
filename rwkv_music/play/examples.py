"""Pieces to start with instead of a file: a melody of Beethoven's Ninth Symphony in four parts, and a blank piece."""

import io

import mido

from rwkv_music.midi.events import TimedMessage, to_track
from rwkv_music.midi.parts import Part
from rwkv_music.play.pieces import Piece, read_upload

TICKS = 480  # per quarter note
BLANK_BARS = 8
PROGRAMS = {"Soprano": 40, "Alto": 40, "Tenor": 41, "Bass": 42}  # two violins, viola, cello
VELOCITIES = {"Soprano": 92, "Alto": 74, "Tenor": 74, "Bass": 82}
NOTES = {name: pitch for name, pitch in zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True)}

# One line for each bar, with the voices from the highest to the lowest. C4 is a quarter note, C4:2 a half note.
ODE = """
E4 E4 F4 G4      | C4 C4 D4 E4      | G3 G3 A3 C4      | C3:2 F3 C3
G4 F4 E4 D4      | E4 D4 C4 B3      | C4 A3 G3 G3      | E3 F3 G3 G2
C4 C4 D4 E4      | G3 G3 B3 C4      | E3 E3 G3 G3      | C3:2 G3 C3
E4:1.5 D4:.5 D4:2 | C4:1.5 B3:.5 B3:2 | G3:1.5 G3:.5 G3:2 | G2:2 G2:2
E4 E4 F4 G4      | C4 C4 D4 E4      | G3 G3 A3 C4      | C3:2 F3 C3
G4 F4 E4 D4      | E4 D4 C4 B3      | C4 A3 G3 G3      | E3 F3 G3 G2
C4 C4 D4 E4      | G3 G3 B3 C4      | E3 E3 G3 G3      | C3:2 G3 C3
D4:1.5 C4:.5 C4:2 | B3:1.5 C4:.5 G3:2 | G3:1.5 E3:.5 E3:2 | G2:2 C3:2
D4 D4 E4 C4      | B3 B3 C4 C4      | G3 G3 G3 E3      | G2:2 C3 A2
D4 E4:.5 F4:.5 E4 C4 | B3 C4:.5 D4:.5 C4 G3 | G3 G3 G3 E3 | G2 B2 C3 C3
D4 E4:.5 F4:.5 E4 D4 | B3 C4:.5 D4:.5 C4 B3 | G3 G3 G3 G3 | G2 B2 C3 G3
C4 D4 G3:2       | A3 A3 B3:2       | E3 F3 D3:2       | A2 D3 G2:2
E4 E4 F4 G4      | C4 C4 D4 E4      | G3 G3 A3 C4      | C3:2 F3 C3
G4 F4 E4 D4      | E4 D4 C4 B3      | C4 A3 G3 G3      | E3 F3 G3 G2
C4 C4 D4 E4      | G3 G3 B3 C4      | E3 E3 G3 G3      | C3:2 G3 C3
D4:1.5 C4:.5 C4:2 | B3:1.5 C4:.5 G3:2 | G3:1.5 E3:.5 E3:2 | G2:2 C3:2
"""


def example() -> Piece:
    """Return the example, 16 bars in C major."""
    bars = [line.split("|") for line in ODE.strip().splitlines()]
    tracks = [_first_track(104)]
    for voice, (name, program) in enumerate(PROGRAMS.items()):
        messages: list[TimedMessage] = [
            (0, mido.MetaMessage("track_name", name=name)),
            (0, mido.Message("program_change", channel=voice, program=program)),
        ]
        tick = 0
        for note in " ".join(bar[voice] for bar in bars).split():
            key, _, quarters = note.partition(":")
            pitch = NOTES[key[0]] + 12 * (int(key[1]) + 1)
            end = tick + round(float(quarters or 1) * TICKS)
            messages.append((tick, mido.Message("note_on", channel=voice, note=pitch, velocity=VELOCITIES[name])))
            messages.append((end, mido.Message("note_off", channel=voice, note=pitch)))
            tick = end
        tracks.append(to_track(messages))
    return read_upload(_file(tracks), "Ode to Joy")


def blank() -> Piece:
    """Return a piece of eight empty bars with one part, a piano."""
    name, program = "Piano", 0
    track = [
        (0, mido.MetaMessage("track_name", name=name)),
        (0, mido.Message("program_change", channel=0, program=program)),
    ]
    return Piece(_file([_first_track(100), to_track(track)]), "Untitled", (Part(1, 0, program, name=name),), BLANK_BARS)


def _first_track(quarters_per_minute: int) -> mido.MidiTrack:
    """Return a track with the tempo and the time signature 4/4."""
    return to_track(
        [
            (0, mido.MetaMessage("set_tempo", tempo=round(60e6 / quarters_per_minute))),
            (0, mido.MetaMessage("time_signature", numerator=4, denominator=4)),
        ]
    )


def _file(tracks: list[mido.MidiTrack]) -> bytes:
    file = io.BytesIO()
    mido.MidiFile(type=1, ticks_per_beat=TICKS, tracks=tracks).save(file=file)
    return file.getvalue()
