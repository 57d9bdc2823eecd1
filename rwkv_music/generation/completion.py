"""Completions: a trained model continues a piece from its opening bars.

Notable choices:
- The prompt is read in parallel, a window at a time with the state carried, then tokens come one by one from the state:
  memory depends neither on the prompt's length nor on the completion's.
- A completion is exact to the bar, in every tokenizer: the codec's grammar forbids what would make no sense or end the
  piece, counts the bars, and says when the last of those that were asked for is full.
- The device is never waited for: the step on a token is under way while the host looks at that token and asks the
  grammar what may follow it. On a GPU a step and a draw are one recorded graph each.
- The joined file has the prompt's own events, and the completion's in tracks of their own (see splicing.py).
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mido
import numpy as np
import torch

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path
from rwkv_music.generation.decoder import Decoder, make_decoder, read_prompt, recorded
from rwkv_music.generation.prompt_file import match_prompt
from rwkv_music.generation.sampling import PLAIN, Sampler, Sampling, uniforms
from rwkv_music.midi import piano_roll
from rwkv_music.midi.edit import cut_before, join, lengthen
from rwkv_music.midi.events import RejectedMidi
from rwkv_music.model_v8 import State
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.grammar import Grammar
from rwkv_music.tokenizers.vocabulary import read_vocabulary

ROWS_AT_ONCE = {"cpu": 32, "cuda": 512}  # by device type
MOST_COMPLETIONS, MOST_BARS = 100_000, 10_000
TOKENS_PER_BAR = 64  # at least, before a completion is led to its end by the shortest way


class Player:
    """Continues prompts on B rows at once, token by token.

    Args:
        model: an RWKV, on whatever device. Its weights must not change while this lives.
        rows: B.
        sampling: how tokens are drawn.
        tables: those of the grammars that `play` will be given.
        keys: see `Sampler`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        rows: int,
        sampling: Sampling = PLAIN,
        tables: tuple[np.ndarray, ...] = (),
        keys: np.ndarray | None = None,
    ):
        self._model, self._rows, self._sampling = model, rows, sampling
        self._device = torch.device(model.device)
        self._on_gpu = self._device.type == "cuda"
        self._decoder = decoder = make_decoder(model, rows)
        self._sampler = sampler = Sampler(sampling, rows, model.config.vocab_size, tables, keys, self._device)

        def draw() -> None:
            sampler.draw(decoder.logits)
            decoder.token.copy_(sampler.drawn.clamp_min(0))

        record = self._on_gpu and isinstance(decoder, Decoder)
        with torch.no_grad():
            self._draw = recorded(draw, self._device) if record else draw
            self._step = recorded(decoder.step, self._device) if record else decoder.step
        # Where the device leaves what it drew and finds what may follow: a GPU copies from and to pinned memory alone.
        self._drawn = torch.zeros(rows, dtype=torch.int64, pin_memory=self._on_gpu)
        self._classes = torch.zeros(len(tables), rows, dtype=torch.int64, pin_memory=self._on_gpu)

    @torch.no_grad()
    def play(
        self,
        prompt_ids: np.ndarray,
        grammar: Grammar | None = None,
        first_row: int = 0,
        state: State | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the next token of each row, int64 [B], without end: the caller stops when it has enough.

        Args:
            prompt_ids: [T], T >= 1, read once for all rows; or [B, T], one a row.
            grammar: for that prompt and B rows; it is fed each token before that is yielded.
            first_row: the number of the first row, which names its random numbers.
            state: what came before the prompt, of one row or of B; None for nothing.

        Raises:
            UserError: when the model's logits are not finite.
        """
        prompt = torch.as_tensor(np.asarray(prompt_ids, np.int64), device=self._device)
        logits, state = read_prompt(self._model, prompt, state)
        self._decoder.start(logits, state)
        self._sampler.start(prompt)
        del logits, state
        drawn = self._drawn.numpy()
        for numbers in uniforms(self._sampling.seed, self._rows, self._device, first_row):
            self._sampler.numbers.copy_(numbers)
            if grammar is not None:
                self._classes.numpy()[:] = grammar.classes
                self._sampler.classes.copy_(self._classes, non_blocking=True)
            self._draw()
            self._drawn.copy_(self._sampler.drawn, non_blocking=True)
            arrived = torch.cuda.Event() if self._on_gpu else None
            if arrived is not None:
                arrived.record()
            self._step()  # the device goes on, while the host waits for the token alone
            if arrived is not None:
                arrived.synchronize()
            if drawn.min() < 0:
                raise UserError(
                    "The model's output is not finite, so no token can be drawn: use a checkpoint from before it "
                    "diverged."
                )
            token = drawn.copy()
            if grammar is not None:
                grammar.feed(token)
            yield token


class ForcedExit(Grammar):
    """A grammar that, once it is told to, leads every row to its end by the shortest way.

    Args:
        grammar: what may come next.
        moves_on: bool [V], the tokens that begin nothing new. Where a row may take one of them, it must.
    """

    def __init__(self, grammar: Grammar, moves_on: np.ndarray):
        self._grammar = grammar
        self._moves_on = moves_on
        self.tables = (*grammar.tables, np.stack([np.ones_like(moves_on), moves_on]))
        super().__init__(len(grammar.ended), grammar.max_bars)
        self.hurries = False
        self._take_over()

    def feed(self, tokens: np.ndarray) -> None:
        self._grammar.feed(tokens)
        self._take_over()

    def closing(self, row: int) -> np.ndarray:
        return self._grammar.closing(row)

    def _take_over(self) -> None:
        self.classes[:-1] = self._grammar.classes
        if self.hurries:
            self.classes[-1] = (self._grammar.allowed() & self._moves_on).any(axis=-1)
        self.bars, self.ended = self._grammar.bars, self._grammar.ended


@dataclass(frozen=True)
class Completion:
    """A prompt and what a model made of it.

    Attributes:
        codec: what the ids mean.
        prompt: BOS and the context's bars.
        new_ids: int64 [n], the bars that follow; no EOS.
        bars: bars in `new_ids`.
        opening: the file that the prompt is from without the notes after it, and the tick at which its bars end; None
            where no file says note for note what the prompt's tokens say.
    """

    codec: Codec
    prompt: Piece
    new_ids: np.ndarray
    bars: int
    opening: tuple[mido.MidiFile, int] | None = None

    @property
    def context_bars(self) -> int:
        return len(self.prompt.bar_starts)

    def midi(self) -> mido.MidiFile:
        """The prompt and its completion as one piece.

        The prompt's events are those of its file where there is one; else they are decoded like the completion's.
        """
        decoded, decoded_line = self._decoded
        if self.opening is None:
            return decoded
        opening, line = self.opening
        joined = join(opening, line, decoded, decoded_line)
        lengthen(joined, int(piano_roll.bar_ticks(joined, self._leading_bars + self.context_bars + self.bars)[-1]))
        return joined

    def midi_alone(self) -> mido.MidiFile:
        """The completion without its prompt, under the tempo, meter and instruments that the prompt set."""
        decoded, line = self._decoded
        alone = cut_before(decoded, line)
        lengthen(alone, int(piano_roll.bar_ticks(alone, self.bars)[-1]))
        return alone

    def prompt_end_seconds(self) -> float:
        """When the completion begins in the joined piece."""
        file, line = self.opening or self._decoded
        return float(piano_roll.tick_seconds(file, np.array([line]))[0])

    @cached_property
    def _decoded(self) -> tuple[mido.MidiFile, int]:
        """All tokens as a file, and the tick at which the prompt ends in it."""
        midi = self.codec.decode(np.concatenate([self.prompt.ids, self.new_ids]), self.prompt.bar_lines)
        lines = piano_roll.bar_ticks(midi, self.context_bars + self.bars)
        lengthen(midi, int(lines[-1]))
        return midi, int(lines[self.context_bars])

    @property
    def _leading_bars(self) -> int:
        """Bars of the file before those of the prompt: silence that a codec leaves out."""
        opening, line = self.opening
        return int(np.searchsorted(piano_roll.bar_ticks(opening, MOST_BARS), line)) - self.context_bars


def complete(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike | np.ndarray | Piece,
    *,
    context_bars: int,
    bars: int,
    count: int = 1,
    sampling: Sampling = PLAIN,
    max_tokens: int | None = None,
    rows_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue the first `context_bars` bars of `prompt` by `bars` bars, `count` times.

    Args:
        model: an RWKV trained on `codec`'s tokens.
        codec: the tokenizer of the model's data.
        prompt: a MIDI file, a piece, or the ids of one [T] as `codec.encode` gives them.
        context_bars: bars kept of the prompt, at least 1.
        bars: bars to add, at least 1.
        count: how many completions.
        sampling: how tokens are drawn.
        max_tokens: from how many tokens on a completion is led to its end by the shortest way; by default, for each bar
            asked for, four times the tokens of the context's longest bar and 64 at least, so that only a model that
            lost its way meets it.
        rows_at_once: how many completions are made side by side; it changes none of them.
        progress: called after every token with the bars done so far and the bars asked for, over all completions.

    Raises:
        UserError: a prompt that is missing, unreadable or shorter than its context; a count of bars or completions that
            makes no sense; a model that puts out NaN.
    """
    check_counts(context_bars, bars, count)
    piece, file = open_prompt(codec, prompt, context_bars)
    longest_bar = int(np.diff(np.append(piece.bar_starts, len(piece.ids))).max())
    max_tokens = max_tokens or bars * max(TOKENS_PER_BAR, 4 * longest_bar)
    vocabulary = read_vocabulary(codec)
    rows = min(count, rows_at_once or ROWS_AT_ONCE[torch.device(model.device).type])

    def new_grammar() -> ForcedExit:
        return ForcedExit(codec.grammar(piece, rows, bars), vocabulary.moves_on)

    opening = None if file is None else match_prompt(codec, file, piece)
    player = Player(model, rows, sampling, new_grammar().tables, vocabulary.keys)
    completions: list[Completion] = []
    for first_row in range(0, count, rows):
        grammar = new_grammar()
        drawn: list[list[int]] = [[] for _ in range(rows)]
        tokens = player.play(piece.ids, grammar, first_row)
        step = 0
        while not grammar.ended.all():
            step += 1
            grammar.hurries = step > max_tokens
            token = next(tokens)
            for row in np.flatnonzero(~grammar.ended):
                drawn[row].append(int(token[row]))
            if progress:
                wanted = min(rows, count - first_row)
                progress(first_row * bars + int(grammar.bars[:wanted].sum()), count * bars)
        completions += [
            Completion(codec, piece, np.array([*ids, *grammar.closing(row)], np.int64), int(grammar.bars[row]), opening)
            for row, ids in enumerate(drawn[: count - first_row])
        ]
    return completions


def check_counts(context_bars: int, bars: int, count: int, count_name: str = "--count") -> None:
    """Raises UserError for what no completion can be made of."""
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
    """The first `context_bars` bars of a prompt, and its file if it is one.

    Raises UserError for a file that is missing or not music, or one with fewer bars.
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
        except (OSError, ValueError, EOFError, KeyError, IndexError):  # what mido raises for what the codec could read
            file = None
    n_bars = len(piece.bar_starts)
    if n_bars < context_bars:
        has = f"{n_bars} bar{'s' * (n_bars != 1)}, fewer than the {context_bars} of its context"
        remedy = f"give a longer prompt, or --context-bars {n_bars}" if n_bars else "give a piece with notes"
        raise UserError(f"{name} has {has}: {remedy}.")
    return codec.first_bars(piece, context_bars), file


def complete_to_files(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike,
    out: str | os.PathLike,
    *,
    context_bars: int,
    bars: int,
    count: int = 1,
    sampling: Sampling = PLAIN,
    completion_only: bool = False,
) -> list[Completion]:
    """Complete the MIDI file `prompt` and write what comes of it, with a progress bar: the `generate` command.

    The files are those of `save_completions`; the arguments and errors those of `complete`.
    """
    from tqdm import tqdm

    completion_paths(out, count, prompt)  # a bad name is told before the work, not after it
    with tqdm(total=count * bars, unit=" bars", desc="completing") as bar:
        completions = complete(
            model,
            codec,
            prompt,
            context_bars=context_bars,
            bars=bars,
            count=count,
            sampling=sampling,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    save_completions(completions, out, completion_only)
    return completions


def completion_paths(out: str | os.PathLike, count: int, prompt: str | os.PathLike | None = None) -> list[Path]:
    """The .mid files of `count` completions: OUT.mid for one, OUT-1.mid, OUT-2.mid ... for several.

    Raises UserError for a name that does not end in .mid or .midi, or if one of them is the file `prompt`.
    """
    out = Path(out)
    if out.suffix.lower() not in (".mid", ".midi"):
        raise UserError(f"{out} is not the name of a MIDI file: give one that ends in .mid.")
    paths = [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, count + 1)]
    if prompt is not None and Path(prompt).resolve() in [path.resolve() for path in paths]:
        raise UserError(f"The completion would overwrite its prompt, {prompt}: choose another --out.")
    return paths


def save_completions(
    completions: list[Completion], out: str | os.PathLike, completion_only: bool = False
) -> list[Path]:
    """Write each completion, joined to its prompt or alone, as a .mid file and as a piano roll beside it (.png).

    Every file is whole or absent. Returns the .mid paths (see `completion_paths`).
    Raises UserError where they cannot be written.
    """
    paths = completion_paths(out, len(completions))
    for completion, path in zip(completions, paths, strict=True):
        midi = completion.midi_alone() if completion_only else completion.midi()
        with explained(f"writing the completion {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                midi.save(partial)
        prompt_end = 0.0 if completion_only else completion.prompt_end_seconds()
        piano_roll.draw(midi, path.with_suffix(".png"), prompt_end, path.stem)
    return paths
