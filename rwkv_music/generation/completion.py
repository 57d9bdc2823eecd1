"""Completion: a trained model continues a piece from its opening bars, or writes a piece from scratch.

Notable choices:
- The prompt is read in windows, so memory depends neither on its length nor on that of the completion.
- With every tokenizer, a completion has exactly the requested number of bars. The codec's grammar masks invalid tokens
  and the end of the piece, counts bars, and ends a row (one completion) when its last bar is full.
- The resulting file keeps the events of the prompt's file before the bar line at which the completion begins
  (prompt_file.py). If the tokens name parts, the completion goes into the tracks of its parts (continuation.py).
  Otherwise it goes into new tracks (midi/join.py).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import mido
import numpy as np
import torch

from rwkv_music.config import MOST_BARS
from rwkv_music.errors import UserError, explained
from rwkv_music.files import read_file
from rwkv_music.generation.continuation import continue_parts
from rwkv_music.generation.prompt_file import Opening, check_context, read_opening
from rwkv_music.generation.prompt_tags import tagged
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.midi.edit import cut_before, lengthen
from rwkv_music.midi.join import join
from rwkv_music.midi.regions import Region
from rwkv_music.midi.time import BarGrid, bar_ticks
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.grammar import Grammar
from rwkv_music.tokenizers.multitrack import Multitrack

ROWS_AT_ONCE = {"cpu": 32, "cuda": 512}  # default batch size by device type
MOST_COMPLETIONS = 100_000
TOKENS_PER_BAR = 64  # minimum number of tokens per bar before `ForcedExit` becomes active
TOKENS_PER_FREE_BAR = 1024  # number of tokens per bar before `ForcedExit` becomes active, if there is no context


class ForcedExit(Grammar):
    """A grammar that ends every row with as few further tokens as possible after `active` is set.

    `moves_on`, bool [V], marks the tokens that end a bar soonest (`Vocabulary.moves_on`). An active grammar allows only
    the marked tokens that `grammar` allows or, if there are none, all tokens that `grammar` allows.
    """

    def __init__(self, grammar: Grammar, moves_on: np.ndarray):
        self._grammar = grammar
        self._moves_on = moves_on
        self.tables = (*grammar.tables, np.stack([np.ones_like(moves_on), moves_on]))
        super().__init__(len(grammar.ended), grammar.max_bars)
        self.active = False
        self._update()

    def feed(self, tokens: np.ndarray) -> None:
        self._grammar.feed(tokens)
        self._update()

    def closing(self, row: int) -> np.ndarray:
        return self._grammar.closing(row)

    def _update(self) -> None:
        self.classes[:-1] = self._grammar.classes
        if self.active:
            self.classes[-1] = (self._grammar.allowed() & self._moves_on).any(axis=-1)
        self.bars, self.ended = self._grammar.bars, self._grammar.ended


@dataclass(frozen=True)
class Completion:
    """A prompt and its generated continuation. `opening` is None if the prompt is not a file."""

    codec: Codec
    prompt: Piece  # BOS and the bars of the context
    new_ids: np.ndarray  # int64 [n], the generated bars, without EOS
    bars: int  # number of bars in `new_ids`
    opening: Opening | None = None

    @property
    def context_bars(self) -> int:
        return len(self.prompt.bar_starts) if self.opening is None else self.opening.bars

    def midi(self) -> mido.MidiFile:
        """Return the prompt and the completion as one file. If there is no `opening`, the prompt is decoded."""
        if self.opening is None:
            return self._decoded[0]
        if isinstance(self.codec, Multitrack):
            return continue_parts(self.opening, self.prompt, self.new_ids, self.bars)
        joined = join(
            self.opening.midi,
            self.opening.line,
            self._decoded[0],
            len(self.prompt.bar_starts),
            self.bars,
            self.codec.decoded_program,
            self.codec.velocities_include_volume,
        )
        lengthen(joined, int(self._lines_from(joined, self.opening.line)[-1]))
        return joined

    def midi_alone(self) -> mido.MidiFile:
        """Return only the completion, with the tempo, meter, programs and controllers that it has in `midi()`."""
        midi, line = self._decoded if self.opening is None else (self.midi(), self.opening.line)
        alone = cut_before(midi, line)
        lengthen(alone, int(self._lines_from(alone, 0)[-1]))
        return alone

    def regions(self) -> list[Region]:
        """Return the bars of `midi()` that the model has written."""
        midi, line = self._decoded if self.opening is None else (self.opening.midi, self.opening.line)
        return [Region(int(BarGrid.from_midi(midi).bar(line)), self.bars)]

    @cached_property
    def _decoded(self) -> tuple[mido.MidiFile, int]:
        """All tokens decoded as one file, and the tick at which the prompt ends in it."""
        midi = self.codec.decode(np.concatenate([self.prompt.ids, self.new_ids]), self.prompt.bar_lines)
        prompt_bars = len(self.prompt.bar_starts)
        lines = bar_ticks(midi, prompt_bars + self.bars)
        lengthen(midi, int(lines[-1]))
        return midi, int(lines[prompt_bars])

    def _lines_from(self, midi: mido.MidiFile, line: int) -> np.ndarray:
        """Return the ticks of the completion's bar lines in `midi`, where the completion starts at tick `line`."""
        grid = BarGrid.from_midi(midi)
        first = int(grid.bar(line))
        return grid.lines(first + self.bars)[first:]


def complete(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike | np.ndarray | Piece | None = None,
    *,
    context_bars: int = 4,
    bars: int,
    count: int = 1,
    tags: Mapping[str, str] | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    max_tokens: int | None = None,
    rows_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue the first `context_bars` bars of `prompt` by `bars` bars, `count` times.

    Args:
        model: an RWKV trained on `codec`'s tokens.
        prompt: a MIDI file, a piece, or ids [T] from `codec.encode`; None for a piece from scratch.
        context_bars: the number of bars of the prompt to continue. It has no effect without a prompt.
        tags: the tags of the piece by column, such as {"composer": "bach"}, for models trained on data with tags.
        max_tokens: number of new tokens after which a completion is ended with as few further tokens as possible. The
            default for each requested bar is four times the number of tokens in the longest bar of the context, but at
            least 64. Without a context, the default is 1,024 for each bar. A completion reaches the limit only if the
            model fails to end its bars.
        rows_at_once: number of completions generated in one batch. The drawn tokens can depend on it, rarely in fp32.
        progress: called after every token with (bars done, bars requested), summed over all completions.

    Raises UserError if the prompt's file cannot be read, if the prompt is shorter than the context, if a count is out
    of range, if the tokenizer does not have a tag, or if the model's logits are not finite.
    """
    check_counts(context_bars, bars, count)
    if prompt is None:
        piece, opening, bar_tokens = codec.empty_piece(), None, TOKENS_PER_FREE_BAR
    else:
        piece, opening = open_prompt(codec, prompt, context_bars)
        bar_tokens = max(TOKENS_PER_BAR, 4 * int(np.diff(np.append(piece.bar_starts, len(piece.ids))).max()))
    piece = tagged(codec, piece, tags or {})
    max_tokens = max_tokens or bars * bar_tokens
    vocabulary = codec.token_properties
    rows = min(count, rows_at_once or ROWS_AT_ONCE[torch.device(model.device).type])

    def new_grammar() -> ForcedExit:
        return ForcedExit(codec.grammar(piece, rows, bars), vocabulary.moves_on)

    generator = TokenGenerator(model, rows, sampling, new_grammar().tables, vocabulary.keys)
    completions: list[Completion] = []
    for first_row in range(0, count, rows):
        grammar = new_grammar()
        drawn: list[list[int]] = [[] for _ in range(rows)]
        tokens = generator.generate(piece.ids, grammar, first_row)
        step = 0
        while not grammar.ended.all():
            step += 1
            grammar.active = step > max_tokens
            token = next(tokens)
            for row in np.flatnonzero(~grammar.ended):
                drawn[row].append(int(token[row]))
            if progress:
                used_rows = min(rows, count - first_row)
                progress(first_row * bars + int(grammar.bars[:used_rows].sum()), count * bars)
        completions += [
            Completion(codec, piece, np.array([*ids, *grammar.closing(row)], np.int64), int(grammar.bars[row]), opening)
            for row, ids in enumerate(drawn[: count - first_row])
        ]
    return completions


def check_counts(context_bars: int, bars: int, count: int, count_name: str = "--count") -> None:
    """Raise UserError if a number of bars or of completions is out of range. `count_name` is the option for `count`."""
    limits = {
        "--context-bars": (context_bars, MOST_BARS),
        "--bars": (bars, MOST_BARS),
        count_name: (count, MOST_COMPLETIONS),
    }
    for name, (value, most) in limits.items():
        if value < 1:
            raise UserError(f"{name} is {value}: give 1 or more.")
        if value > most:
            raise UserError(f"{name} is {value}: give {most:,} at most.")


def open_prompt(
    codec: Codec, prompt: str | os.PathLike | np.ndarray | Piece, context_bars: int
) -> tuple[Piece, Opening | None]:
    """Return the first `context_bars` bars of a prompt as tokens and, if the prompt is a file, as events.

    Raises UserError for a prompt with fewer bars, and for a file that is missing, unreadable or without notes in these
    bars.
    """
    if not isinstance(prompt, Piece | np.ndarray):
        with explained(f"reading {prompt}"):
            data = read_file(prompt)
        return read_opening(codec, data, context_bars, str(prompt))
    piece = prompt if isinstance(prompt, Piece) else Piece(prompt, codec.bar_starts(prompt))
    check_context("The prompt", len(piece.bar_starts), context_bars)
    return codec.first_bars(piece, context_bars), None
