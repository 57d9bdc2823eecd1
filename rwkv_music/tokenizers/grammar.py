"""What may come next: a grammar follows many rows of tokens while they are drawn, and counts their bars.

A codec makes one for a prompt (`Codec.grammar`); a sampler asks it before each draw and feeds it what was drawn:

    grammar = codec.grammar(prompt, rows=B, bars=8)
    while not grammar.ended.all():
        logits[~grammar.allowed()] = -inf
        tokens = draw(logits)
        grammar.feed(tokens)                   # ended[row]: this token is past the last bar, and no part of the row
    ids = [*prompt.ids, *row, *grammar.closing(row)]

Notable choices:
- The state of a row is a few small integers on the host. What they allow is looked up: `tables` are constant and may
  live on a GPU, and `classes` says which line of each table counts for each row. A token is allowed if every table
  allows it, so that a few conditions that vary by themselves need no table of all their combinations.
- The bars that were asked for come first: unless a piece `may_end`, EOS is not allowed before they are there. Where
  the codec counts bars in time, the clock runs on by waiting at the latest, so every row ends.
"""

from abc import ABC, abstractmethod

import numpy as np


class Grammar(ABC):
    """Follows `rows` rows that all go on from one prompt.

    Attributes:
        tables: each bool [classes, V], what one condition allows; constant.
        classes: int64 [len(tables), rows], the line of each table that holds for the next token of each row.
        bars: int64 [rows], how many bars each row has finished since the prompt.
        ended: bool [rows], whether the token fed last ended the row: it is past the last bar that was asked for, or
            EOS, and no part of the row. A row that has ended stays as it is, whatever it is fed.
    """

    tables: tuple[np.ndarray, ...]

    def __init__(self, rows: int, asked_bars: int | None):
        self.asked_bars = asked_bars
        self.classes = np.zeros((len(self.tables), rows), np.int64)
        self.bars = np.zeros(rows, np.int64)
        self.ended = np.zeros(rows, bool)

    def allowed(self) -> np.ndarray:
        """bool [rows, V]: the tokens that may come next. In every row at least one is."""
        allowed = self.tables[0][self.classes[0]]
        for table, classes in zip(self.tables[1:], self.classes[1:], strict=True):
            allowed &= table[classes]
        return allowed

    @abstractmethod
    def feed(self, tokens: np.ndarray) -> None:
        """Take in the next token of each row, int [rows]."""

    def closing(self, row: int) -> np.ndarray:
        """int64 [n], what lengthens an ended row to the end of its last bar, where that is not implied."""
        return np.empty(0, np.int64)
