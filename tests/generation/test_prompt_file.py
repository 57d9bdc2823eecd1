"""Finding the opening of a file that a prompt was encoded from."""

import pytest

from rwkv_music.generation.prompt_file import match_prompt
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import bar_ticks
from rwkv_music.tokenizers.registry import make_codec
from tests.midi.midi_files import file_of, make_midi, note


@pytest.mark.parametrize("tokenizer", ["remi", "midi-llm"])
@pytest.mark.parametrize("early", [0, 7, 30])
def test_match_prompt_finds_the_opening(tokenizer, early):
    """The file starts with silent bars, and one note is slightly early, so that `remi` moves it into the third bar."""
    codec = make_codec(tokenizer)
    lead = 2 * 1920
    times = [lead, lead + 960, lead + 1920, lead + 2 * 1920 - early, lead + 2 * 1920 + 960]
    midi = make_midi([message for i, t in enumerate(times) for message in note(t, t + 400, 60 + i)])
    piece = codec.encode_piece(file_of(midi))
    leading = len(bar_ticks(midi, 5)) - 1 - len(piece.bar_starts)
    prompt = codec.first_bars(piece, 4 - leading)
    opening, line = match_prompt(codec, midi, prompt)
    assert line == lead + 2 * 1920
    assert len(read_notes(opening)) == codec.count_notes(prompt.ids)
    assert match_prompt(codec, make_midi(note(0, 100, 90)), prompt) is None
