"""The musical meaning of a codec's tokens as arrays, for augmentation and sampling.

It is derived from the text of the vocabulary. Tokens that byte-pair encoding merged from several have no properties.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rwkv_music.midi.events import DRUMS
from rwkv_music.tokenizers.codec import Codec

NONE = -1
SINGLE_TOKEN = re.compile(r"[A-Za-z]+_(None|[-0-9./]+)")  # a `remi` token that is not a merge of several


@dataclass(frozen=True)
class Vocabulary:
    """Properties of each of V tokens. An int64 entry is NONE if the token does not have the property."""

    kinds: np.ndarray  # str [V], such as "Pitch", "Bar", "Wait", "Key"
    pitch: np.ndarray  # int64 [V]: the MIDI pitch of a note-on or note-off
    is_onset: np.ndarray  # bool [V]: whether the token starts a note
    program: np.ndarray  # int64 [V]: the General MIDI program (DRUMS for percussion) that the token plays or selects
    loudness: np.ndarray  # int64 [V]: the rank of the velocity, 0 for the softest
    tempo: np.ndarray  # int64 [V]: the rank of the tempo, 0 for the slowest
    wait: np.ndarray  # int64 [V]: the time that the token waits, in the codec's unit
    compound: bool  # whether some tokens are merges of several

    @property
    def keys(self) -> np.ndarray:
        """A number for the program and pitch of each melodic onset, int64 [V]; NONE for drums and other tokens."""
        melodic = self.is_onset & (self.program != DRUMS)
        return np.where(melodic, (self.program + 1) * 128 + self.pitch, NONE)

    @property
    def moves_on(self) -> np.ndarray:
        """The tokens that end a bar soonest, bool [V]: those that start nothing new, and the longest wait."""
        finishing = np.isin(self.kinds, ["Bar", "TimeSig", "Velocity", "Duration", "EOS"])
        return finishing | ((self.wait > 0) & (self.wait == self.wait.max()))


def read_vocabulary(codec: Codec) -> Vocabulary:
    """Return the properties of the tokens of `codec`."""
    return _read(codec.name, tuple(codec.vocabulary), tuple(getattr(codec, "instruments", ())))


@lru_cache(maxsize=4)
def _read(name: str, tokens: tuple[str, ...], instruments: tuple) -> Vocabulary:
    if name == "remi":
        return _read_remi(tokens)
    if name in ("midi-llm", "midi-llm-piano"):
        return _read_midi_llm(tokens, instruments)
    raise ValueError(f"vocabulary.py does not describe the tokens of {name}")


def _read_remi(tokens: tuple[str, ...]) -> Vocabulary:
    parts = [token.split("_", 1) if SINGLE_TOKEN.fullmatch(token) else ["Compound", token] for token in tokens]
    kinds = np.array([kind for kind, _ in parts])
    V = len(tokens)
    pitch, program = np.full(V, NONE), np.full(V, NONE)
    for i, (kind, value) in enumerate(parts):
        if kind in ("Pitch", "PitchDrum"):
            pitch[i] = int(value)
        if kind == "PitchDrum":
            program[i] = DRUMS
        elif kind == "Program":
            program[i] = int(value) if int(value) >= 0 else DRUMS
    return Vocabulary(
        kinds=kinds,
        pitch=pitch,
        is_onset=pitch != NONE,
        program=program,
        loudness=_ranks(kinds == "Velocity", parts),
        tempo=_ranks(kinds == "Tempo", parts),
        wait=np.full(V, NONE),
        compound=bool((kinds == "Compound").any()),
    )


def _read_midi_llm(tokens: tuple[str, ...], instruments: tuple) -> Vocabulary:
    V = len(tokens)
    kinds = np.array(["PAD", "BOS", "EOS"] + ["Wait" if ":" not in token else "Key" for token in tokens[3:]])
    fields = np.array([[int(x, 16) for x in token.split(":")[1:]] for token in tokens[3:] if ":" in token])
    is_key, is_wait = kinds == "Key", kinds == "Wait"
    pitch, program, loudness, wait = (np.full(V, NONE) for _ in range(4))
    pitch[is_key] = fields[:, 0]
    loudness[is_key] = fields[:, 1] - 1  # 0 is a note-off
    wait[is_wait] = [int(token[1:]) for token in np.array(tokens)[is_wait]]
    programs = [DRUMS if not instrument.programs else instrument.program for instrument in instruments]
    program[is_key] = np.repeat(programs, len(fields) // len(instruments))
    return Vocabulary(kinds, pitch, is_key & (loudness != NONE), program, loudness, np.full(V, NONE), wait, False)


def _ranks(selected: np.ndarray, parts: list[list[str]]) -> np.ndarray:
    """Return the rank of each selected token's value among the selected ones, int64 [V]; NONE for the others."""
    ranks = np.full(len(selected), NONE)
    values = np.array([float(parts[i][1]) for i in np.flatnonzero(selected)])
    ranks[selected] = values.argsort().argsort()
    return ranks
