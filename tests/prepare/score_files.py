"""One small piece in each format that `prepare` reads, built in code.

The piece has two parts, a flute and a cello, an upbeat of one quarter note, and three bars of 3/4 between repeat signs,
the last of which the upbeat shortens.
"""

import io
import zipfile
from fractions import Fraction

import mido

from tests.midi.midi_files import file_of, make_midi, note

# (pitch in MIDI, duration in quarter notes) of the notes of each bar.
FLUTE = [[(67, 1)], [(72, 1), (74, 0.5), (76, 0.5), (77, 1)], [(79, 2), (78, 1)], [(79, 2)]]
CELLO = [[(55, 1)], [(48, 3)], [(43, 1.5), (45, 1.5)], [(43, 2)]]
STEPS = {0: ("C", 0), 2: ("D", 0), 4: ("E", 0), 5: ("F", 0), 6: ("F", 1), 7: ("G", 0), 9: ("A", 0)}
KERN = {1: "4", 0.5: "8", 3: "2.", 2: "2", 1.5: "4."}
XML_TYPES = {
    1: ("quarter", ""),
    0.5: ("eighth", ""),
    3: ("half", "<dot/>"),
    2: ("half", ""),
    1.5: ("quarter", "<dot/>"),
}


def abc_tune(number: int = 1) -> str:
    def bar(notes) -> str:
        return " ".join(
            _abc_pitch(pitch) + {1: "2", 0.5: "", 3: "6", 2: "4", 1.5: "3"}[length] for pitch, length in notes
        )

    voices = "\n".join(f"V:{i}\n|: {' | '.join(map(bar, part))} :|" for i, part in enumerate((FLUTE, CELLO), start=1))
    return f"X:{number}\nT:Test\nM:3/4\nL:1/8\nK:C\n{voices}\n"


def _abc_pitch(pitch: int) -> str:
    step, sharp = STEPS[pitch % 12]
    octave = pitch // 12 - 5
    return "^" * sharp + (step.lower() + "'" * (octave - 1) if octave > 0 else step + "," * -octave)


def kern() -> str:
    lines = ["**kern\t**kern", "*Icello\t*Iflt", "*M3/4\t*M3/4", "*k[]\t*k[]", "=!|:\t=!|:"]
    for number, (low, high) in enumerate(zip(CELLO, FLUTE, strict=True)):
        if number:
            lines.append(f"={number}\t={number}")
        starts = sorted({start for part in (low, high) for start, _, _ in _starts(part)})
        for start in starts:
            lines.append("\t".join(_kern_at(part, start) for part in (low, high)))
    return "\n".join([*lines, "=:|!\t=:|!", "*-\t*-"]) + "\n"


def _starts(notes) -> list[tuple[float, int, float]]:
    return [(sum(length for _, length in notes[:i]), *each) for i, each in enumerate(notes)]


def _kern_at(notes, start: float) -> str:
    for when, pitch, length in _starts(notes):
        if when == start:
            step, sharp = STEPS[pitch % 12]
            octave = pitch // 12 - 5
            name = step.lower() * (octave + 1) if octave >= 0 else step * -octave
            return KERN[length] + name + "#" * sharp
    return "."


def musicxml() -> str:
    names = (("Flute", 74, FLUTE), ("Cello", 43, CELLO))
    listed = "".join(
        f'<score-part id="P{i}"><part-name>{name}</part-name><score-instrument id="P{i}-I"><instrument-name>{name}'
        f'</instrument-name></score-instrument><midi-instrument id="P{i}-I"><midi-channel>{i}</midi-channel>'
        f"<midi-program>{program}</midi-program></midi-instrument></score-part>"
        for i, (name, program, _) in enumerate(names, start=1)
    )
    parts = "".join(
        f'<part id="P{i}">{"".join(_xml_bar(number, notes) for number, notes in enumerate(part))}</part>'
        for i, (_, _, part) in enumerate(names, start=1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<score-partwise version="3.1">'
        f"<part-list>{listed}</part-list>{parts}</score-partwise>"
    )


def _xml_bar(number: int, notes) -> str:
    head = tail = ""
    if number == 0:
        head = (
            "<attributes><divisions>2</divisions><time><beats>3</beats><beat-type>4</beat-type></time></attributes>"
            '<barline location="left"><repeat direction="forward"/></barline>'
        )
    if number == len(FLUTE) - 1:
        tail = '<barline location="right"><repeat direction="backward"/></barline>'
    content = ""
    for pitch, length in notes:
        step, sharp = STEPS[pitch % 12]
        kind, dot = XML_TYPES[length]
        content += (
            f"<note><pitch><step>{step}</step><alter>{sharp}</alter><octave>{pitch // 12 - 1}</octave></pitch>"
            f"<duration>{round(2 * length)}</duration><type>{kind}</type>{dot}</note>"
        )
    implicit = ' implicit="yes"' if number == 0 else ""
    return f'<measure number="{number}"{implicit}>{head}{content}{tail}</measure>'


def mxl() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="a.xml"/></rootfiles></container>'
        )
        archive.writestr("part.xml", musicxml().replace("<octave>4", "<octave>3"))
        archive.writestr("a.xml", musicxml())
    return file.getvalue()


def midi() -> bytes:
    """Return the piece as MIDI, with the repeat played out. The last bar and the repeated upbeat are one bar."""
    signatures, tracks = [], []
    for tick, numerator in ((0, 1), (480, 3)):
        signatures.append((tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=4)))
    for channel, (program, part) in enumerate(((73, FLUTE), (42, CELLO))):
        messages = [(0, mido.Message("program_change", channel=channel, program=program))]
        now = 0
        for pitch, length in [each for bar in part + part for each in bar]:
            end = now + round(480 * length)
            messages += note(now, end, pitch, channel=channel)
            now = end
        tracks.append(messages)
    return file_of(make_midi(signatures, *tracks))


def files() -> dict[str, bytes]:
    """Return the piece as files of all formats, by name."""
    texts = {"a.abc": abc_tune(), "a.krn": kern(), "a.musicxml": musicxml(), "a.xml": musicxml()}
    return {"a.mid": midi(), "a.mxl": mxl(), **{name: text.encode() for name, text in texts.items()}}


def time_signatures(midi: mido.MidiFile) -> list[tuple[Fraction, int, int]]:
    """Return (offset in quarter notes, numerator, denominator) of every time signature in the file."""
    found = []
    for track in midi.tracks:
        now = 0
        for message in track:
            now += message.time
            if message.type == "time_signature":
                found.append((Fraction(now, midi.ticks_per_beat), message.numerator, message.denominator))
    return found
