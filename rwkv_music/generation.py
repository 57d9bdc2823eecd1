"""Completions: a trained model continues a piece from its opening bars.

Notable choices:
- The prompt is read in parallel, a window at a time with the state carried, then tokens come one by one from the state:
  memory depends neither on the prompt's length nor on the completion's.
- A completion is exact to the bar. It begins with a token that opens a bar, and ends before the one that would open the
  bar after the last one asked for.
- Random numbers come from a counter named by (seed, row, position), so that sample 3 of seed 7 draws the same numbers
  whether it is drawn alone or among 512. (Matrix products of another shape may round differently: in bf16 that can
  still tip a draw, in fp32 hardly ever.)
- The host waits for the device once a token, to see which rows have ended.
- `sample_token` draws from whatever logits it is given: what forbids or discourages tokens edits the logits before it.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mido
import numpy as np
import torch
from torch import Tensor

from rwkv_music import pianoroll
from rwkv_music.data.codecs import Codec, RejectedMidi
from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path

PREFILL_WINDOW = 1024  # tokens of the prompt read at once
UNIFORMS_BLOCK = 256  # random numbers made ahead, a row


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from a model's probabilities.

    Every filter looks at the model's own probabilities, a token stays if all filters keep it, and the temperature
    reshapes what is left: raising it never lets in a token that the model found implausible. RWKV's `rwkv` package and
    llama.cpp apply their temperature last too. The likeliest token always stays.

    Attributes:
        temperature: exponent 1 / temperature on the probabilities; 1 leaves them, 0 always takes the likeliest token.
        top_p: keep the smallest set of likeliest tokens whose probabilities reach this sum (nucleus sampling, Holtzman
            et al. 2020, arXiv 1904.09751); 1 keeps all.
        top_k: keep this many of the likeliest tokens (Fan et al. 2018, arXiv 1805.04833); 0 keeps all.
        min_p: keep tokens at least this probable relative to the likeliest one (Nguyen et al. 2024, arXiv 2407.01082);
            0 keeps all.
        seed: names the random numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"The temperature is {self.temperature}: choose 0 (always the likeliest token) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}: choose a probability above 0, at most 1 (1 keeps all tokens).")
        if self.top_k < 0:
            raise UserError(f"top-k is {self.top_k}: choose how many tokens to keep, or 0 to keep all.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min-p is {self.min_p}: choose a fraction from 0 (keeps all tokens) to 1.")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"The seed is {self.seed}: choose a whole number from 0 to 2^64 - 1.")


def sample_token(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token a row, by inverting the cumulative distribution at a given random number.

    Args:
        logits: [B, V], any float dtype; the arithmetic is float32.
        uniforms: float32 [B] in [0, 1). The draw is a function of its row alone.
        sampling: the filters and the temperature; its seed is not used.

    Returns:
        int64 [B]; -1 where a row's logits are not numbers to draw from (NaN, +inf, or all -inf).
    """
    logits = logits.float()
    if sampling.temperature == 0:
        value, token = logits.max(dim=-1)
        return torch.where(value.isfinite(), token, -1)
    probability, ids = logits.softmax(dim=-1), None
    if sampling.top_p < 1 or sampling.top_k:
        probability, ids = probability.sort(dim=-1, descending=True, stable=True)
    likeliest = probability.amax(dim=-1, keepdim=True)
    keep = probability >= sampling.min_p * likeliest
    if sampling.top_p < 1:
        keep &= probability.cumsum(dim=-1) - probability < sampling.top_p
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    weight = torch.where(keep, (probability / likeliest) ** (1 / sampling.temperature), 0)
    # Tokens of weight zero stand at zero in the cumulative sum too: no rounding of it can make one of them the draw.
    cumulative = torch.where(weight > 0, weight.cumsum(dim=-1), 0)
    total = cumulative.amax(dim=-1, keepdim=True)
    place = (cumulative > uniforms[:, None] * total).to(torch.uint8).argmax(dim=-1, keepdim=True)  # the first of them
    token = place if ids is None else ids.gather(-1, place)
    return torch.where(total > 0, token, -1).squeeze(-1)


def uniforms(seed: int, rows: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Yield float32 [rows] in [0, 1) without end; the numbers of row i depend on (seed, i) alone.

    Made by Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), on the host and in blocks: the
    same on every device.
    """
    streams = [np.random.Philox(key=np.array([seed, row], dtype=np.uint64)) for row in range(rows)]
    while True:
        bits = np.stack([stream.random_raw(UNIFORMS_BLOCK) for stream in streams], axis=1)
        yield from torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(device)


@torch.no_grad()  # not inference mode: under ZeRO-3 weights that are gathered here are trained on
def generate(
    model: torch.nn.Module,
    prompt_ids: np.ndarray | Tensor,
    sampling: Sampling,
    samples: int = 1,
    first_allowed: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Continue prompts token by token, without end: the caller stops when it has enough.

    Args:
        model: an RWKV.
        prompt_ids: [T] or [B, T] token ids, T >= 1.
        sampling: how tokens are drawn.
        samples: how many continuations of each prompt; the prompt is read once.
        first_allowed: bool [V], the tokens that the first draw may take; all of them when None.

    Yields:
        int64 [B * samples], the next token of each row; the continuations of one prompt stand together.

    Raises:
        UserError: when the model's logits are not finite.
    """
    device = next(model.parameters()).device
    prompt = torch.atleast_2d(torch.as_tensor(prompt_ids, dtype=torch.int64, device=device))
    state = model.init_state(len(prompt))
    for window in prompt.split(PREFILL_WINDOW, dim=1):
        logits, state = model(window, state=state)
    logits = logits[:, -1].repeat_interleave(samples, dim=0)
    if samples > 1:
        state = state.rows(torch.arange(len(prompt)).repeat_interleave(samples))
    if first_allowed is not None:
        forbidden = torch.as_tensor(~first_allowed, device=device)
        logits = logits.masked_fill(forbidden, -torch.inf)
    for numbers in uniforms(sampling.seed, len(logits), device):
        token = sample_token(logits, numbers, sampling)
        token_on_host = token.cpu().numpy()
        if token_on_host.min() < 0:
            raise UserError(
                "The model's output is not finite, so no token can be drawn: use a checkpoint from before it diverged."
            )
        yield token_on_host
        logits, state = model(token[:, None], state=state)
        logits = logits[:, -1]


@dataclass(frozen=True)
class Completion:
    """A prompt and what a model made of it.

    Attributes:
        codec: what the ids mean.
        prompt_ids: int64 [P], BOS and the context's bars.
        new_ids: int64 [n], the bars that follow; no EOS.
        context_bars: bars in the prompt.
        bars: bars in `new_ids`.
        ended: "bars": all that were asked for; "eos": the model ended the piece before that; "budget": the tokens ran
            out, within the last bar.
    """

    codec: Codec
    prompt_ids: np.ndarray
    new_ids: np.ndarray
    context_bars: int
    bars: int
    ended: Literal["bars", "eos", "budget"]

    def midi(self) -> mido.MidiFile:
        """The prompt and its completion as one piece."""
        return self.codec.decode(np.concatenate([self.prompt_ids, self.new_ids]))

    def midi_alone(self) -> mido.MidiFile:
        """The completion without its prompt, under the tempo, meter and instruments that the prompt set."""
        joined = self.midi()
        return cut_before(joined, int(pianoroll.bar_ticks(joined, self.context_bars)[-1]))

    def prompt_end_seconds(self) -> float:
        """When the completion begins in the joined piece."""
        joined = self.midi()
        return float(pianoroll.tick_seconds(joined, pianoroll.bar_ticks(joined, self.context_bars))[-1])


def complete(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike | np.ndarray,
    *,
    context_bars: int,
    bars: int,
    count: int = 1,
    sampling: Sampling = Sampling(),
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue the first `context_bars` bars of `prompt` by `bars` bars, `count` times.

    Args:
        model: an RWKV trained on `codec`'s tokens.
        codec: the tokenizer of the model's data.
        prompt: a MIDI file, or the ids of a piece [T] as `codec.encode` gives them.
        context_bars: bars kept of the prompt, at least 1.
        bars: bars to add, at least 1.
        count: how many completions.
        sampling: how tokens are drawn.
        max_tokens: the most tokens a completion may take; by default, for each bar asked for, four times the tokens of
            the context's longest bar and 64 at least, so that only a model that lost its way meets it.
        progress: called after every token with the bars done so far and the bars asked for, over all completions.

    Raises:
        UserError: a prompt that is missing, unreadable or shorter than its context; a count of bars or completions
            below 1; a model that puts out NaN.
    """
    for name, value in (("--context-bars", context_bars), ("--bars", bars), ("--count", count)):
        if value < 1:
            raise UserError(f"{name} is {value}: give 1 or more.")
    prompt_ids, longest_bar = read_prompt(codec, prompt, context_bars)
    max_tokens = max_tokens or bars * max(64, 4 * longest_bar)
    opens_bar = _bar_openers(codec)

    new_ids = np.empty((count, max_tokens), dtype=np.int64)
    opened = np.zeros(count, dtype=np.int64)
    length = np.full(count, max_tokens)
    ended = np.full(count, "budget", dtype=object)
    running = np.ones(count, dtype=bool)
    steps = generate(model, prompt_ids, sampling, samples=count, first_allowed=opens_bar)
    for step, token in zip(range(max_tokens), steps, strict=False):
        past_last_bar, at_eos = opens_bar[token] & (opened == bars), token == codec.eos_id
        stops = running & (past_last_bar | at_eos)
        length[stops] = step
        ended[stops] = np.where(at_eos, "eos", "bars")[stops]
        running &= ~stops
        new_ids[:, step] = token
        opened += running & opens_bar[token]
        if progress:
            progress(int(np.where(running, opened - 1, bars).sum()), count * bars)
        if not running.any():
            break
    return [
        Completion(codec, prompt_ids, new_ids[row, : length[row]], context_bars, int(opened[row]), ended[row])
        for row in range(count)
    ]


def read_prompt(codec: Codec, prompt: str | os.PathLike | np.ndarray, context_bars: int) -> tuple[np.ndarray, int]:
    """A prompt's ids up to the end of its first `context_bars` bars, int64 [P], and the tokens in the longest of them.

    Raises UserError for a file that is missing or not music, or one with fewer bars.
    """
    if isinstance(prompt, np.ndarray):
        name, ids = "The prompt", prompt
    else:
        name = str(prompt)
        try:
            ids = codec.encode(Path(prompt))
        except RejectedMidi as error:
            raise UserError(f"{name} cannot be a prompt ({error}): give a MIDI file with notes.") from error
    ids = np.asarray(ids, dtype=np.int64)
    ids = ids[: len(ids) - (len(ids) > 0 and ids[-1] == codec.eos_id)]
    bar_starts = np.append(codec.bar_starts(ids), len(ids))
    n_bars = len(bar_starts) - 1
    if n_bars < context_bars:
        bars = f"{n_bars} bar{'s' * (n_bars != 1)}, fewer than the {context_bars} of its context"
        remedy = f"give a longer prompt, or --context-bars {n_bars}" if n_bars else "give a piece with notes"
        raise UserError(f"{name} has {bars}: {remedy}.")
    return ids[: bar_starts[context_bars]], int(np.diff(bar_starts[: context_bars + 1]).max())


def complete_to_files(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike,
    out: str | os.PathLike,
    *,
    context_bars: int,
    bars: int,
    count: int = 1,
    sampling: Sampling = Sampling(),
) -> list[Completion]:
    """Complete the MIDI file `prompt` and write what comes of it, with a progress bar: the `generate` command.

    The files are those of `save_completions`; the arguments and errors those of `complete`.
    """
    from tqdm import tqdm

    completion_paths(out, count)  # a bad name is told before the work, not after it
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
    save_completions(completions, out)
    return completions


def completion_paths(out: str | os.PathLike, count: int) -> list[Path]:
    """The .mid files of `count` completions: OUT.mid for one, OUT-1.mid, OUT-2.mid ... for several.

    Raises UserError for a name that does not end in .mid or .midi.
    """
    out = Path(out)
    if out.suffix.lower() not in (".mid", ".midi"):
        raise UserError(f"{out} is not the name of a MIDI file: give one that ends in .mid.")
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, count + 1)]


def save_completions(completions: list[Completion], out: str | os.PathLike) -> list[Path]:
    """Write each completion, joined to its prompt, as a .mid file and as a piano roll beside it (.png).

    Every file is whole or absent. Returns the .mid paths (see `completion_paths`).
    Raises UserError where they cannot be written.
    """
    paths = completion_paths(out, len(completions))
    for completion, path in zip(completions, paths, strict=True):
        midi = completion.midi()
        with explained(f"writing the completion {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                midi.save(partial)
        pianoroll.draw(midi, path.with_suffix(".png"), completion.prompt_end_seconds(), path.stem)
    return paths


def cut_before(midi: mido.MidiFile, tick: int) -> mido.MidiFile:
    """What of `midi` begins at `tick` or later, moved to the beginning.

    Notes begun before are left out whole; tempo, meter, key, names, programs, controllers and pitch bends keep the
    value that they have at `tick`.
    """
    cut = mido.MidiFile(type=midi.type, ticks_per_beat=midi.ticks_per_beat)
    for track in midi.tracks:
        settings: dict[tuple, mido.messages.BaseMessage] = {}
        left_sounding: dict[tuple[int, int], int] = {}
        kept = mido.MidiTrack()
        now = last = 0
        for message in track:
            now += message.time
            if message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                begins = message.type == "note_on" and message.velocity > 0
                if now < tick:
                    left_sounding[key] = max(0, left_sounding.get(key, 0) + (1 if begins else -1))
                    continue
                if not begins and left_sounding.get(key):  # notes of one pitch close in order
                    left_sounding[key] -= 1
                    continue
            elif now < tick:
                if message.type in ("set_tempo", "time_signature", "key_signature", "track_name", "instrument_name"):
                    settings[message.type,] = message
                elif message.type in ("program_change", "pitchwheel", "aftertouch", "control_change"):
                    settings[message.type, message.channel, getattr(message, "control", None)] = message
                continue
            kept.append(message.copy(time=now - max(last, tick)))
            last = now
        cut.tracks.append(mido.MidiTrack([*(message.copy(time=0) for message in settings.values()), *kept]))
    return cut


def _bar_openers(codec: Codec) -> np.ndarray:
    """bool [V], the tokens that open a bar."""
    opens_bar = np.zeros(codec.vocab_size, dtype=bool)
    opens_bar[codec.bar_starts(np.arange(codec.vocab_size))] = True
    return opens_bar
