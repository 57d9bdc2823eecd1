"""Variations of a piece, made on its tokens while batches are read: another key, another loudness, another tempo.

    transposition   all melodic parts by one interval of -5 to 6 semitones, as far as every instrument can play it
    loudness        all notes by a step or a few, as many as a twelfth of the tokenizer's steps
    tempo           a tenth faster or slower at most: tempo tokens where there are some, else the waits

Notable choices:
- Drums and percussive instruments keep their pitches, because those name instruments.
- Nothing changes its number of tokens, so a window stays a window. A silence of several waits is stretched or shortened
  as far as that many waits can say.
- A variation is named by the run's seed and the sample's number: it can be made again, on any rank.
"""

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.events import DRUMS
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.vocabulary import NONE, read_vocabulary

SHIFTS = range(-5, 7)  # semitones: every key once
TEMPO_CHANGE = 0.1
LOUDNESS_PART = 12
# The lowest and highest pitch by families of eight General MIDI programs, as the widest instrument of each plays them;
# None where pitches name instruments or effects and are not transposed.
RANGES: tuple[tuple[int, int] | None, ...] = (
    (21, 108),  # pianos
    (36, 108),  # mallets
    (24, 108),  # organs
    (38, 88),  # guitars
    (23, 67),  # basses
    (28, 103),  # strings
    (28, 103),  # ensembles, choirs
    (26, 86),  # brass
    (34, 94),  # reeds
    (48, 108),  # pipes
    (21, 108),  # synth leads
    (21, 108),  # synth pads
    (21, 108),  # synth effects
    (36, 96),  # folk
    None,  # percussion
    None,  # sound effects
)
UNKNOWN_RANGE = (21, 108)
PERCUSSIVE = np.array([RANGES[program // 8] is None for program in range(DRUMS)] + [True])


class Augmenter:
    """Makes variations of the token ids of one codec.

    Args:
        codec: its vocabulary must not hold tokens that stand for several (byte-pair encoding).
        kind: "transpose" for the key alone, "all" for loudness and tempo too.
        seed: the run's.

    Raises:
        UserError: the vocabulary holds compound tokens.
    """

    def __init__(self, codec: Codec, kind: str, seed: int):
        self._vocabulary = v = read_vocabulary(codec)
        if v.compound:
            raise UserError(
                "Augmentation changes single tokens, and this dataset's were joined by byte-pair encoding: "
                "prepare it without, or train with --augment none."
            )
        self._seed = seed
        self._all = kind == "all"
        program = np.where(v.kinds == "Pitch", 0, v.program)  # of remi's: only which may move
        self._names_program = v.kinds == "Program"
        self._moves = (v.pitch != NONE) & (program != DRUMS) & ~_is_percussive(program)
        first = [int(np.argmax(self._moves & (v.pitch == pitch))) for pitch in (0, 1)]
        self._pitch_step = first[1] - first[0]  # in ids, from a pitch to the next

    def vary(self, portions: list[np.ndarray], programs: list[int], sample: int) -> list[np.ndarray]:
        """The portions of pieces in sample number `sample`, each varied by itself; int64 [n] each, as long as before.

        Args:
            portions: ids of each.
            programs: the program in force where each begins, for a codec that says it only where it changes; NONE
                where none is known.
        """
        chance = np.random.Generator(np.random.Philox(key=np.array([self._seed, 2**63 + sample], np.uint64)))
        return [
            self._vary(np.asarray(ids, np.int64), program, chance.random(3))
            for ids, program in zip(portions, programs, strict=True)
        ]

    def program_after(self, ids: np.ndarray) -> int:
        """The program in force after `ids` [n], NONE if they name none."""
        named = np.flatnonzero(self._names_program[ids])
        return int(self._vocabulary.program[ids[named[-1]]]) if len(named) else NONE

    def _vary(self, ids: np.ndarray, program: int, draws: np.ndarray) -> np.ndarray:
        key, loudness, tempo = draws
        shifts = self._possible_shifts(ids, program)
        shift = shifts[int(key * len(shifts))]
        moving = self._may_move(ids, program)
        ids = ids + moving * shift * self._pitch_step
        if self._all:
            v = self._vocabulary
            most = max(1, (int(v.loudness.max()) + 1) // LOUDNESS_PART)
            ids = _step(ids, v.loudness, int(loudness * (2 * most + 1)) - most)
            change = TEMPO_CHANGE * (2 * tempo - 1)
            if (v.wait != NONE).any():
                ids = _stretch(ids, v.wait, 1 / (1 + change))
            else:
                ids = _step(ids, v.tempo, round(np.log2(1 + change) * _steps_per_octave(v.tempo)))
        return ids

    def _possible_shifts(self, ids: np.ndarray, program: int) -> list[int]:
        """The shifts that keep every part in its instrument's range, or no farther out than it is; 0 is one."""
        moving = self._may_move(ids, program)
        if not moving.any():
            return [0]
        programs, pitches = self._programs(ids, program)[moving], self._vocabulary.pitch[ids[moving]]
        low, high = -128, 128
        for part in np.unique(programs).tolist():
            own = pitches[programs == part]
            lowest, highest = UNKNOWN_RANGE if part == NONE else RANGES[part // 8]
            low = max(low, min(lowest - int(own.min()), 0))
            high = min(high, max(highest - int(own.max()), 0))
        return [shift for shift in SHIFTS if low <= shift <= high]

    def _may_move(self, ids: np.ndarray, program: int) -> np.ndarray:
        return self._moves[ids] & ~_is_percussive(self._programs(ids, program))

    def _programs(self, ids: np.ndarray, program: int) -> np.ndarray:
        """int64 [n]: the program that each token plays, where the tokens say it before or themselves."""
        v = self._vocabulary
        if not self._names_program.any():
            return v.program[ids]
        named = np.where(self._names_program[ids], np.arange(len(ids)), NONE)
        last = np.maximum.accumulate(named)
        return np.where(last == NONE, program, v.program[ids[last]])


def _is_percussive(program: np.ndarray) -> np.ndarray:
    return (program != NONE) & PERCUSSIVE[program]


def _step(ids: np.ndarray, ranks: np.ndarray, steps: int) -> np.ndarray:
    """Tokens that have a rank, moved by `steps` ranks, and no farther than the first or the last."""
    rank = ranks[ids]
    return np.where(rank != NONE, ids + np.clip(rank + steps, 0, ranks.max()) - rank, ids)


def _stretch(ids: np.ndarray, wait: np.ndarray, factor: float) -> np.ndarray:
    """Waits made `factor` times as long, rounded on the clock and not one by one; runs keep their number of tokens."""
    longest, unit = int(wait.max()), int(np.argmax(wait == 1))
    places = np.flatnonzero(wait[ids] != NONE)
    if not len(places):
        return ids
    begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)  # of a run of waits
    lengths = np.diff(np.append(begins, len(places)))
    totals = np.add.reduceat(wait[ids[places]], begins)
    clock = np.rint(np.cumsum(totals) * factor).astype(np.int64)
    wanted = np.clip(np.diff(clock, prepend=0), (lengths - 1) * longest + 1, lengths * longest)
    run = np.repeat(np.arange(len(begins)), lengths)
    last = np.zeros(len(places), bool)
    last[begins + lengths - 1] = True
    new = np.where(last, (wanted - (lengths - 1) * longest)[run], longest)
    varied = ids.copy()
    varied[places] = unit + new - 1
    return varied


def _steps_per_octave(tempo: np.ndarray) -> float:
    """Tempo tokens are spaced evenly by ratio over four octaves (see remi.py)."""
    return float(tempo.max()) / 4
