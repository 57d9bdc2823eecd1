"""The notes of a piece with their parts, and the bar lines of the piece, for measures and controls.

Times are in quarter notes, so that files with different resolutions can be compared. A part is one channel of one
track. A cell is one part in one bar. A note belongs to the cell in which it starts.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np

from rwkv_music.midi.events import DRUMS, ParsedMidi, parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.time import BarGrid

NOTE = np.dtype([("start", "<f8"), ("end", "<f8"), ("pitch", "<i8"), ("part", "<i8"), ("drums", "?")])
STEPS_PER_QUARTER = 12  # resolution of rhythm in measures, enough for sixteenths and triplets
ROUNDING = 1e-6  # a tolerance in quarter notes, far above the rounding errors of sums and differences of times


@dataclass(frozen=True)
class Score:
    """The notes and bar lines of a piece.

    In a result of `read_score`, the last bar is the one in which the last note starts.
    """

    notes: np.ndarray  # NOTE [n], sorted by start, then by part and pitch
    lines: np.ndarray  # float64 [bars + 1]: the start of each bar, and the end of the last one

    @property
    def n_bars(self) -> int:
        return len(self.lines) - 1

    @property
    def n_parts(self) -> int:
        return int(self.notes["part"].max(initial=-1)) + 1

    def bars(self) -> np.ndarray:
        """Return the bar of each note, int64 [n]: -1 before the first bar, `n_bars` after the last one."""
        return bars_of(self.notes, self.lines)


def read_score(source: Path | bytes | ParsedMidi | mido.MidiFile) -> Score:
    """Return the notes and bars of a MIDI file.

    The parts that have notes are numbered from 0, by track and then by channel. Raises RejectedMidi and UserError as
    `parse_midi` does.
    """
    if isinstance(source, mido.MidiFile):
        file = io.BytesIO()
        source.save(file=file)
        source = file.getvalue()
    midi = parse_midi(source)
    played = played_notes(midi)
    notes = np.zeros(len(played), NOTE)
    notes["start"] = played.start / midi.ticks_per_quarter
    notes["end"] = played.end / midi.ticks_per_quarter
    notes["pitch"] = played.pitch
    notes["drums"] = played.program == DRUMS
    places = np.stack([played.track, played.channel], axis=1)
    notes["part"] = np.unique(places, axis=0, return_inverse=True)[1].ravel()
    grid = BarGrid.from_events(midi.events, midi.ticks_per_quarter)
    n_bars = int(grid.bar(played.start.max())) + 1 if len(played) else 0
    return Score(in_order(notes), grid.lines(n_bars) / midi.ticks_per_quarter)


def in_order(notes: np.ndarray) -> np.ndarray:
    """Return NOTE [n] sorted by start, then by part and pitch."""
    return notes[np.lexsort((notes["pitch"], notes["part"], notes["start"]))]


def bars_of(notes: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return the bar in which each note starts, int64 [n]: -1 before the first bar, `bars` after the last one.

    `notes` is NOTE [n]. `lines`, float64 [bars + 1], are the bar lines.
    """
    return np.searchsorted(lines, notes["start"] + ROUNDING, side="right") - 1


def in_cells(notes: np.ndarray, lines: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return which notes start in a marked cell, bool [n]. `cells`, bool [bars, parts], marks the cells."""
    bar, part = bars_of(notes, lines), notes["part"]
    known = (bar >= 0) & (bar < cells.shape[0]) & (part < cells.shape[1])
    return known & cells[np.where(known, bar, 0), np.where(known, part, 0)] if cells.size else known


def skyline(notes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the melody of each part: the highest of the notes that start together. Drums are left out.

    Starts are rounded to steps, which are twelfths of a quarter note. Return the indices of the notes of all melodies,
    int64 [m], ordered by part and start, and the steps at which these notes start, int64 [m].
    """
    step = np.rint(notes["start"] * STEPS_PER_QUARTER).astype(np.int64)
    order = np.lexsort((-notes["pitch"], step, notes["part"]))
    order = order[~notes["drums"][order]]
    moment = np.stack([notes["part"][order], step[order]])
    order = order[np.append(True, (moment[:, 1:] != moment[:, :-1]).any(axis=0))[: len(order)]]
    return order, step[order]
