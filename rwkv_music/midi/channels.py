"""The state of the channels at the end of a file: programs, controllers, pitch bends and notes that still sound."""

from collections import defaultdict
from dataclasses import dataclass, field

import mido

from rwkv_music.midi.events import (
    BANK,
    CHANNELS,
    EXPRESSION,
    RESET_CONTROLLERS,
    VOLUME,
    rhythm_assignment,
    timed_messages,
)
from rwkv_music.midi.instruments import ChannelPrograms
from rwkv_music.midi.notes import is_note_on

PEDALS = (64, 66, 67, 69)  # sustain, sostenuto, soft, hold 2
# The values of controllers after power-on (General MIDI 2). All others are 0.
INITIAL_CONTROLS = {VOLUME: 100, 8: 64, 10: 64, EXPRESSION: 127, 91: 40} | dict.fromkeys(range(70, 80), 64)
FULL = 127  # the volume and expression that do not reduce the velocity
# Controllers that select a registered parameter and set its value. They have no value of their own.
DATA_ENTRY, DATA_LSB, NRPN, RPN_LSB, RPN_MSB = 6, 38, (98, 99), 100, 101
INITIAL_PARAMETERS = {0: 2, 1: 64, 2: 64}  # pitch bend range, fine tuning, coarse tuning
BEND, PRESSURE = "pitchwheel", "aftertouch"

Key = tuple[int, int]  # (port, channel)


@dataclass
class ChannelState:
    """The state of a channel at the end of a file."""

    program: int = 0
    has_program: bool = False
    notes: int = 0  # the number of note-ons
    values: dict[int | str, int] = field(default_factory=dict)  # by controller number, BEND or PRESSURE
    track_of: dict[int | str, int] = field(default_factory=dict)  # the track that set each of `values`
    at_last_note: dict[int, int] = field(default_factory=dict)  # volume and expression at the start of the last note
    parameter: list[int] = field(default_factory=lambda: [127, 127])  # the selected registered parameter
    parameters: dict[int, tuple[int, int]] = field(default_factory=dict)  # by parameter: (value, track that set it)

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
        """Return the factor by which volume and expression scale velocities after `resets` without `taken_over`."""
        kept = [self._kept(control) for control in (VOLUME, EXPRESSION)]
        return kept[0] * kept[1] / FULL**2

    def resets(self, channel: int, taken_over: bool) -> list[tuple[int, mido.Message]]:
        """Return the messages, as (track, message), that prepare the channel for notes after the end of the file.

        If `taken_over`, another instrument will use the channel, and all controllers are reset to their initial values.
        Otherwise, only pedals, pitch bend and pressure are reset, and volume and expression are set to the values that
        they had at the start of the last note. A value that was 0 there is replaced by the initial value.
        """
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
        """Return the value of `control` (volume or expression) for notes after the end of the file."""
        value = self.at_last_note.get(control, self.values.get(control, FULL))
        return value or INITIAL_CONTROLS[control]


def _setting(key: int | str, channel: int, value: int) -> mido.Message:
    if key == BEND:
        return mido.Message(BEND, channel=channel, pitch=value)
    if key == PRESSURE:
        return mido.Message(PRESSURE, channel=channel, value=value)
    return mido.Message("control_change", channel=channel, control=key, value=value)


class ChannelStates:
    """The state of every channel at the end of a file, and the notes that still sound."""

    def __init__(self, midi: mido.MidiFile):
        self.channels: dict[Key, ChannelState] = defaultdict(ChannelState)
        self._programs = ChannelPrograms()
        # (track, port, channel, pitch): the programs of the notes that still sound, in the order in which they started
        self.held: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
        # (track, port, channel): the channel's program at the track's last note or program change
        self.last_program: dict[tuple[int, int, int], int] = {}
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
            if is_note_on(message) or message.type == "program_change":
                self.last_program[(i, *key)] = channel.program
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
        """Return the program that a channel plays at the end of the file, or DRUMS."""
        return self._programs[key[0] * CHANNELS + key[1]]
