"""Continuing a file in its own tracks, for tokenizers whose tokens name the parts of a piece."""

import mido
import numpy as np

from rwkv_music.generation.prompt_file import Opening
from rwkv_music.midi.cells import Cell, NewBar, NewPart, continue_cells
from rwkv_music.midi.parts import Part
from rwkv_music.midi.time import BarGrid
from rwkv_music.tokenizers.codec import Piece
from rwkv_music.tokenizers.multitrack import read_tokens
from rwkv_music.tokenizers.multitrack_vocabulary import STEPS


def continue_parts(opening: Opening, prompt: Piece, new_ids: np.ndarray, bars: int) -> mido.MidiFile:
    """Return a file with the events of an opening, followed by `bars` bars of `new_ids`.

    Args:
        prompt: the opening as a piece of the codec multitrack.
        new_ids: int64 [n], the tokens after the prompt.

    Each part continues in its track and channel. A part that does not occur in the opening gets a new track.
    """
    score = read_tokens(np.concatenate([prompt.ids, new_ids]))
    n_before = len(prompt.bar_starts)
    first_new_bar = int(BarGrid.from_midi(opening.midi).bar(opening.line - 1)) + 1 if opening.line else 0
    n_own = sum(part.track < len(opening.midi.tracks) for part in prompt.parts)
    parts: list[Part | NewPart] = list(prompt.parts[:n_own])
    index = {number: number - 1 for number in range(1, n_own + 1)}
    is_new = (score.bar >= n_before) & (score.bar < n_before + bars)
    cells = []
    for bar, number in np.unique(np.stack([score.bar[is_new], score.part[is_new]], axis=1), axis=0).tolist():
        own = (score.bar == bar) & (score.part == number)
        if number not in index:
            index[number] = len(parts)
            parts.append(NewPart(int(score.program[own][0])))
        rows = (score.start[own] / STEPS, score.duration[own] / STEPS, score.pitch[own], score.velocity[own])
        cells.append(Cell(first_new_bar + bar - n_before, index[number], np.column_stack(rows)))
    new_bars = []
    for bar in range(n_before, n_before + bars):
        changes = [bar == 0 or (values[bar] != values[bar - 1]).any() for values in (score.signature, score.tempo)]
        signature, tempo = tuple(score.signature[bar].tolist()), int(score.tempo[bar])
        new_bars.append(NewBar(signature if changes[0] else None, tempo if changes[1] else None))
    return continue_cells(opening.midi, opening.line, parts, cells, new_bars, opening.released)
