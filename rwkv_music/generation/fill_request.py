"""Parse the options that select the cells to write and that add new parts.

    --fill "bars=5-8,12 parts=bass,2"       these parts in these bars
    --fill bars=5-8                         all parts of the file in these bars
    --fill parts=bass                       this part in all bars
    --add-part "program=32 name=My bass"    a new part, in all bars unless `parts=` names it

Bars are numbered from 1, and an upbeat is bar 0 (see `first_bar_number`). Parts are numbered from 1, in the order of
tracks and, within a track, of channels. New parts follow. You can also select a part by the name of its track or
instrument, or by the beginning of a word of this name, if only one part matches (see `_matches`).
"""

import re
from collections.abc import Sequence

from rwkv_music.errors import UserError
from rwkv_music.midi.cells import NewPart
from rwkv_music.midi.controls import CONTROLS, parse_controls
from rwkv_music.midi.events import DRUMS, ParsedMidi
from rwkv_music.midi.general_midi import INSTRUMENTS, instrument_name
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.midi.time import BarGrid, first_bar_number

Hole = tuple[int, int]  # (bar, counted from 0; number of the part, from 1)


def parse_fill(fills: Sequence[str], midi: ParsedMidi, file: str, new_parts: Sequence[NewPart] = ()) -> frozenset[Hole]:
    """Return the cells to write: those that the values of `--fill` select, and those of the new parts.

    The last bar of a piece is the bar in which its last note starts. `file` is the name of the piece in errors.

    Raises UserError for a value that cannot be read, for bars and parts that the piece does not have, if no cells are
    requested, and if the requested cells contain every note of the piece.
    """
    own, part = read_parts(midi)
    parts = [*own, *new_parts]
    grid = BarGrid.from_events(midi.events, midi.ticks_per_quarter)
    bar = grid.bar(played_notes(midi).start)
    n_bars = int(bar.max(initial=-1)) + 1
    if not n_bars:
        raise UserError(f"{file} has no notes: give a piece with notes around the cells to fill.")
    if not fills and not new_parts:
        raise UserError('There is nothing to fill: give --fill, such as --fill "bars=5-8 parts=2", or --add-part.')
    first = first_bar_number(grid)
    holes: set[Hole] = set()
    unnamed = set(range(len(own) + 1, len(parts) + 1))
    for fill in fills:
        values = _values(fill, ("bars", "parts"), "--fill", "bars=5-8,12 parts=bass,2")
        bars = _bars(values["bars"], first, n_bars, file) if "bars" in values else range(n_bars)
        numbers = set(range(1, len(own) + 1))
        if "parts" in values:
            numbers = {_part_number(text.strip(), parts, file) for text in values["parts"].split(",")}
            unnamed -= numbers
        holes |= {(i, number) for i in bars for number in numbers}
    holes |= {(i, number) for i in range(n_bars) for number in unnamed}
    if holes.issuperset(zip(bar.tolist(), (part + 1).tolist(), strict=True)):
        raise UserError(
            f"--fill selects every note of {file}, so the model would have no notes to read: leave out a bar or a part "
            "with notes."
        )
    return frozenset(holes)


def parse_new_part(text: str) -> NewPart:
    """Return the part that a value of `--add-part` describes: "program=32", "program=drums name=Kit" and so on.

    The program is a number from 0 to 127, `drums`, or the name of a General MIDI instrument.
    """
    values = _values(text, ("program", "name"), "--add-part", "program=32 name=Bass")
    program = values.get("program", "")
    name = values.get("name", "")
    if program.casefold() == "drums":
        return NewPart(DRUMS, name)
    if program.isdecimal() and int(program) < len(INSTRUMENTS):
        return NewPart(int(program), name)
    found = [] if not program or program.isdecimal() else _matches(program, INSTRUMENTS)
    if len(found) == 1:
        return NewPart(found[0], name)
    among = ", ".join(f"{i} ({INSTRUMENTS[i]})" for i in found)
    raise UserError(
        f'The program of --add-part "{text}" '
        + (f"matches several instruments: give one of {among}." if found else "is unknown: give 0 to 127, or drums.")
    )


def describe_parts(parts: Sequence[Part | NewPart]) -> str:
    """Return the number, name and program of each part, such as "1 Soprano (program 52, Choir Aahs)"."""
    return ", ".join(f"{i} {_name(part)} ({_program(part)})" for i, part in enumerate(parts, start=1))


def _name(part: Part | NewPart) -> str:
    return part.label if isinstance(part, Part) else part.name or instrument_name(part.program)


def _program(part: Part | NewPart) -> str:
    return "drums" if part.program == DRUMS else f"program {part.program}, {instrument_name(part.program)}"


def _values(text: str, keys: Sequence[str], flag: str, example: str) -> dict[str, str]:
    """Return the values of the `key=value` pairs in `text` by key. Pairs are separated by white space.

    A value may also contain white space. Raises UserError for other text.
    """
    before, *pairs = re.split(rf"(?:^|(?<=\s))({'|'.join(keys)})\s*=", text.strip(), flags=re.IGNORECASE)
    names = [name.lower() for name in pairs[::2]]
    values = dict(zip(names, (value.strip() for value in pairs[1::2]), strict=True))
    if before.strip() or not pairs or len(values) < len(names) or not all(values.values()):
        raise UserError(f'{flag} "{text}" cannot be read: give {" or ".join(keys)}, or both, as in {flag} "{example}".')
    return values


def _bars(text: str, first: int, n_bars: int, file: str) -> set[int]:
    """Return the bars, counted from 0, of a list of bar numbers and ranges such as "5-8,12". Raises UserError."""
    last = first + n_bars - 1
    bars: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        start, stop = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if start > stop:
            raise UserError(f'"bars={text}" of --fill cannot be read: give bars such as 5-8,12.')
        if not first <= start <= stop <= last:
            has = f"bars {first} to {last}" if last > first else f"only bar {first}"
            upbeat = ", of which bar 0 is an upbeat" * (first == 0)
            raise UserError(
                f'"bars={text}" of --fill is outside of {file}, which has {has}{upbeat}: give only bars of the file.'
            )
        bars |= set(range(start - first, stop - first + 1))
    return bars


def _part_number(text: str, parts: Sequence[Part | NewPart], file: str) -> int:
    """Return the number of the part that `text` selects by number or by name (see `_matches`). Raises UserError."""
    if text.isdecimal():
        if 1 <= int(text) <= len(parts):
            return int(text)
        found = []
    else:
        found = _matches(text, [_name(part) for part in parts])
        found = found or _matches(text, [instrument_name(part.program) for part in parts])
    if len(found) == 1:
        return found[0] + 1
    problem = f'{file} has {"several parts" if found else "no part"} "{text}"'
    raise UserError(f"{problem}: give the number of one of {describe_parts(parts)}.")


def _matches(text: str, names: Sequence[str]) -> list[int]:
    """Return the indices of the names that equal `text`.

    If no name does, return the indices of the names that begin with `text`. If there are none either, return those of
    the names with a word that begins with `text`. Case is ignored.
    """
    text = text.casefold()
    folded = [name.casefold() for name in names]
    for fits in (
        lambda name: name == text,
        lambda name: name.startswith(text),
        lambda name: re.search(rf"\b{re.escape(text)}", name),
    ):
        if text and (found := [i for i, name in enumerate(folded) if fits(name)]):
            return found
    return []


def parse_controls_of_parts(
    texts: Sequence[str], parts: Sequence[Part | NewPart], file: str
) -> dict[int, dict[int, int]]:
    """Return the classes that the values of `--control` request: {number of the part: {index of the control: class}}.

    A value such as "density=low,register=high parts=bass" applies to the parts that it names. Without `parts=`, it
    applies to all parts. Drums have only the control density.

    Raises UserError for values that cannot be read, for parts that do not exist, for controls that drums do not have,
    and for controls that are given twice.
    """
    asked: dict[int, dict[int, int]] = {}
    indices = {control.name: i for i, control in enumerate(CONTROLS)}
    for text in texts:
        classes, *named = re.split(r"\s+parts\s*=", text.strip(), flags=re.IGNORECASE)
        controls = {indices[name]: value for name, value in parse_controls(classes).items()}
        numbers = {_part_number(name.strip(), parts, file) for name in named[0].split(",")} if named else None
        for number in numbers or range(1, len(parts) + 1):
            for control, value in controls.items():
                if parts[number - 1].program == DRUMS and CONTROLS[control].name != "density":
                    if numbers is None:
                        continue
                    raise UserError(
                        f'--control "{text}" sets the {CONTROLS[control].name} of drums, but drums have no control '
                        "except density: use density."
                    )
                if control in asked.setdefault(number, {}):
                    raise UserError(
                        f"--control gives the {CONTROLS[control].name} of part {number} twice: give it once."
                    )
                asked[number][control] = value
    return {number: dict(sorted(of_part.items())) for number, of_part in asked.items()}
