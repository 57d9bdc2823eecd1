"""Writing cells into files."""

import io
from collections import Counter, defaultdict, deque

import mido
import numpy as np
import pytest

from rwkv_music.midi.cells import Cell, NewBar, NewPart, continue_cells, replace_cells
from rwkv_music.midi.edit import cut_after, releases
from rwkv_music.midi.events import DRUMS, TimedMessage, parse_midi, timed_messages
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.midi.time import BarGrid, TempoMap
from tests.midi.midi_files import file_of, make_midi, note, numbers, odd_piece

BAR = 1920  # ticks of 4/4
Cells = dict[tuple[int, int], np.ndarray]  # [[bar line, next bar line], ...] by (track, 16 * port + channel)


def program(number: int, channel: int = 0, tick: int = 0) -> TimedMessage:
    return tick, mido.Message("program_change", program=number, channel=channel)


def control(tick: int, number: int, value: int, channel: int = 0) -> TimedMessage:
    return tick, mido.Message("control_change", control=number, value=value, channel=channel)


def port(number: int) -> TimedMessage:
    return 0, mido.MetaMessage("midi_port", port=number)


def notes_from(*notes: tuple[float, float, int], velocity: int = 70) -> np.ndarray:
    """Return notes of a cell, each from (start, duration, pitch)."""
    return np.array([(start, duration, pitch, velocity) for start, duration, pitch in notes], float).reshape(-1, 4)


def parts_of(midi: mido.MidiFile) -> list[Part]:
    return read_parts(parse_midi(file_of(midi)))[0]


def written(grid: BarGrid, parts: list[Part | NewPart], cells: list[Cell]) -> Cells:
    """Return the cells of the file's own parts."""
    found = defaultdict(list)
    for cell in cells:
        if isinstance(part := parts[cell.part], Part):
            found[part.track, part.channel].append(grid.lines(cell.bar + 1)[cell.bar :])
    return {key: np.array(lines) for key, lines in found.items()}


def is_in(cells: Cells, track: int, channel: int, tick: int) -> bool:
    lines = cells.get((track, channel))
    return lines is not None and bool(((lines[:, 0] <= tick) & (tick < lines[:, 1])).any())


def without_notes(midi: mido.MidiFile, cells: Cells) -> list[list[tuple[int, dict]]]:
    """Return (tick, contents) of the events of each track without the notes that start in `cells`.

    Notes of one pitch in one channel of a track end in the order in which they start.
    """
    found = []
    for i, track in enumerate(midi.tracks):
        messages = timed_messages(track)
        sounding: dict[tuple[int, int], deque[bool]] = defaultdict(deque)  # whether each note is removed
        kept, current = [], 0
        for tick, message in messages:
            if message.type == "midi_port":
                current = message.port
            removed = False
            if message.type in ("note_on", "note_off"):
                channel = 16 * current + message.channel
                queue = sounding[channel, message.note]
                if message.type == "note_on" and message.velocity:
                    removed = is_in(cells, i, channel, tick)
                    queue.append(removed)
                elif queue:
                    removed = queue.popleft()
            if not removed:
                kept.append((tick, vars(message) | {"time": 0}))
        found.append(kept)
    return found


def notes_of(midi: mido.MidiFile, track: int) -> list[tuple[int, int | None, int, int]]:
    """Return (start, end, pitch, velocity) of the notes of a track; a note without a note-off ends at None."""
    return [note[:4] for note in notes_with_channels(midi, track)]


def notes_with_channels(midi: mido.MidiFile, track: int) -> list[tuple[int, int | None, int, int, int]]:
    """Return (start, end, pitch, velocity, channel) of the notes of a track."""
    sounding: dict[tuple[int, int], deque[int]] = defaultdict(deque)
    notes: list[list] = []
    for tick, message in timed_messages(midi.tracks[track]):
        if message.type in ("note_on", "note_off"):
            queue = sounding[message.channel, message.note]
            if message.type == "note_on" and message.velocity:
                queue.append(len(notes))
                notes.append([tick, None, message.note, message.velocity, message.channel])
            elif queue:
                notes[queue.popleft()][1] = tick
    return [tuple(row) for row in notes]


def heard(midi: mido.MidiFile, n_tracks: int, cells: Cells) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return when a synthesizer plays the notes of the first tracks that are outside `cells`.

    Events are played in order of time, then of tracks; a note-off ends all notes of its key. The result has
    (start, end) of the notes, by (16 * port + channel, pitch).
    """
    timed = []
    for i, track in enumerate(midi.tracks):
        current = 0
        for tick, message in timed_messages(track):
            if message.type == "midi_port":
                current = message.port
            elif message.type in ("note_on", "note_off"):
                timed.append((tick, i, 16 * current + message.channel, message))
    timed.sort(key=lambda event: event[:2])
    starts: dict[tuple[int, int], list[int]] = defaultdict(list)
    spans: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for tick, i, channel, message in timed:
        key = channel, message.note
        if message.type == "note_on" and message.velocity:
            if i < n_tracks and not is_in(cells, i, channel, tick):
                starts[key].append(tick)
        else:
            spans[key] += [(start, tick) for start in starts.pop(key, [])]
    return spans


def check(midi: mido.MidiFile, parts: list[Part | NewPart], cells: list[Cell]) -> mido.MidiFile:
    """Return `replace_cells`, checked: everything outside the cells is the same, event for event."""
    result = replace_cells(midi, parts, cells)
    holes = written(BarGrid.from_midi(midi), parts, cells)
    assert without_notes(result, holes)[: len(midi.tracks)] == without_notes(midi, holes)
    assert len(result.tracks) == len(midi.tracks) + sum(isinstance(part, NewPart) for part in parts)
    for before, after in zip(midi.tracks, result.tracks, strict=False):
        assert sum(m.time for m in before) <= sum(m.time for m in after)
    assert result.ticks_per_beat == midi.ticks_per_beat
    return result


def test_the_notes_that_start_in_a_cell_are_replaced():
    """One note is held into the cell, one starts on its line and one ends after it. The controllers stay."""
    own = [program(5), *note(1000, 2000, 60), *note(BAR, BAR + 480, 62), *note(2 * BAR - 480, 2 * BAR + 480, 64)]
    own += [control(BAR + 100, 64, 127), *note(2 * BAR, 2 * BAR + 100, 65)]
    midi = make_midi(sorted(own, key=lambda timed: timed[0]), note(BAR, 2 * BAR, 48))
    result = check(midi, parts_of(midi), [Cell(1, 0, notes_from((1, 0.5, 67), (3.5, 2, 69)))])
    new = [(BAR + 480, BAR + 720, 67, 70), (BAR + 1680, BAR + 2640, 69, 70)]
    assert notes_of(result, 0) == [(1000, 2000, 60, 80), *new, (2 * BAR, 2 * BAR + 100, 65, 80)]
    assert notes_of(result, 1) == notes_of(midi, 1)


def test_a_cell_without_notes_becomes_empty():
    midi = make_midi([*note(0, 100, 60), *note(BAR, 2 * BAR, 62)])
    result = check(midi, parts_of(midi), [Cell(1, 0, notes_from())])
    assert notes_of(result, 0) == [(0, 100, 60, 80)]
    assert sum(message.time for message in result.tracks[0]) == 2 * BAR  # the end of the track stays


@pytest.mark.parametrize("channel, place", [(0, 0), (0, 1), (1, 1)])
def test_new_notes_leave_the_notes_of_their_pitch_whole(channel, place):
    """A held note reaches into the cell, another starts after it: in the track itself, or in one of the channel."""
    others = [*note(1000, BAR + 480, 60, channel=channel), *note(2 * BAR, 2 * BAR + 480, 60, channel=channel)]
    tracks = [note(BAR + 100, BAR + 200, 72), []]
    tracks[place] = sorted(others + tracks[place], key=lambda timed: timed[0])
    midi = make_midi(*tracks)
    parts = parts_of(midi)
    new = notes_from((0.5, 0.25, 60), (1, 0.5, 60), (3, 1.5, 60), (0.5, 0.25, 61))
    result = check(midi, parts, [Cell(1, 0, new)])
    found = [(start - BAR, end - BAR) for start, end, pitch, _ in notes_of(result, 0) if pitch == 60 and start >= BAR]
    found = [span for span in found if span[0] < BAR]
    if channel:  # a channel of its own
        assert found == [(240, 360), (480, 720), (1440, 2160)]
    else:  # the first one lasts until the held note ends
        assert found == [(240, 480), (480, 720), (1440, BAR)]


@pytest.mark.parametrize(
    "following, expected",
    [
        (None, [(600, 1000), (720, 1680)]),
        (1200, [(600, 1000), (720, 1200)]),
        (1000, []),
    ],
)
def test_notes_over_a_held_note_do_not_end_before_it(following, expected):
    """A note of the file rings on, up to tick 1000. A note-off on the start of a note would end that."""
    meter = (0, mido.MetaMessage("time_signature", numerator=1, denominator=4))
    events = [
        *note(0, 1000, 60),
        *(note(following, following + (9 if following % 10 else 500), 60) if following else []),
    ]
    midi = make_midi([meter, *sorted(events, key=lambda timed: timed[0])])
    midi.tracks[0][2].velocity = 33  # the note-off stays the file's own
    cell = Cell(1, 0, notes_from((0.25, 0.25, 60), (0.5, 2, 60)))
    result = check(midi, parts_of(midi), [cell])
    assert [(start, end) for start, end, _, velocity in notes_of(result, 0) if velocity == 70] == expected


def test_an_end_on_the_start_of_a_note_in_an_earlier_track_comes_before_it():
    """A synthesizer plays the events of one tick in the order of the tracks."""
    midi = make_midi(note(BAR, BAR + 480, 60), note(0, 100, 50))
    result = check(midi, parts_of(midi), [Cell(0, 1, notes_from((2, 2, 60)))])
    assert notes_of(result, 1) == [(960, BAR - 1, 60, 70)]


def test_note_offs_that_end_no_note_stay():
    """Each note of the file ends twice, the second time 60 ticks later."""
    off = mido.Message("note_off", note=60)
    midi = make_midi([*note(0, 480, 60), (540, off), *note(960, 1440, 60), (1500, off), *note(BAR, BAR + 480, 62)])
    result = check(midi, parts_of(midi), [Cell(0, 0, notes_from((0, 4, 60)))])
    assert notes_of(result, 0) == [(0, 540, 60, 70), (BAR, BAR + 480, 62, 80)]


@pytest.mark.parametrize("ends", [(2, 3), (3, 2), (9, 9)])
def test_a_note_off_just_before_new_notes(ends):
    """`played_notes` reads all new notes and those of the file, of which the last one has no note-off."""
    off = mido.Message("note_off", note=60)
    midi = make_midi([(480, off), *note(BAR, 0, 60)[:1], *note(BAR, 2 * BAR, 62)])
    cell = notes_from(*((1, end - 1, 60) for end in ends), (1, 1, 64))
    found = played_notes(parse_midi(file_of(check(midi, parts_of(midi), [Cell(0, 0, cell)]))))
    expected = [(480, min(end * 480, BAR), 60) for end in ends]
    expected += [(480, 960, 64), (BAR, 2 * BAR, 60), (BAR, 2 * BAR, 62)]
    assert sorted(zip(found.start.tolist(), found.end.tolist(), found.pitch.tolist(), strict=True)) == sorted(expected)


def test_a_drum_without_note_off():
    """The drums of the file have no note-offs, so that a new one would end an earlier drum."""
    hits = [note(tick, 0, 36, channel=9)[0] for tick in range(0, 3 * BAR, 480)]
    melody = [note(tick, 0, 36)[0] for tick in range(0, 3 * BAR, 480)]
    midi = make_midi(hits, melody)
    cell = notes_from((0, 0.5, 36), (1.5, 0.5, 36))
    result = check(midi, parts_of(midi), [Cell(1, 0, cell), Cell(1, 1, cell)])
    new = [tick for tick, end, *_, velocity in notes_of(result, 0) if end is None and velocity == 70]
    assert new == [BAR, BAR + 720]
    assert [velocity for *_, velocity in notes_of(result, 1)] == [80] * 8  # no new note would ever end


def test_rounding_keeps_notes_in_their_bar_and_gives_them_a_length():
    """At 3 ticks per quarter note. Notes outside of the bar are left out; velocities are limited."""
    midi = make_midi([*note(0, 3, 60), *note(12, 15, 60)], ticks_per_beat=3)
    new = np.array(
        [(3.99, 0.01, 62, 0), (0, 0.01, 64, 300), (0.1, 1, 64, 9), (0.2, 1, 65, 9.6), (4, 1, 66, 9), (-1, 1, 66, 9)]
    )
    result = check(midi, parts_of(midi), [Cell(0, 0, new)])
    expected = [(0, 1, 64, 127), (0, 3, 64, 9), (1, 4, 65, 10), (11, 12, 62, 1), (12, 15, 60, 80)]
    assert sorted(notes_of(result, 0)) == expected


def test_new_notes_of_one_pitch_may_start_together():
    """The shortest comes first, so that readers find the length of each. A note of the file limits them."""
    midi = make_midi([*note(0, 480, 50), *note(BAR + 960, BAR + 1440, 60)])
    cell = Cell(0, 0, notes_from((3, 9, 60), (3, 1, 60), (3, 1, 62), (3, 1, 60)))
    result = check(midi, parts_of(midi), [cell])
    assert notes_of(result, 0) == [
        *[(1440, 1920, 60, 70)] * 2,
        (1440, BAR + 960, 60, 70),
        (1440, 1920, 62, 70),
        (BAR + 960, BAR + 1440, 60, 80),
    ]


def test_parts_of_one_track_with_ports():
    """A file of format 0 with two channels and a track whose port is 1."""
    midi = make_midi([*note(0, 480, 60), *note(0, 480, 60, channel=1)])
    midi.type = 0
    result = check(midi, parts_of(midi), [Cell(0, 1, notes_from((2, 1, 70)))])
    assert result.type == 0 and len(file_of(result)) and notes_of(result, 0)[1] == (960, 1440, 70, 70)
    midi = make_midi([*note(0, 480, 60)], [port(1), *note(0, 480, 60)])
    parts = parts_of(midi)
    result = check(midi, parts, [Cell(0, 1, notes_from((0.5, 1, 60)))])
    assert parts[1].channel == 16 and notes_of(result, 1) == [(240, 720, 60, 70)]
    assert notes_of(result, 0) == [(0, 480, 60, 80)]


def test_a_track_that_changes_its_port():
    midi = make_midi([*note(0, 480, 60), (960, port(1)[1]), *note(BAR, BAR + 480, 60)])
    parts = parts_of(midi)
    result = replace_cells(midi, parts, [Cell(1, 0, notes_from((1, 1, 62)))])
    found = parse_midi(file_of(result))
    assert read_parts(found)[1].tolist() == [0, 1, 0] and len(read_parts(found)[0]) == 2


def test_new_parts():
    """Channels without messages come first, then those without notes, whose controllers are reset."""
    tracks = [[program(n, n), *note(0, 480, 60, channel=n)] for n in range(14)]
    midi = make_midi(*tracks, [control(0, 10, 3, 14), control(0, 7, 0, 14), program(7, 14, BAR + 100)])
    midi.tracks[0].insert(0, mido.MetaMessage("time_signature", numerator=3, denominator=4))
    parts = [*parts_of(midi), NewPart(32, "Bass é"), NewPart(40), NewPart(DRUMS)]
    cell = notes_from((0, 1, 40))
    result = check(midi, parts, [Cell(1, n, cell) for n in (14, 15, 16)])
    found = parts_of(result)[14:]
    assert [(p.channel, p.program, p.name) for p in found] == [
        (15, 32, "Bass é".encode().decode("latin-1")),
        (14, 40, "Violin"),
        (9, DRUMS, "Drums"),
    ]
    reset = {m.control: (tick, m.value) for tick, m in timed_messages(result.tracks[16]) if m.type == "control_change"}
    assert reset == {10: (1440, 64), 7: (1440, 100)}
    assert not [m for i in (15, 17) for m in result.tracks[i] if m.type == "control_change"]


def test_a_new_part_without_a_free_channel():
    """All channels have notes. The part shares that of its program, or the one with the fewest notes."""
    channels = [n for n in range(16) if n != 9]
    tracks = [[program(n, n), *note(0, 480, 60, channel=n), *note(BAR, BAR + 9, 60, channel=n)] for n in channels]
    del tracks[4][-2:]  # channel 4 has one note
    tracks[5] = tracks[5][1:]  # channel 5 has no program change
    midi = make_midi(*tracks)
    parts = [*parts_of(midi), NewPart(7), NewPart(99)]
    cells = [Cell(0, n, notes_from((0, 1, 62), (2, 1, 64))) for n in (15, 16)]
    result = check(midi, parts, cells)
    found = parts_of(result)
    assert [(p.channel, p.program) for p in found[15:]] == [(7, 7), (4, 99)]
    assert [p.program for p in found[:15]] == [p.program for p in parts[:15]]
    changes = [(tick, m.program) for tick, m in timed_messages(result.tracks[16]) if m.type == "program_change"]
    assert changes == [(0, 99), (0, 4), (960, 99), (960, 4)]
    # Without a program change in the file, channel 5 plays program 0: also its first notes.
    midi = make_midi(*tracks[:4], tracks[5][:2], *tracks[6:], [*tracks[4], *note(960, 990, 60, channel=4)])
    result = check(midi, [*parts_of(midi), NewPart(99)], [Cell(0, 15, notes_from((0, 1, 62)))])
    assert [(p.channel, p.program) for p in parts_of(result) if p.channel == 5] == [(5, 0), (5, 99)]


def test_a_continuation_goes_on_in_the_tracks_of_the_file():
    """Held notes end where they end in the file, at the next note of their pitch, or at the end of the last bar."""
    names = [(0, mido.MetaMessage("track_name", name=name)) for name in ("Soprano", "Bass")]
    held = [*note(960, BAR + 240, 60)[:1], *note(970, BAR + 960, 62)[:1], *note(980, 0, 64)[:1]]
    ends = [note(0, BAR + 240, 60)[1], note(0, BAR + 960, 62)[1], note(0, 9 * BAR, 64)[1]]
    pedal = [control(500, 64, 127, 3), (600, mido.Message("pitchwheel", channel=3, pitch=99))]
    bass = [names[1], program(32, 3), *note(0, 480, 40, channel=3), *pedal]
    midi = make_midi([names[0], program(40), *held, *ends], bass, [])
    opening = cut_after(midi, BAR)
    parts = parts_of(opening)
    bars = [NewBar(), NewBar((3, 4), 400_000), NewBar(None, 400_000)]
    cells = [Cell(1, 0, notes_from((1, 1, 62))), Cell(2, 1, notes_from((0, 1, 41))), Cell(3, 2, notes_from((0, 4, 72)))]
    result = continue_cells(opening, BAR, [*parts, NewPart(48)], cells, bars, releases(midi, BAR))
    end = 2 * BAR + 2 * 1440
    assert notes_of(result, 0) == [
        (960, BAR + 240, 60, 80),
        (970, BAR + 480, 62, 80),
        (980, end, 64, 80),
        (BAR + 480, BAR + 960, 62, 70),
    ]
    assert notes_of(result, 1)[1:] == [(2 * BAR, 2 * BAR + 480, 41, 70)]
    assert notes_of(result, 3) == [(2 * BAR + 1440, 2 * BAR + 1440 + BAR, 72, 70)]
    grid = BarGrid.from_midi(result)
    assert grid.changes == [(0, 4, 4), (2 * BAR, 3, 4)]
    assert TempoMap.from_midi(result).ticks.tolist() == [0, 2 * BAR]
    assert sum(message.time for message in result.tracks[0]) == end
    at_line = [m.copy(time=0) for tick, m in timed_messages(result.tracks[1]) if tick == BAR]
    assert at_line == [control(0, 64, 0, 3)[1], mido.Message("pitchwheel", channel=3, pitch=0)]
    assert [(p.name, p.program) for p in parts_of(result)] == [
        ("Soprano", 40),
        ("Bass", 32),
        ("String Ensemble 1", 48),
    ]
    unreleased = continue_cells(opening, BAR, parts, [], bars)
    assert [end for _, end, *_ in notes_of(unreleased, 0)] == [BAR] * 3


def test_a_continuation_after_a_bar_that_was_cut_short():
    """A time signature at tick 960 ended the bar; the opening does not have it."""
    opening = make_midi(note(0, 480, 60))
    result = continue_cells(opening, 960, parts_of(opening), [Cell(1, 0, notes_from((0, 1, 62)))], [NewBar(), NewBar()])
    assert BarGrid.from_midi(result).lines(3).tolist() == [0, 960, 960 + BAR, 960 + 2 * BAR]
    assert notes_of(result, 0)[1] == (960, 1440, 62, 70)


def test_parts_that_share_a_channel_go_on_with_their_own_programs():
    """The second track set the program last."""
    opening = make_midi([program(40), *note(0, 480, 60)], [program(70, 0, 960), *note(960, 1440, 70)])
    result = continue_cells(
        opening, BAR, parts_of(opening), [Cell(1, n, notes_from((n, 1, 62))) for n in range(2)], [NewBar()]
    )
    notes = parse_midi(file_of(result))
    found, part = read_parts(notes)
    changes = [(tick, m.program) for t in result.tracks for tick, m in timed_messages(t) if m.type == "program_change"]
    assert changes == [(0, 40), (BAR, 40), (BAR, 70), (960, 70)] and len(found) == 2 and part.tolist() == [0, 1, 0, 1]


def chorale(seed: int, channels: tuple[int, ...] = (0, 0, 0, 0)) -> mido.MidiFile:
    """Return four voices in tracks of their own, with unisons, crossings and ties over the bar lines."""
    draws = numbers(seed)
    voices = []
    for voice, channel in enumerate(channels):
        tick, messages = 0, [program(52, channel)]
        while tick < 6 * BAR:
            length = [240, 480, 480, 960][next(draws) % 4]
            messages += note(tick, tick + length, 60 + 2 * (next(draws) % 4) - voice, channel=channel)
            tick += length
        voices.append(messages)
    return make_midi(*voices)


def random_cells(draws, parts: list[Part | NewPart], n_bars: int) -> list[Cell]:
    cells = []
    for bar in range(n_bars):
        for number in range(len(parts)):
            if next(draws) % 3 == 0:
                rows = [
                    (next(draws) % 96 / 24, (1 + next(draws) % 60) / 24, 50 + next(draws) % 20, 1 + next(draws) % 127)
                    for _ in range(next(draws) % 12)
                ]
                cells.append(Cell(bar, number, np.array(rows, float).reshape(-1, 4)))
    return cells


def test_cells_with_their_own_notes_give_the_same_file():
    for seed in range(5):
        midi = chorale(seed, (0, 1, 2, 3))
        parts, grid = parts_of(midi), BarGrid.from_midi(midi)
        cells = []
        for number in range(len(parts)):
            for bar in range(0, 6, 1 + number):
                rows = [
                    ((start - bar * BAR) / 480, (end - start) / 480, pitch, velocity)
                    for start, end, pitch, velocity in notes_of(midi, number)
                    if int(grid.bar(start)) == bar
                ]
                cells.append(Cell(bar, number, np.array(rows)))
        result = check(midi, parts, cells)
        assert [notes_of(result, i) for i in range(4)] == [notes_of(midi, i) for i in range(4)]


@pytest.mark.parametrize("kind", ["odd", "chorale"])
def test_random_cells_in_random_files(kind):
    """Everything outside the cells is the same event for event, and new notes are notes of their cells."""
    n_new = 0
    for seed in range(75):
        draws = numbers(1000 + seed)
        midi = chorale(seed) if kind == "chorale" else mido.MidiFile(file=io.BytesIO(odd_piece(seed)), clip=True)
        own = parts_of(midi)
        grid = BarGrid.from_midi(midi)
        parts = [*own, *[NewPart(next(draws) % 129)] * (next(draws) % 3)]
        cells = random_cells(draws, parts, 8)
        holes = written(grid, parts, cells)
        result = check(midi, parts, cells)
        emptied = replace_cells(midi, own, [Cell(c.bar, c.part, notes_from()) for c in cells if c.part < len(own)])
        lines = grid.lines(8)
        asked = {
            (part.track, part.channel, int(tick), int(pitch), int(velocity))
            for cell in cells
            if isinstance(part := parts[cell.part], Part)
            for tick, _, pitch, velocity in cell.notes
            for tick in [min(lines[cell.bar] + np.rint(tick * midi.ticks_per_beat), lines[cell.bar + 1] - 1)]
        }
        found = set()
        for i in range(len(midi.tracks)):
            before, after = (Counter(notes_with_channels(m, i)) for m in (emptied, result))
            assert before <= after  # also with their ends
            for start, end, pitch, velocity, channel in after - before:
                assert end is None or end > start
                found.add((i, channel, start, pitch, velocity))
        assert found <= asked
        n_new += len(found)
        if kind == "chorale":
            before, after = (heard(m, len(midi.tracks), holes) for m in (emptied, result))
            assert before and {key: spans for key, spans in after.items() if spans} == before
        assert len(parse_midi(file_of(result)).tracks) == len(result.tracks)
    assert n_new > 2000


def test_random_continuations():
    """The opening keeps its events, every note ends, and the new notes are notes of the cells."""
    n_new = 0
    for seed in range(40):
        draws = numbers(seed)
        midi = chorale(seed) if seed % 2 else mido.MidiFile(file=io.BytesIO(odd_piece(seed)), clip=True)
        grid = BarGrid.from_midi(midi)
        line = int(grid.lines(4)[-1])
        opening = cut_after(midi, line)
        parts = [*parts_of(opening), NewPart(7)]
        first = int(BarGrid.from_midi(opening).bar(line - 1)) + 1
        cells = [Cell(first + cell.bar, cell.part, cell.notes) for cell in random_cells(draws, parts, 3)]
        bars = [NewBar((4, 4), 500_000), NewBar((3, 4)), NewBar()]
        result = continue_cells(opening, line, parts, cells, bars, releases(midi, line))
        assert BarGrid.from_midi(result).lines(first + 3)[first:].tolist() == [
            line + midi.ticks_per_beat * quarters for quarters in (0, 4, 7, 10)
        ]
        for before, after in zip(opening.tracks, result.tracks, strict=False):
            early = [(tick, message) for tick, message in timed_messages(after) if tick < line]
            assert early == timed_messages(before)
        asked = {int(pitch) for cell in cells for pitch in cell.notes[:, 2]}
        for i in range(len(result.tracks)):
            for start, end, pitch, _ in notes_of(result, i):
                assert end is not None and (start < line or (end > start and pitch in asked))
                n_new += start >= line
    assert n_new > 500
