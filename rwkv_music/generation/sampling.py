"""Sampling of tokens: filters, repetition penalty and random numbers.

Notable choices:
- Random numbers are a function of (seed, row, position). Row 3 of seed 7 uses the same numbers alone or in a batch of
  512. (But matrix products may round differently with another batch size. This can change a token in bf16, and rarely
  in fp32.)
- The repetition penalty counts only melodic notes, by instrument and pitch, at any loudness. Tokens for the meter
  (bars, positions, durations, waits) and drums naturally repeat. Penalizing them would break the meter.
- A draw runs entirely on the device in preallocated tensors, so it can be recorded as a CUDA graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv_music.errors import UserError

UNIFORMS_BLOCK = 256  # random numbers generated at a time, per row


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. Raises UserError if a value is out of range.

    First the grammar mask and the repetition penalty are applied. Each filter then applies to the resulting
    probabilities, and a token must pass all filters. The most likely token always passes. Last, the temperature is
    applied to the remaining tokens, as in the `rwkv` package and llama.cpp. A high temperature therefore never admits a
    token that was filtered out.

    The repetition penalty, in nats, is subtracted from the logit of a note for each time that the same instrument
    played the same pitch within the window. A negative value rewards repetition.
    """

    temperature: float = 1.0  # probabilities are raised to 1 / temperature; 0 is greedy decoding
    top_p: float = 1.0  # keep the likeliest tokens up to this probability sum (Holtzman et al. 2020, arXiv 1904.09751)
    top_k: int = 0  # keep this many of the likeliest tokens (Fan et al. 2018, arXiv 1805.04833); 0: all
    min_p: float = 0.0  # minimum fraction of the highest probability (Nguyen et al. 2024, arXiv 2407.01082)
    repetition_penalty: float = 0.0
    repetition_window: int = 128  # number of most recent tokens, including those of the prompt
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"The temperature is {self.temperature}: choose 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}: choose a probability above 0, at most 1 (1 keeps all tokens).")
        if not 0 <= self.top_k <= 2**20:
            raise UserError(f"top-k is {self.top_k}: choose a number of tokens up to {2**20:,}, or 0 to keep all.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min-p is {self.min_p}: choose a fraction from 0 (keeps all tokens) to 1.")
        if not -100 <= self.repetition_penalty <= 100:
            raise UserError(
                f"The repetition penalty is {self.repetition_penalty} nats: choose a value from -100 to 100 (0: none)."
            )
        if not 1 <= self.repetition_window <= 2**20:
            raise UserError(f"The repetition window is {self.repetition_window} tokens: choose 1 to {2**20:,}.")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"The seed is {self.seed}: choose a whole number from 0 to 2^64 - 1.")


DEFAULT_SAMPLING = Sampling()  # the model's own probabilities


def sample_token(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution at a given random number.

    Args:
        logits: [B, V], any float dtype. The computation is in float32.
        uniforms: float32 [B] in [0, 1). A draw depends only on its own row.
        sampling: the filters and the temperature. The penalty and the seed are not used.

    Returns int64 [B]. An element is -1 if the row's logits define no distribution (NaN, +inf, or all -inf).
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
    # Tokens of weight zero also get zero in the cumulative sum, so that rounding cannot select one of them.
    cumulative = weight.cumsum(dim=-1).masked_fill(weight <= 0, 0)
    total = cumulative.amax(dim=-1, keepdim=True)
    place = (cumulative > uniforms[:, None] * total).to(torch.uint8).argmax(dim=-1, keepdim=True)  # the first True
    token = place if ids is None else ids.gather(-1, place)
    return token.masked_fill(~(total > 0), -1).squeeze(-1)


def uniforms(seed: int, rows: int, device: torch.device | str = "cpu", first_row: int = 0) -> Iterator[Tensor]:
    """Yield float32 [rows] in [0, 1) indefinitely.

    Element i of the n-th tensor depends only on (seed, first_row + i, n). The numbers are generated by Philox (Salmon
    et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") on the host, so they are the same for every device.
    """
    streams = [np.random.Philox(key=np.array([seed, first_row + row], dtype=np.uint64)) for row in range(rows)]
    while True:
        bits = np.stack([stream.random_raw(UNIFORMS_BLOCK) for stream in streams], axis=1)
        yield from torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(device)


class Sampler:
    """A sampler of B rows that masks tokens with the tables of a grammar. All tensors stay at fixed addresses.

    Args:
        tables: the tables of a grammar, each bool [classes, V]. A token is allowed if every table allows it.
        keys: int64 [V], a number for the (instrument, pitch) that a token plays; -1 for tokens without a penalty. None
            gives each token its own number.
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
        self.numbers = torch.zeros(rows, device=device)  # random numbers of the next draw
        self.classes = torch.zeros(len(tables), rows, dtype=torch.int64, device=device)  # class in each table, by row
        self.drawn = torch.zeros(rows, dtype=torch.int64, device=device)  # the last draw (see `sample_token`)
        # All tables concatenated, and the offset of each.
        self._tables = torch.as_tensor(np.concatenate(tables), device=device) if tables else None
        offsets = np.cumsum([0] + [len(table) for table in tables])[:-1]
        self._table_offsets = torch.as_tensor(offsets, device=device).unsqueeze(1)
        self._recent_keys = None
        if sampling.repetition_penalty:
            keys = np.arange(vocab_size) if keys is None else keys
            self._recent_keys = _RecentKeys(torch.as_tensor(keys, device=device), rows, sampling.repetition_window)

    def start(self, prompt: Tensor) -> None:
        """Set the window of the repetition penalty to the last tokens of `prompt`, int64 [T] or [B, T]."""
        if self._recent_keys is not None:
            self._recent_keys.start(prompt)

    def draw(self, logits: Tensor) -> None:
        """Draw from logits [B, V] into `drawn`."""
        if self._recent_keys is not None:
            logits = logits.float() - self.sampling.repetition_penalty * self._recent_keys.counts()
        if self._tables is not None:
            lines = (self.classes + self._table_offsets).flatten()
            allowed = self._tables.index_select(0, lines).view(len(self.classes), *logits.shape).all(dim=0)
            logits = logits.masked_fill(~allowed, -torch.inf)
        self.drawn.copy_(sample_token(logits, self.numbers, self.sampling))
        if self._recent_keys is not None:
            self._recent_keys.add(self.drawn)


class _RecentKeys:
    """A counter of how often each key occurs in the last `window` tokens of each row."""

    def __init__(self, keys: Tensor, rows: int, window: int):
        distinct, indices = keys.unique(return_inverse=True)
        self._none = len(distinct)  # index of tokens without a key
        self._index_of = torch.where(keys >= 0, indices, self._none)
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

    def counts(self) -> Tensor:
        """Return how often each token's key occurs in the window: float32 [B, V]."""
        return self._counts.index_select(1, self._index_of)

    def add(self, tokens: Tensor) -> None:
        new = self._index_of[tokens.clamp_min(0)].unsqueeze(1)
        old = self._recent.index_select(0, self._next).T
        self._counts.scatter_add_(1, new, self._one).scatter_add_(1, old, -self._one)
        self._counts[:, self._none].zero_()
        self._recent.index_copy_(0, self._next, new.T)
        self._next.add_(1).remainder_(len(self._recent))
