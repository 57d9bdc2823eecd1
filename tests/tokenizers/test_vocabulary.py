"""Token properties, compared with the behavior of the codecs."""

import numpy as np
import pytest

from rwkv_music.midi.events import DRUMS
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec
from rwkv_music.tokenizers.vocabulary import NONE, read_vocabulary


@pytest.mark.parametrize("name", TOKENIZERS)
def test_onsets_match_count_notes(name):
    codec = make_codec(name)
    v = read_vocabulary(codec)
    tokens = np.arange(codec.vocab_size)
    assert v.is_onset.tolist() == [bool(codec.count_notes(tokens[i : i + 1])) for i in tokens]
    assert (v.pitch[v.is_onset] >= 0).all() and v.pitch.max() == 127
    assert not v.compound


def test_remi():
    codec = make_codec("remi")
    v = read_vocabulary(codec)
    at = {token: i for i, token in enumerate(codec.vocabulary)}
    assert v.pitch[at["Pitch_60"]] == v.pitch[at["PitchDrum_60"]] == 60
    assert v.program[at["Program_40"]] == 40
    assert v.program[at["Program_-1"]] == v.program[at["PitchDrum_35"]] == DRUMS
    assert (v.loudness[at["Velocity_3"]], v.loudness[at["Velocity_127"]]) == (0, 31)
    assert v.tempo[at["Tempo_30.0"]] == 0 and v.tempo[at["Tempo_480.0"]] == 64
    assert v.keys[at["Pitch_60"]] >= 0 and v.keys[at["PitchDrum_60"]] == NONE
    assert v.moves_on[[at["Bar_None"], at["Velocity_3"]]].all() and not v.moves_on[at["Position_0"]]


def test_midi_llm():
    codec = make_codec("midi-llm")
    v = read_vocabulary(codec)
    at = {token: i for i, token in enumerate(codec.vocabulary)}
    assert v.wait[at["t1"]] == 1 and v.wait[at["t125"]] == 125 and v.wait[at["pi:3c:8"]] == NONE
    assert v.pitch[at["pi:3c:8"]] == v.pitch[at["pi:3c:0"]] == 60
    assert (v.loudness[at["pi:3c:0"]], v.loudness[at["pi:3c:1"]], v.loudness[at["pi:3c:b"]]) == (NONE, 0, 10)
    assert v.program[at["p:24:5"]] == DRUMS and v.program[at["b:24:5"]] == 32
    assert v.keys[at["pi:3c:1"]] == v.keys[at["pi:3c:b"]] != v.keys[at["g:3c:b"]]
    assert v.keys[at["pi:3c:0"]] == v.keys[at["p:24:5"]] == NONE
    assert v.moves_on[at["t125"]] and not v.moves_on[at["t124"]]


def test_midi_llm_piano():
    v = read_vocabulary(make_codec("midi-llm-piano"))
    assert set(v.program.tolist()) == {NONE, 0} and (v.keys[v.is_onset] >= 0).all()
