"""Joining the opening of a file with a completion that was decoded from tokens.

In this module, "the line" is the bar line at which the opening ends and the completion begins. Tokens are less precise
than the file. A joined piece therefore keeps the events of the file before the line. Only the events after the line
come from the decoded piece.

Notable choices:
- The joined piece has the resolution of the file.
- The tempo and the time signature of the opening continue until a token changes them.
- An instrument that continues keeps its channel with its program, bank, pan, volume and so on. A new instrument gets an
  unused channel. If there is none, it takes over another instrument's channel, and the controllers are reset.
- At the line, pedals and pitch bends are reset. Volume and expression return to the values that they had at the start
  of the channel's last note, so that a fade-out does not silence the completion.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import mido
import numpy as np

from rwkv_music.midi.channels import ChannelStates, Key
from rwkv_music.midi.events import DRUM_CHANNEL, DRUMS, TimedMessage, timed_messages, to_track
from rwkv_music.midi.notes import read_notes, remove_overlaps
from rwkv_music.midi.time import BarGrid, TempoMap


@dataclass(frozen=True)
class _Part:
    """The notes of one instrument of the completion, in ticks of the joined file."""

    program: int  # DRUMS for percussion
    notes: np.ndarray  # int64 [n, 4]: start, duration, pitch, velocity


def join(
    opening: mido.MidiFile,
    line: int,
    decoded: mido.MidiFile,
    prompt_bars: int,
    bars: int,
    instrument: Callable[[int], int | None] = lambda program: program,
    velocities_include_volume: bool = False,
) -> mido.MidiFile:
    """Return `opening`, followed at tick `line` by the `bars` bars of `decoded` after its first `prompt_bars` bars.

    Args:
        opening: a piece whose events are all before tick `line`.
        prompt_bars: the number of bars of `decoded` that `opening` replaces.
        instrument: maps a program of `opening` (DRUMS for percussion) to the program that represents it in `decoded`,
            or to None if `decoded` does not contain it.
        velocities_include_volume: whether the velocities of `decoded` are already multiplied by volume and expression.

    A note of `opening` that still sounds at the line ends where it ends in `decoded`. If `decoded` does not contain the
    note, it ends at the line.
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

    before = ChannelStates(opening)
    keys, is_continued = _assign(before, [part.program for part in parts], instrument)
    taken_over = set(keys) - {key for key, same in zip(keys, is_continued, strict=True) if same}
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
    for part, key, same in zip(parts, keys, is_continued, strict=True):
        channel = before.channels[key]
        program = channel.program if same else part.program
        gain = channel.gain() if same and velocities_include_volume else 1
        joined.tracks.append(_added_track(part.notes, key, program, gain, not same, keys.count(key) > 1))
    return joined


def _assign(
    before: ChannelStates, programs: list[int], instrument: Callable[[int], int | None]
) -> tuple[list[Key], list[bool]]:
    """Return the channel for each program of the completion, and whether an instrument of the opening continues there.

    `instrument` maps the programs of the opening to those of the completion.
    """
    owner: dict[int, Key] = {}  # the channel that continues each program
    for key, channel in sorted(before.channels.items(), key=lambda item: (-item[1].notes, item[0])):
        program = instrument(before.program(key))
        if program is not None and (channel.notes or channel.has_program):
            owner.setdefault(program, key)
    going_on = {owner[program] for program in programs if program in owner}
    others = [(0, channel) for channel in range(16) if before.program((0, channel)) != DRUMS]
    others = [key for key in others if key not in going_on]
    # Unused channels come first, then those without notes, then those with the fewest notes.
    others.sort(key=lambda key: before.channels[key].notes if key in before.channels else -1)
    others = others or [(0, 15)]
    keys = []
    for program in programs:
        if program in owner:
            keys.append(owner[program])
        elif program == DRUMS:
            keys.append((0, DRUM_CHANNEL))
        else:  # if there are more instruments than channels, the last channel is shared
            keys.append(others.pop(0) if len(others) > 1 else others[0])
    return keys, [program in owner for program in programs]


def _added_track(
    notes: np.ndarray, key: Key, program: int, gain: float, set_program: bool, shared: bool
) -> mido.MidiTrack:
    """Return a track with the notes of a part. On a shared channel, a program change precedes each note."""
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

    Both arrays, int64 [bars + 2], contain the bar lines of the completion and one later point. In the first array they
    are in ticks of `decoded`, and in the second array in ticks of the joined file.
    """
    division = opening.ticks_per_beat
    own_grid, grid = BarGrid.from_midi(opening), BarGrid.from_midi(decoded)
    bar = int(own_grid.bar(line - 1))
    signature = tuple(own_grid.signatures(bar + 1)[-1].tolist())
    cut_short = own_grid.lines(bar + 1)[-1] != line  # a time signature on the line ended the last bar early
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
