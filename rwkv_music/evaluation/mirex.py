"""Continuations of held-out pieces in the form of the MIREX task (midi/mirex.py), compared with two references.

A prompt consists of four bars of 4/4 from a real piece, converted to one piano part in sixteenth notes. A continuation
has twelve bars. One reference is the real music. The other is a copy, which repeats the four bars of the prompt three
times. Each prompt is continued `VARIANTS` times, as one batch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError
from rwkv_music.evaluation.fills import VARIANTS
from rwkv_music.evaluation.losses import held_out_split
from rwkv_music.generation.completion import check_counts
from rwkv_music.generation.mirex import continue_prompt
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.midi.fill_measures import FillMeasures, fill_measures
from rwkv_music.midi.measures import Measures, compared, measure
from rwkv_music.midi.mirex import (
    BAR,
    NEW_BARS,
    PROMPT_BARS,
    PROMPT_END,
    STEPS_PER_QUARTER,
    from_score,
    has_form,
    repeated_prompt,
    to_midi,
)
from rwkv_music.midi.score import NOTE, Score, in_order, read_score
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Codec

REAL, MODEL, COPY = "real", "model", "copy of prompt"


@dataclass(frozen=True)
class MirexReport:
    """The results of `evaluate_mirex`. The keys are REAL, MODEL and COPY, the sources of the twelve bars."""

    split: str
    prompts: int
    measures: dict[str, list[Measures]]
    against_real: dict[str, list[FillMeasures]]  # without REAL


def evaluate_mirex(
    model: torch.nn.Module,
    codec: Codec,
    data: str | os.PathLike,
    count: int,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> MirexReport:
    """Write `count` continuations of held-out pieces, and compare them with the real music and with a copy.

    The pieces are those of the validation split, or of the training split if the validation split is empty. They are
    used in order, and repeatedly if there are too few. Raises UserError if no piece has 16 bars of 4/4 with notes.
    """
    check_counts(PROMPT_BARS, NEW_BARS, count, "--mirex")
    split = held_out_split(data)
    needed = -(-count // VARIANTS)
    pairs = []
    for pair in _prompts(codec, Pieces(data, split, codec)):
        pairs.append(pair)
        if len(pairs) == needed:
            break
    if not pairs:
        raise UserError(
            f"No piece in the {split} split of {data} has {PROMPT_BARS + NEW_BARS} bars of 4/4 with notes: prepare "
            "other pieces, or leave out --mirex."
        )
    measures: dict[str, list[Measures]] = {REAL: [], MODEL: [], COPY: []}
    against_real: dict[str, list[FillMeasures]] = {MODEL: [], COPY: []}
    marked = np.ones((NEW_BARS, 1), bool)
    for number in progress_bar(range(needed), "continuing"):
        prompt, real = pairs[number % len(pairs)]
        own = replace(sampling, seed=(sampling.seed + number) % 2**64)
        written = {
            MODEL: continue_prompt(model, codec, prompt, min(VARIANTS, count - number * VARIANTS), own),
            COPY: [repeated_prompt(prompt)] if number < len(pairs) else [],
        }
        if number < len(pairs):
            measures[REAL].append(_measured(real))
        for name, variants in written.items():
            measures[name] += [_measured(notes) for notes in variants]
            against_real[name] += [fill_measures(_score(real), _score(notes).notes, marked) for notes in variants]
    return MirexReport(split, min(needed, len(pairs)), measures, against_real)


def _prompts(codec: Codec, pieces: Pieces) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the prompt and the next twelve bars, int64 [n, 3] each, of every piece in which all these bars are in 4/4.

    The prompt begins with the first bar or, after an upbeat, with the second bar.
    """
    for piece in pieces:
        score = read_score(codec.decode(piece.ids, piece.bar_lines))
        first_bar = next((bar for bar in (0, 1) if has_form(score, PROMPT_BARS, bar)), None)
        if first_bar is None:
            continue
        prompt, real = from_score(score, PROMPT_BARS, first_bar)
        if len(prompt) and len(real):
            yield prompt, real


def _measured(notes: np.ndarray) -> Measures:
    """Return the measures of twelve bars, given as notes, int64 [n, 3]."""
    return measure(to_midi(notes - [PROMPT_END - BAR, 0, 0])[0])


def _score(notes: np.ndarray) -> Score:
    """Return twelve bars, given as notes, int64 [n, 3], as a score with one part."""
    found = np.zeros(len(notes), NOTE)
    found["start"] = (notes[:, 0] - PROMPT_END) / STEPS_PER_QUARTER
    found["end"] = found["start"] + notes[:, 2] / STEPS_PER_QUARTER
    found["pitch"] = notes[:, 1]
    return Score(in_order(found), np.arange(NEW_BARS + 1) * BAR / STEPS_PER_QUARTER)


def as_table(report: MirexReport) -> str:
    """Format a report as two text tables."""
    n = len(report.measures[MODEL])
    return "\n".join(
        [
            f"twelve bars in the form of MIREX; {report.split}; continuations: {n}; prompts: {report.prompts}; mean +- "
            "standard deviation:",
            compared(list(report.measures), list(report.measures.values())),
            "",
            "against the true twelve bars:",
            compared(list(report.against_real), list(report.against_real.values())),
        ]
    )
