"""The grammar of the `midi-llm` codecs: keys of one moment rise, and waits come as `encode` writes them.

After a key come a wait, or a key that is not lower: a moment ends after finitely many. After the longest wait another
may come, up to ten in all; after a shorter one, a key. Bars are counted on the clock that the waits make.
"""

import numpy as np

from rwkv_music.tokenizers.grammar import Grammar
from rwkv_music.tokenizers.midi_llm_bars import LONGEST_WAIT_MS, LONGEST_WAITS, WAIT_MS, WAITS

# What came last: a class of the table for each of these, then one for each key.
NOTHING, LONG_WAIT, LAST_WAIT, FIRST_KEY = range(4)
EOS_LATER, EOS_TOO = range(2)


class MidiLlmRules:
    """What `MidiLlmGrammar` looks up, made once a vocabulary.

    Args:
        key: int64 [V], instrument * 128 + pitch, -1 where there is none.
        wait_ms: int64 [V], 0 where there is none.

    Attributes:
        tables: what may follow what came last [3 + keys, V]; whether EOS is allowed yet [2, V].
    """

    def __init__(self, key: np.ndarray, wait_ms: np.ndarray, eos_id: int):
        self.key, self.wait_ms, self.eos_id = key, wait_ms, eos_id
        is_key, is_wait, is_eos = key >= 0, wait_ms > 0, np.arange(len(key)) == eos_id
        after_key = (key >= np.arange(key.max() + 1)[:, None]) | is_wait | is_eos
        follows = np.concatenate([[is_key, is_key | is_wait, is_key], after_key])
        self.tables = follows, np.stack([~is_eos, np.ones_like(is_eos)])
        self.shortest_wait = int(is_wait.argmax())


class MidiLlmGrammar(Grammar):
    """Rows of `midi-llm` tokens; a bar is finished when the clock reaches its line, to within half a wait.

    Args:
        last_id: the prompt's last token.
        late_ms: how far the clock is past the line at which the rows begin.
        bar_ms: how long their bars are.
    """

    def __init__(
        self,
        rules: MidiLlmRules,
        last_id: int,
        late_ms: float,
        bar_ms: float,
        rows: int,
        asked_bars: int | None,
        may_end: bool,
    ):
        self.rules = rules
        self.tables = rules.tables
        super().__init__(rows, asked_bars)
        self._bar_ms = max(bar_ms, WAIT_MS)
        self._clock_ms = np.full(rows, late_ms)
        self._waits = np.zeros(rows, np.int64)  # the longest ones, one after another
        self.classes[0] = self._after(np.array([last_id]))
        self.classes[1] = EOS_TOO if may_end or asked_bars is None else EOS_LATER
        self.bars[:] = self._finished_bars()
        if asked_bars is not None and late_ms >= self._end_ms:  # the prompt's last wait reaches over all of them
            self.bars[:], self.ended[:] = asked_bars, True

    def feed(self, tokens: np.ndarray) -> None:
        wait_ms = self.rules.wait_ms[tokens]
        at_eos = ~self.ended & (tokens == self.rules.eos_id)
        self.bars[at_eos] += 1  # the bar under way ends with the row
        self.ended |= at_eos
        if self.asked_bars is not None:
            past = ~self.ended & (wait_ms > 0) & (self._clock_ms + wait_ms >= self._end_ms)
            self.bars[past] = self.asked_bars
            self.ended |= past
        on = ~self.ended
        self._clock_ms[on] += wait_ms[on]
        self.bars[on] = self._finished_bars()[on]

        self._waits[on] = np.where(wait_ms == LONGEST_WAIT_MS, self._waits + 1, 0)[on]
        after = np.where(self._waits == LONGEST_WAITS, LAST_WAIT, self._after(tokens))
        self.classes[0, on] = after[on]

    def closing(self, row: int) -> np.ndarray:
        if not self.ended[row] or self.asked_bars is None or self.bars[row] < self.asked_bars:
            return super().closing(row)
        waits = max(0, round((self.asked_bars * self._bar_ms - self._clock_ms[row]) / WAIT_MS))
        full, rest = divmod(waits, WAITS)
        lengths = np.array([WAITS] * full + [rest] * (rest > 0), np.int64)
        return self.rules.shortest_wait - 1 + lengths

    def _after(self, tokens: np.ndarray) -> np.ndarray:
        """The class of what may follow each of `tokens`, however many waits there were."""
        wait_ms, key = self.rules.wait_ms[tokens], self.rules.key[tokens]
        after_wait = np.where(wait_ms == LONGEST_WAIT_MS, LONG_WAIT, LAST_WAIT)
        return np.where(key >= 0, FIRST_KEY + key, np.where(wait_ms > 0, after_wait, NOTHING))

    @property
    def _end_ms(self) -> float:
        """The clock from which a row is past its last bar."""
        return self.asked_bars * self._bar_ms - WAIT_MS / 2

    def _finished_bars(self) -> np.ndarray:
        """int64 [rows], by their clocks."""
        return np.maximum((self._clock_ms + WAIT_MS / 2) // self._bar_ms, 0).astype(np.int64)
