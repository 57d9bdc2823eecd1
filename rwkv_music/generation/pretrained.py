"""The public RWKV class: the model with `from_pretrained` and `generate`."""

import os

import numpy as np
import torch
from torch import Tensor

from rwkv_music import model_v8
from rwkv_music.checkpoint.weights import load_pretrained
from rwkv_music.errors import plural
from rwkv_music.generation.sampling import Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.model_v8 import State


class RWKV(model_v8.RWKV):
    """A `model_v8.RWKV` that can also load weights from a path and generate tokens."""

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "RWKV":
        """Load the model with the weights at `path`. It is in evaluation mode, and all its parameters are trainable.

        Args:
            path: a `.pth` file (BlinkDL's v7 or v8), a `.safetensors` file, a run or checkpoint of train.py, or a
                folder exported for Hugging Face. The shapes of the tensors determine the shape of the model.
            device: defaults to the GPU if there is one, otherwise to the CPU.
            dtype: dtype of all parameters. Defaults to float32 on a CPU, and to bfloat16 on a GPU, where the kernels
                require it.

        Raises UserError if `path` does not exist, is damaged, was converted for inference, or has no RWKV v7 or v8
        model.
        """
        return load_pretrained(path, device, dtype, model_class=cls)

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        *,
        state: State | None = None,
        stop_tokens: tuple[int, ...] = (),
        **sampling: float,
    ) -> Tensor:
        """Continue each row of `input_ids` token by token, without gradients.

        Args:
            input_ids: int64 [B, T], T >= 1.
            max_new_tokens: maximum number of tokens to add, at least 1.
            state: the state before `input_ids`, with batch B; None for the initial state.
            stop_tokens: after a row has drawn one of these tokens, it repeats the token until all rows have drawn one.
            sampling: the fields of `Sampling`: temperature, top_p, top_k, min_p, repetition_penalty,
                repetition_window, seed. Row b draws its random numbers from (seed, b).

        Returns only the new tokens, int64 [B, n], n <= max_new_tokens. Raises ValueError if shapes do not match or if a
        token is outside the vocabulary. Raises TypeError for an unknown sampling option. Raises UserError if a sampling
        option is out of range or if the logits are not finite.
        """
        if input_ids.dim() != 2 or not input_ids.numel() or input_ids.is_floating_point():
            raise ValueError(
                f"input_ids is {input_ids.dtype} {list(input_ids.shape)}: give int64 [B, T], B and T 1 or more."
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: give 1 or more.")
        if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.config.vocab_size:
            size = self.config.vocab_size
            raise ValueError(f"input_ids has a token outside the vocabulary of {size}: give 0 to {size - 1}.")
        rows = len(input_ids)
        if state is not None and state.wkv.shape[1] != rows:
            raise ValueError(
                f"The state has {plural(state.wkv.shape[1], 'row')}, but input_ids has {rows}: use equal numbers."
            )
        stops, done, drawn = np.array(stop_tokens, np.int64), np.zeros(rows, bool), []
        generator = TokenGenerator(self, rows, Sampling(**sampling))
        for token in generator.generate(input_ids.cpu().numpy(), state=state):
            drawn.append(np.where(done, drawn[-1], token) if drawn else token)
            done = np.isin(drawn[-1], stops)
            if done.all() or len(drawn) == max_new_tokens:
                break
        return torch.from_numpy(np.stack(drawn, axis=1)).to(input_ids.device)
