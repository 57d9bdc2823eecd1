"""Completion: a trained model continues a piece from its opening bars.

Notable choices:
- The prompt is read in windows, so memory does not depend on the length of the prompt or the completion.
- A completion has exactly the requested number of bars with every tokenizer: the codec's grammar masks invalid tokens
  and the end of the piece, counts bars, and ends a row when its last bar is full.
- The joined file keeps the events of the prompt's file; the completion is added in tracks of its own (see midi.edit).
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mido
import numpy as np
import torch

from rwkv_music.config import MOST_BARS
from rwkv_music.errors import UserError, explained
from rwkv_music.generation.prompt_file import match_prompt
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.midi.edit import cut_before, join, lengthen
from rwkv_music.midi.events import RejectedMidi
from rwkv_music.midi.time import bar_ticks, tick_seconds
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.grammar import Grammar

ROWS_AT_ONCE = {"cpu": 32, "cuda": 512}  # default batch size by device type
MOST_COMPLETIONS = 100_000
TOKENS_PER_BAR = 64  # minimum budget per bar before `ForcedExit` becomes active


class ForcedExit(Grammar):
    """A grammar that, once `active` is set, ends every row with as few further tokens as possible.

    `moves_on`, bool [V], marks tokens that start no new event. When active, only these are allowed wherever `grammar`
    allows any of them.
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
    """A prompt and its generated continuation.

    `opening` is the prompt's file without the notes after the context, and the tick at which the context ends. It is
    None if the prompt is not a file, or its notes are not exactly those of the prompt's tokens.
    """

    codec: Codec
    prompt: Piece  # BOS and the bars of the context
    new_ids: np.ndarray  # int64 [n], the generated bars, without EOS
    bars: int  # number of bars in `new_ids`
    opening: tuple[mido.MidiFile, int] | None = None

    @property
    def context_bars(self) -> int:
        return len(self.prompt.bar_starts)

    def midi(self) -> mido.MidiFile:
        """Return the prompt (the events of `opening` if there is one, else decoded) and the completion as one file."""
        decoded, decoded_line = self._decoded
        if self.opening is None:
            return decoded
        opening, line = self.opening
        joined = join(opening, line, decoded, decoded_line)
        lengthen(joined, int(bar_ticks(joined, self._leading_bars + self.context_bars + self.bars)[-1]))
        return joined

    def midi_alone(self) -> mido.MidiFile:
        """Return the completion without the prompt, with the tempo, meter and programs in force at its beginning."""
        decoded, line = self._decoded
        alone = cut_before(decoded, line)
        lengthen(alone, int(bar_ticks(alone, self.bars)[-1]))
        return alone

    def prompt_end_seconds(self) -> float:
        """Return the time in seconds at which the completion begins in `midi()`."""
        file, line = self.opening or self._decoded
        return float(tick_seconds(file, np.array([line]))[0])

    @cached_property
    def _decoded(self) -> tuple[mido.MidiFile, int]:
        """All tokens decoded as one file, and the tick at which the prompt ends in it."""
        midi = self.codec.decode(np.concatenate([self.prompt.ids, self.new_ids]), self.prompt.bar_lines)
        lines = bar_ticks(midi, self.context_bars + self.bars)
        lengthen(midi, int(lines[-1]))
        return midi, int(lines[self.context_bars])

    @property
    def _leading_bars(self) -> int:
        """Number of silent bars at the beginning of the file, which a codec leaves out of the prompt."""
        opening, line = self.opening
        return int(np.searchsorted(bar_ticks(opening, MOST_BARS), line)) - self.context_bars


def complete(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike | np.ndarray | Piece,
    *,
    context_bars: int,
    bars: int,
    count: int = 1,
    sampling: Sampling = DEFAULT_SAMPLING,
    max_tokens: int | None = None,
    rows_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue the first `context_bars` bars of `prompt` by `bars` bars, `count` times.

    Args:
        model: an RWKV trained on `codec`'s tokens.
        prompt: a MIDI file, a piece, or ids [T] from `codec.encode`.
        max_tokens: number of new tokens after which a completion is ended with as few further tokens as possible. The
            default is `bars` times the larger of 64 and four times the longest bar of the context, which only a model
            that fails to end its bars exceeds.
        rows_at_once: completions generated in one batch. In bf16 another number may change a draw.
        progress: called after every token with (bars done, bars requested), summed over all completions.

    Raises UserError if the prompt is missing, unreadable or shorter than the context, a count is out of range, or the
    model's logits are not finite.
    """
    check_counts(context_bars, bars, count)
    piece, file = open_prompt(codec, prompt, context_bars)
    longest_bar = int(np.diff(np.append(piece.bar_starts, len(piece.ids))).max())
    max_tokens = max_tokens or bars * max(TOKENS_PER_BAR, 4 * longest_bar)
    vocabulary = codec.token_properties
    rows = min(count, rows_at_once or ROWS_AT_ONCE[torch.device(model.device).type])

    def new_grammar() -> ForcedExit:
        return ForcedExit(codec.grammar(piece, rows, bars), vocabulary.moves_on)

    opening = None if file is None else match_prompt(codec, file, piece)
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
    """Raise UserError if a number of bars or completions is out of range. `count_name` is the flag of `count`."""
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
) -> tuple[Piece, mido.MidiFile | None]:
    """Return the first `context_bars` bars of a prompt, and the parsed file, or None if it is not a file.

    Raises UserError for a file that is missing or unreadable, and for a prompt with fewer bars.
    """
    name, file = "The prompt", None
    if isinstance(prompt, Piece):
        piece = prompt
    elif isinstance(prompt, np.ndarray):
        piece = Piece(prompt, codec.bar_starts(prompt))
    else:
        name = str(prompt)
        with explained(f"reading {name}"):
            data = Path(prompt).read_bytes()
        try:
            piece = codec.encode_piece(data)
        except RejectedMidi as error:
            raise UserError(f"{name} cannot be a prompt ({error}): give a MIDI file with notes.") from error
        try:
            file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        except (OSError, ValueError, EOFError, KeyError, IndexError):  # errors of mido for files that the codec accepts
            file = None
    n_bars = len(piece.bar_starts)
    if n_bars < context_bars:
        remedy = f"give a longer prompt, or --context-bars {n_bars}" if n_bars else "give a piece with notes"
        raise UserError(
            f"{name} has {n_bars} bar{'s' * (n_bars != 1)}, fewer than --context-bars {context_bars}: {remedy}."
        )
    return codec.first_bars(piece, context_bars), file
