"""Joining the opening of a file with a completion that was decoded from tokens.

The line is the bar line at which the opening ends and the completion begins. Tokens are coarser than the file, so a
joined piece keeps the file's own events before the line. Only what follows the line comes from the decoded piece.

Notable choices:
- The resolution stays that of the file.
- The tempo and the time signature of the opening stay in force until a token changes them.
- An instrument that continues keeps its channel with its program, bank, pan, volume and so on. Another instrument gets
  an unused channel. If there is none, it takes over a channel whose controllers are reset.
- At the line, pedals and pitch bends are reset. Volume and expression return to their values at the channel's last
  note, so that a fade-out does not silence the completion.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import mido
import numpy as np

from rwkv_music.midi.events import (
    BANK,
    CHANNELS,
    DRUM_CHANNEL,
    DRUMS,
    EXPRESSION,
    RESET_CONTROLLERS,
    VOLUME,
    TimedMessage,
    rhythm_assignment,
    timed_messages,
    to_track,
)
from rwkv_music.midi.instruments import ChannelPrograms
from rwkv_music.midi.notes import is_note_on, read_notes, remove_overlaps
from rwkv_music.midi.time import BarGrid, TempoMap

PEDALS = (64, 66, 67, 69)  # sustain, sostenuto, soft, hold 2
# The values of controllers after power-on (General MIDI 2). All others are 0.
INITIAL_CONTROLS = {VOLUME: 100, 8: 64, 10: 64, EXPRESSION: 127, 91: 40} | dict.fromkeys(range(70, 80), 64)
FULL = 127  # volume and expression that leave the velocity as it is
# Controllers that select and set a registered parameter instead of having a value of their own.
DATA_ENTRY, DATA_LSB, NRPN, RPN_LSB, RPN_MSB = 6, 38, (98, 99), 100, 101
INITIAL_PARAMETERS = {0: 2, 1: 64, 2: 64}  # pitch bend range, fine tuning, coarse tuning
BEND, PRESSURE = "pitchwheel", "aftertouch"

Key = tuple[int, int]  # (port, channel)


@dataclass
class _Channel:
    """The state of a channel of the opening at the line."""

    program: int = 0
    has_program: bool = False
    notes: int = 0
    values: dict[int | str, int] = field(default_factory=dict)  # of controllers, BEND and PRESSURE
    track_of: dict[int | str, int] = field(default_factory=dict)  # the track that set each of `values`
    at_last_note: dict[int, int] = field(default_factory=dict)  # volume and expression
    parameter: list[int] = field(default_factory=lambda: [127, 127])  # the selected registered parameter
    parameters: dict[int, tuple[int, int]] = field(default_factory=dict)  # (value, track)

    def feed(self, message: mido.Message, track: int) -> None:
        if is_note_on(message):
            self.notes += 1
            self.at_last_note = {control: self.values.get(control, FULL) for control in (VOLUME, EXPRESSION)}
        elif message.type == "program_change":
            self.program, self.has_program = message.program, True
        elif message.type == BEND:
            self._set(BEND, message.pitch, track)
        elif message.type == PRESSURE:
            self._set(PRESSURE, message.value, track)
        elif message.type == "control_change":
            self._control(message.control, message.value, track)

    def _control(self, control: int, value: int, track: int) -> None:
        if control == RESET_CONTROLLERS:  # bank, volume, pan, effects and parameters keep their values (RP-015)
            for key in (1, EXPRESSION, *range(64, 70), BEND, PRESSURE):
                self.values.pop(key, None)
            self.at_last_note.pop(EXPRESSION, None)
        elif control in (RPN_MSB, RPN_LSB):
            self.parameter[control == RPN_LSB] = value
        elif control in NRPN:
            self.parameter = [127, 127]
        elif control == DATA_ENTRY:
            if self.parameter[0] == 0 and self.parameter[1] in INITIAL_PARAMETERS:
                self.parameters[self.parameter[1]] = value, track
        elif control < 120 and control not in (DATA_LSB, 96, 97):
            self._set(control, value, track)

    def _set(self, key: int | str, value: int, track: int) -> None:
        self.values[key], self.track_of[key] = value, track

    def gain(self) -> float:
        """Return the factor that volume and expression apply to a velocity."""
        kept = [self._kept(control) for control in (VOLUME, EXPRESSION)]
        return kept[0] * kept[1] / FULL**2

    def resets(self, channel: int, taken_over: bool) -> list[tuple[int, mido.Message]]:
        """Return (track, message) of the messages that prepare the channel for the completion."""
        messages = []
        for key, value in self.values.items():
            if taken_over:
                new = INITIAL_CONTROLS.get(key, 0)
            elif key in (VOLUME, EXPRESSION):
                new = self._kept(key)
            else:
                new = 0 if key in PEDALS or key in (BEND, PRESSURE) else value
            if new != value:
                messages.append((self.track_of[key], _setting(key, channel, new)))
        if taken_over:
            for parameter, (value, track) in self.parameters.items():
                if value != INITIAL_PARAMETERS[parameter]:
                    steps = ((RPN_MSB, 0), (RPN_LSB, parameter), (DATA_ENTRY, INITIAL_PARAMETERS[parameter]))
                    steps += ((DATA_LSB, 0), (RPN_MSB, 127), (RPN_LSB, 127))
                    messages += [(track, _setting(control, channel, new)) for control, new in steps]
        return messages

    def _kept(self, control: int) -> int:
        """Return the value of volume or expression in the completion."""
        value = self.at_last_note.get(control, self.values.get(control, FULL))
        return value or INITIAL_CONTROLS[control]


def _setting(key: int | str, channel: int, value: int) -> mido.Message:
    if key == BEND:
        return mido.Message(BEND, channel=channel, pitch=value)
    if key == PRESSURE:
        return mido.Message(PRESSURE, channel=channel, value=value)
    return mido.Message("control_change", channel=channel, control=key, value=value)


@dataclass(frozen=True)
class _Part:
    """The notes of one instrument of the completion, in ticks of the joined file."""

    program: int  # DRUMS for percussion
    notes: np.ndarray  # int64 [n, 4]: start, duration, pitch, velocity


class _Opening:
    """The channels of an opening at its end, and the notes that still sound."""

    def __init__(self, midi: mido.MidiFile):
        self.channels: dict[Key, _Channel] = defaultdict(_Channel)
        self._programs = ChannelPrograms()
        # (track, port, channel, pitch): the programs of the notes that sound; they end in the order in which they start
        self.held: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
        ports = [0] * len(midi.tracks)
        messages = [(tick, i, m) for i, track in enumerate(midi.tracks) for tick, m in timed_messages(track)]
        for _, i, message in sorted(messages, key=lambda timed: timed[0]):
            if message.type == "midi_port":
                ports[i] = message.port
            if message.type == "sysex" and (assignment := rhythm_assignment(bytes(message.data))):
                channel, part, mode = assignment
                self._programs.assign(ports[i] * CHANNELS + channel, part, mode)
            if message.is_meta or not hasattr(message, "channel"):
                continue
            key = ports[i], message.channel
            channel = self.channels[key]
            channel.feed(message, i)
            number = key[0] * CHANNELS + key[1]
            if message.type == "program_change":
                self._programs.change_program(number, message.program)
            elif message.type == "control_change" and message.control == BANK:
                self._programs.select_bank(number, message.value)
            if message.type in ("note_on", "note_off"):
                held = self.held[(i, *key, message.note)]
                if is_note_on(message):
                    held.append(self.program(key))
                elif held:
                    held.pop(0)

    def program(self, key: Key) -> int:
        """Return the program that a channel plays at this point, or DRUMS."""
        return self._programs[key[0] * CHANNELS + key[1]]

    def assign(self, programs: list[int], instrument: Callable[[int], int | None]) -> tuple[list[Key], list[bool]]:
        """Return the port and channel of each of the completion's programs, and whether its instrument continues there.

        `instrument` maps the programs of the opening to those of the completion.
        """
        owner: dict[int, Key] = {}  # the channel that continues to play each program
        for key, channel in sorted(self.channels.items(), key=lambda item: (-item[1].notes, item[0])):
            program = instrument(self.program(key))
            if program is not None and (channel.notes or channel.has_program):
                owner.setdefault(program, key)
        going_on = {owner[program] for program in programs if program in owner}
        others = [(0, channel) for channel in range(16) if self.program((0, channel)) != DRUMS]
        others = [key for key in others if key not in going_on]
        # Unused channels come first, then those without notes, then those whose instrument has stopped.
        others.sort(key=lambda key: self.channels[key].notes if key in self.channels else -1)
        others = others or [(0, 15)]
        keys = []
        for program in programs:
            if program in owner:
                keys.append(owner[program])
            elif program == DRUMS:
                keys.append((0, DRUM_CHANNEL))
            else:  # more instruments than channels share the last one
                keys.append(others.pop(0) if len(others) > 1 else others[0])
        return keys, [program in owner for program in programs]


def join(
    opening: mido.MidiFile,
    line: int,
    decoded: mido.MidiFile,
    prompt_bars: int,
    bars: int,
    instrument: Callable[[int], int | None] = lambda program: program,
    velocities_include_volume: bool = False,
) -> mido.MidiFile:
    """Return the events of `opening`, all before tick `line`, followed by `bars` bars of `decoded`.

    Args:
        prompt_bars: the number of bars of `decoded` that `opening` replaces.
        instrument: maps a program of `opening` (DRUMS for percussion) to the one that plays it in `decoded`, or None.
        velocities_include_volume: whether velocities of `decoded` are those of `opening` times volume and expression.

    Notes of `opening` that sound across the line end where they end in `decoded`, or else at the line.
    """
    timing, decoded_lines, lines = _timing(opening, line, decoded, prompt_bars, bars)

    def moved(ticks: np.ndarray) -> np.ndarray:
        return np.rint(np.interp(ticks, decoded_lines, lines)).astype(np.int64)

    end = int(lines[bars])
    parts, held_ends = [], {}
    for track in decoded.tracks:
        programs = [message for message in track if message.type == "program_change"]
        if not programs:
            continue
        program = DRUMS if programs[0].channel == DRUM_CHANNEL else programs[0].program
        notes = read_notes(mido.MidiFile(ticks_per_beat=decoded.ticks_per_beat, tracks=[track]))
        crossing = (notes.start_tick < decoded_lines[0]) & (notes.end_tick > decoded_lines[0])
        ends = moved(notes.end_tick[crossing]).tolist()
        held_ends |= {(program, pitch): e for pitch, e in zip(notes.pitch[crossing].tolist(), ends, strict=True)}
        new = notes.start_tick >= decoded_lines[0]
        start = np.clip(moved(notes.start_tick[new]), line, end - 1)
        duration = np.maximum(moved(notes.end_tick[new]) - start, 1)
        if new.any():
            rows = remove_overlaps(start, duration, notes.pitch[new], notes.velocity[new])
            parts.append(_Part(program, np.stack(rows, axis=1)))

    before = _Opening(opening)
    keys, goes_on = before.assign([part.program for part in parts], instrument)
    taken_over = set(keys) - {key for key, same in zip(keys, goes_on, strict=True) if same}
    tracks = [timed_messages(track) for track in opening.tracks]
    first_new: dict[tuple[int, int, int], int] = {}  # (port, channel, pitch): where the first added note starts
    for part, key in zip(parts, keys, strict=True):
        for tick, _, pitch, _ in part.notes.tolist():
            first_new[(*key, pitch)] = min(first_new.get((*key, pitch), tick), tick)
    for (track, *key, pitch), programs in before.held.items():
        for program in programs:
            tick = max(line, held_ends.get((instrument(program), pitch), line))
            tick = min(tick, first_new.get((*key, pitch), tick))
            tracks[track].append((tick, mido.Message("note_off", channel=key[1], note=pitch)))
    for key, channel in before.channels.items():
        for track, message in channel.resets(key[1], key in taken_over):
            tracks[track].append((line, message))

    joined = mido.MidiFile(type=1, ticks_per_beat=opening.ticks_per_beat)
    joined.tracks += [to_track(messages, note_offs_first=False) for messages in tracks]
    if timing:
        joined.tracks.append(to_track(timing))
    for part, key, same in zip(parts, keys, goes_on, strict=True):
        channel = before.channels[key]
        program = channel.program if same else part.program
        gain = channel.gain() if same and velocities_include_volume else 1
        joined.tracks.append(_added_track(part.notes, key, program, gain, not same, keys.count(key) > 1))
    return joined


def _added_track(
    notes: np.ndarray, key: Key, program: int, gain: float, set_program: bool, shared: bool
) -> mido.MidiTrack:
    """Return the track of a part's notes. On a shared channel, a program change precedes each note."""
    port, channel = key
    change = mido.Message("program_change", channel=channel, program=program % DRUMS)
    messages: list[TimedMessage] = [(0, mido.MetaMessage("midi_port", port=port))] if port else []
    if set_program and not shared:
        messages.append((int(notes[0, 0]), change))
    for tick, duration, pitch, velocity in notes.tolist():
        if shared:
            messages.append((tick, change))
        velocity = min(max(round(velocity / gain), 1), 127)
        messages.append((tick, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)))
        messages.append((tick + duration, mido.Message("note_off", channel=channel, note=pitch, velocity=0)))
    return to_track(messages)


def _timing(
    opening: mido.MidiFile, line: int, decoded: mido.MidiFile, prompt_bars: int, bars: int
) -> tuple[list[TimedMessage], np.ndarray, np.ndarray]:
    """Return the tempo and time signature messages from `line` on, and two arrays that map ticks.

    The arrays, int64 [bars + 2], hold the bar lines of the completion and a later point, in `decoded` and in the
    joined file.
    """
    division = opening.ticks_per_beat
    own_grid, grid = BarGrid.from_midi(opening), BarGrid.from_midi(decoded)
    bar = int(own_grid.bar(line - 1))
    signature = tuple(own_grid.signatures(bar + 1)[-1].tolist())
    cut_short = own_grid.lines(bar + 1)[-1] != line  # a time signature on the line ended the bar
    decoded_lines = grid.lines(prompt_bars + bars)[prompt_bars:]
    signatures = list(map(tuple, grid.signatures(prompt_bars + bars)[max(prompt_bars - 1, 0) :].tolist()))
    messages: list[TimedMessage] = []
    lines = [line]
    for i in range(bars):
        new = signatures[i + 1] if prompt_bars else signatures[i]
        named = i > 0 or prompt_bars > 0
        if (named and new != signatures[i]) or Fraction(*new) != Fraction(*signature):
            cut_short, signature = True, new
        if cut_short:
            message = mido.MetaMessage("time_signature", numerator=signature[0], denominator=signature[1])
            messages.append((lines[-1], message))
        cut_short = False
        lines.append(lines[-1] + int(BarGrid([(0, *signature)], division).lines(1)[-1]))
    scale = (lines[-1] - lines[-2]) / (decoded_lines[-1] - decoded_lines[-2])
    later = 1 << 20
    decoded_lines = np.append(decoded_lines, decoded_lines[-1] + later)
    file_lines = np.append(np.array(lines), lines[-1] + round(later * scale))

    tempos = TempoMap.from_midi(decoded)
    last = None
    for tick, tempo in zip(tempos.ticks.tolist(), tempos.tempos.tolist(), strict=True):
        if tick >= decoded_lines[0] and tempo != last and tick < decoded_lines[bars]:
            moved = round(np.interp(tick, decoded_lines, file_lines))
            messages.append((moved, mido.MetaMessage("set_tempo", tempo=int(tempo))))
        last = tempo
    return messages, decoded_lines, file_lines
