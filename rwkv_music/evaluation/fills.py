"""Fills of holes in held-out pieces, compared with the true bars, with baselines and with the training data.

A hole is a cell (one part in one bar) that the model has to write. The report has four tables:

    measures     onset F1, chroma and groove similarity (midi/fill_measures.py) of the model's fills and of three
                 baselines: fills by the model without the bars after the holes, copies of the nearest given bar, and
                 random real bars
    controls     the share of cells that are in the requested class of a control, with the request and without it
    copying      the copy rate (midi/copying.py) of the fills and of the true bars
    descriptors  the divergences (midi/descriptors.py) of the fills, and of the true bars, from other real bars

The holes are drawn as in training (`draw_holes`), in some bars of a piece that have other bars on both sides. Notable
choices:
- Each set of holes is filled `VARIANTS` times, as one batch. Random real bars are also drawn `VARIANTS` times.
- For the baseline without the bars after the holes, the model reads only the bars before the first hole. It then
  writes all parts of the bars from the first hole to the last one. Only the holes are measured.
- One class of one control is requested for each part with holes. The class is drawn from those that occur in any bar of
  the part. The control changes from part to part and from one set of holes to the next.
- The random real bars are taken from at most `MOST_REAL_PIECES` pieces of the training split.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rwkv_music.data.infill import draw_holes
from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError
from rwkv_music.evaluation.losses import held_out_split
from rwkv_music.generation.completion import check_counts
from rwkv_music.generation.fill import write_cells
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.midi.controls import CONTROLS
from rwkv_music.midi.copying import NgramIndex, copy_rate, ngram_hashes
from rwkv_music.midi.descriptors import Descriptors
from rwkv_music.midi.fill_measures import FillMeasures, RealBars, copied_neighbors, fill_measures
from rwkv_music.midi.measures import compared
from rwkv_music.midi.score import NOTE, Score, in_cells, in_order
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Piece
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.multitrack_cells import Excerpt, Hole, content_notes, control_tokens, read_excerpt
from rwkv_music.tokenizers.multitrack_vocabulary import BAR_STEPS, FIRST_CLASS, STEPS, TIME_SIG
from rwkv_music.tokenizers.vocabulary import NONE

VARIANTS = 4
MOST_REAL_PIECES = 1_000
UNKNOWN = -100  # stands for no class; too low to be next to any class
MOST_DRAWS = 50  # maximum number of attempts per requested set of holes; a set without notes is drawn again
MODEL, LEFT_ONLY, COPY, RANDOM = "model", "left side only", "copy of neighbor", "random real bar"

Contents = Mapping[Hole, np.ndarray]


@dataclass(frozen=True)
class FillTask:
    """Holes in an excerpt of a piece."""

    excerpt: Excerpt
    holes: list[Hole]  # in order
    real: Score  # the notes and bar lines of the excerpt
    marked: np.ndarray  # bool [bars, parts]: which cells are holes
    # By part number, which classes of each control occur in the part: bool [N_CONTROLS, largest number of classes].
    classes: dict[int, np.ndarray]


@dataclass(frozen=True)
class ControlAdherence:
    """The shares of the cells of fills that are in the requested class of one control, or close to it."""

    name: str  # the control
    cells: int  # number of cells for which a class was requested, in all fills
    exact: float  # share of these cells that are in the requested class
    within_one: float  # share of these cells that are in the requested class or in one next to it
    exact_uncontrolled: float  # like `exact`, for fills of the same holes without controls
    within_one_uncontrolled: float  # like `within_one`, for fills of the same holes without controls


@dataclass(frozen=True)
class FillReport:
    """The results of `evaluate_fills`."""

    split: str
    sets_of_holes: int
    measures: dict[str, list[FillMeasures]]  # by the method that filled the holes
    adherence: list[ControlAdherence]  # by control
    copy_rate: float  # of the fills; NaN without n-grams
    real_copy_rate: float  # of the true bars
    divergences: dict[str, float]  # of the fills from other real bars, in bits, by descriptor
    real_divergences: dict[str, float]  # of the true bars from these other real bars


def evaluate_fills(
    model: torch.nn.Module,
    codec: Multitrack,
    data: str | os.PathLike,
    count: int,
    *,
    context_bars: int = 4,
    bars: int = 8,
    sampling: Sampling = DEFAULT_SAMPLING,
    rows_at_once: int | None = None,
) -> FillReport:
    """Write `count` fills of holes in held-out pieces, and measure them.

    The pieces are those of the validation split, or of the training split if the validation split is empty.

    Args:
        model: an RWKV trained on `codec`'s tokens with `--task infill` or `mix`.
        context_bars: the number of bars on each side of the bars with holes.
        bars: the number of bars in which holes are drawn; fewer in short pieces.
        sampling: sampling settings. The seed also determines the pieces, the holes and the requested classes.
        rows_at_once: as for `write_cells`.

    Raises UserError if no piece is long enough, and if a count is out of range.
    """
    check_counts(context_bars, bars, count, "--fills")
    split = held_out_split(data)
    pieces = Pieces(data, split, codec)
    n_sets = -(-count // VARIANTS)
    tasks = draw_tasks(pieces, n_sets, context_bars, bars, sampling.seed)
    if not tasks:
        raise UserError(
            f"No piece in the {split} split of {data} has {2 * context_bars + min(bars, 2)} bars with notes: "
            "choose fewer --context-bars."
        )
    others = draw_tasks(pieces, n_sets, context_bars, bars, sampling.seed + 1)
    training, real_bars = _read_training(Pieces(data, "train", codec))

    measures: dict[str, list[FillMeasures]] = {name: [] for name in (MODEL, LEFT_ONLY, COPY, RANDOM)}
    hashes: dict[str, list[np.ndarray]] = {"real": [], MODEL: []}
    descriptors: dict[str, Descriptors] = defaultdict(Descriptors)
    counts = np.zeros((len(CONTROLS), 5), np.int64)
    for number, task in enumerate(progress_bar(tasks, "filling")):
        own = replace(sampling, seed=(sampling.seed + number) % 2**64)
        options = {"context_bars": context_bars, "sampling": own, "rows_at_once": rows_at_once}
        options["count"] = min(VARIANTS, count - number * VARIANTS)
        fills = write_cells(model, codec, task.excerpt, task.holes, **options)
        left, holes = _left_only(task)
        from_left = write_cells(model, codec, left, holes, **options)
        generator = np.random.default_rng([sampling.seed, number])
        requested = _draw_classes(task, number, generator)
        if requested:
            tokens = {part: [int(FIRST_CLASS[column]) + value] for part, (column, value) in requested.items()}
            controlled_fills = write_cells(model, codec, task.excerpt, task.holes, controls=tokens, **options)
            for controlled, uncontrolled in zip(controlled_fills, fills, strict=True):
                counts += _adherence_counts(task, controlled, uncontrolled, requested)

        notes = {
            MODEL: [_notes(contents, task.real.lines) for contents in fills],
            LEFT_ONLY: [_notes(contents, task.real.lines) for contents in from_left],
            COPY: [copied_neighbors(task.real, task.marked)],
            RANDOM: [real_bars.fill(task.real, task.marked, seed=own.seed + i * 2**32) for i in range(len(fills))],
        }
        for name, variants in notes.items():
            measures[name] += [fill_measures(task.real, found, task.marked) for found in variants]
        given = task.real.notes[~in_cells(task.real.notes, task.real.lines, task.marked)]
        true = _true_notes(task)
        hashes["real"].append(_hashes(given, true))
        hashes[MODEL] += [_hashes(given, found) for found in notes[MODEL]]
        descriptors["real"].add(Score(true, task.real.lines))
        for found in notes[MODEL]:
            descriptors[MODEL].add(Score(found, task.real.lines))
    for task in others:
        descriptors["others"].add(Score(_true_notes(task), task.real.lines))
    return FillReport(
        split=split,
        sets_of_holes=len(tasks),
        measures=measures,
        adherence=[_adherence(control.name, *row) for control, row in zip(CONTROLS, counts.tolist(), strict=True)],
        copy_rate=copy_rate(np.concatenate(hashes[MODEL]), training),
        real_copy_rate=copy_rate(np.concatenate(hashes["real"]), training),
        divergences=descriptors[MODEL].divergences(descriptors["others"]),
        real_divergences=descriptors["real"].divergences(descriptors["others"]),
    )


def draw_tasks(pieces: Sequence[Piece], count: int, context_bars: int, bars: int, seed: int) -> list[FillTask]:
    """Draw `count` sets of holes, each with at least one note in the real piece.

    Return fewer sets if `MOST_DRAWS` * `count` attempts do not yield enough.
    """
    order = np.random.default_rng(seed).permutation(len(pieces)).tolist()
    tasks: list[FillTask] = []
    for draw in range(MOST_DRAWS * count):
        if len(tasks) == count:
            break
        piece = pieces[order[draw % len(pieces)]]
        task = _draw_task(piece, context_bars, bars, np.random.default_rng([seed, draw]))
        if task is not None:
            tasks.append(task)
    return tasks


def _draw_task(piece: Piece, context_bars: int, bars: int, generator: np.random.Generator) -> FillTask | None:
    """Draw a set of holes in a piece. Return None if the piece is too short, or has no notes in the holes."""
    n_bars = min(len(piece.bar_starts) - 2 * context_bars, bars)
    if n_bars < min(bars, 2):
        return None
    whole = read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids))
    first = int(generator.integers(len(whole.cells) - 2 * context_bars - n_bars, endpoint=True))
    excerpt = whole.bars(first, first + 2 * context_bars + n_bars)
    inside = excerpt.bars(context_bars, context_bars + n_bars)
    if n_bars > 1:
        holes = sorted((bar + context_bars, number) for bar, number in draw_holes(inside, generator))
    else:
        holes = [(context_bars, number) for number in inside.parts]
    real = score_of(excerpt)
    marked = np.zeros((len(excerpt.cells), max(whole.parts, default=0)), bool)
    for bar, number in holes:
        marked[bar, number - 1] = True
    task = FillTask(excerpt, holes, real, marked, _classes_of_parts(whole))
    return task if len(_true_notes(task)) else None


def score_of(excerpt: Excerpt) -> Score:
    """Return the notes and bar lines of an excerpt. Part number k is part k - 1 of the score."""
    steps = BAR_STEPS[np.array(excerpt.signatures, np.int64) - TIME_SIG]
    lines = np.concatenate([[0], np.cumsum(steps)]) / STEPS
    cells = {(bar, number): cell.content for bar, row in enumerate(excerpt.cells) for number, cell in row.items()}
    return Score(_notes(cells, lines), lines)


def _notes(contents: Contents, lines: np.ndarray) -> np.ndarray:
    """Return the notes of cells, NOTE [n]. `contents` are their tokens, and `lines` the bar lines of the piece."""
    notes, cell = content_notes(list(contents.values()))
    bar, number = np.array(list(contents), np.int64).reshape(-1, 2).T
    notes["start"] += lines[bar[cell]]
    notes["end"] += lines[bar[cell]]
    notes["part"] = number[cell] - 1
    return in_order(notes)


def _true_notes(task: FillTask) -> np.ndarray:
    """Return the notes of the real piece in the holes, NOTE [n]."""
    return task.real.notes[in_cells(task.real.notes, task.real.lines, task.marked)]


def _left_only(task: FillTask) -> tuple[Excerpt, list[Hole]]:
    """Return the excerpt up to the bar of the last hole, and all its cells from the bar of the first hole on."""
    first, last = task.holes[0][0], task.holes[-1][0]
    numbers = sorted({*task.excerpt.parts, *(number for _, number in task.holes)})
    excerpt = task.excerpt.bars(0, last + 1)
    return excerpt, [(bar, number) for bar in range(first, last + 1) for number in numbers]


# ---- controls --------------------------------------------------------------------------------------------------------


def _classes(excerpt: Excerpt, contents: Contents) -> np.ndarray:
    """Return the class of each control for each cell, int64 [cells, N_CONTROLS]; UNKNOWN where there is none."""
    signatures = np.array([excerpt.signatures[bar] for bar, _ in contents], np.int64)
    tokens = control_tokens(list(contents.values()), signatures)
    return np.where(tokens == NONE, UNKNOWN, tokens - FIRST_CLASS)


def _classes_of_parts(excerpt: Excerpt) -> dict[int, np.ndarray]:
    cells = {(bar, number): cell.content for bar, row in enumerate(excerpt.cells) for number, cell in row.items()}
    most = max(len(control.classes) for control in CONTROLS)
    seen = {number: np.zeros((len(CONTROLS), most), bool) for number in excerpt.parts}
    for (_, number), row in zip(cells, _classes(excerpt, cells).tolist(), strict=True):
        for column, value in enumerate(row):
            if value >= 0:
                seen[number][column, value] = True
    return seen


def _draw_classes(task: FillTask, task_index: int, generator: np.random.Generator) -> dict[int, tuple[int, int]]:
    """Draw a class for each part that has holes, from the classes of one control that occur in the part.

    Return {number of the part: (index of the control, class)}. The index of the control increases by one, modulo the
    number of controls, from part to part and from task to task. A part in which no class of the control occurs is left
    out.
    """
    requested = {}
    for i, part in enumerate(sorted({part for _, part in task.holes})):
        column = (task_index + i) % len(CONTROLS)
        seen = np.flatnonzero(task.classes[part][column])
        if len(seen):
            requested[part] = column, int(generator.choice(seen))
    return requested


def _adherence(name: str, cells: int, *counts: int) -> ControlAdherence:
    return ControlAdherence(name, cells, *(n / cells if cells else float("nan") for n in counts))


def _adherence_counts(
    task: FillTask, controlled: Contents, uncontrolled: Contents, requested: dict[int, tuple[int, int]]
) -> np.ndarray:
    """Return the counts of `ControlAdherence` for each control, int64 [N_CONTROLS, 5].

    `controlled` was written with the requested classes, and `uncontrolled` without them. Column 0 is the number of
    cells for which a class was requested. Column 1 is the number of these cells of `controlled` that are in the
    requested class, and column 2 the number that are in this class or in one next to it. Columns 3 and 4 are the same
    numbers for `uncontrolled`.
    """
    holes = [hole for hole in task.holes if hole[1] in requested]
    columns, target = np.array([requested[part] for _, part in holes], np.int64).reshape(-1, 2).T
    rows = [np.ones(len(holes), bool)]
    for contents in (controlled, uncontrolled):
        found = _classes(task.excerpt, {hole: contents[hole] for hole in holes})[np.arange(len(holes)), columns]
        rows += [found == target, np.abs(found - target) <= 1]
    counts = np.zeros((len(CONTROLS), len(rows)), np.int64)
    np.add.at(counts, columns, np.stack(rows, axis=1).astype(np.int64))
    return counts


# ---- training data ---------------------------------------------------------------------------------------------------


def _read_training(pieces: Sequence[Piece]) -> tuple[NgramIndex, RealBars]:
    """Return the n-grams of all training pieces, and the bars of at most MOST_REAL_PIECES of these pieces."""
    index = NgramIndex()
    every = -(-len(pieces) // MOST_REAL_PIECES)
    kept = []
    for i, score in enumerate(_scores(progress_bar(pieces, "reading the training split", len(pieces)))):
        index.add(ngram_hashes(score.notes))
        if i % every == 0:
            kept.append(score)
    return index, RealBars(kept)


def _scores(pieces: Iterable[Piece]) -> Iterator[Score]:
    for piece in pieces:
        yield score_of(read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids)))


def _hashes(given: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the hashes of the n-grams that contain a note of `found`, in the music of `given` and `found` together.

    Both are NOTE [n].
    """
    notes = np.concatenate([given, found]).astype(NOTE)
    return ngram_hashes(notes, np.arange(len(notes)) >= len(given))


# ---- tables ----------------------------------------------------------------------------------------------------------


def as_table(report: FillReport) -> str:
    """Format a report as four text tables."""
    n = len(report.measures[MODEL])
    lines = [
        f"fills against the true bars; {report.split}; fills: {n}; sets of holes: {report.sets_of_holes}; mean +- "
        "standard deviation:",
        compared(list(report.measures), list(report.measures.values())),
        "",
        f"{'share of cells in the class':<29}{'requested':>20}{'not requested':>20}",
        f"{'':<13}{'cells':>16}" + f"{'exactly':>10}{'within 1':>10}" * 2,
    ]
    for row in report.adherence:
        shares = (row.exact, row.within_one, row.exact_uncontrolled, row.within_one_uncontrolled)
        lines.append(f"{row.name:<13}{row.cells:>16,}" + "".join(_cell(share, 10, ".0%") for share in shares))
    lines += ["", f"{'copy rate of 8-note n-grams':<29}{'fills':>10}{'real bars':>11}"]
    rates = f"{_cell(report.copy_rate, 10, '.1%')}{_cell(report.real_copy_rate, 11, '.1%')}"
    lines.append(f"{'in the training data':<29}{rates}")
    lines += ["", f"{'divergence from real, bits':<29}{'fills':>10}{'real bars':>11}"]
    lines += [
        f"{name:<29}{_cell(value, 10, '.3f')}{_cell(report.real_divergences[name], 11, '.3f')}"
        for name, value in report.divergences.items()
    ]
    return "\n".join(lines)


def _cell(value: float, width: int, form: str) -> str:
    return f"{'-' if np.isnan(value) else format(value, form):>{width}}"
