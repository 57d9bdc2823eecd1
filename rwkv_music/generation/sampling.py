"""Drawing tokens from a model's probabilities: the filters, the repetition penalty, and the random numbers.

Notable choices:
- Random numbers come from a counter named by (seed, row, position), so that sample 3 of seed 7 draws the same numbers
  whether it is drawn alone or among 512. (Matrix products of another shape may round differently: in bf16 that can
  still tip a draw, in fp32 hardly ever.)
- What repeats in music is its frame: bar lines, positions, lengths, waits, the beat of a drum. A penalty on those would
  break the meter and nothing else, so the repetition penalty counts struck keys alone, a key by instrument and pitch,
  however loud. It answers a model that cannot leave a note; drums and note-offs are never discouraged.
- A draw runs on the device from beginning to end, in tensors that keep their place: a GPU may record it as a graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv_music.errors import UserError

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
        repetition_penalty: nats that a key loses for each time it was struck among the recent tokens, before all
            filters; 0 for none, below 0 rewards repetition.
        repetition_window: how many tokens are recent, those of the prompt included.
        seed: names the random numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 0.0
    repetition_window: int = 128
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
        if not -100 <= self.repetition_penalty <= 100:
            raise UserError(
                f"The repetition penalty is {self.repetition_penalty} nats: choose one from -100 to 100, 0 for none."
            )
        if not 1 <= self.repetition_window <= 2**20:
            raise UserError(f"The repetition window is {self.repetition_window} tokens: choose 1 to {2**20:,}.")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"The seed is {self.seed}: choose a whole number from 0 to 2^64 - 1.")


PLAIN = Sampling()  # the model's own probabilities


def sample_token(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token a row, by inverting the cumulative distribution at a given random number.

    Args:
        logits: [B, V], any float dtype; the arithmetic is float32.
        uniforms: float32 [B] in [0, 1). The draw is a function of its row alone.
        sampling: the filters and the temperature; its penalty and its seed are not used.

    Returns:
        int64 [B]; -1 where a row's logits are not numbers to draw from (NaN, +inf, or all -inf).
    """
    logits = logits.float()
    if sampling.temperature == 0:
        value, token = logits.max(dim=-1)
        return token.masked_fill(~value.isfinite(), -1)
    probability, ids = logits.softmax(dim=-1), None
    if sampling.top_p < 1:
        probability, ids = probability.sort(dim=-1, descending=True, stable=True)
    elif sampling.top_k:
        probability, ids = probability.topk(min(sampling.top_k, probability.shape[-1]), dim=-1)
    likeliest = probability.amax(dim=-1, keepdim=True)
    keep = probability >= sampling.min_p * likeliest
    if sampling.top_p < 1:
        keep &= probability.cumsum(dim=-1) - probability < sampling.top_p
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    weight = ((probability / likeliest) ** (1 / sampling.temperature)).masked_fill(~keep, 0)
    # Tokens of weight zero stand at zero in the cumulative sum too: no rounding of it can make one of them the draw.
    cumulative = weight.cumsum(dim=-1).masked_fill(weight <= 0, 0)
    total = cumulative.amax(dim=-1, keepdim=True)
    place = (cumulative > uniforms[:, None] * total).to(torch.uint8).argmax(dim=-1, keepdim=True)  # the first of them
    token = place if ids is None else ids.gather(-1, place)
    return token.masked_fill(~(total > 0), -1).squeeze(-1)


def uniforms(seed: int, rows: int, device: torch.device | str = "cpu", first_row: int = 0) -> Iterator[Tensor]:
    """Yield float32 [rows] in [0, 1) without end; the numbers of row first_row + i depend on (seed, first_row + i).

    Made by Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), on the host and in blocks: the
    same on every device.
    """
    streams = [np.random.Philox(key=np.array([seed, first_row + row], dtype=np.uint64)) for row in range(rows)]
    while True:
        bits = np.stack([stream.random_raw(UNIFORMS_BLOCK) for stream in streams], axis=1)
        yield from torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(device)


class Sampler:
    """Draws the next token of each of B rows, forbidding what grammars forbid. Every tensor keeps its place in memory.

    Args:
        sampling: how tokens are drawn.
        rows: B.
        vocab_size: V.
        tables: a grammar's, each bool [classes, V]: a token is allowed if every table allows it.
        keys: int64 [V], the key that a token strikes, -1 for the tokens that repetition does not count.

    Attributes:
        numbers: float32 [B], what the next draw uses.
        classes: int64 [len(tables), B], the line of each table that holds for each row's next draw.
        drawn: int64 [B], the tokens of the last draw; -1 where nothing could be drawn.
    """

    def __init__(
        self,
        sampling: Sampling,
        rows: int,
        vocab_size: int,
        tables: Sequence[np.ndarray] = (),
        keys: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        self.sampling = sampling
        self.numbers = torch.zeros(rows, device=device)
        self.classes = torch.zeros(len(tables), rows, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(rows, dtype=torch.int64, device=device)
        # One table under the other, and in it the first line of each.
        self._tables = torch.as_tensor(np.concatenate(tables), device=device) if tables else None
        heights = np.cumsum([0] + [len(table) for table in tables])[:-1]
        self._first_lines = torch.as_tensor(heights, device=device).unsqueeze(1)
        self._struck = None
        if sampling.repetition_penalty:
            keys = np.arange(vocab_size) if keys is None else keys
            self._struck = _StruckKeys(torch.as_tensor(keys, device=device), rows, sampling.repetition_window)

    def start(self, prompt: Tensor) -> None:
        """Forget what was drawn; int64 [T] or [B, T] are the tokens before the first draw."""
        if self._struck is not None:
            self._struck.start(prompt)

    def draw(self, logits: Tensor) -> None:
        """Draw from logits [B, V] into `drawn`."""
        if self._struck is not None:
            logits = logits.float() - self.sampling.repetition_penalty * self._struck.times()
        if self._tables is not None:
            lines = (self.classes + self._first_lines).flatten()
            allowed = self._tables.index_select(0, lines).view(len(self.classes), *logits.shape).all(dim=0)
            logits = logits.masked_fill(~allowed, -torch.inf)
        self.drawn.copy_(sample_token(logits, self.numbers, self.sampling))
        if self._struck is not None:
            self._struck.add(self.drawn)


class _StruckKeys:
    """How often each row struck each key in its last `window` tokens, counted as they come."""

    def __init__(self, keys: Tensor, rows: int, window: int):
        numbers, places = keys.unique(return_inverse=True)
        self._none = len(numbers)  # a key that stands for none of them
        self._place_of = torch.where(keys >= 0, places, self._none)
        self._recent = torch.full((window, rows), self._none, device=keys.device)
        self._counts = torch.zeros(rows, self._none + 1, device=keys.device)
        self._next = torch.zeros(1, dtype=torch.int64, device=keys.device)
        self._one = torch.ones(rows, 1, device=keys.device)

    def start(self, prompt: Tensor) -> None:
        self._recent.fill_(self._none)
        self._counts.zero_()
        self._next.zero_()
        window, rows = self._recent.shape
        for tokens in prompt.expand(rows, -1)[:, -window:].T:
            self.add(tokens)

    def times(self) -> Tensor:
        """float32 [B, V]"""
        return self._counts.index_select(1, self._place_of)

    def add(self, tokens: Tensor) -> None:
        new = self._place_of[tokens.clamp_min(0)].unsqueeze(1)
        old = self._recent.index_select(0, self._next).T
        self._counts.scatter_add_(1, new, self._one).scatter_add_(1, old, -self._one)
        self._counts[:, self._none].zero_()
        self._recent.index_copy_(0, self._next, new.T)
        self._next.add_(1).remainder_(len(self._recent))
