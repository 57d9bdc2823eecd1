"""Controls: properties that a user can request for a cell (one part in one bar), computed from the cell's notes.

Each control divides the values of a property into ordered classes. The bounds of the classes lie between values that
are common in real music. For example, one voice that plays half notes has the density low. Quarter notes are medium,
eighths high and sixteenths very-high.

For drums, only the density is defined. A cell without notes has no classes.
"""

from dataclasses import dataclass

import numpy as np

from rwkv_music.errors import UserError

NO_CLASS = -1


@dataclass(frozen=True)
class Control:
    """A property of a cell, and its classes in order."""

    name: str
    description: str  # what the property is, with its unit
    classes: tuple[str, ...]
    bounds: tuple[float, ...]  # the smallest value of each class except the first


CONTROLS = (
    Control(
        "density", "notes per quarter note", ("low", "medium", "high", "very-high", "extreme"), (0.7, 1.4, 2.8, 5.6)
    ),
    Control("polyphony", "mean number of notes that sound, ignoring silence", ("1", "2", "3", "4"), (1.5, 2.5, 3.5)),
    Control("register", "mean pitch (MIDI number)", ("low", "middle", "high"), (55, 67)),
    Control("duration", "median length in quarter notes", ("short", "medium", "long", "very-long"), (0.3, 0.6, 1.2)),
)
N_CONTROLS = len(CONTROLS)


def control_classes(notes: np.ndarray, cell: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return the class of each control for each cell, int8 [cells, N_CONTROLS]; NO_CLASS where there is none.

    The arguments are as in `control_values`. Columns are in the order of CONTROLS.
    """
    values = control_values(notes, cell, length)
    classes = np.full(values.shape, NO_CLASS, np.int8)
    for column, control in enumerate(CONTROLS):
        known = ~np.isnan(values[:, column])
        classes[known, column] = np.searchsorted(control.bounds, values[known, column], side="right")
    return classes


def control_values(notes: np.ndarray, cell: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return the value of each control for each cell, float64 [cells, N_CONTROLS]; NaN where it is not defined.

    `notes`, NOTE [n] (see midi/score.py), are the notes of all cells. `cell`, int64 [n], has the index of each note's
    cell. `length`, float64 [cells], has the length of each cell's bar in quarter notes.
    """
    n_cells = len(length)
    values = np.full((n_cells, N_CONTROLS), np.nan)
    count = np.bincount(cell, minlength=n_cells)
    has_notes = count > 0
    values[has_notes, 0] = count[has_notes] / length[has_notes]

    melodic = ~notes["drums"]
    notes, cell = notes[melodic], cell[melodic]
    count = np.bincount(cell, minlength=n_cells)
    has_notes = count > 0
    duration = notes["end"] - notes["start"]
    sounding = _sounding_time(notes, cell, n_cells)[has_notes]
    total = np.bincount(cell, duration, n_cells)[has_notes]
    values[has_notes, 1] = np.where(sounding > 0, total / np.where(sounding > 0, sounding, 1), 1)
    values[has_notes, 2] = np.bincount(cell, notes["pitch"], n_cells)[has_notes] / count[has_notes]
    ordered = duration[np.lexsort((duration, cell))]
    first = (np.cumsum(count) - count)[has_notes]
    lower, upper = first + (count[has_notes] - 1) // 2, first + count[has_notes] // 2
    values[has_notes, 3] = (ordered[lower] + ordered[upper]) / 2
    return values


def _sounding_time(notes: np.ndarray, cell: np.ndarray, n_cells: int) -> np.ndarray:
    """Return the time, in quarter notes, during which at least one note of each cell sounds, float64 [n_cells]."""
    order = np.lexsort((notes["start"], cell))
    start, end, cell = notes["start"][order], notes["end"][order], cell[order]
    # The cells are shifted to separate times, so that a single running maximum works for all of them.
    shift = cell * (np.ptp(np.concatenate([start, end])) + 1 if len(start) else 1.0)
    reached = np.maximum.accumulate(end + shift)
    before = np.concatenate([[-np.inf], reached[:-1]])[: len(start)]
    return np.bincount(cell, np.maximum(end + shift - np.maximum(start + shift, before), 0), n_cells)


def parse_controls(text: str) -> dict[str, int]:
    """Return {name of the control: index of the class} for a request such as "density=low,register=high".

    Raises UserError for unknown or repeated controls, and for unknown classes.
    """
    controls = {control.name: control for control in CONTROLS}
    requested: dict[str, int] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in controls:
            raise UserError(f"There is no control {name!r}: choose from {', '.join(controls)}.")
        if name in requested:
            raise UserError(f"The control {name} is given twice: give it once.")
        if value not in controls[name].classes:
            raise UserError(f"{value!r} is not a class of {name}: choose from {', '.join(controls[name].classes)}.")
        requested[name] = controls[name].classes.index(value)
    return requested
