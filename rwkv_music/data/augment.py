"""Augmentation of tokens while batches are read: transposition, loudness, tempo and tags.

    transposition   shifts all melodic parts by one interval of -5 to 6 semitones, within the range of every instrument
    loudness        shifts all notes by the same number of velocity steps, at most a twelfth of the tokenizer's velocity
                    steps
    tempo           makes the music at most a tenth faster or slower: changes the tempo tokens or, in a tokenizer that
                    has wait tokens instead, the waits
    tags            with probability 1/2, replaces a tag by the tag for an unknown value, so that the model also works
                    without tags

The number of tokens never changes, so windows keep their boundaries. A silence of several wait tokens is scaled only
as far as the same number of tokens can express. The run's seed and the sample number determine the variation, so any
rank can reproduce it.
"""

import numpy as np

from rwkv_music.midi.events import DRUMS
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.vocabulary import NONE

SHIFTS = range(-5, 7)  # semitones; each of the 12 keys occurs once
TEMPO_CHANGE = 0.1
LOUDNESS_PART = 12
UNKNOWN_TAGS = 0.5
# For each family of eight General MIDI programs: the lowest and highest MIDI pitch of the instrument with the widest
# range. None: the pitches stand for instruments or effects, so they are not transposed.
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
# These three arrays are indexed by program. The last two entries are for DRUMS and for NONE, which is -1.
PERCUSSIVE = np.array([RANGES[program // 8] is None for program in range(DRUMS)] + [True, False])
LOWEST, HIGHEST = np.array([RANGES[program // 8] or UNKNOWN_RANGE for program in range(DRUMS)] + [UNKNOWN_RANGE] * 2).T


class Augmenter:
    """Random variations of token ids of one codec.

    `kind` is "none", "transpose" (key only) or "all" (key, loudness and tempo). With every kind, also "none", tags are
    replaced as described above.
    """

    def __init__(self, codec: Codec, kind: str, seed: int):
        self._vocabulary = v = codec.token_properties
        self._seed = seed
        self._kind = kind
        columns = np.unique(v.unknown_tag[v.unknown_tag != NONE])
        self._n_columns = len(columns)
        self._column = np.where(v.unknown_tag != NONE, np.searchsorted(columns, v.unknown_tag), NONE)
        program = np.where(v.kinds == "Pitch", 0, v.program)  # multitrack's pitch tokens have no program
        self._names_program = v.kinds == "Program"
        self._names_part = v.part != NONE
        self._sets_program = self._names_program | self._names_part  # for the notes that follow
        self._has_programs = bool(self._names_program.any())
        self._is_melodic = (v.pitch != NONE) & ~PERCUSSIVE[program]
        first = [int(np.argmax(self._is_melodic & (v.pitch == pitch))) for pitch in (0, 1)]
        self._pitch_step = first[1] - first[0]  # difference of the ids of adjacent pitches

    def vary(self, excerpts: list[np.ndarray], sample: int, before: np.ndarray | None = None) -> list[np.ndarray]:
        """Return a variation of each excerpt, int64 [n] each. The excerpts vary independently of each other.

        Each excerpt, int [n], is from a single piece. `sample` is the sample number, which determines the variations
        together with the seed. `before`, int [m], are the tokens that precede the first excerpt in its piece. They are
        needed because they can set programs that apply to the excerpt.
        """
        excerpts = [np.asarray(ids, np.int64) for ids in excerpts]
        if self._n_columns:
            generator = self._generator(2**63 + 2**62 + sample)
            excerpts = [self._forget_tags(ids, generator.random(self._n_columns)) for ids in excerpts]
        if self._kind == "none":
            return excerpts
        generator = self._generator(2**63 + sample)
        nothing = np.empty(0, np.int64)
        befores = [nothing if before is None else before[self._sets_program[before]].astype(np.int64)]
        befores += [nothing] * (len(excerpts) - 1)
        return [
            self._vary(ids, self._programs(np.concatenate([earlier, ids]))[len(earlier) :], draws)
            for ids, earlier in zip(excerpts, befores, strict=True)
            for draws in [generator.random(3)]
        ]

    def _generator(self, key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self._seed, key], np.uint64)))

    def _forget_tags(self, ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return ids in which the tags of some columns are replaced by the tags for unknown values.

        A column is a kind of tag, such as `composer` (see tags.py). `draws`, float64 [columns] in [0, 1), determine the
        columns.
        """
        column = self._column[ids]
        is_unknown = (column != NONE) & (draws[column] < UNKNOWN_TAGS)
        return np.where(is_unknown, self._vocabulary.unknown_tag[ids], ids)

    def _vary(self, ids: np.ndarray, programs: np.ndarray, draws: np.ndarray) -> np.ndarray:
        key, loudness, tempo = draws
        movable = np.flatnonzero(self._is_melodic[ids])
        movable = movable[~PERCUSSIVE[programs[movable]]]
        shifts = self._possible_shifts(self._vocabulary.pitch[ids[movable]], programs[movable])
        shift = shifts[int(key * len(shifts))]
        ids = ids.copy()
        ids[movable] += shift * self._pitch_step
        if self._kind == "all":
            v = self._vocabulary
            most = max(1, (int(v.loudness.max()) + 1) // LOUDNESS_PART)
            ids = _step(ids, v.loudness, int(loudness * (2 * most + 1)) - most)
            change = TEMPO_CHANGE * (2 * tempo - 1)
            if (v.wait_ms != NONE).any():
                ids = _stretch(ids, v.wait_ms, 1 / (1 + change))
            else:
                ids = _step(ids, v.tempo, round(np.log2(1 + change) * v.tempo_steps_per_octave))
        return ids

    def _possible_shifts(self, pitches: np.ndarray, programs: np.ndarray) -> list[int]:
        """Return the possible shifts in semitones, which include 0.

        A possible shift moves no note out of the range of its instrument. If a note is already outside, a possible
        shift does not move it further out. `pitches` and `programs`, int64 [n], describe the notes that are shifted.
        """
        if not len(pitches):
            return [0]
        low = min(int((LOWEST[programs] - pitches).max()), 0)
        high = max(int((HIGHEST[programs] - pitches).min()), 0)
        return [shift for shift in SHIFTS if low <= shift <= high]

    def _programs(self, ids: np.ndarray) -> np.ndarray:
        """Return the program of each token, int64 [n]; NONE if it has none.

        A token that sets no program has the last program that was set before it. If there are parts, only programs that
        were set in the token's own part count.
        """
        v = self._vocabulary
        if not self._has_programs:
            return v.program[ids]
        is_setting = self._sets_program[ids]
        settings = ids[is_setting]
        places = np.arange(len(settings))
        part = v.part[settings[np.maximum.accumulate(np.where(self._names_part[settings], places, 0))]]
        order = np.argsort(part, kind="stable")
        last = np.maximum.accumulate(np.where(self._names_program[settings[order]], places, NONE))
        is_own = (last != NONE) & (part[order[last]] == part[order])
        programs = np.empty(len(settings) + 1, np.int64)
        programs[order] = np.where(is_own, v.program[settings[order[last]]], NONE)
        programs[-1] = NONE  # for the tokens before the first one that sets a program or a part
        return programs[np.cumsum(is_setting) - 1]


def _step(ids: np.ndarray, ranks: np.ndarray, steps: int) -> np.ndarray:
    """Return ids [n] in which each token that has a rank is moved by `steps` ranks, at most to the first or last.

    `ranks`, int64 [V], are the ranks of all tokens, such as `Vocabulary.loudness`.
    """
    rank = ranks[ids]
    return np.where(rank != NONE, ids + np.clip(rank + steps, 0, ranks.max()) - rank, ids)


def _stretch(ids: np.ndarray, wait_ms: np.ndarray, factor: float) -> np.ndarray:
    """Return ids [n] with waits scaled by `factor`. Absolute times are rounded, so that errors do not add up.

    Each run of consecutive waits keeps its number of tokens.
    """
    unit_ms = int(wait_ms[wait_ms != NONE].min())  # the waits are 1, 2, 3 ... times this, and their ids are consecutive
    wait = np.where(wait_ms != NONE, wait_ms // unit_ms, NONE)
    longest, unit = int(wait.max()), int(np.argmax(wait == 1))
    places = np.flatnonzero(wait[ids] != NONE)
    if not len(places):
        return ids
    begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)  # starts of runs of waits
    lengths = np.diff(np.append(begins, len(places)))
    totals = np.add.reduceat(wait[ids[places]], begins)
    clock = np.rint(np.cumsum(totals) * factor).astype(np.int64)
    new_totals = np.clip(np.diff(clock, prepend=0), (lengths - 1) * longest + 1, lengths * longest)
    run = np.repeat(np.arange(len(begins)), lengths)
    last = np.zeros(len(places), bool)
    last[begins + lengths - 1] = True
    new = np.where(last, (new_totals - (lengths - 1) * longest)[run], longest)
    varied = ids.copy()
    varied[places] = unit + new - 1
    return varied
