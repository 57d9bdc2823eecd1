"""Completions of held-out pieces, and measures of the completed bars and of the real bars."""

import os

import torch

from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError
from rwkv_music.evaluation.losses import held_out_split
from rwkv_music.generation.completion import check_counts, complete
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.midi.edit import cut_before
from rwkv_music.midi.measures import Measures, measure
from rwkv_music.midi.time import bar_ticks
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Codec


def sample_measures(
    model: torch.nn.Module,
    codec: Codec,
    data: str | os.PathLike,
    samples: int,
    *,
    context_bars: int = 4,
    bars: int = 8,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> tuple[list[Measures], list[Measures]]:
    """Complete held-out pieces, and measure the completions and the same bars of the real pieces.

    The pieces are those of the validation split, or of the training split if the validation split is empty. They are
    used in order, and repeatedly if there are fewer than `samples`.

    Only the `bars` bars after the first `context_bars` bars are measured. Return the measures of the real bars, one per
    piece, and the measures of the completions, one per sample. Raises UserError if no piece is long enough.
    """
    check_counts(context_bars, bars, samples, "--samples")
    split = held_out_split(data)
    prompts = [piece for piece in Pieces(data, split, codec) if len(piece.bar_starts) >= context_bars + bars]
    if not prompts:
        raise UserError(
            f"No piece in the {split} split of {data} has {context_bars + bars} bars: "
            "choose fewer --context-bars or --bars."
        )
    real, completed = [], []
    for i, piece in enumerate(progress_bar(prompts[:samples], "completing")):
        whole = codec.first_bars(piece, context_bars + bars)
        decoded = codec.decode(whole.ids, whole.bar_lines)
        real.append(measure(cut_before(decoded, int(bar_ticks(decoded, context_bars)[-1]))))
        count = len(range(i, samples, len(prompts)))
        made = complete(model, codec, piece, context_bars=context_bars, bars=bars, count=count, sampling=sampling)
        completed += [measure(completion.midi_alone()) for completion in made]
    return real, completed
