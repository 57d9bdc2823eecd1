"""The pieces on the page: uploaded files, and the new versions that fills make of them.

A piece is immutable. Each fill creates a new piece, and undo shows an earlier piece again. A download is the `data` of
a piece.
"""

import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.generation.fill import Filling
from rwkv_music.midi.events import DRUMS, ParsedMidi, RejectedMidi, parse_midi
from rwkv_music.midi.general_midi import instrument_name
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.midi.time import BarGrid, TempoMap, first_bar_number

MOST_UPLOAD_BYTES = 8 << 20
MOST_BARS = 4_096
MOST_EVENTS = 2_000_000  # a note has two
MOST_STORED_BYTES = 256 << 20
LONGEST_TITLE = 120  # characters


@dataclass(frozen=True)
class Piece:
    """A MIDI file and its parts."""

    data: bytes
    title: str
    parts: tuple[Part, ...]  # in the order of the page, including parts that have lost all their notes
    n_bars: int


def read_upload(data: bytes, title: str) -> Piece:
    """Return the piece of an uploaded MIDI file. Raises UserError if it cannot be read, has no notes or is too long."""
    try:
        midi = parse_midi(data)
        # This is checked first: each event needs about 130 bytes here, and the following steps need more.
        n_events = sum(len(track) for track in midi.tracks)
        if n_events > MOST_EVENTS:
            raise UserError(f"This file has {n_events:,} events: choose one with {MOST_EVENTS:,} at most.")
        played = played_notes(midi)
        parts, _ = read_parts(midi)
    except RejectedMidi as error:
        raise UserError(f"This file cannot be read ({error}): choose a MIDI file.") from error
    if not len(played):
        raise UserError("This file has no notes: choose a file with notes, or start with a blank piece.")
    # The number of bars may be huge, so no array of bar lines may be created before this check.
    n_bars = int(_grid(midi).bar(played.start).max()) + 1
    if n_bars > MOST_BARS:
        raise UserError(f"This file has {n_bars:,} bars: choose one with {MOST_BARS:,} at most.")
    title = " ".join("".join(c if c.isprintable() else " " for c in title).split())[:LONGEST_TITLE]
    return Piece(data, title or "Untitled", tuple(parts), n_bars)


def filled(piece: Piece, filling: Filling) -> Piece:
    """Return a new piece: `piece` with the notes of a filling. A new part without notes is left out."""
    file = io.BytesIO()
    midi = filling.midi()
    midi.save(file=file)
    data = file.getvalue()
    found, _ = read_parts(parse_midi(data))
    known = {(part.track, part.channel) for part in piece.parts}
    added = tuple(part for part in found if (part.track, part.channel) not in known)
    n_bars = max(piece.n_bars, 1 + max(cell.bar for cell in filling.cells))
    return Piece(data, piece.title, (*piece.parts, *added), n_bars)


def view(piece: Piece, parts: Collection[int] | None = None) -> dict:
    """Return what the page shows of a piece, as JSON values.

    `parts` has the indices of the parts for which notes are included; None means all. The notes of a part are a flat
    list of start, end (both in ticks), pitch and velocity of each note, sorted by start.
    """
    midi = parse_midi(piece.data)
    played, grid = played_notes(midi), _grid(midi)
    tempos = TempoMap.from_events(midi.events, midi.ticks_per_quarter)
    key = played.track << 16 | played.channel
    columns = np.stack([played.start, played.end, played.pitch, played.velocity], axis=1)
    order = np.lexsort((played.pitch, played.start))
    shown = []
    for index, part in enumerate(piece.parts):
        one = {
            "index": index,
            "name": part.label,
            "instrument": instrument_name(part.program),
            "program": part.program,
            "drums": part.program == DRUMS,
        }
        if parts is None or index in parts:
            own = order[key[order] == (part.track << 16 | part.channel)]
            one["notes"] = columns[own].ravel().tolist()
        shown.append(one)
    signatures = grid.signatures(piece.n_bars)
    changes = np.flatnonzero(np.append(True, (signatures[1:] != signatures[:-1]).any(axis=1))[: len(signatures)])
    return {
        "title": piece.title,
        "division": midi.ticks_per_quarter,
        "first_bar": first_bar_number(grid),
        "bars": grid.lines(piece.n_bars).tolist(),
        "signatures": [[int(bar), *signatures[bar].tolist()] for bar in changes],
        "tempos": np.stack([tempos.ticks, tempos.tempos.astype(np.int64)], axis=1).tolist(),
        "parts": shown,
    }


def cell_notes(lines: Sequence[int], division: int, bar: int, rows: np.ndarray) -> list[int]:
    """Return the notes of a cell in the form of `view`. `rows`, float64 [n, 4], are as in `midi.cells.Cell`."""
    start = lines[bar] + np.rint(rows[:, 0] * division)
    end = np.maximum(lines[bar] + np.rint((rows[:, 0] + rows[:, 1]) * division), start + 1)
    return np.stack([start, end, rows[:, 2], rows[:, 3]], axis=1).astype(np.int64).ravel().tolist()


def _grid(midi: ParsedMidi) -> BarGrid:
    return BarGrid.from_events(midi.events, midi.ticks_per_quarter)


class Store:
    """The pieces by id. If their total size exceeds `most_bytes`, the least recently used ones are dropped."""

    def __init__(self, most_bytes: int = MOST_STORED_BYTES):
        self._pieces: OrderedDict[str, Piece] = OrderedDict()
        self._bytes, self._most_bytes = 0, most_bytes
        self._lock = threading.Lock()

    def add(self, piece: Piece) -> str:
        """Keep a piece and return its id, which cannot be guessed."""
        number = secrets.token_urlsafe(12)
        with self._lock:
            self._pieces[number] = piece
            self._bytes += len(piece.data)
            while self._bytes > self._most_bytes and len(self._pieces) > 1:
                _, dropped = self._pieces.popitem(last=False)
                self._bytes -= len(dropped.data)
        return number

    def get(self, number: str) -> Piece | None:
        with self._lock:
            if number in self._pieces:
                self._pieces.move_to_end(number)
            return self._pieces.get(number)
