"""Autoregressive generation of B rows with one model: per token, a step of the decoder and a draw of the sampler."""

from collections.abc import Iterator

import numpy as np
import torch

from rwkv_music.errors import UserError
from rwkv_music.generation.decoder import Decoder, as_cuda_graph, make_decoder
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampler, Sampling, uniforms
from rwkv_music.model_v8 import State
from rwkv_music.tokenizers.grammar import Grammar


class TokenGenerator:
    """A generator of continuations of prompts, on B rows at once.

    After a draw, the host first starts the model's step on the drawn token. While the device computes this step, the
    host reads the token and advances the grammar. On a GPU, the step of a `Decoder` and the draw are one CUDA graph
    each; with a `ModelDecoder`, no graphs are used.

    The weights of the model must not change during the lifetime of this object. `tables` are those of the grammars that
    are passed to `generate`. `keys` is as for `Sampler`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        rows: int,
        sampling: Sampling = DEFAULT_SAMPLING,
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
            self._draw = as_cuda_graph(draw, self._device) if record else draw
            self._step = as_cuda_graph(decoder.step, self._device) if record else decoder.step
        # Host buffers; asynchronous copies from and to a GPU need pinned memory.
        self._drawn = torch.zeros(rows, dtype=torch.int64, pin_memory=self._on_gpu)
        self._classes = torch.zeros(len(tables), rows, dtype=torch.int64, pin_memory=self._on_gpu)

    @torch.no_grad()
    def generate(
        self, prompt_ids: np.ndarray, grammar: Grammar | None = None, first_row: int = 0, state: State | None = None
    ) -> Iterator[np.ndarray]:
        """Yield the next token of each row, int64 [B], indefinitely. The caller decides when to stop.

        Args:
            prompt_ids: [T], T >= 1, the same for all rows; or [B, T], one per row.
            grammar: a grammar for this prompt and B rows, which receives each token before the token is yielded.
            first_row: index of the first row, which selects the rows' random numbers.
            state: the state before the prompt, with one row or B rows; None for the initial state.

        Raises UserError if the model's logits are not finite.
        """
        prompt = torch.as_tensor(np.asarray(prompt_ids, np.int64), device=self._device)
        self._decoder.read(prompt, state)
        self._sampler.start(prompt)
        drawn = self._drawn.numpy()
        for numbers in uniforms(self._sampling.seed, self._rows, self._device, first_row):
            self._sampler.numbers.copy_(numbers)
            if grammar is not None:
                self._classes.numpy()[:] = grammar.classes
                self._sampler.classes.copy_(self._classes, non_blocking=True)
            self._draw()
            self._drawn.copy_(self._sampler.drawn, non_blocking=True)
            copied = torch.cuda.Event() if self._on_gpu else None
            if copied is not None:
                copied.record()
            self._step()  # queued before the host waits for the token
            if copied is not None:
                copied.synchronize()
            if drawn.min() < 0:
                raise UserError(
                    "The model's logits are not finite, so no token can be drawn: use a checkpoint from before "
                    "training diverged."
                )
            token = drawn.copy()
            if grammar is not None:
                grammar.feed(token)
            yield token
