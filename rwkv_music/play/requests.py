"""Parsing and checking of requests of the page, before they are queued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkv_music.errors import UserError, plural
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.cells import NewPart
from rwkv_music.midi.controls import CONTROLS
from rwkv_music.midi.events import DRUMS
from rwkv_music.play.pieces import MOST_BARS, Piece
from rwkv_music.tokenizers.multitrack_vocabulary import MAX_PARTS

MOST_CELLS = 2_048
MOST_CANDIDATES = 3
MOST_NEW_BARS = 64
TOP_P = 0.95  # for all requests, as in the examples of the documentation
KEYS = {
    "piece", "action", "bars", "parts", "program", "new_bars", "density", "register", "temperature", "candidates",
    "seed",
}  # fmt: skip
DENSITY, REGISTER = (next(i for i, c in enumerate(CONTROLS) if c.name == name) for name in ("density", "register"))


@dataclass(frozen=True)
class WriteRequest:
    """Cells to be written `candidates` times."""

    cells: frozenset[tuple[int, int]]  # (bar, counted from 0; index of the part); a new part has the last index
    new_part: NewPart | None = None
    controls: Mapping[int, int] = field(default_factory=dict)  # index in CONTROLS -> index in its `classes`
    candidates: int = 1
    sampling: Sampling = Sampling()

    @property
    def n_bars(self) -> int:
        return 1 + max(bar for bar, _ in self.cells)


def parse_request(asked: Mapping[str, Any], piece: Piece) -> WriteRequest:
    """Return the request in a JSON object. Raises UserError if it is invalid or does not fit the piece.

    "action" determines the cells to write:
        fill       the parts "parts" (indices) in the bars "bars" ([first, last])
        continue   the parts "parts" (default: all) in "new_bars" new bars after the end
        add        a new part with the program "program" in the bars "bars" (default: all)
    """
    if unknown := sorted(set(asked) - KEYS):
        raise UserError(f"The request has an unknown field {unknown[0][:40]!r}: reload the page.")
    action = asked.get("action")
    n_parts, new_part = len(piece.parts), None
    if action == "fill":
        bars, parts = _bars(asked, piece, required=True), _parts(asked, n_parts, required=True)
    elif action == "continue":
        n_new = _integer(asked, "new_bars", 1, MOST_NEW_BARS)
        bars, parts = range(piece.n_bars, piece.n_bars + n_new), _parts(asked, n_parts)
        if bars.stop > MOST_BARS:
            raise UserError(f"The piece would have {bars.stop:,} bars, more than {MOST_BARS:,}: add fewer.")
    elif action == "add":
        new_part = NewPart(_integer(asked, "program", 0, DRUMS))
        bars, parts = _bars(asked, piece), [n_parts]
    else:
        raise UserError("The action is unknown: use fill, continue or add.")
    if n_parts + (new_part is not None) > MAX_PARTS:
        raise UserError(f"The result would have more than {MAX_PARTS} parts: use a piece with fewer parts.")
    cells = frozenset((bar, part) for bar in bars for part in parts)
    if len(cells) > MOST_CELLS:
        raise UserError(
            f"The request has {len(cells):,} cells (one part in one bar each): select at most {MOST_CELLS:,}."
        )
    controls = {}
    for index in (DENSITY, REGISTER):
        control = CONTROLS[index]
        value = asked.get(control.name)
        if value is not None:
            if not isinstance(value, str) or value not in control.classes:
                raise UserError(f"The {control.name} is unknown: choose one of {', '.join(control.classes)}.")
            controls[index] = control.classes.index(value)
    temperature = asked.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise UserError("The temperature is out of range: choose a number from 0 to 2.")
    return WriteRequest(
        cells,
        new_part,
        controls,
        _integer(asked, "candidates", 1, MOST_CANDIDATES, 1),
        Sampling(temperature=float(temperature), top_p=TOP_P, seed=_integer(asked, "seed", 0, 2**53, 0)),
    )


def _bars(asked: Mapping[str, Any], piece: Piece, required: bool = False) -> range:
    bars = asked.get("bars")
    if bars is None and not required:
        return range(piece.n_bars)
    if not isinstance(bars, list) or len(bars) != 2 or not all(_is_integer(bar) for bar in bars):
        raise UserError("The bars are missing: select the first and the last bar.")
    if not 0 <= bars[0] <= bars[1] < piece.n_bars:
        raise UserError(
            f"The bars are outside of the piece, which has {plural(piece.n_bars, 'bar')}: select bars of the piece."
        )
    return range(bars[0], bars[1] + 1)


def _parts(asked: Mapping[str, Any], n_parts: int, required: bool = False) -> Sequence[int]:
    parts = asked.get("parts")
    if parts is None and not required:
        return range(n_parts)
    if not isinstance(parts, list) or not parts or not all(_is_integer(part) for part in parts):
        raise UserError("The parts are missing: select at least one part.")
    if not all(0 <= part < n_parts for part in parts):
        raise UserError(f"A part is not in the piece, which has {plural(n_parts, 'part')}: select parts of the piece.")
    return sorted(set(parts))


def _integer(asked: Mapping[str, Any], name: str, least: int, most: int, default: int | None = None) -> int:
    value = asked.get(name, default)
    if not _is_integer(value) or not least <= value <= most:
        raise UserError(f"{name} is missing or out of range: give a whole number from {least} to {most}.")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
