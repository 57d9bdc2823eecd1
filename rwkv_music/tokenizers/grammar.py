"""Grammars, which restrict the next token during sampling and count the bars of each row.

A codec creates a grammar for a prompt (`Codec.grammar`). Before each token is drawn, the logits of all tokens that the
grammar does not allow are masked. The grammar then takes the drawn token:

    grammar = codec.grammar(prompt, rows=B, bars=8)
    while not grammar.ended.all():
        logits[~grammar.allowed()] = -inf
        tokens = draw(logits)
        grammar.feed(tokens)                   # if ended[row] is now True, the token is not part of the row
    ids = [*prompt.ids, *row, *grammar.closing(row)]

Notable choices:
- The state of a row is a few integers on the host. Each selects a line of one of the constant `tables`. A token is
  allowed if all these lines allow it, so no table has to contain the combinations of independent conditions.
- Unless `may_end` is set, EOS is not allowed before the last requested bar is complete. Every row can always advance
  to its next bar, so every row can end.
"""

from abc import ABC, abstractmethod

import numpy as np


class Grammar(ABC):
    """The state of `rows` continuations of one prompt. If `max_bars` is None, only EOS ends a row.

    Attributes:
        tables: one bool [classes, V] per condition. Line c marks the tokens that the condition allows in class c.
        classes: int64 [len(tables), rows], the line of each table that applies to the next token of each row.
        bars: int64 [rows], the number of bars that each row has completed since the prompt.
        ended: bool [rows], whether each row has ended. A row ends at EOS, or at a token that starts another bar after
            the last requested one. The token at which a row ends is not part of it. Later tokens of the row are
            ignored.
    """

    tables: tuple[np.ndarray, ...]

    def __init__(self, rows: int, max_bars: int | None):
        self.max_bars = max_bars
        self.classes = np.zeros((len(self.tables), rows), np.int64)
        self.bars = np.zeros(rows, np.int64)
        self.ended = np.zeros(rows, bool)

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next, bool [rows, V]. Every row has at least one."""
        allowed = self.tables[0][self.classes[0]]
        for table, classes in zip(self.tables[1:], self.classes[1:], strict=True):
            allowed &= table[classes]
        return allowed

    @abstractmethod
    def feed(self, tokens: np.ndarray) -> None:
        """Advance each row by its next token, int [rows]."""

    def closing(self, row: int) -> np.ndarray:
        """Return the tokens that extend an ended row to the end of its last bar, int64 [n], possibly none."""
        return np.empty(0, np.int64)
