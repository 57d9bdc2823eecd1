"""The musical properties of a codec's tokens as arrays (`Codec.token_properties`), for augmentation and sampling."""

from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.events import DRUMS

NONE = -1


@dataclass(frozen=True)
class Vocabulary:
    """Properties of each of the V tokens. An int64 element is NONE if the token does not have the property.

    Augmentation requires that the difference between the ids of adjacent pitches is the same for all melodic tokens. It
    also requires that the ids of successive loudnesses, successive tempos and successive waits differ by 1.
    """

    kinds: np.ndarray  # str [V]: the kind of token; other code uses only "Pitch", "Program" and those in `moves_on`
    pitch: np.ndarray  # int64 [V]: the MIDI pitch of a note-on or note-off
    is_onset: np.ndarray  # bool [V]: whether the token starts a note
    program: np.ndarray  # int64 [V]: the General MIDI program (DRUMS for percussion) that the token plays or selects
    part: np.ndarray  # int64 [V]: the number of the part that the token names, from 1
    loudness: np.ndarray  # int64 [V]: the rank of the velocity, 0 for the softest
    tempo: np.ndarray  # int64 [V]: the rank of the tempo, 0 for the slowest
    # The number of tempo ranks per doubling of the tempo; 0 without tempo tokens. Successive tempos have equal ratios.
    tempo_steps_per_octave: float
    wait_ms: np.ndarray  # int64 [V]: the wait that the token encodes, in milliseconds
    unknown_tag: np.ndarray  # int64 [V]: for a tag, the token for an unknown value of its column (tags.py)

    @property
    def keys(self) -> np.ndarray:
        """A number for the program and pitch of each melodic note-on, int64 [V]; NONE for drums and other tokens."""
        melodic = self.is_onset & (self.program != DRUMS)
        return np.where(melodic, (self.program + 1) * 128 + self.pitch, NONE)

    @property
    def moves_on(self) -> np.ndarray:
        """Which tokens lead to the end of a bar soonest, bool [V].

        They complete a note or the start of a bar, or end a bar, a hole or a piece. The longest wait is marked too.
        """
        finishing = np.isin(self.kinds, ["Bar", "TimeSig", "Velocity", "Duration", "End", "EOS"])
        return finishing | ((self.wait_ms > 0) & (self.wait_ms == self.wait_ms.max()))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each of `values`, float64 [V], among those that are not NaN: int64 [V]; NONE for NaN."""
    found = np.full(len(values), NONE)
    selected = ~np.isnan(values)
    found[selected] = values[selected].argsort().argsort()
    return found
