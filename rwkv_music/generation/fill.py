"""Filling: a trained model writes cells of a piece (a cell is one part in one bar) that its user leaves open.

Infilling writes all parts of some bars, accompanying writes a part in all bars, and harmonizing writes three parts
under a soprano: they differ only in the cells. Notable choices:
- The model reads the bars around the holes on both sides, then writes the holes in order (see
  tokenizers/multitrack_cells.py for the document, and data/infill.py for the training task).
- Holes that span many bars are written a few bars at a time. Bars that were written before are context for the next.
- The file outside the holes stays the user's, event for event (midi/cells.py).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from rwkv_music.generation.completion import ROWS_AT_ONCE, TOKENS_PER_BAR, ForcedExit
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.multitrack_cells import Cell, Excerpt, Hole, with_holes
from rwkv_music.tokenizers.multitrack_grammar import FillGrammar, Step

BARS_AT_ONCE = 8  # bars with holes in one document
MOST_VARIANTS = 1 << 32


@dataclass(frozen=True)
class Request:
    """What to write into a piece."""

    holes: frozenset[Hole]  # (bar, number of the part): bars count from 0, parts from 1
    new_parts: Mapping[int, int]  # the token of the program of each part that the piece does not have
    controls: Mapping[int, Mapping[int, int]]  # by part: the class asked for, by index in CONTROLS


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
) -> list[dict[Hole, np.ndarray]]:
    """Return the content of each hole of a piece, int64 [n] tokens, `count` times.

    Args:
        model: an RWKV trained on `codec`'s tokens with the task infill.
        excerpt: the whole piece.
        controls: the control tokens of the holes of a part, by its number.
        context_bars: bars to read on each side of the holes.
        rows_at_once: variants generated in one batch, as for `complete`.
        progress: called after every token with (holes written, holes requested), summed over all variants.
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
            n_done = first_row * len(holes) + sum(map(len, written))
            tokens = generator.generate(
                np.concatenate([prompt, steps[0].given]), grammar, first_row + number * MOST_VARIANTS
            )
            budget, step = _budget(steps), 0
            while not grammar.ended.all():
                step += 1
                grammar.active = step > budget
                next(tokens)
                if progress:
                    progress(n_done + int(grammar.bars.sum()), count * len(holes))
            for row in range(rows):
                contents = (np.array(content, np.int64) for content in steps_grammar.contents[row])
                written[row] |= dict(zip(own, contents, strict=True))
        variants += written[: count - first_row]
    return variants


def _divide(holes: list[Hole], n_bars: int, context_bars: int) -> list[tuple[int, int, list[Hole]]]:
    """Return the documents that write all holes in order: the first bar, the end, and the holes of each."""
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
    """Return the number of tokens after which a document is ended with as few further tokens as possible."""
    longest = max((len(step.given) for step in steps), default=0)
    return sum(len(step.given) for step in steps) + len(steps) * max(TOKENS_PER_BAR, 2 * longest)


def _from_second(steps: list[Step]) -> list[Step]:
    """Return the steps without the given tokens of the first one, which belong to the prompt."""
    return [replace(steps[0], given=steps[0].given[:0]), *steps[1:]]


def _shifted(holes: Collection[Hole], first: int) -> list[Hole]:
    return [(bar - first, part) for bar, part in holes]


def _with_contents(excerpt: Excerpt, contents: Mapping[Hole, np.ndarray]) -> Excerpt:
    """Return a piece with new contents of some cells. A cell without notes is left out."""
    cells = [dict(bar) for bar in excerpt.cells]
    for (bar, part), content in contents.items():
        program = cells[bar].pop(part).program if part in cells[bar] else excerpt.programs[part]
        if len(content):
            cells[bar][part] = Cell(program, content)
    return replace(excerpt, cells=cells)
