"""Piano continuation in the form of the MIREX 2025 task (see midi/mirex.py)."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from rwkv_music.errors import UserError, explained
from rwkv_music.generation.completion import check_counts, complete
from rwkv_music.generation.completion_files import numbered_paths
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.midi.mirex import NEW_BARS, PROMPT_BARS, from_score, to_midi, write_notes
from rwkv_music.midi.score import read_score
from rwkv_music.tokenizers.codec import Codec


def continue_prompt(
    model: torch.nn.Module,
    codec: Codec,
    prompt: np.ndarray,
    count: int = 1,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> list[np.ndarray]:
    """Write the twelve bars after a prompt, `count` times.

    `prompt` and each result are int64 [n, 3]: (start, pitch, duration), times in sixteenth notes. If the model writes
    time signatures other than 4/4, a result still contains the notes that start in the 48 quarter notes after the
    prompt. Drums are left out. Raises UserError if the prompt has no notes.
    """
    if not len(prompt):
        raise UserError("The prompt has no notes: give at least one.")
    midi, context_bars = to_midi(prompt)
    # The file ends with its last note. If the prompt ends with silent bars, the model also generates these bars, and
    # they are dropped from the result.
    read_bars = read_score(midi).n_bars
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.mid"
        midi.save(path)
        bars = context_bars + NEW_BARS - read_bars
        completions = complete(model, codec, path, context_bars=read_bars, bars=bars, count=count, sampling=sampling)
    return [from_score(read_score(completion.midi()), context_bars)[1] for completion in completions]


def generation_paths(out: str | os.PathLike, count: int, prompt: str | os.PathLike) -> list[Path]:
    """Return the paths of `count` continuations: OUT.json for one, OUT-1.json, OUT-2.json ... for several.

    Raises UserError if `out` does not end in .json, if one of the paths is the file `prompt`, or if `count` is out of
    range.
    """
    check_counts(PROMPT_BARS, NEW_BARS, count)
    out = Path(out)
    if out.suffix.lower() != ".json":
        raise UserError(f"{out} is not the name of a JSON file: give an --out that ends in .json.")
    return numbered_paths(out, count, prompt)


def save_generations(generations: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
    """Write the results of `continue_prompt` to files. Raises UserError if a file cannot be written."""
    for notes, path in zip(generations, paths, strict=True):
        with explained(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_notes(path, notes)
