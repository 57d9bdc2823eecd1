"""Finding the part of a MIDI file that a prompt's tokens were encoded from."""

import io

import mido
import numpy as np

from rwkv_music.midi.edit import without_notes_from
from rwkv_music.midi.events import RejectedMidi
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import BarGrid
from rwkv_music.tokenizers.codec import Codec, Piece

GRID_DIVISORS = (0, 48, 96)  # half a grid step is this fraction of a quarter note; 0 for exact bar lines


def match_prompt(codec: Codec, midi: mido.MidiFile, prompt: Piece) -> tuple[mido.MidiFile, int] | None:
    """Return (`midi` without the notes after the prompt, the tick at which the prompt's bars end).

    Return None if no opening of `midi` encodes to the tokens of `prompt`.
    """
    first_note = read_notes(midi).start_tick[:1]
    bars = BarGrid.from_midi(midi)
    for leading in {0, *bars.bar(first_note).tolist()}:  # a codec may drop the silent bars before the first note
        line = int(bars.lines(leading + len(prompt.bar_starts))[-1])
        for divisor in GRID_DIVISORS:  # quantization may move a note just before the line into the next bar
            opening = without_notes_from(midi, line - (-(-midi.ticks_per_beat // divisor) if divisor else 0))
            if _encodes_to(codec, opening, prompt):
                return opening, line
    return None


def _encodes_to(codec: Codec, opening: mido.MidiFile, prompt: Piece) -> bool:
    """Return whether `opening` has the notes of `prompt` and its tokens up to the end of the shorter of the two."""
    file = io.BytesIO()
    try:
        opening.save(file=file)
        ids = codec.encode_piece(file.getvalue()).ids
    except (RejectedMidi, ValueError):  # there are no notes, or mido cannot write an event that it can read
        return False
    n = min(len(ids) - 1, len(prompt.ids))  # without EOS
    return np.array_equal(ids[:n], prompt.ids[:n]) and codec.count_notes(ids) == codec.count_notes(prompt.ids)
