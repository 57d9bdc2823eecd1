"""Token properties, compared with the behavior of the codecs."""

import numpy as np
import pytest

from rwkv_music.data.augment import Augmenter
from rwkv_music.data.pieces import Pieces
from rwkv_music.midi.events import DRUMS
from rwkv_music.tokenizers.midi_llm import MidiLlm
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec
from rwkv_music.tokenizers.vocabulary import NONE


@pytest.mark.parametrize("name", TOKENIZERS)
def test_onsets_match_count_notes(name):
    codec = make_codec(name)
    v = codec.token_properties
    tokens = np.arange(codec.vocab_size)
    assert v.is_onset.tolist() == [bool(codec.count_notes(tokens[i : i + 1])) for i in tokens]
    assert (v.pitch[v.is_onset] >= 0).all() and v.pitch.max() == 127


def test_multitrack():
    codec = make_codec("multitrack")
    v = codec.token_properties
    at = {token: i for i, token in enumerate(codec.vocabulary)}
    assert v.pitch[at["Pitch_60"]] == v.pitch[at["PitchDrum_60"]] == 60
    assert v.program[at["Program_40"]] == 40
    assert v.program[at["Program_Drums"]] == v.program[at["PitchDrum_35"]] == DRUMS
    assert v.part[at["Part_2"]] == 2 and v.part[at["Pitch_60"]] == NONE
    assert (v.loudness[at["Velocity_4"]], v.loudness[at["Velocity_127"]]) == (0, 31)
    assert v.tempo[at["Tempo_30.0"]] == 0 and v.tempo[at["Tempo_480.0"]] == 64
    assert v.tempo_steps_per_octave == 16
    assert v.keys[at["Pitch_60"]] >= 0 and v.keys[at["PitchDrum_60"]] == NONE
    assert v.moves_on[[at["Bar"], at["Velocity_4"]]].all() and not v.moves_on[at["Position_0"]]


def test_midi_llm():
    codec = make_codec("midi-llm")
    v = codec.token_properties
    at = {token: i for i, token in enumerate(codec.vocabulary)}
    assert v.wait_ms[at["t1"]] == 8 and v.wait_ms[at["t125"]] == 1000 and v.wait_ms[at["pi:3c:8"]] == NONE
    assert v.pitch[at["pi:3c:8"]] == v.pitch[at["pi:3c:0"]] == 60
    assert (v.loudness[at["pi:3c:0"]], v.loudness[at["pi:3c:1"]], v.loudness[at["pi:3c:b"]]) == (NONE, 0, 10)
    assert v.program[at["p:24:5"]] == DRUMS and v.program[at["b:24:5"]] == 32
    assert v.keys[at["pi:3c:1"]] == v.keys[at["pi:3c:b"]] != v.keys[at["g:3c:b"]]
    assert v.keys[at["pi:3c:0"]] == v.keys[at["p:24:5"]] == NONE
    assert v.moves_on[at["t125"]] and not v.moves_on[at["t124"]]


def test_midi_llm_piano():
    v = make_codec("midi-llm-piano").token_properties
    assert set(v.program.tolist()) == {NONE, 0} and (v.keys[v.is_onset] >= 0).all()


class RenamedMidiLlm(MidiLlm):
    name = "a tokenizer of a later version"


def test_callers_need_no_name(bach_data_midi_llm):
    """Augmentation and prompts from a dataset ask the codec, whatever its name."""
    codec, renamed = MidiLlm(), RenamedMidiLlm()
    ids = np.arange(3, codec.vocab_size, 7)
    found = [Augmenter(each, "all", seed=0).vary([ids], sample=3)[0] for each in (codec, renamed)]
    assert (found[0] == found[1]).all() and (found[0] != ids).any()
    lines = [Pieces(bach_data_midi_llm, "val", each)[0].bar_lines.start_ms for each in (codec, renamed)]
    assert (lines[0] == lines[1]).all()
