"""Continuations in the form of the MIREX task."""

from types import SimpleNamespace

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.generation import mirex
from rwkv_music.generation.mirex import continue_prompt
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.events import to_track
from rwkv_music.midi.score import read_score
from tests.midi.midi_files import note

BAR = 4 * 480  # ticks
QUARTERS = [[16 + 4 * i, 60 + i, 4] for i in range(16)]


@pytest.mark.parametrize(
    ("prompt", "context_bars", "bars"),
    [
        (QUARTERS, 4, 12),
        ([[12, 55, 4], *QUARTERS], 5, 12),
        (QUARTERS[:5], 2, 14),  # two silent bars before the line, which the model writes
    ],
    ids=["four bars", "upbeat", "silence before the line"],
)
def test_twelve_bars_follow_the_prompt(monkeypatch, prompt, context_bars, bars):
    def complete(model, codec, path, **options):
        """Return files with notes on the context's last line, in the first new bar, before the end and after it."""
        assert options == {"context_bars": context_bars, "bars": bars, "count": 2, "sampling": Sampling(seed=1)}
        score = read_score(path)
        assert score.n_bars == context_bars and len(score.notes) == len(prompt)
        end = (context_bars + bars) * BAR
        completed = []
        for pitch in (70, 71):
            midi = mido.MidiFile(path)
            midi.type = 1
            ticks = context_bars * BAR, end - 12 * BAR + 530, end - 240, end
            midi.tracks.append(to_track([m for tick in ticks for m in note(tick, tick + 240, pitch)]))
            completed.append(SimpleNamespace(midi=lambda midi=midi: midi))
        return completed

    monkeypatch.setattr(mirex, "complete", complete)
    found = continue_prompt(None, None, np.array(prompt), count=2, sampling=Sampling(seed=1))
    for notes, pitch in zip(found, (70, 71), strict=True):
        on_the_line = [[80, pitch, 2]] if bars == 12 else []
        assert notes.tolist() == [*on_the_line, [84, pitch, 2], [270, pitch, 2]]


def test_a_prompt_without_notes_is_refused():
    with pytest.raises(UserError, match="prompt"):
        continue_prompt(None, None, np.zeros((0, 3), int))
