"""Replacing and adding cells of a MIDI file. A cell is one part in one bar.

The notes that start in a replaced cell are removed, note-ons together with their note-offs. The new notes go into the
part's own track and channel. All other events of the file are kept, with their ticks and tracks. Notable choices:

- Overlapping notes of one pitch in one channel of a track end in the order in which they start, as in `played_notes`. A
  note-off is *unmatched* if it does not end a note of its track. Unmatched note-offs are kept.
- At one tick, new note-offs come before the file's events, and new note-ons come after them.
- A new note ends no later than the start of the next note of its pitch in its track and channel, and before the next
  unmatched note-off of its pitch.
- A note-off stops its pitch in all tracks that use the channel. A new note therefore must not end while a note of its
  pitch sounds in another track. If it would, it is shortened so that it ends before the other note starts, or
  lengthened until the other note ends. If neither is possible, the new note is left out.
- If a note of the file has no note-off, no new notes of its pitch are written from its start on in its track and
  channel. New drum notes are written, but without note-offs.
- A new part gets a new track after the existing ones, and a channel without notes. If every channel has notes, the part
  shares a channel that plays its program. If there is no such channel, it shares the channel that has the fewest notes.
  On a channel that other notes or messages use, program changes are written before and after the new notes. A new drum
  part shares the channel of the file's drums.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import mido
import numpy as np

from rwkv_music.midi.channels import ChannelStates
from rwkv_music.midi.edit import cut_after
from rwkv_music.midi.events import CHANNELS, DRUM_CHANNEL, DRUMS, TimedMessage, timed_messages, to_track
from rwkv_music.midi.general_midi import instrument_name
from rwkv_music.midi.notes import MAX_UNISON, is_note_on, remove_overlaps
from rwkv_music.midi.parts import Part
from rwkv_music.midi.time import BarGrid, TempoMap

NEVER = 1 << 60  # the end of a note without a note-off
# The order of events at one tick. OWN are the file's events. LATE_NOTE_OFF ends a new note that starts during a note of
# the file and ends at the same tick as that note.
NEW_NOTE_OFF, OWN, LATE_NOTE_OFF, NEW_NOTE_ON = range(4)
Key = tuple[int, int]  # (16 * port + channel, pitch)


@dataclass(frozen=True)
class NewPart:
    """A part to be added to a file."""

    program: int  # a General MIDI program, or DRUMS
    name: str = ""  # the name of its track; "" selects the name of its instrument
    kit: int = 0  # the program number that selects the drum kit, if the program is DRUMS


@dataclass(frozen=True)
class Cell:
    """The new notes of one part in one bar.

    Each row of `notes` [n, 4] is (start, duration, pitch, velocity). The start is counted from the bar line, and start
    and duration are in quarter notes. Notes that start outside the bar are left out.
    """

    bar: int  # counted from 0, as in BarGrid
    part: int  # an index in the list of parts that is passed together with the cells
    notes: np.ndarray


@dataclass(frozen=True)
class NewBar:
    """A bar after the end of a file. None means that the value of the previous bar continues."""

    signature: tuple[int, int] | None = None  # (numerator, denominator)
    tempo: int | None = None  # microseconds per quarter note


def replace_cells(
    midi: mido.MidiFile, parts: Sequence[Part | NewPart], cells: Iterable[Cell], grid: BarGrid | None = None
) -> mido.MidiFile:
    """Return a copy of a file in which the notes of `cells` replace the notes that start in these cells.

    Args:
        parts: the parts that `Cell.part` refers to. Each NewPart gets a track, even if it has no notes.
        cells: the new contents. A cell without notes becomes empty. A cell can be in a bar after the end of the file,
            where the last time signature continues.
        grid: the bars that `Cell.bar` refers to; by default, those of the file.
    """
    cells = list(cells)
    grid = grid or BarGrid.from_midi(midi)
    tracks = [_Track(track) for track in midi.tracks]
    bars: dict[int, set[int]] = defaultdict(set)
    for cell in cells:
        bars[cell.part].add(cell.bar)
    for number, part in enumerate(parts):
        if isinstance(part, Part) and bars[number]:
            tracks[part.track].remove(part.channel, bars[number], grid)
    return _with_notes(midi, tracks, parts, _in_ticks(cells, grid, midi.ticks_per_beat), {})


def continue_cells(
    opening: mido.MidiFile,
    line: int,
    parts: Sequence[Part | NewPart],
    cells: Iterable[Cell],
    new_bars: Sequence[NewBar],
    released: Sequence[list[TimedMessage]] | None = None,
) -> mido.MidiFile:
    """Return `opening`, whose events are before tick `line`, followed by `cells` in new bars from `line` on.

    Args:
        parts: the parts that `Cell.part` refers to. Each NewPart gets a track.
        cells: the notes of the new bars. The number of the first new bar is
            `BarGrid.from_midi(opening).bar(line - 1) + 1`, or 0 if `line` is 0.
        new_bars: the time signatures and tempos of the new bars. They are written to the first track, which ends with
            the last new bar.
        released: the note-offs of notes that sound at `line`, from `edit.releases`.

    The parts keep the programs that they have at `line`. At `line`, pedals, pitch bends and pressure are reset. Volume
    and expression are set to the values that they had at the start of the channel's last note. A value that was 0 there
    is replaced by General MIDI's initial value. A note that still sounds at `line` ends at its note-off in `released`,
    or at `line` if there is none. It ends no later than the start of the first new note of its pitch in its track and
    channel, and no later than the end of the last bar.
    """
    before = ChannelStates(opening)
    timing, end = _new_bar_messages(opening, line, new_bars)
    messages = [timed_messages(track) for track in opening.tracks]
    messages[0] += timing
    extended = mido.MidiFile(type=opening.type, ticks_per_beat=opening.ticks_per_beat)
    extended.tracks = [to_track(timed, note_offs_first=False) for timed in messages]
    new = _in_ticks(cells, BarGrid.from_midi(extended), opening.ticks_per_beat)

    first_new: dict[tuple[int, int, int], int] = {}  # (track, channel, pitch): the tick of the first new note
    for number, notes in new.items():
        if isinstance(part := parts[number], Part):
            for tick, _, pitch, _ in reversed(notes.tolist()):
                first_new[part.track, part.channel, pitch] = tick
    for (track, port, channel, pitch), held in before.held.items():
        offs = [tick for tick, m in (released[track] if released else []) if _ends(m, channel, pitch)]
        last = min(first_new.get((track, CHANNELS * port + channel, pitch), end), end)
        for tick in (offs + [line] * len(held))[: len(held)]:
            messages[track].append((min(max(tick, line), last), mido.Message("note_off", channel=channel, note=pitch)))
    for (_, channel), state in before.channels.items():
        for track, message in state.resets(channel, taken_over=False):
            messages[track].append((line, message))
    extended.tracks = [to_track(timed, note_offs_first=False, end=end * (i == 0)) for i, timed in enumerate(messages)]

    programs = {}
    for number, part in enumerate(parts):
        if isinstance(part, Part) and part.program != DRUMS:
            key = divmod(part.channel, CHANNELS)
            programs[number] = before.last_program.get((part.track, *key), before.channels[key].program)
    return _with_notes(extended, [_Track(track) for track in extended.tracks], parts, new, programs)


def _ends(message: mido.Message, channel: int, pitch: int) -> bool:
    """Return whether a message of `edit.releases` ends a note of a channel and pitch."""
    return message.type in ("note_on", "note_off") and (message.channel, message.note) == (channel, pitch)


def _new_bar_messages(opening: mido.MidiFile, line: int, new_bars: Sequence[NewBar]) -> tuple[list[TimedMessage], int]:
    """Return the time signatures and tempos of new bars from `line` on, and the tick at which the last bar ends."""
    grid = BarGrid.from_midi(opening)
    bar = int(grid.bar(line))
    signature = tuple(grid.signatures(bar + 1)[-1].tolist())
    # False if the last bar is cut short by a time signature at `line`. `opening` ends before `line`, so it does not
    # contain this time signature.
    on_bar_line = grid.lines(bar)[-1] == line
    tempo = TempoMap.from_midi(opening).tempos[-1]
    messages: list[TimedMessage] = []
    for new in new_bars:
        if new.signature not in (None, signature) or not on_bar_line:
            signature = new.signature or signature
            numerator, denominator = signature
            message = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
            messages.append((line, message))
        on_bar_line = True
        if new.tempo not in (None, tempo):
            tempo = new.tempo
            messages.append((line, mido.MetaMessage("set_tempo", tempo=tempo)))
        line += int(BarGrid([(0, *signature)], opening.ticks_per_beat).lines(1)[-1])
    return messages, line


def _in_ticks(cells: Iterable[Cell], grid: BarGrid, division: int) -> dict[int, np.ndarray]:
    """Return the notes of each part, int64 [n, 4], sorted by start: start and duration in ticks, pitch, velocity.

    Overlaps are removed: in a part, notes of one pitch overlap only if they start together.
    """
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    cells = list(cells)
    lines = grid.lines(max((cell.bar for cell in cells), default=0) + 1)
    for cell in cells:
        line, next_line = lines[cell.bar : cell.bar + 2]
        notes = np.asarray(cell.notes, np.float64).reshape(-1, 4)
        notes = notes[(notes[:, 0] >= 0) & (notes[:, 0] * division < next_line - line)]
        start = np.minimum(np.rint(notes[:, 0] * division), next_line - line - 1)
        duration = np.maximum(np.rint((notes[:, 0] + notes[:, 1]) * division) - start, 1)
        found[cell.part].append(np.stack([line + start, duration, notes[:, 2], np.clip(notes[:, 3], 1, 127)], axis=1))
    return {
        number: np.stack(remove_overlaps(*np.rint(np.concatenate(notes)).T, MAX_UNISON), axis=1)
        for number, notes in found.items()
    }


class _Track:
    """A track from which notes can be removed, and to which notes can be added."""

    def __init__(self, track: mido.MidiTrack):
        self.messages = timed_messages(track)
        self.end = sum(message.time for message in track)
        # [index of the note-on, index of the note-off or None, start, end or NEVER] of each note, in order of start
        self.notes: dict[Key, list[list]] = defaultdict(list)
        self.unmatched: dict[Key, list[int]] = defaultdict(list)  # the ticks of note-offs that end no note
        self._removed: set[int] = set()  # indices of messages
        self._new: list[tuple[int, int, int, mido.Message]] = []  # tick, order, port, message
        n_ended: dict[Key, int] = defaultdict(int)
        port = 0
        for i, (tick, message) in enumerate(self.messages):
            if message.type == "midi_port":
                port = message.port
            elif is_note_on(message):
                self.notes[CHANNELS * port + message.channel, message.note].append([i, None, tick, NEVER])
            elif message.type in ("note_on", "note_off"):
                key = CHANNELS * port + message.channel, message.note
                if n_ended[key] < len(self.notes[key]):  # notes of one pitch end in the order in which they start
                    self.notes[key][n_ended[key]][1::2] = i, tick
                    n_ended[key] += 1
                else:
                    self.unmatched[key].append(tick)

    def remove(self, channel: int, bars: set[int], grid: BarGrid) -> None:
        """Remove the notes of a channel that start in one of `bars`."""
        keys = [key for key in self.notes if key[0] == channel]
        starts = np.array([start for key in keys for _, _, start, _ in self.notes[key]], np.int64)
        in_bars = iter([bar in bars for bar in grid.bar(starts).tolist()])
        for key in keys:
            kept = []
            for note in self.notes[key]:
                if next(in_bars):
                    self._removed |= set(note[:2])
                else:
                    kept.append(note)
            self.notes[key] = kept

    def add(self, tick: int, order: int, channel: int, message: mido.Message) -> None:
        self._new.append((tick, order, channel // CHANNELS, message))

    def midi_track(self) -> mido.MidiTrack:
        kept = ((tick, OWN, None, m) for i, (tick, m) in enumerate(self.messages) if i not in self._removed)
        messages, current = [], 0
        for tick, _, port, message in sorted([*kept, *self._new], key=lambda event: event[:2]):
            if message.type == "midi_port":
                current = message.port
            messages.append((tick, message))
            if port not in (None, current):
                messages.insert(-1, (tick, mido.MetaMessage("midi_port", port=port)))
                messages.append((tick, mido.MetaMessage("midi_port", port=current)))
        return to_track(messages, note_offs_first=False, end=self.end)


def _with_notes(
    midi: mido.MidiFile,
    tracks: list[_Track],
    parts: Sequence[Part | NewPart],
    new: dict[int, np.ndarray],
    programs: dict[int, int],
) -> mido.MidiFile:
    """Return a file with the given tracks, a new track for each NewPart, and the new notes of each part.

    The keys of `new` and `programs` are indices in `parts`. `programs` gives the programs that the new notes of some
    existing parts play. The new notes of other existing parts play the program of their channel.
    """
    sounding: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)  # (track, start, end) of the file's notes
    for i, track in enumerate(tracks):
        for key, notes in track.notes.items():
            sounding[key] += [(i, start, end) for _, _, start, end in notes]
    channels = _Channels(midi, parts)
    no_notes = np.empty((0, 4), np.int64)
    written = list(tracks)
    for number, part in enumerate(parts):
        notes = new.get(number, no_notes)
        if isinstance(part, NewPart):
            index, track = len(written), _Track(mido.MidiTrack())
            channel, program, set_up = channels.take(part, notes)
            name = (part.name or instrument_name(part.program)).encode().decode("latin-1")  # mido writes Latin-1
            track.add(0, OWN, 0, mido.MetaMessage("track_name", name=name))
            for tick, message in set_up:
                track.add(tick, OWN, channel, message)
            written.append(track)
        else:
            index, channel, program, track = part.track, part.channel, programs.get(number), tracks[part.track]
        fitted = _fitted(notes, index, channel, track, sounding, part.program == DRUMS)
        for tick, group in groupby(fitted, key=lambda note: note[0]):
            before, after = channels.program_changes(channel, program, tick)
            for message in before:
                track.add(tick, NEW_NOTE_ON, channel, message)
            for _, end, order, pitch, velocity in group:
                kind = {"channel": channel % CHANNELS, "note": pitch}
                track.add(tick, NEW_NOTE_ON, channel, mido.Message("note_on", velocity=velocity, **kind))
                if end != NEVER:
                    track.add(end, order, channel, mido.Message("note_off", velocity=0, **kind))
            for message in after:
                track.add(tick, NEW_NOTE_ON, channel, message)
    result = mido.MidiFile(type=max(midi.type, int(len(written) > 1)), ticks_per_beat=midi.ticks_per_beat)
    result.tracks = [track.midi_track() for track in written]
    return result


def _fitted(
    notes: np.ndarray,
    index: int,
    channel: int,
    track: _Track,
    sounding: dict[Key, list[tuple[int, int, int]]],
    are_drums: bool,
) -> list[tuple[int, int, int, int, int]]:
    """Fit new notes [n, 4] of one channel between the notes of the file. `index` is the index of their track.

    Return (start, end or NEVER, NEW_NOTE_OFF or LATE_NOTE_OFF, pitch, velocity) of each note, sorted by start. Notes
    that do not fit are left out.
    """
    fitted = []
    for start, duration, pitch, velocity in notes.tolist():
        # The part's own notes that start in replaced cells are already removed.
        own = [(a, b) for t, a, b in sounding[channel, pitch] if t == index]
        others = [
            (a + (t > index), b) for t, a, b in sounding[channel, pitch] if t != index and b != NEVER and b > start
        ]
        unmatched = track.unmatched[channel, pitch]
        never_ends = {a for a, b in own if b == NEVER}
        if any(a <= start for a in never_ends):
            if are_drums:
                fitted.append((start, NEVER, NEW_NOTE_OFF, pitch, velocity))
            continue
        held_until = max((b for a, b in own if a < start < b), default=0)
        limit = min((a for a in [*(a for a, _ in own), *unmatched] if a > start), default=NEVER)
        if held_until >= limit:
            continue
        end = _free_end(max(start + 1, held_until), max(min(start + duration, limit), held_until), limit, others)
        if end is not None:
            fitted.append((start, end, LATE_NOTE_OFF if end == held_until else NEW_NOTE_OFF, pitch, velocity))
    return fitted


def _free_end(earliest: int, end: int, latest: int, others: list[tuple[int, int]]) -> int | None:
    """Return a tick from `earliest` to `latest` that is outside all intervals [a, b) of `others`, or None.

    If there are several, return the latest one that is not after `end`. If all are after `end`, return the earliest.
    """
    earlier = end
    while earlier >= earliest and (hit := [a for a, b in others if a <= earlier < b]):
        earlier = min(hit) - 1
    if earlier >= earliest:
        return earlier
    while hit := [b for a, b in others if a <= end < b]:
        end = max(hit)
    return end if end <= latest else None


class _Channels:
    """The channels of a file and the program of each at each tick. Also chooses channels for new parts."""

    def __init__(self, midi: mido.MidiFile, parts: Sequence[Part | NewPart]):
        self._midi = midi
        self._parts = [part for part in parts if isinstance(part, Part)]
        self._taken: dict[int, int] = defaultdict(int)  # the number of notes of new parts, by channel of port 0
        self._changes: dict[int, list[tuple[int, int]]] = defaultdict(list)  # (tick, program)
        for track in midi.tracks:
            port = 0
            for tick, message in timed_messages(track):
                if message.type == "midi_port":
                    port = message.port
                elif message.type == "program_change":
                    self._changes[CHANNELS * port + message.channel].append((tick, message.program))
        for changes in self._changes.values():
            changes.sort(key=lambda change: change[0])

    @cached_property
    def _states(self) -> ChannelStates:
        return ChannelStates(self._midi)

    def take(self, part: NewPart, notes: np.ndarray) -> tuple[int, int | None, list[TimedMessage]]:
        """Return a channel for a new part, the program of its notes, and the messages that set up the channel.

        The program is None if the notes need no program changes.
        """
        channel = self._choose(part)
        used = self._taken[channel] or (0, channel) in self._states.channels
        self._taken[channel] += max(len(notes), 1)
        program = part.kit if part.program == DRUMS else part.program
        if not used:
            self._changes[channel].append((0, program))
            return channel, None, [(0, mido.Message("program_change", channel=channel, program=program))]
        set_up: list[TimedMessage] = []
        if len(notes) and (0, channel) in self._states.channels and not self._states.channels[0, channel].notes:
            tick = int(notes[0, 0])
            state = ChannelStates(cut_after(self._midi, tick + 1)).channels[0, channel]
            set_up = [(tick, message) for _, message in state.resets(channel, taken_over=True)]
        return channel, None if part.program == DRUMS else program, set_up

    def _choose(self, part: NewPart) -> int:
        if part.program == DRUMS:
            own = [own.channel for own in self._parts if own.program == DRUMS and own.channel < CHANNELS]
            return own[0] if own else DRUM_CHANNEL
        counts = {
            channel: self._taken[channel]
            + sum(state.notes for (_, other), state in self._states.channels.items() if other == channel)
            for channel in range(CHANNELS)
            if self._states.program((0, channel)) != DRUMS
        }
        has_messages = {channel for _, channel in self._states.channels}
        best = min(counts, key=lambda channel: (counts[channel], channel in has_messages), default=CHANNELS - 1)
        same = [own.channel for own in self._parts if own.program == part.program and own.channel in counts]
        return same[0] if same and counts.get(best) else best

    def program_changes(
        self, channel: int, program: int | None, tick: int
    ) -> tuple[list[mido.Message], list[mido.Message]]:
        """Return the messages to write before and after notes at `tick`, so that these notes play `program`.

        If `program` is None, the notes play the channel's program, and there are no such messages.
        """
        if program is None:
            return [], []
        changes = [change for at, change in self._changes[channel] if at <= tick]
        current = changes[-1] if changes else 0
        if current == program:
            return [], []

        def change(new: int) -> mido.Message:
            return mido.Message("program_change", channel=channel % CHANNELS, program=new)

        # `played_notes` applies a channel's first program change to all notes that start at its tick, even to those
        # that precede it in the file. The file's notes at `tick` must not get `program`, so a change to the current
        # program is written first.
        is_first = not self._changes[channel] or self._changes[channel][0][0] > tick
        if is_first:
            self._changes[channel].insert(0, (tick, current))
        return [change(current)] * is_first + [change(program)], [change(current)]
