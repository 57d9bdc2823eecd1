"""Regions of a piece: the bars and parts that a model has written."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.notes import Notes
from rwkv_music.midi.time import BarGrid


@dataclass(frozen=True)
class Region:
    """A block of consecutive bars and some or all parts."""

    first_bar: int  # counted from 0, as in BarGrid
    bars: int  # number of bars
    parts: frozenset[tuple[int, int]] | None = None  # (track, channel) of each part, as in `NamedPart`; None: all parts


def written_notes(notes: Notes, grid: BarGrid, regions: Iterable[Region]) -> np.ndarray:
    """Return which notes start in one of the regions, bool [n]."""
    bar = grid.bar(notes.start_tick)
    written = np.zeros(len(notes), bool)
    for region in regions:
        in_parts = [region.parts is None or (part.track, part.channel) in region.parts for part in notes.parts]
        inside = (bar >= region.first_bar) & (bar < region.first_bar + region.bars)
        written |= inside & np.array(in_parts, bool)[notes.part]
    return written
