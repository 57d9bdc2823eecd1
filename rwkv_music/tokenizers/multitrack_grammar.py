"""The grammar of the `multitrack` codec.

    Bar TimeSig [Tempo] (Part ([Program] Position (Pitch [Velocity] Duration)+)+)* Bar ...

Part numbers increase within a bar. Positions increase within a cell and are within the bar. Pitches do not decrease
within a moment (a Position with its notes), and at most MAX_UNISON notes of a moment have the same pitch. This is the
order in which `Multitrack.encode_piece` writes tokens, and it makes every bar finite. A part has a Program before its
first note. Drum pitches occur only with the program of drums. The first note of a cell has a Velocity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.notes import MAX_UNISON
from rwkv_music.tokenizers.grammar import Grammar

KINDS = (
    "Bar", "TimeSig", "Tempo", "Part", "Program", "Position", "FirstPitch", "Pitch", "Velocity", "Duration", "Last",
    "EOS", "Hole", "Never",
)  # fmt: skip
FOLLOWING = {
    "Bar": ("TimeSig",),
    "TimeSig": ("Tempo", "Part", "Bar", "EOS"),
    "Tempo": ("Part", "Bar", "EOS"),
    "Part": ("Program", "Position"),
    "Program": ("Position",),
    "Position": ("Pitch",),
    "FirstPitch": ("Velocity",),  # the first pitch of a cell
    "Pitch": ("Velocity", "Duration"),
    "Velocity": ("Duration",),
    "Duration": ("Pitch", "Position", "Program", "Part", "Bar", "EOS"),
    "Last": ("Pitch", "Part", "Bar", "EOS"),  # a duration at the last position of a bar
    "EOS": ("Bar", "EOS"),  # "EOS" also stands for the state before the first bar of a row
    "Hole": (),
    "Never": (),
}
# The content of a hole, which ends with End. "Hole" stands for the state before the first token of the content.
IN_HOLE = {
    "Hole": ("Position", "End"),
    "Position": ("Pitch",),
    "FirstPitch": ("Velocity",),
    "Pitch": ("Velocity", "Duration"),
    "Velocity": ("Duration",),
    "Duration": ("Pitch", "Position", "End"),
}
NO_PROGRAM, MELODIC, DRUM = range(3)  # classes of the current part


class MultitrackRules:
    """The tables of the grammars, computed once.

    Attributes, where V is the size of the vocabulary:
        by_kind: bool [3 * kinds, V]: the tokens that may follow each kind. The first third of the rows applies where
            EOS is not allowed, the second where it is allowed, and the last in a hole.
        by_program: bool [3, V]: the tokens allowed for each class of the current part's program.
        by_position: bool [positions + 1, V]: the tokens allowed for each value of the cell's lowest free position.
        by_length: bool [lengths, V]: the tokens allowed for each length of the bar.
        by_pitch: bool [128 * MAX_UNISON + 1, V]: the tokens allowed after the pitches of the moment. Row 0 applies
            before the first pitch. Row MAX_UNISON * p + n applies if the last pitch is p and n notes have this pitch.
        by_part: bool [parts + 1, V]: row k has the tokens allowed if Part_k is the last Part of the bar so far. Row
            0 applies before the first Part.
        forced: bool [V without tags, V]: row t allows only token t.
        kind, part, program, position, pitch, length: int64 [V]: the value of each token for these tables, or -1.
        bar_steps: int64 [lengths]: the number of positions in a bar of each length.
    """

    def __init__(self, vocabulary: list[str]):
        V = len(vocabulary)
        names = [token.partition("_") for token in vocabulary]
        kinds = np.array([_kind(name) for name, _, _ in names])
        self.kind = np.array([KINDS.index(kind) if kind in KINDS else KINDS.index("Never") for kind in kinds])
        values = {}
        for kind in ("Position", "Pitch", "Part"):
            values[kind] = np.array([int(v) if _kind(n) == kind else -1 for n, _, v in names])
        self.position, self.pitch, self.part = values["Position"], values["Pitch"], values["Part"]
        is_drum_pitch = np.array([name == "PitchDrum" for name, _, _ in names])
        self.program = np.array([_program_class(v) if n == "Program" else -1 for n, _, v in names])
        n_positions, n_parts = int(self.position.max()) + 1, int(self.part.max())
        signatures = [tuple(map(int, v.split("/"))) if n == "TimeSig" else (0, 1) for n, _, v in names]
        whole = max(range(len(names)), key=lambda i: signatures[i][0] / signatures[i][1])
        steps = n_positions * signatures[whole][1] // signatures[whole][0]  # per whole note
        lengths = np.array([steps * n // d for n, d in signatures])
        distinct = np.unique(lengths)  # tokens other than TimeSig have the length 0
        self.length = np.where(lengths > 0, np.searchsorted(distinct, lengths), -1)

        def may_follow(following: dict[str, Sequence[str]], without: tuple[str, ...] = ()) -> np.ndarray:
            allowed = [[kind in following.get(last, ()) and kind not in without for kind in kinds] for last in KINDS]
            return np.array(allowed)

        self.by_kind = np.concatenate([may_follow(FOLLOWING, ("EOS",)), may_follow(FOLLOWING), may_follow(IN_HOLE)])
        self.by_program = np.stack([kinds != "Position", ~is_drum_pitch, (kinds != "Pitch") | is_drum_pitch])
        self.by_position = (self.position < 0) | (self.position >= np.arange(n_positions + 1)[:, None])
        self.by_length = self.position < distinct[:, None]
        self.by_pitch = (self.pitch < 0) | (self.pitch >= np.arange(128 * MAX_UNISON + 1)[:, None] // MAX_UNISON)
        self.by_part = (self.part < 0) | (self.part > np.arange(n_parts + 1)[:, None])
        self.forced = np.eye(V - np.count_nonzero(kinds == "Tag"), V, dtype=bool)  # tags are the last tokens
        self.bar_steps = distinct
        self.n_parts = n_parts
        self.starts_bar = kinds == "Bar"
        self.end = int(np.flatnonzero(kinds == "End")[0])

    def programs(self, ids: np.ndarray) -> np.ndarray:
        """Return the class of each part's program after `ids`, int64 [parts + 1]. Element 0 is not used."""
        classes = np.full(self.n_parts + 1, NO_PROGRAM)
        relevant = ids[(self.part[ids] >= 0) | (self.program[ids] >= 0)]
        part = 0
        for token in relevant.tolist():
            if self.part[token] >= 0:
                part = self.part[token]
            else:
                classes[part] = self.program[token]
        return classes


def _kind(name: str) -> str:
    return "Pitch" if name == "PitchDrum" else name


def _after_pitch(last: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Return the classes of `MultitrackRules.by_pitch` after notes of `pitch`, given the classes before them."""
    return np.maximum(pitch * MAX_UNISON, last) + 1


def _program_class(value: str) -> int:
    return DRUM if value == "Drums" else MELODIC


class MultitrackGrammar(Grammar):
    """The grammar of rows that continue a piece of `multitrack` tokens. A bar is complete when the next one starts."""

    def __init__(self, rules: MultitrackRules, prompt_ids: np.ndarray, rows: int, max_bars: int | None, may_end: bool):
        self.rules = rules
        self.tables = (
            rules.by_kind[: 2 * len(KINDS)],
            rules.by_program,
            rules.by_position,
            rules.by_length,
            rules.by_pitch,
            rules.by_part,
        )
        super().__init__(rows, max_bars)
        self._started = np.zeros(rows, np.int64)
        self._kinds_offset = len(KINDS) if may_end or max_bars is None else 0
        self._programs = np.tile(rules.programs(np.asarray(prompt_ids, np.int64)), (rows, 1))
        self._needs_velocity = np.zeros(rows, bool)
        self.classes[0] = self._kinds_offset + KINDS.index("EOS")

    def feed(self, tokens: np.ndarray) -> None:
        rules, classes = self.rules, self.classes
        kind, starts_bar = rules.kind[tokens], rules.starts_bar[tokens]
        after_last = starts_bar & (self._started == self.max_bars) if self.max_bars is not None else False
        ending = ~self.ended & ((kind == KINDS.index("EOS")) | after_last)
        self.bars[ending] = self._started[ending]
        self.ended |= ending
        active = ~self.ended
        self._started += active & starts_bar
        self.bars[active] = np.maximum(self._started[active] - 1, 0)

        part, program, position, pitch, length = (
            np.where(active, values[tokens], -1)
            for values in (rules.part, rules.program, rules.position, rules.pitch, rules.length)
        )
        current = np.where(starts_bar & active, 0, np.where(part >= 0, part, classes[5]))
        classes[5] = current
        rows = np.arange(len(tokens))
        named = program >= 0
        self._programs[rows[named], current[named]] = program[named]
        classes[1] = self._programs[rows, current]
        classes[2] = np.where(part >= 0, 0, np.where(position >= 0, position + 1, classes[2]))
        classes[3] = np.where(length >= 0, length, classes[3])
        classes[4] = np.where(position >= 0, 0, np.where(pitch >= 0, _after_pitch(classes[4], pitch), classes[4]))
        is_last = (kind == KINDS.index("Duration")) & (classes[2] >= rules.bar_steps[classes[3]])
        kind = np.where(is_last, KINDS.index("Last"), kind)
        self._needs_velocity = np.where(part >= 0, True, self._needs_velocity)
        kind = np.where(self._needs_velocity & (pitch >= 0), KINDS.index("FirstPitch"), kind)
        self._needs_velocity &= pitch < 0
        classes[0, active] = kind[active] + self._kinds_offset


@dataclass(frozen=True)
class Step:
    """One step of a fill: given tokens, followed by the content of one hole."""

    given: np.ndarray  # int64 [n]; the last ones are the hole's Part, Program (if needed) and controls
    bar: int  # the hole's bar, as an index in the excerpt
    part: int  # the number of the hole's part
    length: int  # the length of the hole's bar, as a class of `MultitrackRules.by_length`
    program: int  # the class of the part's program: MELODIC or DRUM
    content: np.ndarray | None = None  # int64 [n], the piece's own tokens in the hole, without End; None if unknown


class FillGrammar(Grammar):
    """The grammar of rows that follow the steps of a fill: given tokens are forced, and each hole ends with End.

    `bars` counts the holes that a row has completed. `contents` has, for each row, the tokens of each hole.
    """

    def __init__(self, rules: MultitrackRules, steps: list[Step], rows: int):
        self.rules, self._steps = rules, steps
        conditions = (rules.by_kind, rules.by_program, rules.by_position, rules.by_length, rules.by_pitch)
        # The last line of each table allows every token.
        self.tables = tuple(np.concatenate([table, np.ones_like(table[:1])]) for table in (*conditions, rules.forced))
        super().__init__(rows, None)
        self._free = np.array([len(table) - 1 for table in self.tables])
        self._step = np.zeros(rows, np.int64)
        self._place = np.zeros(rows, np.int64)  # how many given tokens of the current step have been fed
        self.contents: list[list[list[int]]] = [[] for _ in range(rows)]
        for row in range(rows):
            self._choose(row)

    def feed(self, tokens: np.ndarray) -> None:
        rules, classes = self.rules, self.classes
        for row in np.flatnonzero(~self.ended).tolist():
            token = int(tokens[row])
            if self._place[row] < len(self._steps[self._step[row]].given):
                self._place[row] += 1
                self._choose(row)
            elif token == rules.end:
                self.bars[row] += 1
                self._step[row] += 1
                self._place[row] = 0
                self._choose(row)
            else:
                is_first = len(self.contents[row][-1]) == 1  # the content starts with a Position, then a pitch
                self.contents[row][-1].append(token)
                kind = KINDS.index("FirstPitch") if is_first else rules.kind[token]
                classes[0, row] = 2 * len(KINDS) + kind
                if rules.position[token] >= 0:
                    classes[2, row], classes[4, row] = rules.position[token] + 1, 0
                elif rules.pitch[token] >= 0:
                    classes[4, row] = _after_pitch(classes[4, row], rules.pitch[token])

    def _choose(self, row: int) -> None:
        """Set the classes of a row for its next token, which is a given token or the first token of a hole."""
        if self._step[row] == len(self._steps):
            self.ended[row] = True
            return
        step = self._steps[self._step[row]]
        if self._place[row] < len(step.given):
            self.classes[:, row] = self._free
            self.classes[-1, row] = step.given[self._place[row]]
        else:
            kind = 2 * len(KINDS) + KINDS.index("Hole")
            self.classes[:, row] = kind, step.program, 0, step.length, 0, self._free[-1]
            self.contents[row].append([])
