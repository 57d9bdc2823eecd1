"""Joining the opening of a file with a decoded completion."""

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import DRUMS, TimedMessage, timed_messages
from rwkv_music.midi.join import join
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import BarGrid, TempoMap
from tests.midi.midi_files import make_midi, note

BAR = 1920  # ticks of 4/4


def control(tick: int, number: int, value: int, channel: int = 0) -> TimedMessage:
    return tick, mido.Message("control_change", control=number, value=value, channel=channel)


def program(number: int, channel: int = 0, tick: int = 0) -> TimedMessage:
    return tick, mido.Message("program_change", program=number, channel=channel)


def tempo(microseconds: int, tick: int = 0) -> TimedMessage:
    return tick, mido.MetaMessage("set_tempo", tempo=microseconds)


def meter(numerator: int, denominator: int, tick: int = 0) -> TimedMessage:
    return tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)


def part(number: int, channel: int, start: int = BAR, pitch: int = 72) -> list[TimedMessage]:
    """Return a track of one note of program `number` at tick `start`."""
    return [program(number, channel), *note(start, start + 480, pitch, channel=channel)]


def added(joined: mido.MidiFile, opening: mido.MidiFile) -> list[tuple[int, int | None, list[int]]]:
    """Return (channel, program change, velocities) of each track that was added to `opening`."""
    found = []
    for track in joined.tracks[len(opening.tracks) :]:
        notes = [m for m in track if m.type == "note_on"]
        if notes:
            programs = [m.program for m in track if m.type == "program_change"]
            found.append((notes[0].channel, programs[0] if programs else None, [m.velocity for m in notes]))
    return found


def at_line(joined: mido.MidiFile, channel: int) -> dict[int | str, int]:
    """Return the values of the controllers and of the pitch bend that `channel` receives at the line."""
    messages = [m for track in joined.tracks for tick, m in timed_messages(track) if tick == BAR]
    found = {m.control: m.value for m in messages if m.type == "control_change" and m.channel == channel}
    bends = [m.pitch for m in messages if m.type == "pitchwheel" and m.channel == channel]
    return found | ({"bend": bends[-1]} if bends else {})


def test_held_notes_end_where_the_completion_ends_them():
    """One note goes on in the completion, one has no counterpart there, and the pitch of one starts again."""
    opening = make_midi([*note(0, 960, 60), *((480, note(480, 0, pitch)[0][1]) for pitch in (62, 64, 65))])
    sustained = [program(0), *note(9600, 57600, 62), *note(9600, 57600, 65), *note(48000, 57600, 65, channel=0)]
    decoded = make_midi(sustained, ticks_per_beat=9600)
    joined = join(opening, BAR, decoded, 1, 1)
    assert joined.ticks_per_beat == 480
    notes = read_notes(joined)
    found = set(zip(notes.start_tick.tolist(), notes.end_tick.tolist(), notes.pitch.tolist(), strict=True))
    assert found == {(0, 960, 60), (480, 2880, 62), (480, BAR, 64), (480, 2400, 65), (2400, 2880, 65)}


@pytest.mark.parametrize("own, token", [(428_571, 420_448), (2_400_000, 2_000_000), (100_000, 125_000)])
def test_the_exact_tempo_holds_until_the_tokens_name_another(own, token):
    opening = make_midi([tempo(own), *note(0, 480, 60)])
    decoded = make_midi([tempo(token), tempo(300_000, 2 * BAR)], part(0, 0))
    tempos = TempoMap.from_midi(join(opening, BAR, decoded, 1, 2))
    assert tempos.ticks.tolist() == [0, 0, 2 * BAR] and tempos.tempos.tolist() == [500_000, own, 300_000]


@pytest.mark.parametrize(
    "own, token, new, expected",
    [
        ((18, 8), (9, 4), (9, 4), [(18, 8), (18, 8)]),  # the same length: the file's own time signature holds
        ((4, 4), (4, 4), (3, 4), [(4, 4), (3, 4)]),
        ((5, 32), (4, 4), (4, 4), [(5, 32), (4, 4)]),  # the tokenizer does not have 5/32
        ((4, 4), (2, 4), (4, 4), [(4, 4), (4, 4)]),
    ],
)
def test_the_time_signature_holds_until_the_tokens_name_another(own, token, new, expected):
    bar, token_bar = 480 * 4 * own[0] // own[1], 480 * 4 * token[0] // token[1]
    opening = make_midi([meter(*own), *note(0, 100, 60)])
    decoded = make_midi([meter(*token), meter(*new, tick=token_bar)], part(0, 0, token_bar))
    joined = join(opening, bar, decoded, 1, 1)
    grid = BarGrid.from_midi(joined)
    assert list(map(tuple, grid.signatures(2).tolist())) == expected and grid.lines(1)[-1] == bar


@pytest.mark.parametrize("tokens", [(2, 4), (4, 4)])
def test_a_bar_line_after_a_bar_that_was_cut_short(tokens):
    """The opening ends after two of four beats: a time signature starts the next bar, also if the tokens have none."""
    opening = make_midi([meter(4, 4), *note(0, 480, 60)])
    line = tokens[0] * 480
    decoded = make_midi([meter(*tokens), meter(4, 4, line)], part(0, 0, line))
    assert BarGrid.from_midi(join(opening, 960, decoded, 1, 1)).lines(2).tolist() == [0, 960, 960 + BAR]


def test_an_instrument_that_goes_on_keeps_its_channel():
    settings = [control(0, 10, 20, 5), control(0, 7, 90, 5), control(0, 5, 60, 5), control(0, 65, 127, 5)]
    violin = [program(40, 5), *settings, *note(0, 480, 60, channel=5)]
    bend = (100, mido.Message("pitchwheel", channel=5, pitch=900))
    opening = make_midi([*violin, control(500, 64, 127, 5)], [program(0, 0), *note(0, 480, 48)], [bend])
    decoded = make_midi([], part(0, 0), part(40, 1))
    joined = join(opening, BAR, decoded, 1, 1)
    assert added(joined, opening) == [(0, None, [80]), (5, None, [80])]
    assert at_line(joined, 5) == {64: 0, "bend": 0} and at_line(joined, 0) == {}


def test_a_new_instrument_gets_an_unused_channel():
    opening = make_midi(*([program(n, n), *note(0, 480, 60, channel=n)] for n in range(14)), [control(0, 10, 3, 14)])
    joined = join(opening, BAR, make_midi([], part(99, 0), part(DRUMS - 1, 1)), 1, 1)
    assert added(joined, opening) == [(15, 99, [80]), (14, DRUMS - 1, [80])]
    assert at_line(joined, 14) == {10: 64} and at_line(joined, 15) == {}


def test_a_channel_that_is_taken_over_is_reset():
    """All channels play. The one with the fewest notes is taken over, the others keep their controllers."""
    parameters = [
        control(0, number, value, 3) for number, value in ((101, 0), (100, 0), (6, 12), (0, 8), (32, 1), (1, 127))
    ]
    parameters += [control(0, number, value, 3) for number, value in ((10, 0), (65, 127), (5, 60), (7, 40), (64, 127))]
    opening = make_midi(
        *([program(n, n), *note(0, 480, 60, channel=n), *note(480, 960, 60, channel=n)] for n in range(16) if n != 3),
        [program(3, 3), *parameters, *note(0, 480, 60, channel=3)],
        [control(0, 10, 5, 4)],
    )
    joined = join(opening, BAR, make_midi([], part(99, 0), part(4, 1)), 1, 1)
    assert added(joined, opening) == [(3, 99, [80]), (4, None, [80])]
    reset = at_line(joined, 3)
    assert {number: reset[number] for number in (0, 32, 1, 10, 65, 5, 7, 64)} == (
        {0: 0, 32: 0, 1: 0, 10: 64, 65: 0, 5: 0, 7: 100, 64: 0}
    )
    assert reset[6] == 2 and at_line(joined, 4) == {}


def test_rhythm_parts_on_other_channels():
    """A message of GS makes channel 11 a rhythm part: drums go on there, and no other part takes it."""
    rhythm = mido.Message("sysex", data=(0x41, 0x10, 0x42, 0x12, 0x40, 0x1B, 0x15, 0x02, 0x0E))
    opening = make_midi([(0, rhythm), *note(0, 480, 36, channel=11), *note(480, 960, 36, channel=11)])
    decoded = make_midi([], part(0, 0), part(0, 9))
    assert added(join(opening, BAR, decoded, 1, 1), opening) == [(0, 0, [80]), (11, None, [80])]


def test_ports_are_kept():
    port = (0, mido.MetaMessage("midi_port", port=1))
    opening = make_midi(
        [port, program(40, 2), *note(0, 480, 60, channel=2)], [program(0, 2), *note(0, 480, 60, channel=2)]
    )
    joined = join(opening, BAR, make_midi([], part(40, 0)), 1, 1)
    assert added(joined, opening) == [(2, None, [80])]
    assert joined.tracks[-1][0] == port[1]


@pytest.mark.parametrize("included, velocity", [(False, 80), (True, 127)])
def test_loudness_goes_on_after_a_fade(included, velocity):
    """Volume 80 is the channel's own; expression fades to 0 after the last note and returns."""
    fade = [control(tick, 11, value) for tick, value in ((0, 127), (600, 60), (900, 0))]
    opening = make_midi([program(0), control(0, 7, 80), *note(0, 480, 60), *fade])
    joined = join(opening, BAR, make_midi([], part(0, 0)), 1, 1, velocities_include_volume=included)
    assert at_line(joined, 0) == {11: 127} and added(joined, opening) == [(0, None, [velocity])]


def test_reset_all_controllers_ends_a_fade():
    fade = [control(tick, number, value) for tick, number, value in ((0, 11, 50), (600, 11, 0), (700, 121, 0))]
    opening = make_midi([program(0), *note(0, 480, 60), *fade])
    joined = join(opening, BAR, make_midi([], part(0, 0)), 1, 1, velocities_include_volume=True)
    assert at_line(joined, 0) == {} and added(joined, opening) == [(0, None, [80])]


def test_more_instruments_than_channels():
    """Each note of a shared channel has its own program change."""
    opening = make_midi(note(0, 480, 60))
    parts = [part(n, n % 16 if n % 16 != 9 else 8, start=BAR + 10 * n) for n in range(1, 21)]
    joined = join(opening, BAR, make_midi([], *parts), 1, 1)
    state, played = {}, []
    for _, message in sorted(
        (timed for track in joined.tracks[1:] for timed in timed_messages(track)), key=lambda timed: timed[0]
    ):
        if message.type == "program_change":
            state[message.channel] = message.program
        elif message.type == "note_on" and message.velocity:
            played.append(state[message.channel])
    assert played == list(range(1, 21))


@pytest.mark.parametrize("division", [1, 7, 480])
def test_rounding_to_a_coarse_resolution(division):
    """Notes keep a length and start before the end, and no two notes of a pitch start together."""
    opening = make_midi(note(0, division, 60), ticks_per_beat=division)
    notes = [message for i in range(40) for message in note(38400 + i * 950, 38400 + i * 950 + 100, 60 + i % 3)]
    decoded = make_midi([], [program(0), *notes], ticks_per_beat=9600)
    found = read_notes(join(opening, 4 * division, decoded, 1, 1))
    assert (found.end_tick > found.start_tick).all() and found.start_tick.max() < 8 * division
    starts = np.stack([found.start_tick, found.pitch])
    assert len(np.unique(starts, axis=1).T) == len(found)
