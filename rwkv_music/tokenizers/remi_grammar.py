"""The grammar of the `remi` codec: which kind of token follows which, for the pitch of which instruments, and when.

    Bar TimeSig (Position [Tempo] [Program] Pitch Velocity Duration ([Program] Pitch Velocity Duration)*)* Bar ...

Positions rise within a bar and stay within its time signature. Within a moment programs rise, drums first, and pitches
rise within a program: the order in which `Remi.encode` writes them, and the reason why no bar can go on for ever. A
token may stand for several of these (byte-pair encoding); it is allowed where its parts are, one after another.
"""

import numpy as np

from rwkv_music.tokenizers.grammar import Grammar

KINDS = ("Bar", "TimeSig", "Position", "Tempo", "Program", "Pitch", "Velocity", "Duration", "EOS", "Never")
FOLLOWING = {
    "Bar": ("TimeSig",),
    "TimeSig": ("Position", "Bar", "EOS"),
    "Position": ("Tempo", "Program", "Pitch"),
    "Tempo": ("Program", "Pitch", "Position", "Bar", "EOS"),
    "Program": ("Pitch",),
    "Pitch": ("Velocity",),
    "Velocity": ("Duration",),
    "Duration": ("Position", "Program", "Pitch", "Bar", "EOS"),
    "EOS": ("Bar", "EOS"),  # before the first bar of a row, and after its last
    "Never": (),
}
NO_PROGRAM, DRUMS = 0, 1  # melodic programs follow, from FIRST_MELODIC on, in the order of the parts of a moment
FIRST_MELODIC = 2
N_PROGRAMS = FIRST_MELODIC + 128
MOST_BEATS = 16  # in a bar
KEEPS = -1  # a token that leaves a class as it is
CURRENT = -2  # one that sets it to the program in force


class RemiRules:
    """What `RemiGrammar` looks up, made once a vocabulary.

    Args:
        tokens: for each id the (kind, value) of the base tokens it stands for, such as [("Pitch", "60")].
        positions_per_beat: the codec's.

    Attributes:
        tables: what is allowed by the kind that came last, without and with EOS [2 * kinds, V]; by the program in force
            [programs, V]; by the first position still free in the bar, [P + 1, V]; by the beats in the bar [17, V]; by
            the lowest pitch [129, V] and the last program [programs, V] of the moment.
        sets: int64 [len(tables), V], the class that each token leaves behind (the kind without its offset).
        opens_bar: bool [V].
    """

    def __init__(self, tokens: list[list[tuple[str, str]]], positions_per_beat: int):
        V = len(tokens)
        self.opens_bar = np.zeros(V, bool)
        self.sets = np.full((6, V), KEEPS)
        last_kind, last_program, taken, beats, lowest, moment = self.sets
        # What a token holds before anything in it that would make it allowed everywhere.
        first_kind, first_position, highest_position, wanted_part, first_pitch, first_program = (
            np.full(V, KEEPS) for _ in range(6)
        )
        for i, parts in enumerate(tokens):
            kinds = [_kind(name) for name, _ in parts]
            first_kind[i], last_kind[i] = KINDS.index(kinds[0]), KINDS.index(kinds[-1])
            for kind, (name, value) in zip(kinds, parts, strict=True):
                begins_moment = moment[i] == KEEPS
                if kind == "Bar":
                    self.opens_bar[i] = True
                    taken[i] = lowest[i] = moment[i] = 0
                elif kind == "TimeSig":
                    beats[i] = int(value.split("/")[0])
                elif kind == "Position":
                    if not self.opens_bar[i]:
                        highest_position[i] = int(value)
                        if first_position[i] == KEEPS:
                            first_position[i] = int(value)
                    taken[i] = int(value) + 1
                    lowest[i] = moment[i] = 0
                elif kind == "Program":
                    program = int(value) + FIRST_MELODIC if int(value) >= 0 else DRUMS
                    if begins_moment:
                        first_program[i] = program
                    last_program[i] = moment[i] = program
                    lowest[i] = 0
                elif kind == "Pitch":
                    if last_program[i] == KEEPS:
                        wanted_part[i] = name == "PitchDrum"
                        moment[i] = CURRENT
                    if lowest[i] == KEEPS:
                        first_pitch[i] = int(value)
                    lowest[i] = int(value) + 1

        may_follow = np.array([[kind in FOLLOWING[last] for kind in KINDS] for last in KINDS])
        with_eos = may_follow[:, first_kind]
        without_eos = with_eos & (first_kind != KINDS.index("EOS"))
        programs = np.arange(N_PROGRAMS)[:, None]
        in_force = (wanted_part == KEEPS) | ((programs != NO_PROGRAM) & (wanted_part == (programs == DRUMS)))
        positions = np.arange(MOST_BEATS * positions_per_beat + 1)[:, None]
        pitches = np.arange(129)[:, None]
        self.tables = (
            np.concatenate([without_eos, with_eos]),
            in_force,
            (first_position == KEEPS) | (first_position >= positions),
            highest_position < np.arange(MOST_BEATS + 1)[:, None] * positions_per_beat,
            (first_pitch == KEEPS) | (first_pitch >= pitches),
            (first_program == KEEPS) | (first_program > programs),
        )


class RemiGrammar(Grammar):
    """Rows of `remi` tokens; a bar is finished when the next one opens."""

    def __init__(self, rules: RemiRules, prompt_ids: np.ndarray, rows: int, asked_bars: int | None, may_end: bool):
        self.rules = rules
        self.tables = rules.tables
        super().__init__(rows, asked_bars)
        self._opened = np.zeros(rows, np.int64)
        self._kinds_offset = len(KINDS) if may_end or asked_bars is None else 0
        programs = rules.sets[1, prompt_ids]
        programs = programs[programs != KEEPS]
        self.classes[0] = self._kinds_offset + KINDS.index("EOS")
        self.classes[1] = programs[-1] if len(programs) else NO_PROGRAM

    def feed(self, tokens: np.ndarray) -> None:
        rules = self.rules
        opens_bar, at_eos = rules.opens_bar[tokens], rules.sets[0, tokens] == KINDS.index("EOS")
        past = opens_bar & (self._opened == self.asked_bars) if self.asked_bars is not None else False
        ending = ~self.ended & (at_eos | past)
        self.bars[ending] = self._opened[ending]
        self.ended |= ending
        on = ~self.ended
        self._opened += on & opens_bar
        self.bars[on] = np.maximum(self._opened[on] - 1, 0)

        sets = rules.sets[:, tokens]
        sets[0] += self._kinds_offset
        changed = on & (sets != KEEPS)
        np.copyto(self.classes, sets, where=changed)
        last_program, moment = self.classes[1], self.classes[5]
        moment[moment == CURRENT] = last_program[moment == CURRENT]


def _kind(name: str) -> str:
    if name == "PitchDrum":
        return "Pitch"
    return name if name in KINDS else "Never"
