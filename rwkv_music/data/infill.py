"""The training task for `generate --fill`: rows in which some cells of an excerpt are holes.

A cell is one part in one bar. A window is an excerpt of a piece with holes, followed by a token Fill and the contents
of the holes (see tokenizers/multitrack_cells.py). These contents are targets of the loss. Notable choices:
- In training, the tokens before Fill are targets too, except those that mark a hole. The model thus also learns
  next-token prediction from these rows. In validation, only the contents of the holes are targets.
- All holes of a window are of one kind. The four kinds correspond to common requests: the last bars, whole parts, a
  block of bars and parts, or scattered cells. At least half of the blocks include all parts.
- The number of bars in a block, and the number of last bars, are distributed uniformly on a logarithmic scale. Small
  numbers are therefore more frequent. They leave more context to learn from.
- In some windows, controls at the head of a hole describe the content of the hole (midi/controls.py).
- The seed and the sample number determine the number of bars, the holes and the controls. A piece has one window for
  each bar except the last one. The excerpt of a window starts at its bar.
- An excerpt that is too long for the rest of a row loses bars at its end. If even its first two bars are too long for
  an empty row, they are truncated to the length of the row.
"""

import numpy as np

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.augment import Augmenter
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.tasks import Row, open_bars
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.multitrack_cells import (
    Excerpt,
    Hole,
    control_tokens,
    read_excerpt,
    state_tokens,
    with_holes,
    written_out,
)
from rwkv_music.tokenizers.multitrack_vocabulary import FILL, HOLE, POSITION, PROGRAM
from rwkv_music.tokenizers.vocabulary import NONE

KINDS = ("last bars", "parts", "block", "scattered")


class InfillRows:
    """Excerpts of at most `max_bars` bars with holes, ordered by document and first bar.

    Raises UserError if the tokenizer has no parts, the dataset has no bar positions, or no piece has two bars.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        tokens: BinIdx,
        codec: Codec,
        ctx_len: int,
        max_bars: int,
        seed: int,
        augmenter: Augmenter | None = None,
    ):
        if not isinstance(codec, Multitrack):
            raise UserError(
                f"The tokenizer {codec.name} of {folder} has no parts, which --task infill needs: prepare the data "
                "with --tokenizer multitrack."
            )
        self._bars = open_bars(folder, split, tokens)
        self._tokens, self._codec, self._augmenter = tokens, codec, augmenter
        self._ctx_len, self._max_bars, self._seed = ctx_len, max_bars, seed
        self._learns_context = split == "train"
        self.validation_step = max_bars  # validate on every n-th window, so that excerpts hardly overlap
        self._first_window = np.concatenate([[0], np.cumsum(np.maximum(np.diff(self._bars.offsets) - 1, 0))])
        self.n_windows = int(self._first_window[-1])  # in a pass
        if not self.n_windows:
            raise UserError(
                f"No piece in the {split} split of {folder} has two bars: prepare longer pieces, or train with "
                "--task pretrain."
            )

    def row(self, window: int, sample: int, room: int | None = None) -> Row | None:
        """Return window number `window`, with the holes of sample number `sample`.

        If `room` is given, the row has at most `room` tokens. If even the first two bars need more, return None.
        """
        longest = self._ctx_len if room is None else room
        document = int(np.searchsorted(self._first_window, window, side="right")) - 1
        ids = self._tokens[document].astype(np.int64)
        starts = np.append(np.cumsum(self._bars[document], dtype=np.int64), len(ids))
        first = window - int(self._first_window[document])
        generator = np.random.Generator(np.random.Philox(key=np.array([self._seed, 2**62 + sample], np.uint64)))
        n_bars = min(int(generator.integers(2, self._max_bars, endpoint=True)), len(starts) - 1 - first)
        # Holes add tokens, so bars that do not fit without holes do not fit with holes either.
        n_fit = int(np.searchsorted(starts, starts[first] + longest, side="right")) - 1 - first
        if n_fit < 2 and room is not None:
            return None
        n_bars = max(min(n_bars, n_fit), 2)
        while True:
            excerpt = self._excerpt(ids, int(starts[first]), int(starts[first + n_bars]), sample)
            holes = sorted(draw_holes(excerpt, generator))
            controls = draw_controls(excerpt, holes, generator)
            tokens, is_content = written_out(*with_holes(self._codec.rules, excerpt, holes, controls))
            if len(tokens) <= longest + 1 or n_bars == 2:
                break
            n_bars = max(2, min(n_bars - 1, n_bars * longest // len(tokens)))
        if room is not None and len(tokens) > room + 1:
            return None
        tokens, is_content = tokens[: self._ctx_len + 1], is_content[: self._ctx_len + 1]
        is_target = is_content | _is_known(tokens) if self._learns_context else is_content
        targets = np.where(is_target, tokens, IGNORE_INDEX)[1:]
        return Row(tokens[:-1], targets, np.zeros(1, np.int64))

    def _excerpt(self, ids: np.ndarray, start: int, stop: int, sample: int) -> Excerpt:
        """Return the bars in ids[start:stop], augmented. Controls are drawn later, so they describe the result."""
        if self._augmenter is None:
            return read_excerpt(ids, start, stop)
        before = state_tokens(ids[:start])
        [varied] = self._augmenter.vary([np.concatenate([before, ids[start:stop]])], sample)
        return read_excerpt(varied, len(before), len(varied))


def _is_known(tokens: np.ndarray) -> np.ndarray:
    """Return which tokens come before Fill and do not mark a hole, bool [n]. `Part [Program] Hole` marks a hole."""
    is_known = np.cumsum(tokens == FILL) == 0
    holes = np.flatnonzero(tokens == HOLE)
    named = holes[(tokens[holes - 1] >= PROGRAM) & (tokens[holes - 1] < POSITION)]
    is_known[np.concatenate([holes, holes - 1, named - 2])] = False
    return is_known


def draw_holes(excerpt: Excerpt, generator: np.random.Generator) -> set[Hole]:
    """Draw the holes of an excerpt: at least one, or none if the excerpt has no parts."""
    parts, n_bars = excerpt.parts, len(excerpt.cells)
    if not parts:
        return set()
    kind = KINDS[generator.integers(len(KINDS))]
    chosen, bars = parts, range(n_bars)
    if kind == "parts" and len(parts) > 1:
        chosen = generator.choice(parts, generator.integers(1, len(parts)), replace=False).tolist()
    elif kind == "last bars":
        bars = range(n_bars - _draw_length(n_bars, generator), n_bars)
    elif kind == "block":
        length = _draw_length(n_bars, generator)
        begin = int(generator.integers(0, n_bars - length, endpoint=True))
        bars = range(begin, begin + length)
        if generator.random() < 0.5:
            chosen = generator.choice(parts, generator.integers(1, len(parts), endpoint=True), replace=False).tolist()
    cells = [(bar, part) for bar in bars for part in sorted(chosen)]
    if kind == "scattered" or (kind == "parts" and len(parts) == 1):
        is_hole = generator.random(len(cells)) < generator.uniform(0.1, 0.6)
        is_hole[generator.integers(len(cells))] = True
        cells = [cell for cell, hole in zip(cells, is_hole.tolist(), strict=True) if hole]
    return set(cells)


def _draw_length(n_bars: int, generator: np.random.Generator) -> int:
    """Draw a number of bars, at least 1 and fewer than `n_bars`."""
    return int(n_bars ** generator.random())


def draw_controls(excerpt: Excerpt, holes: list[Hole], generator: np.random.Generator) -> dict[Hole, list[int]]:
    """Draw the control tokens that describe the content of the holes, by hole.

    Half of the windows have none. In the others, each control is given with probability 1/2.
    """
    if generator.random() < 0.5:
        return {}
    written = [(bar, part) for bar, part in holes if part in excerpt.cells[bar]]
    contents = [excerpt.cells[bar][part].content for bar, part in written]
    tokens = control_tokens(contents, np.array([excerpt.signatures[bar] for bar, _ in written], np.int64))
    is_given = (tokens != NONE) & (generator.random(tokens.shape) < 0.5)
    return {hole: row[given].tolist() for hole, row, given in zip(written, tokens, is_given, strict=True)}
