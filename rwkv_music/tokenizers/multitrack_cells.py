"""Documents with holes: the form in which a model reads and writes cells (a cell is one part in one bar).

    BOS Tag* (bar)* Fill (bar with holes)*

Before Fill, the document has all bars, with `Part [Program] Hole` in place of each cell that the model has to write.

After Fill, each bar with holes is written again: `Bar TimeSig`, followed by its known cells and its holes in the order
of their parts. Here a hole is written as `Part [Program] [controls] content End`. Consecutive bars with holes form a
run. Before each run, the known cells of its two neighboring bars are repeated: first Next and the bar after the run,
then the bar before the run. The model has therefore read both sides of a hole before it writes the hole, and the
repeated cells are close to the holes.

The bars are an excerpt of a piece, but are written like a whole piece: the first bar has a Tempo, and each part has a
Program where it first occurs.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np

from rwkv_music.midi.controls import NO_CLASS, control_classes
from rwkv_music.midi.score import NOTE
from rwkv_music.tokenizers.multitrack_grammar import DRUM, MELODIC, MultitrackRules, Step
from rwkv_music.tokenizers.multitrack_vocabulary import (
    BAR,
    BAR_STEPS,
    BOS,
    DURATION,
    DURATIONS,
    END,
    FILL,
    FIRST_CLASS,
    HOLE,
    NEXT,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    STEPS,
    TEMPO,
    TIME_SIG,
    VELOCITIES,
    VELOCITY,
    VOCABULARY,
)
from rwkv_music.tokenizers.vocabulary import NONE

DRUMS_TOKEN = POSITION - 1  # Program_Drums
Hole = tuple[int, int]  # (bar of the excerpt, number of the part)


@dataclass(frozen=True)
class Cell:
    """The notes of one part in one bar, as tokens."""

    program: int  # the token of its program
    content: np.ndarray  # int64 [n], the tokens after Part and Program
    last_program: int  # the token of its program at the end of the bar

    @classmethod
    def of(cls, program: int, content: np.ndarray) -> "Cell":
        """Return the cell with the tokens `content`, which may contain Program tokens."""
        return cls(program, content, next((t for t in reversed(content.tolist()) if PROGRAM <= t < POSITION), program))


@dataclass(frozen=True)
class Excerpt:
    """Some bars of a piece as cells."""

    signatures: list[int]  # the token of each bar's time signature
    tempos: list[int]  # the token of each bar's tempo
    cells: list[dict[int, Cell]]  # for each bar, its cells by number of the part, in increasing order
    # {number of a part: the token of its program after the last bar that `read_excerpt` has read}. An excerpt that
    # `bars` returns has the same map, although it can end earlier.
    programs: dict[int, int]
    tags: list[int] = field(default_factory=list)  # the tag tokens of the piece

    @property
    def parts(self) -> list[int]:
        """The numbers of the parts that have a cell."""
        return sorted({number for cells in self.cells for number in cells})

    def bars(self, first: int, stop: int) -> "Excerpt":
        """Return bars `first` to `stop` - 1 of this excerpt."""
        own = slice(first, stop)
        return Excerpt(self.signatures[own], self.tempos[own], self.cells[own], self.programs, self.tags)


def read_excerpt(ids: np.ndarray, start: int, stop: int) -> Excerpt:
    """Return the bars in ids[start:stop] of a piece.

    `start` is the first token of a bar. `stop` is the first token of another bar, or the end of the piece.
    """
    ids = np.asarray(ids, np.int64)
    before, inside = ids[:start], ids[start:stop]
    inside = inside[inside >= BAR]
    tags, tempo, programs = _in_force(before)
    excerpt = Excerpt([], [], [], programs, tags)
    # This loop runs for every row of the infill task. It uses no array operations, because these would be slower.
    tokens = inside.tolist()
    begins = np.flatnonzero((inside == BAR) | ((inside >= PART) & (inside < PROGRAM))).tolist()
    is_program = (inside >= PROGRAM) & (inside < POSITION)
    last_program = np.maximum.accumulate(np.where(is_program, np.arange(len(inside)), 0)).tolist()
    for i, j in pairwise([*begins, len(tokens)]):
        if tokens[i] == BAR:
            if j > i + 2:
                tempo = [tokens[i + 2]]
            excerpt.signatures.append(tokens[i + 1])
            excerpt.tempos.append(tempo[0])
            excerpt.cells.append({})
            continue
        number = tokens[i] - PART + 1
        i += 1
        if PROGRAM <= tokens[i] < POSITION:
            programs[number] = tokens[i]
            i += 1
        program = programs[number]
        if last_program[j - 1] >= i:
            programs[number] = tokens[last_program[j - 1]]
        excerpt.cells[-1][number] = Cell(program, inside[i:j], programs[number])
    return excerpt


def state_tokens(ids: np.ndarray) -> np.ndarray:
    """Return a short form of `ids`, the tokens before an excerpt: int64 [n].

    The short form consists of the tags of the piece, and of the tempo and the programs at the end of `ids`. An excerpt
    that follows the short form is read as if it followed `ids`.
    """
    tags, tempo, programs = _in_force(ids)
    named = [token for number, program in programs.items() for token in (PART + number - 1, program)]
    return np.array([*tags, *tempo, *named], np.int64)


def _in_force(ids: np.ndarray) -> tuple[list[int], list[int], dict[int, int]]:
    """Return the tag tokens, the last tempo token (none or one), and each part's last program token, by part number."""
    tempo = ids[(ids >= TEMPO) & (ids < PART)][-1:]
    return ids[ids >= len(VOCABULARY)].tolist(), tempo.tolist(), _last_programs(ids)


def _last_programs(ids: np.ndarray) -> dict[int, int]:
    """Return the token of the last program of each part, by number of the part."""
    named = ids[(ids >= PART) & (ids < POSITION)]
    is_part = named < PROGRAM
    last_part = np.maximum.accumulate(np.where(is_part, np.arange(len(named)), 0))
    numbers = named[last_part[~is_part]] - PART + 1
    return dict(zip(numbers.tolist(), named[~is_part].tolist(), strict=True))


class _Writer:
    """A writer of the tokens of a document. It writes Program only where a part first occurs or changes its program."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._tokens: list[int] = []  # the tokens after the arrays
        self._programs: dict[int, int] = {}

    def add(self, tokens: list[int]) -> None:
        self._tokens += tokens

    def name(self, number: int, program: int) -> None:
        """Add Part. Also add Program, unless the part already has this program in the document."""
        self._tokens.append(PART + number - 1)
        if self._programs.get(number) != program:
            self._tokens.append(program)
            self._programs[number] = program

    def add_cell(self, number: int, cell: Cell) -> None:
        self.name(number, cell.program)
        self._arrays += (np.array(self._tokens, np.int64), cell.content)
        self._tokens = []
        self.note_changes(number, cell)

    def note_changes(self, number: int, cell: Cell) -> None:
        self._programs[number] = cell.last_program

    def take(self) -> np.ndarray:
        """Return the tokens since the last call, int64 [n]."""
        tokens = np.concatenate([*self._arrays, np.array(self._tokens, np.int64)])
        self._arrays, self._tokens = [], []
        return tokens


def write_bars(excerpt: Excerpt, holes: Collection[Hole] = ()) -> np.ndarray:
    """Return the bars of an excerpt as a document, int64 [n], with `Part Hole` in place of the cells `holes`."""
    writer = _Writer()
    writer.add([BOS, *excerpt.tags])
    _write_bars(writer, excerpt, set(holes))
    return writer.take()


def _write_bars(writer: _Writer, excerpt: Excerpt, holes: set[Hole]) -> None:
    in_bar = _by_bar(holes)
    tempo = None
    for bar, cells in enumerate(excerpt.cells):
        writer.add([BAR, excerpt.signatures[bar]])
        if excerpt.tempos[bar] != tempo:
            tempo = excerpt.tempos[bar]
            writer.add([tempo])
        for number in sorted({*cells, *in_bar.get(bar, ())}):
            if (bar, number) in holes:
                writer.name(number, _program(excerpt, bar, number))
                writer.add([HOLE])
            else:
                writer.add_cell(number, cells[number])


def with_holes(
    rules: MultitrackRules,
    excerpt: Excerpt,
    holes: Collection[Hole],
    controls: dict[Hole, list[int]] | None = None,
    unwritten: Collection[Hole] = (),
) -> tuple[np.ndarray, list[Step]]:
    """Return the document of an excerpt up to Fill, int64 [n], and the steps that write its holes.

    Args:
        holes: the cells to write. They may be cells that the excerpt does not have.
        controls: the control tokens of each hole.
        unwritten: further cells, which the steps do not write. They too are marked as holes before Fill. All of them
            must come after the last of `holes`, in the order of bars, then of parts.
    """
    controls = controls or {}
    writer = _Writer()
    writer.add([BOS, *excerpt.tags])
    _write_bars(writer, excerpt, {*holes, *unwritten})
    writer.add([FILL])
    prompt = writer.take()

    in_bar = _by_bar(holes)
    unknown = {*holes, *unwritten}

    def repeat(bar: int) -> None:
        """Add the known cells of a bar."""
        writer.add([BAR, excerpt.signatures[bar]])
        for number, cell in sorted(excerpt.cells[bar].items()):
            if (bar, number) not in unknown:
                writer.add_cell(number, cell)

    steps = []
    for bar in sorted(in_bar):
        if bar - 1 not in in_bar:
            after = next(other for other in range(bar, bar + len(in_bar) + 1) if other not in in_bar)
            if after < len(excerpt.cells):
                writer.add([NEXT])
                repeat(after)
            if bar:
                repeat(bar - 1)
        cells = excerpt.cells[bar]
        writer.add([BAR, excerpt.signatures[bar]])
        for number in sorted({*cells, *in_bar[bar]}):
            if number not in in_bar[bar]:
                writer.add_cell(number, cells[number])
                continue
            hole = bar, number
            program = _program(excerpt, bar, number)
            writer.name(number, program)
            writer.add(controls.get(hole, []))
            cell = cells.get(number) or Cell(program, np.empty(0, np.int64), program)
            length, kind = int(rules.length[excerpt.signatures[bar]]), DRUM if program == DRUMS_TOKEN else MELODIC
            steps.append(Step(writer.take(), bar, number, length, kind, cell.content))
            writer.note_changes(number, cell)
    return prompt, steps


def _by_bar(holes: Iterable[Hole]) -> dict[int, list[int]]:
    in_bar: dict[int, list[int]] = {}
    for bar, number in holes:
        in_bar.setdefault(bar, []).append(number)
    return in_bar


def _program(excerpt: Excerpt, bar: int, number: int) -> int:
    """Return the program token of a part in a bar.

    If the part has no cell in this bar, return the token of its nearest earlier cell. Without an earlier cell, return
    the token of its nearest later cell. If the part has no cells at all, return its token in `excerpt.programs`.
    """
    if number in excerpt.cells[bar]:
        return excerpt.cells[bar][number].program
    for other in chain(range(bar - 1, -1, -1), range(bar + 1, len(excerpt.cells))):
        if number in excerpt.cells[other]:
            return excerpt.cells[other][number].program
    return excerpt.programs[number]


def written_out(prompt: np.ndarray, steps: list[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Return a whole document, int64 [n], and which tokens are the content of a hole or the End after it, bool [n]."""
    end = np.array([END])
    pieces = [prompt, *(piece for step in steps for piece in (step.given, step.content, end))]
    is_content = [False, *[False, True, True] * len(steps)]
    return np.concatenate(pieces), np.repeat(is_content, [len(piece) for piece in pieces])


def content_notes(contents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the notes of all `contents`, NOTE [n], and for each note the index of its cell in `contents`, int64 [n].

    NOTE is defined in midi/score.py. Times are in quarter notes from the bar line.
    """
    tokens = np.concatenate([*contents, np.empty(0, np.int64)]).astype(np.int64)
    cell = np.repeat(np.arange(len(contents)), [len(content) for content in contents])
    places = np.flatnonzero((tokens >= PITCH) & (tokens < VELOCITY))
    is_position = (tokens >= POSITION) & (tokens < PITCH)
    last = np.maximum.accumulate(np.where(is_position, np.arange(len(tokens)), 0))
    notes = np.zeros(len(places), NOTE)
    notes["start"] = (tokens[last[places]] - POSITION) / STEPS
    notes["end"] = notes["start"] + DURATIONS[tokens[(tokens >= DURATION) & (tokens < HOLE)] - DURATION] / STEPS
    notes["drums"] = tokens[places] >= PITCH_DRUM
    notes["pitch"] = tokens[places] - np.where(notes["drums"], PITCH_DRUM, PITCH)
    return notes, cell[places]


def note_rows(content: np.ndarray) -> np.ndarray:
    """Return the notes of a cell's content, float64 [n, 4]: start and duration in quarter notes, pitch, velocity."""
    notes, _ = content_notes([content])
    is_velocity = (content >= VELOCITY) & (content < DURATION)
    named = np.maximum.accumulate(np.where(is_velocity, np.arange(len(content)), 0))
    velocity = VELOCITIES[content[named[(content >= DURATION) & (content < HOLE)]] - VELOCITY]
    return np.column_stack([notes["start"], notes["end"] - notes["start"], notes["pitch"], velocity])


def control_tokens(contents: list[np.ndarray], signatures: np.ndarray) -> np.ndarray:
    """Return the control tokens of cells, int64 [cells, N_CONTROLS]; NONE where the control is not defined for a cell.

    `contents` are the tokens of each cell. `signatures`, int64 [cells], are the TimeSig tokens of their bars.
    """
    notes, cell = content_notes(contents)
    classes = control_classes(notes, cell, BAR_STEPS[signatures - TIME_SIG] / STEPS).astype(np.int64)
    return np.where(classes == NO_CLASS, NONE, FIRST_CLASS + classes)
