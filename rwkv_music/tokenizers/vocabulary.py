"""What the tokens of a codec say, one array entry a token: read from its vocabulary, with no tokenizer library.

Whoever changes or weighs tokens needs to know which of them strike a key, on what, and how loudly: augmentation, the
repetition penalty, a sampler that is out of patience. Each token stands for one thing here; a token that stands for
several (byte-pair encoding) says nothing.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rwkv_music.midi.events import DRUMS
from rwkv_music.tokenizers.codec import Codec

NONE = -1
SINGLE = re.compile(r"[A-Za-z]+_(None|[-0-9./]+)")  # a token of remi that stands for one thing


@dataclass(frozen=True)
class Vocabulary:
    """Facts about each of V tokens. NONE where a token says nothing of the kind.

    Attributes:
        kinds: str [V], such as "Pitch", "Bar", "Wait", "Key".
        pitch: int64 [V], of the key that a token strikes or lets go.
        is_onset: bool [V], whether it strikes one.
        program: int64 [V], the General MIDI program (DRUMS for percussion) that the token plays or changes to.
        loudness: int64 [V], from the softest, 0, in the tokenizer's own steps.
        tempo: int64 [V], from the slowest, 0, in its own steps.
        wait: int64 [V], in its unit of time.
        compound: whether some tokens stand for several.
    """

    kinds: np.ndarray
    pitch: np.ndarray
    is_onset: np.ndarray
    program: np.ndarray
    loudness: np.ndarray
    tempo: np.ndarray
    wait: np.ndarray
    compound: bool

    @property
    def keys(self) -> np.ndarray:
        """int64 [V]: the key that an onset strikes, numbered by program and pitch; NONE for drums and all others."""
        melodic = self.is_onset & (self.program != DRUMS)
        return np.where(melodic, (self.program + 1) * 128 + self.pitch, NONE)

    @property
    def moves_on(self) -> np.ndarray:
        """bool [V]: the tokens that begin nothing new, and the longest wait: the shortest way to the end of a bar."""
        finishing = np.isin(self.kinds, ["Bar", "TimeSig", "Velocity", "Duration", "EOS"])
        return finishing | ((self.wait > 0) & (self.wait == self.wait.max()))


def read_vocabulary(codec: Codec) -> Vocabulary:
    """What `codec`'s tokens say."""
    return _read(codec.name, tuple(codec.vocabulary), tuple(getattr(codec, "instruments", ())))


@lru_cache(maxsize=4)
def _read(name: str, tokens: tuple[str, ...], instruments: tuple) -> Vocabulary:
    return _of_midi_llm(tokens, instruments) if name.startswith("midi-llm") else _of_remi(tokens)


def _of_remi(tokens: tuple[str, ...]) -> Vocabulary:
    parts = [token.split("_", 1) if SINGLE.fullmatch(token) else ["Compound", token] for token in tokens]
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


def _of_midi_llm(tokens: tuple[str, ...], instruments: tuple) -> Vocabulary:
    V = len(tokens)
    kinds = np.array(["PAD", "BOS", "EOS"] + ["Wait" if ":" not in token else "Key" for token in tokens[3:]])
    fields = np.array([[int(x, 16) for x in token.split(":")[1:]] for token in tokens[3:] if ":" in token])
    is_key, is_wait = kinds == "Key", kinds == "Wait"
    pitch, program, loudness, wait = (np.full(V, NONE) for _ in range(4))
    pitch[is_key] = fields[:, 0]
    loudness[is_key] = fields[:, 1] - 1  # 0 lets the key go
    wait[is_wait] = [int(token[1:]) for token in np.array(tokens)[is_wait]]
    played_with = [DRUMS if not instrument.programs else instrument.program for instrument in instruments]
    program[is_key] = np.repeat(played_with, len(fields) // len(instruments))
    return Vocabulary(kinds, pitch, is_key & (loudness != NONE), program, loudness, np.full(V, NONE), wait, False)


def _ranks(chosen: np.ndarray, parts: list[list[str]]) -> np.ndarray:
    """int64 [V]: the place of each chosen token's number among theirs; NONE for the others."""
    ranks = np.full(len(chosen), NONE)
    values = np.array([float(parts[i][1]) for i in np.flatnonzero(chosen)])
    ranks[chosen] = values.argsort().argsort()
    return ranks
