"""The grammar of the `midi-llm` codecs.

A note token is followed by a wait, by EOS, or by a note token with the same or a higher key (instrument, pitch). At
most ten of the longest waits follow one another. After the tenth of them, or after a shorter wait, a note token
follows. Bars are counted on the clock of the waits.
"""

import numpy as np

from rwkv_music.tokenizers.grammar import Grammar
from rwkv_music.tokenizers.midi_llm_bars import MAX_WAIT_MS, MAX_WAITS, WAIT_LEVELS, WAIT_MS

# Classes of the first table, by the last token. From FIRST_KEY on, there is one class per key.
START, LONG_WAIT, LAST_WAIT, FIRST_KEY = range(4)
NO_EOS, WITH_EOS = range(2)  # classes of the second table


class MidiLlmRules:
    """The tables of `MidiLlmGrammar`, computed once per vocabulary from the key and wait of each token.

    `key`, int64 [V], is instrument * 128 + pitch for notes, and -1 for other tokens. `wait_ms`, int64 [V], is 0 for
    tokens that are not waits. The first of the `tables`, bool [3 + keys, V], marks the tokens that may follow the last
    token. The second, bool [2, V], excludes EOS in its first line and allows every token in its second line.
    """

    def __init__(self, key: np.ndarray, wait_ms: np.ndarray, eos_id: int):
        self.key, self.wait_ms, self.eos_id = key, wait_ms, eos_id
        is_key, is_wait, is_eos = key >= 0, wait_ms > 0, np.arange(len(key)) == eos_id
        after_key = (key >= np.arange(key.max() + 1)[:, None]) | is_wait | is_eos
        follows = np.concatenate([[is_key, is_key | is_wait, is_key], after_key])
        self.tables = follows, np.stack([~is_eos, np.ones_like(is_eos)])
        self.shortest_wait = int(is_wait.argmax())


class MidiLlmGrammar(Grammar):
    """The grammar of rows of `midi-llm` tokens. A bar counts as complete half a wait unit before its end.

    `last_id` is the last token of the prompt. The prompt ends `late_ms` after the bar line at which the rows start. A
    bar lasts `bar_ms`.
    """

    def __init__(
        self,
        rules: MidiLlmRules,
        last_id: int,
        late_ms: float,
        bar_ms: float,
        rows: int,
        max_bars: int | None,
        may_end: bool,
    ):
        self.rules = rules
        self.tables = rules.tables
        super().__init__(rows, max_bars)
        self._bar_ms = max(bar_ms, WAIT_MS)
        self._clock_ms = np.full(rows, late_ms)
        self._waits = np.zeros(rows, np.int64)  # the number of consecutive longest waits
        self.classes[0] = self._after(np.array([last_id]))
        self.classes[1] = WITH_EOS if may_end or max_bars is None else NO_EOS
        self.bars[:] = self._complete_bars()
        if max_bars is not None and late_ms >= self._end_ms:  # the last wait of the prompt spans all requested bars
            self.bars[:], self.ended[:] = max_bars, True

    def feed(self, tokens: np.ndarray) -> None:
        wait_ms = self.rules.wait_ms[tokens]
        at_eos = ~self.ended & (tokens == self.rules.eos_id)
        self.bars[at_eos] += 1  # the current bar ends with the row
        self.ended |= at_eos
        if self.max_bars is not None:
            past = ~self.ended & (wait_ms > 0) & (self._clock_ms + wait_ms >= self._end_ms)
            self.bars[past] = self.max_bars
            self.ended |= past
        active = ~self.ended
        self._clock_ms[active] += wait_ms[active]
        self.bars[active] = self._complete_bars()[active]

        self._waits[active] = np.where(wait_ms == MAX_WAIT_MS, self._waits + 1, 0)[active]
        after = np.where(self._waits == MAX_WAITS, LAST_WAIT, self._after(tokens))
        self.classes[0, active] = after[active]

    def closing(self, row: int) -> np.ndarray:
        if not self.ended[row] or self.max_bars is None or self.bars[row] < self.max_bars:
            return super().closing(row)
        waits = max(0, round((self.max_bars * self._bar_ms - self._clock_ms[row]) / WAIT_MS))
        full, rest = divmod(waits, WAIT_LEVELS)
        lengths = np.array([WAIT_LEVELS] * full + [rest] * (rest > 0), np.int64)
        return self.rules.shortest_wait - 1 + lengths

    def _after(self, tokens: np.ndarray) -> np.ndarray:
        """Return the class of the first table after each token, ignoring the limit on consecutive waits."""
        wait_ms, key = self.rules.wait_ms[tokens], self.rules.key[tokens]
        after_wait = np.where(wait_ms == MAX_WAIT_MS, LONG_WAIT, LAST_WAIT)
        return np.where(key >= 0, FIRST_KEY + key, np.where(wait_ms > 0, after_wait, START))

    @property
    def _end_ms(self) -> float:
        """The time at which the last bar is complete."""
        return self.max_bars * self._bar_ms - WAIT_MS / 2

    def _complete_bars(self) -> np.ndarray:
        """Return the number of complete bars of each row according to its clock, int64 [rows]."""
        return np.maximum((self._clock_ms + WAIT_MS / 2) // self._bar_ms, 0).astype(np.int64)
