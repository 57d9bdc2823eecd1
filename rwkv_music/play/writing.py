"""Writing of the cells of a request. Notes are reported while the model writes them."""

import math
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from rwkv_music.generation.fill import fill_cells, read_bars
from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.parts import Part
from rwkv_music.midi.time import BarGrid
from rwkv_music.play.models import Model
from rwkv_music.play.pieces import Piece, cell_notes, filled
from rwkv_music.play.requests import DENSITY, WriteRequest
from rwkv_music.tokenizers.multitrack_cells import note_rows

# A slow model needs seconds for a cell, so notes are reported before their cell is complete. The interval limits how
# often a fast model makes the page draw.
NOTES_EVERY_S = 0.1


class Cancelled(Exception):
    """The end of a request that the user has cancelled or whose connection is closed."""


def write(
    model: Model,
    piece: Piece,
    request: WriteRequest,
    on_notes: Callable[[int, int, int, list[int], bool], None],
    is_cancelled: Callable[[], bool],
) -> list[Piece]:
    """Return `request.candidates` pieces in which a model has written the cells of a request.

    `on_notes` is called with (candidate, bar, index of the part, notes, whether the cell is complete). The notes are
    those that the model has added to the cell since the last call for this candidate, in the form of `pieces.view`.
    `on_notes` is called when a cell is complete. While a candidate's cell is being written, it is called at most every
    NOTES_EVERY_S seconds.

    Raises UserError if the tokenizer cannot encode the piece. Raises Cancelled soon after `is_cancelled` returns True.
    """

    def check(*_: int) -> None:
        if is_cancelled():
            raise Cancelled

    check()
    midi, excerpt, known = read_bars(model.codec, piece.data, request.n_bars, "This piece")
    check()
    lines = BarGrid.from_events(midi.events, midi.ticks_per_quarter).lines(request.n_bars).tolist()
    # In the excerpt, the parts that have notes come first. Other parts follow, such as the part of a blank piece.
    asked = [*piece.parts, *([request.new_part] if request.new_part else [])]
    keys = [(part.track, part.channel) if isinstance(part, Part) else None for part in asked]
    order = [keys.index((part.track, part.channel)) for part in known]
    order += [index for index in range(len(asked)) if index not in order]
    number = {index: i for i, index in enumerate(order, start=1)}
    controls = {}
    for index, part in enumerate(asked):
        of_part = {c: value for c, value in request.controls.items() if part.program != DRUMS or c == DENSITY}
        if of_part:
            controls[number[index]] = of_part

    reported_at: dict[int, float] = {}  # by candidate: the time of the last report
    n_reported: Counter[int] = Counter()  # by candidate: the notes of its current cell that have been reported

    def report(candidate: int, hole: tuple[int, int], content: np.ndarray, is_complete: bool) -> None:
        now = time.monotonic()
        if not is_complete and now < reported_at.get(candidate, -math.inf) + NOTES_EVERY_S:
            return
        reported_at[candidate] = now
        bar, part = hole
        rows = note_rows(content)
        new = cell_notes(lines, midi.ticks_per_quarter, bar, rows[n_reported[candidate] :])
        n_reported[candidate] = 0 if is_complete else len(rows)
        on_notes(candidate, bar, order[part - 1], new, is_complete)

    fillings = fill_cells(
        model.model,
        model.codec,
        midi,
        excerpt,
        [asked[index] for index in order],
        [(bar, number[part]) for bar, part in request.cells],
        controls=controls,
        count=request.candidates,
        sampling=request.sampling,
        progress=check,
        on_notes=report,
    )
    return [filled(piece, filling) for filling in fillings]
