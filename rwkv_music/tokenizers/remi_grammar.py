"""The grammar of the `remi` codec.

    Bar TimeSig (Position [Tempo] [Program] Pitch Velocity Duration ([Program] Pitch Velocity Duration)*)* Bar ...

Positions increase within a bar and stay within its time signature. Within a moment programs increase, with drums first,
and within a program pitches increase. This is the order of `Remi.encode`, and it makes every bar finite. A token that
byte-pair encoding merged from several is allowed if its parts are allowed one after another.
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
    "EOS": ("Bar", "EOS"),  # "EOS" also stands for the state before the first bar of a row
    "Never": (),
}
NO_PROGRAM, DRUM_CLASS, FIRST_MELODIC = range(3)  # classes of programs, in their order within a moment
N_PROGRAMS = FIRST_MELODIC + 128
MAX_BEATS = 16  # per bar
UNCHANGED = -1  # the token does not change the class
CURRENT = -2  # the token sets the class to the current program


class RemiRules:
    """The tables of `RemiGrammar`, computed once per vocabulary.

    Args:
        tokens: for each id the (kind, value) of its base tokens, such as [("Pitch", "60")].
        positions_per_beat: see `Remi`.

    Attributes:
        tables: the tokens allowed, bool [classes, V] each, by
            the kind of the last token, without and with EOS [2 * kinds, V];
            the current program [programs, V];
            the lowest position that is still free in the bar [positions + 1, V];
            the number of beats in the bar [17, V];
            the lowest pitch that is still free in the moment and program [129, V];
            the last program of the moment [programs, V].
        sets: int64 [len(tables), V], the class of each table after each token (for kinds, the class without EOS), or
            UNCHANGED or CURRENT.
        starts_bar: bool [V].
    """

    def __init__(self, tokens: list[list[tuple[str, str]]], positions_per_beat: int):
        V = len(tokens)
        self.starts_bar = np.zeros(V, bool)
        self.sets = np.full((6, V), UNCHANGED)
        last_kind, last_program, position, beats, pitch, moment = self.sets
        # For each token, its values that the preceding state restricts; UNCHANGED if it has none.
        first_kind, first_position, last_position, is_drum, first_pitch, first_program = (
            np.full(V, UNCHANGED) for _ in range(6)
        )
        for i, parts in enumerate(tokens):
            kinds = [_kind(name) for name, _ in parts]
            first_kind[i], last_kind[i] = KINDS.index(kinds[0]), KINDS.index(kinds[-1])
            for kind, (name, value) in zip(kinds, parts, strict=True):
                begins_moment = moment[i] == UNCHANGED
                if kind == "Bar":
                    self.starts_bar[i] = True
                    position[i] = pitch[i] = moment[i] = 0
                elif kind == "TimeSig":
                    beats[i] = int(value.split("/")[0])
                elif kind == "Position":
                    if not self.starts_bar[i]:
                        last_position[i] = int(value)
                        if first_position[i] == UNCHANGED:
                            first_position[i] = int(value)
                    position[i] = int(value) + 1
                    pitch[i] = moment[i] = 0
                elif kind == "Program":
                    program = int(value) + FIRST_MELODIC if int(value) >= 0 else DRUM_CLASS
                    if begins_moment:
                        first_program[i] = program
                    last_program[i] = moment[i] = program
                    pitch[i] = 0
                elif kind == "Pitch":
                    if last_program[i] == UNCHANGED:
                        is_drum[i] = name == "PitchDrum"
                        moment[i] = CURRENT
                    if pitch[i] == UNCHANGED:
                        first_pitch[i] = int(value)
                    pitch[i] = int(value) + 1

        may_follow = np.array([[kind in FOLLOWING[last] for kind in KINDS] for last in KINDS])
        with_eos = may_follow[:, first_kind]
        without_eos = with_eos & (first_kind != KINDS.index("EOS"))
        programs = np.arange(N_PROGRAMS)[:, None]
        program_fits = (is_drum == UNCHANGED) | ((programs != NO_PROGRAM) & (is_drum == (programs == DRUM_CLASS)))
        positions = np.arange(MAX_BEATS * positions_per_beat + 1)[:, None]
        pitches = np.arange(129)[:, None]
        self.tables = (
            np.concatenate([without_eos, with_eos]),
            program_fits,
            (first_position == UNCHANGED) | (first_position >= positions),
            last_position < np.arange(MAX_BEATS + 1)[:, None] * positions_per_beat,
            (first_pitch == UNCHANGED) | (first_pitch >= pitches),
            (first_program == UNCHANGED) | (first_program > programs),
        )


class RemiGrammar(Grammar):
    """Rows of `remi` tokens. A bar is complete when the next one starts."""

    def __init__(self, rules: RemiRules, prompt_ids: np.ndarray, rows: int, max_bars: int | None, may_end: bool):
        self.rules = rules
        self.tables = rules.tables
        super().__init__(rows, max_bars)
        self._started = np.zeros(rows, np.int64)
        self._kinds_offset = len(KINDS) if may_end or max_bars is None else 0
        programs = rules.sets[1, prompt_ids]
        programs = programs[programs != UNCHANGED]
        self.classes[0] = self._kinds_offset + KINDS.index("EOS")
        self.classes[1] = programs[-1] if len(programs) else NO_PROGRAM

    def feed(self, tokens: np.ndarray) -> None:
        rules = self.rules
        starts_bar, at_eos = rules.starts_bar[tokens], rules.sets[0, tokens] == KINDS.index("EOS")
        after_last = starts_bar & (self._started == self.max_bars) if self.max_bars is not None else False
        ending = ~self.ended & (at_eos | after_last)
        self.bars[ending] = self._started[ending]
        self.ended |= ending
        active = ~self.ended
        self._started += active & starts_bar
        self.bars[active] = np.maximum(self._started[active] - 1, 0)

        sets = rules.sets[:, tokens]
        sets[0] += self._kinds_offset
        changed = active & (sets != UNCHANGED)
        np.copyto(self.classes, sets, where=changed)
        last_program, moment = self.classes[1], self.classes[5]
        moment[moment == CURRENT] = last_program[moment == CURRENT]


def _kind(name: str) -> str:
    if name == "PitchDrum":
        return "Pitch"
    return name if name in KINDS else "Never"
