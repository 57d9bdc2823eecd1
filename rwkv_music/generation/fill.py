"""Filling in: a trained model writes the notes of chosen cells of a piece. A cell is one part in one bar.

Infilling writes all parts in some bars. Accompanying writes one part in all bars. Harmonizing writes three parts under
a soprano. These tasks differ only in the chosen cells, which are called holes. Notable choices:
- The model reads the bars on both sides of the holes, and then writes the holes in order.
  tokenizers/multitrack_cells.py describes the document that the model reads and writes, and data/infill.py describes
  the training task.
- Holes that span more than BARS_AT_ONCE bars are written in several documents. Each document contains what earlier
  documents have written in its bars.
- Outside the holes, the result contains exactly the events of the user's file (midi/cells.py).
"""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import mido
import numpy as np
import torch

from rwkv_music.config import RunConfig
from rwkv_music.errors import UserError, explained
from rwkv_music.files import read_file
from rwkv_music.generation.completion import ROWS_AT_ONCE, TOKENS_PER_BAR, ForcedExit, check_counts
from rwkv_music.generation.fill_request import Hole, parse_controls_of_parts, parse_fill
from rwkv_music.generation.prompt_tags import tagged
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.midi import cells as midi_cells
from rwkv_music.midi.cells import NewPart, replace_cells
from rwkv_music.midi.events import ParsedMidi, RejectedMidi, parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.midi.regions import Region
from rwkv_music.midi.time import BarGrid
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.multitrack_cells import Cell, Excerpt, note_rows, read_excerpt, with_holes
from rwkv_music.tokenizers.multitrack_grammar import FillGrammar, Step
from rwkv_music.tokenizers.multitrack_vocabulary import DURATION, FIRST_CLASS, HOLE, MAX_PARTS, PROGRAM

BARS_AT_ONCE = 8  # maximum number of bars from the first to the last hole of a document
# Variant v of document d uses the random numbers of row v + d * ROWS_PER_DOCUMENT. No row is therefore used twice.
ROWS_PER_DOCUMENT = 1 << 32


@dataclass(frozen=True)
class Filling:
    """A piece with cells that a model has written."""

    source: mido.MidiFile  # the user's file
    parts: Sequence[Part | NewPart]
    cells: Sequence[midi_cells.Cell]  # the new notes; `Cell.part` is an index in `parts`

    def midi(self) -> mido.MidiFile:
        """Return the user's file with the new notes in the tracks of their parts. Each new part has a new track."""
        return replace_cells(self.source, self.parts, self.cells)

    def regions(self) -> list[Region]:
        """Return the cells as regions. A region consists of consecutive bars that have cells of the same parts.

        A region names the tracks and channels of `midi()`, in which the new parts are the last tracks.
        """
        keys = [(part.track, part.channel) if isinstance(part, Part) else None for part in self.parts]
        n_new = sum(key is None for key in keys)
        if n_new:
            added = {part.track: (part.track, part.channel) for part in read_notes(self.midi()).parts}
            tracks = iter(range(len(self.source.tracks), len(self.source.tracks) + n_new))
            keys = [key or added.get(next(tracks)) for key in keys]
        in_bar: dict[int, set[tuple[int, int]]] = {}
        for cell in self.cells:
            in_bar.setdefault(cell.bar, set()).update([keys[cell.part]] if keys[cell.part] else [])
        regions: list[Region] = []
        for bar, parts in sorted(in_bar.items()):
            last = regions[-1] if regions else None
            if last and last.first_bar + last.bars == bar and last.parts == parts:
                regions[-1] = replace(last, bars=last.bars + 1)
            else:
                regions.append(Region(bar, 1, frozenset(parts)))
        everything = {key for key in keys if key}
        return [replace(region, parts=None) if region.parts == everything else region for region in regions]


def fill(
    model: torch.nn.Module,
    codec: Codec,
    piece: str | PathLike,
    fills: Sequence[str] = (),
    *,
    new_parts: Sequence[NewPart] = (),
    controls: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    context_bars: int = 8,
    count: int = 1,
    sampling: Sampling = DEFAULT_SAMPLING,
    rows_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Filling]:
    """Write the cells of a MIDI file that `fills` describe, `count` times.

    Args:
        model: an RWKV trained on `codec`'s tokens to fill in (see `check_infills`).
        piece: a MIDI file.
        fills: the cells to write, such as "bars=5-8 parts=bass" (see fill_request.py).
        new_parts: parts to add to the file. A new part is written in all bars, unless `fills` names it.
        controls: properties of the new notes, such as "density=low,register=high parts=bass" (see fill_request.py).
        tags: tags of the piece, such as {"composer": "bach"}, for a tokenizer that has them.
        context_bars: bars to read on each side of the cells.
        rows_at_once, progress: see `write_cells`.

    Raises UserError if the file cannot be read, or if it has no notes outside the cells. Also raises it if the
    tokenizer has no parts or too few for the piece, if a count is out of range, or if a bar, part, control or tag does
    not exist.
    """
    check_tokenizer(codec)
    check_counts(context_bars, 1, count)
    with explained(f"reading {piece}"):
        data = read_file(piece)
    midi, encoded = _read_piece(codec, data, str(piece))
    parts = [*encoded.parts, *new_parts]
    if len(parts) > MAX_PARTS:
        raise UserError(
            f"{piece} and the new parts have {len(parts)} parts together, but the tokenizer allows {MAX_PARTS}: "
            "add fewer with --add-part."
        )
    holes = parse_fill(fills, midi, str(piece), new_parts)
    classes = parse_controls_of_parts(controls, parts, str(piece))
    encoded = tagged(codec, encoded, tags or {})
    return fill_cells(
        model,
        codec,
        midi,
        read_excerpt(encoded.ids, int(encoded.bar_starts[0]), len(encoded.ids)),
        parts,
        holes,
        controls=classes,
        context_bars=context_bars,
        count=count,
        sampling=sampling,
        rows_at_once=rows_at_once,
        progress=progress,
    )


def _read_piece(codec: Codec, data: bytes, name: str) -> tuple[ParsedMidi, Piece]:
    """Return a MIDI file and its tokens. `name` is used in errors."""
    try:
        midi = parse_midi(data)
        encoded = codec.encode_piece(midi)
    except (RejectedMidi, OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise UserError(
            f"{name} cannot be filled in ({str(error) or type(error).__name__}): give another MIDI file."
        ) from error
    _check_bars(midi, codec, len(encoded.bar_starts), name)
    return midi, encoded


def read_bars(codec: Multitrack, data: bytes, n_bars: int, name: str) -> tuple[ParsedMidi, Excerpt, tuple[Part, ...]]:
    """Return a MIDI file, its bars as cells, and the parts that have notes. `name` is used in errors.

    If the file has no notes or fewer than `n_bars` bars, empty bars follow until there are `n_bars`.
    """
    midi = parse_midi(data)
    played = played_notes(midi)
    grid = BarGrid.from_events(midi.events, midi.ticks_per_quarter)
    if n_bars <= int(grid.bar(played.start).max(initial=-1)) + 1:
        _, encoded = _read_piece(codec, data, name)
        return midi, read_excerpt(encoded.ids, int(encoded.bar_starts[0]), len(encoded.ids)), encoded.parts
    # A marker note in the last bar makes the codec encode all bars. It is in a new track, so its part is the last one.
    source = mido.MidiFile(file=io.BytesIO(midi.data), clip=True)
    tick = int(grid.lines(n_bars)[n_bars - 1])
    marker = [mido.Message("note_on", note=60, time=tick), mido.Message("note_off", note=60, time=1)]
    source.type, file = 1, io.BytesIO()
    source.tracks.append(mido.MidiTrack(marker))
    source.save(file=file)
    _, encoded = _read_piece(codec, file.getvalue(), name)
    excerpt = read_excerpt(encoded.ids, int(encoded.bar_starts[0]), len(encoded.ids))
    number = len(encoded.parts)
    excerpt.cells[-1].pop(number, None)
    excerpt.programs.pop(number, None)
    return midi, excerpt, encoded.parts[:-1]


def fill_cells(
    model: torch.nn.Module,
    codec: Multitrack,
    midi: ParsedMidi,
    excerpt: Excerpt,
    parts: Sequence[Part | NewPart],
    holes: Collection[Hole],
    *,
    controls: Mapping[int, Mapping[int, int]] | None = None,
    **options: Any,
) -> list[Filling]:
    """Write the cells `holes` of a file, as `fill` does.

    Args:
        midi, excerpt: a file, and all its bars as cells. The excerpt must contain every bar of `holes`.
        parts: the parts of the excerpt, followed by new parts and by parts of the file that have no notes.
        holes: (bar, counted from 0; number of the part, from 1).
        controls: {number of a part: {index in CONTROLS: class}}. They apply to all holes of the part.
        options: those of `write_cells`.

    Raises UserError if mido cannot read the file.
    """
    try:
        source = mido.MidiFile(file=io.BytesIO(midi.data), clip=True)
    except (OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise UserError(
            f"The piece cannot be filled in ({str(error) or type(error).__name__}): give another MIDI file."
        ) from error
    for number, part in enumerate(parts, start=1):
        excerpt.programs.setdefault(number, PROGRAM + part.program)
    tokens = {
        part: [int(FIRST_CLASS[c]) + value for c, value in sorted(asked.items())]
        for part, asked in (controls or {}).items()
    }
    variants = write_cells(model, codec, excerpt, holes, controls=tokens, **options)
    return [
        Filling(
            source,
            parts,
            [midi_cells.Cell(bar, number - 1, note_rows(content)) for (bar, number), content in variant.items()],
        )
        for variant in variants
    ]


def check_tokenizer(codec: Codec) -> None:
    """Raise UserError if the tokenizer has no parts."""
    if not isinstance(codec, Multitrack):
        raise UserError(
            f"The model's tokenizer {codec.name} has no parts, so it cannot fill in: use a model that was trained with "
            "the tokenizer multitrack and --task infill, or --task mix with --infill_weight."
        )


def check_infills(run: str | PathLike, config: RunConfig) -> None:
    """Raise UserError if the run `run` was not trained to fill in."""
    if not config.data.infills:
        raise UserError(
            f"{run} was trained with --task {config.data.task}, so it cannot fill in: use a run of --task infill, or "
            "of --task mix with --infill_weight."
        )


def fill_bars(
    model: torch.nn.Module, codec: Multitrack, piece: Piece, first_bar: int, bars: int, **options: Any
) -> Filling:
    """Rewrite all parts in `bars` bars of a dataset's piece. The first of these bars is `first_bar`, counted from 0.

    `options` are those of `write_cells`.
    """
    excerpt = read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids))
    numbers = excerpt.parts
    holes = [(bar, number) for bar in range(first_bar, first_bar + bars) for number in numbers]
    (contents,) = write_cells(model, codec, excerpt, holes, **options)
    file = io.BytesIO()
    source = codec.decode(piece.ids)
    source.save(file=file)
    parts, _ = read_parts(parse_midi(file.getvalue()))  # `decode` writes a track for each part, in order
    cells = [
        midi_cells.Cell(bar, numbers.index(number), note_rows(content)) for (bar, number), content in contents.items()
    ]
    return Filling(source, parts, cells)


def _check_bars(midi: ParsedMidi, codec: Multitrack, n_bars: int, name: str) -> None:
    """Raise UserError if the bars of the tokens differ from the bars of the file."""
    own = BarGrid.from_events(midi.events, midi.ticks_per_quarter)
    if not np.array_equal(own.lines(n_bars), codec.bar_grid(midi).lines(n_bars)):
        raise UserError(
            f"{name} cannot be filled in, because it has bars of a length that is not in the tokenizer's vocabulary: "
            "use time signatures with shorter bars."
        )


def write_cells(
    model: torch.nn.Module,
    codec: Multitrack,
    excerpt: Excerpt,
    holes: Collection[Hole],
    *,
    controls: Mapping[int, list[int]] | None = None,
    context_bars: int = 8,
    count: int = 1,
    sampling: Sampling = DEFAULT_SAMPLING,
    rows_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_notes: Callable[[int, Hole, np.ndarray, bool], None] | None = None,
) -> list[dict[Hole, np.ndarray]]:
    """Write the holes of a piece, `count` times. Return the tokens of each hole, int64 [n], for each variant.

    Args:
        model: an RWKV trained on `codec`'s tokens to fill in (see `check_infills`).
        excerpt: the whole piece.
        holes: (bar, counted from 0; number of the part, from 1).
        controls: {number of a part: control tokens}. They apply to all holes of the part.
        context_bars: number of bars to read on each side of the holes.
        rows_at_once: number of variants generated in one batch, as for `complete`; always 1 if the holes need several
            documents (see `BARS_AT_ONCE`).
        progress: called after every token with (holes written, holes requested), summed over all variants. It may
            raise an exception to end the generation.
        on_notes: called with (variant, hole, the hole's tokens so far, whether the hole is complete) after each note
            and when a hole is complete.

    Raises UserError if the model's logits are not finite.
    """
    controls = controls or {}
    documents = _divide(sorted(holes), len(excerpt.cells), context_bars)
    rows = min(count, rows_at_once or ROWS_AT_ONCE[torch.device(model.device).type]) if len(documents) == 1 else 1
    vocabulary = codec.token_properties
    generator: TokenGenerator | None = None
    variants: list[dict[Hole, np.ndarray]] = []
    for first_row in range(0, count, rows):
        written: list[dict[Hole, np.ndarray]] = [{} for _ in range(rows)]
        for number, (first, stop, own) in enumerate(documents):
            known = _with_contents(excerpt, written[0]) if number else excerpt
            later = {hole for hole in holes if first <= hole[0] < stop and hole > own[-1]}
            prompt, steps = with_holes(
                codec.rules,
                known.bars(first, stop),
                _shifted(own, first),
                {(bar - first, part): list(controls.get(part, ())) for bar, part in own},
                _shifted(later, first),
            )
            steps_grammar = FillGrammar(codec.rules, _from_second(steps), rows)
            grammar = ForcedExit(steps_grammar, vocabulary.moves_on)
            if generator is None:
                generator = TokenGenerator(model, rows, sampling, grammar.tables, vocabulary.keys)
            used_rows = min(rows, count - first_row)
            n_done = first_row * len(holes) + sum(map(len, written[:used_rows]))
            tokens = generator.generate(
                np.concatenate([prompt, steps[0].given]), grammar, first_row + number * ROWS_PER_DOCUMENT
            )
            budget, step = _budget(steps), 0
            n_written = np.zeros(rows, np.int64)
            while not grammar.ended.all():
                step += 1
                grammar.active = step > budget
                token = next(tokens)
                for row in range(used_rows) if on_notes else ():
                    is_complete = bool(grammar.bars[row] > n_written[row])
                    started = steps_grammar.contents[row][n_written[row] :]  # empty while given tokens are fed
                    if is_complete or (started and DURATION <= token[row] < HOLE):
                        content = np.array(started[0], np.int64)
                        on_notes(first_row + row, own[n_written[row]], content, is_complete)
                    n_written[row] += is_complete
                if progress:
                    progress(n_done + int(grammar.bars[:used_rows].sum()), count * len(holes))
            for row in range(rows):
                contents = (np.array(content, np.int64) for content in steps_grammar.contents[row])
                written[row] |= dict(zip(own, contents, strict=True))
        variants += written[:used_rows]
    return variants


def _divide(holes: list[Hole], n_bars: int, context_bars: int) -> list[tuple[int, int, list[Hole]]]:
    """Divide the sorted holes into documents. Return (first bar, bar after the last, holes) of each document."""
    documents: list[tuple[int, int, list[Hole]]] = []
    own: list[Hole] = []
    for hole in [*holes, None]:
        if own and (hole is None or hole[0] >= own[0][0] + BARS_AT_ONCE):
            bars = max(own[0][0] - context_bars, 0), min(own[-1][0] + 1 + context_bars, n_bars)
            documents.append((*bars, own))
            own = []
        if hole is not None:
            own.append(hole)
    return documents


def _budget(steps: list[Step]) -> int:
    """Return the number of tokens after which `ForcedExit` becomes active."""
    longest = max((len(step.given) for step in steps), default=0)
    return sum(len(step.given) for step in steps) + len(steps) * max(TOKENS_PER_BAR, 2 * longest)


def _from_second(steps: list[Step]) -> list[Step]:
    """Return the steps without the given tokens of the first step, which are part of the prompt."""
    return [replace(steps[0], given=steps[0].given[:0]), *steps[1:]]


def _shifted(holes: Collection[Hole], first: int) -> list[Hole]:
    return [(bar - first, part) for bar, part in holes]


def _with_contents(excerpt: Excerpt, contents: Mapping[Hole, np.ndarray]) -> Excerpt:
    """Return the excerpt with new contents in some cells. A cell without notes is left out."""
    cells = [dict(bar) for bar in excerpt.cells]
    for (bar, part), content in contents.items():
        program = cells[bar].pop(part).program if part in cells[bar] else excerpt.programs[part]
        if len(content):
            cells[bar][part] = Cell.of(program, content)
    return replace(excerpt, cells=cells)
