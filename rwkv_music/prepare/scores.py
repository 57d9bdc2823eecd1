"""Scores in MusicXML, ABC and Humdrum kern, which music21 converts to MIDI.

The MIDI file has bar lines in the same places as the score. music21's MIDI export counts bars from the first note,
which would shift every bar line of music that starts with an upbeat. Here an upbeat is a separate short bar. If a
repeat sign divides a bar, its two halves become one bar. Repeats are expanded.

An ABC file can contain many tunes, and a kern file many movements. `split_pieces` divides the text, so that each piece
is read separately, and an error in one piece does not affect the others.
"""

import io
import os
import re
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import zip_longest
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import mido

from rwkv_music.midi.events import RejectedMidi

if TYPE_CHECKING:
    from music21.stream import Opus, Part, Score

XML, ABC, KERN = "MusicXML", "ABC", "kern"
MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")  # .kar is karaoke, and .rmi has a RIFF header
FORMATS = {".musicxml": XML, ".xml": XML, ".mxl": XML, ".abc": ABC, ".krn": KERN}  # by suffix
SCORE_SUFFIXES = tuple(FORMATS)
SPLIT_SUFFIXES = (".abc", ".krn")  # suffixes of files that can contain several pieces
MIDI_MAGIC = (b"MThd", b"RIFF")
ZIP_MAGIC = b"PK\3\4"  # a .mxl file is a zip archive that contains a .musicxml file
UTF16_MAGIC = (b"\xff\xfe", b"\xfe\xff")
CONTAINER = "META-INF/container.xml"  # a file in a .mxl archive that names the file with the score
LARGEST_CONTAINER = 1 << 20  # bytes
LARGEST_XML = 256 << 20  # bytes of a decompressed score; a limit, because a zip archive can expand to any size
ABC_TUNE = re.compile(r"^X:", re.MULTILINE)
ABC_FIELD = re.compile(r"%|[A-Za-z+]:")
KERN_START = re.compile(r"^\*\*\w+(\t\*\*\w+)*[ \t]*$", re.MULTILINE)
KERN_END = re.compile(r"^\*-(\t\*-)*[ \t]*\n", re.MULTILINE)
KERN_UNNUMBERED_REPEAT = re.compile(r"(?:^|(?<=\t))=+(?=:)", re.MULTILINE)
FINEST_BEAT = 32
SCORE_LIMIT_S = 300.0  # CPU time for a file; a string quartet with four movements takes about 50 s
HANG_LIMIT_S = 3600.0  # wall-clock time for a file whose process uses no CPU time


def score_format(name: str, data: bytes) -> str | None:
    """Return the format of a score: XML, ABC or KERN. Return None for MIDI and for unknown formats.

    `name` is the name of a source (see sources.py). A file with a MIDI suffix counts as MIDI. Otherwise the content
    determines the format, because a file can have the suffix of another format. If the content does not determine the
    format, the suffix does.
    """
    if data.startswith(MIDI_MAGIC) or name.lower().endswith(MIDI_SUFFIXES):
        return None
    if data.startswith((ZIP_MAGIC, *UTF16_MAGIC)) or data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return XML
    if re.search(rb"(^|\t)\*\*kern", data, re.MULTILINE):
        return KERN
    if re.search(rb"^(\xef\xbb\xbf)?X:", data, re.MULTILINE):
        return ABC
    return FORMATS.get(os.path.splitext(re.sub(r"/\d+$", "", name))[1].lower())


def split_pieces(name: str, data: bytes) -> list[bytes]:
    """Return the pieces of a file: the tunes of an ABC file, or the movements of a kern file.

    Each tune also gets the fields at the head of the file. Any other file is one piece.
    """
    form = score_format(name, data)
    if form == ABC:
        text = _text(data)
        starts = [match.start() for match in ABC_TUNE.finditer(text)]
        if len(starts) < 2:
            return [data]
        # Lines before the first tune that are not fields are free text, which is left out.
        head = "".join(line for line in text[: starts[0]].splitlines(True) if ABC_FIELD.match(line))
        pieces = [head + text[start:end] for start, end in zip_longest(starts, starts[1:])]
    elif form == KERN:
        text = _text(data)
        if len(KERN_START.findall(text)) < 2:
            return [data]
        ends = [0, *(match.end() for match in KERN_END.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        pieces = [piece for piece in pieces if KERN_START.search(piece)]
    else:
        return [data]
    return [piece.encode() for piece in pieces]


def midi_of(name: str, data: bytes) -> bytes:
    """Return the MIDI file of the source `name` with the content `data`. Scores are converted.

    Raises RejectedMidi if music21 cannot convert the score.
    """
    form = score_format(name, data)
    return data if form is None else score_to_midi(form, data)


def score_to_midi(form: str, data: bytes) -> bytes:
    """Convert one piece in the format `form` to a MIDI file. Raises RejectedMidi if music21 cannot convert it."""
    try:
        file = io.BytesIO()
        to_midi(_read_score(form, data)).save(file=file)
    except (RejectedMidi, MemoryError):
        raise
    except Exception as error:  # music21 raises many types for bad scores
        raise RejectedMidi(f"{form} that music21 cannot convert ({type(error).__name__})") from error
    return file.getvalue()


def _read_score(form: str, data: bytes) -> "Score | Opus":
    from music21.converter.subConverters import ConverterABC
    from music21.humdrum.spineParser import HumdrumDataCollection
    from music21.musicxml.xmlToM21 import MusicXMLImporter

    if form == XML:
        root = _xml_root(data)
        _remove_visual_offsets(root)
        importer = MusicXMLImporter()
        importer.xmlRootToScore(root, importer.stream)
        return importer.stream
    text = _text(data)
    if form == KERN:
        # music21 reads the end of a repeat, "=:|", as an end and a start, unless the bar line has a number.
        return HumdrumDataCollection(KERN_UNNUMBERED_REPEAT.sub(r"\g<0>0", text).split("\n")).parse()
    converter = ConverterABC()
    converter.parseData(text)
    return converter.stream


def _xml_root(data: bytes) -> ElementTree.Element:
    """Return the root of a MusicXML file, which may be compressed (.mxl). Raises RejectedMidi for any other content."""
    if data.startswith(ZIP_MAGIC):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                with archive.open(_score_name(archive)) as file:
                    data = file.read(LARGEST_XML + 1)
        except MemoryError:
            raise
        except Exception as error:  # zipfile has no common base class of its errors
            raise RejectedMidi("damaged .mxl") from error
        if len(data) > LARGEST_XML:
            raise RejectedMidi(f"MusicXML larger than {LARGEST_XML >> 20} MiB")
    try:
        root = ElementTree.fromstring(data)
    # LookupError and ValueError: unknown encoding.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise RejectedMidi("damaged MusicXML") from error
    if root.tag == "score-timewise":
        raise RejectedMidi("score-timewise MusicXML")
    if root.tag != "score-partwise":
        raise RejectedMidi("XML other than MusicXML")
    return root


def _remove_visual_offsets(root: ElementTree.Element) -> None:
    """Remove the offsets that only place a direction or a chord symbol on the page: all offsets without sound="yes".

    music21 would also apply them to the time of these elements. A dynamic mark printed after the last note of a measure
    would then lengthen the measure.

    Source: <offset> in the MusicXML 4.0 reference.
    """
    for kind in ("direction", "harmony", "figured-bass"):
        for element in root.iter(kind):
            for offset in element.findall("offset"):
                if offset.get("sound") != "yes":
                    element.remove(offset)


def _score_name(archive: zipfile.ZipFile) -> str:
    """Return the name of the score in a .mxl file: the file that CONTAINER names.

    If CONTAINER is missing or names no file of the archive, return the first XML file. Raises StopIteration if there is
    no XML file.
    """
    names = archive.namelist()
    if CONTAINER in names:
        with archive.open(CONTAINER) as file:
            container = ElementTree.fromstring(file.read(LARGEST_CONTAINER))
        for element in container.iter():
            if element.tag.endswith("rootfile") and element.get("full-path") in names:
                return element.get("full-path")
    scores = (name for name in names if name.lower().endswith((".musicxml", ".xml")))
    return next(name for name in scores if not name.startswith("META-INF"))


def _text(data: bytes) -> str:
    """Return the text of a file in UTF-8 or Latin-1, with Unix line ends."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def to_midi(score: "Score") -> mido.MidiFile:
    """Convert a music21 score to MIDI with expanded repeats, and with time signatures that match its bar lines.

    The score is modified: its chord symbols and time signatures are removed, and its repeats if they are inconsistent.
    """
    from music21.midi.translate import streamToMidiFile
    from music21.repeat import Expander
    from music21.stream import Measure

    for stream in score.recurse(streamsOnly=True, includeSelf=True):
        stream.removeByClass("Harmony")  # music21 would write chord symbols as notes without length
    changes = []
    parts = [part for part in score.parts if part.getElementsByClass(Measure)]
    if parts:
        if any(Expander(part).isExpandable() is False for part in parts):
            _remove_repeats(score)  # repeats are inconsistent: play the music once
        changes = list(_changes(_measures(parts[0].expandRepeats())))
    if changes:
        # Remove the score's own time signatures: music21 would write them at wrong positions, or fail if one
        # TimeSignature object occurs at two positions.
        for stream in score.recurse(streamsOnly=True, includeSelf=True):
            stream.removeByClass("TimeSignature")
    midi = mido.MidiFile(file=io.BytesIO(streamToMidiFile(score).writestr()))
    if changes:
        _set_time_signatures(midi, changes)
    return midi


def _remove_repeats(score: "Score") -> None:
    from music21.bar import Repeat
    from music21.repeat import RepeatMark
    from music21.spanner import RepeatBracket
    from music21.stream import Measure

    for stream in score.recurse(streamsOnly=True, includeSelf=True):
        if isinstance(stream, Measure):
            if isinstance(stream.leftBarline, Repeat):
                stream.leftBarline = None
            if isinstance(stream.rightBarline, Repeat):
                stream.rightBarline = None
        stream.removeByClass([RepeatMark, RepeatBracket])


def _measures(part: "Part") -> list[tuple[Fraction, Fraction, tuple[int, int] | None]]:
    """Return (start, length, time signature in force) of each measure of nonzero length, in quarter notes."""
    from music21.stream import Measure

    found = []
    measures = list(part.getElementsByClass(Measure))
    signature = None
    for measure, following in zip_longest(measures, measures[1:]):
        if measure.timeSignature is not None:
            signature = measure.timeSignature.numerator, measure.timeSignature.denominator
        start = Fraction(measure.offset)
        length = Fraction(following.offset) - start if following else Fraction(measure.duration.quarterLength)
        if length > 0:
            found.append((start, length, signature))
    return found


def _changes(measures: list[tuple[Fraction, Fraction, tuple[int, int] | None]]) -> Iterator[tuple[Fraction, int, int]]:
    """Yield the time signature changes that turn each measure into a bar, (start, numerator, denominator) each.

    Starts are in quarter notes.
    """
    current = None
    i = 0
    while i < len(measures):
        start, length, signature = measures[i]
        whole = Fraction(4 * signature[0], signature[1]) if signature else None
        i += 1
        if whole and length < whole and i < len(measures) and length + measures[i][1] == whole:
            # Two halves of one bar, divided by a repeat sign.
            length, i = whole, i + 1
        is_last = i == len(measures)
        if whole and (length == whole or (is_last and length < whole)):
            new = signature
        else:
            new = _signature_of(length)
        if new and new != current:
            current = new
            yield start, *new


def _signature_of(length: Fraction) -> tuple[int, int] | None:
    """Return the time signature of a bar of `length` quarter notes, or None if there is none.

    Its beat is the longest beat of at most a quarter note that divides the bar evenly.
    """
    beat = 4
    while beat <= FINEST_BEAT:
        if (length * beat / 4).denominator == 1:
            return int(length * beat / 4), beat
        beat *= 2
    return None


def _set_time_signatures(midi: mido.MidiFile, changes: list[tuple[Fraction, int, int]]) -> None:
    """Replace the time signatures of `midi` with `changes`, on its first track."""
    for i, track in enumerate(midi.tracks):
        events = []
        now = 0
        for message in track:
            now += message.time
            if message.type != "time_signature":
                events.append((now, message))
        if i == 0:
            events += [
                (
                    round(start * midi.ticks_per_beat),
                    mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator),
                )
                for start, numerator, denominator in changes
            ]
        # The sort is stable. end_of_track stays last, even if its tick is earlier.
        events.sort(key=lambda event: (event[1].type == "end_of_track", event[0]))
        now = 0
        track.clear()
        for tick, message in events:
            track.append(message.copy(time=max(tick - now, 0)))
            now = max(tick, now)
