import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import (
    CONTROL_CHANGE,
    NOTE_OFF,
    NOTE_ON,
    PROGRAM_CHANGE,
    TEMPO,
    TIME_SIGNATURE,
    RejectedMidi,
    TickClock,
    bars_of,
    read_events,
    separated,
    to_track,
)
from tests.midi.midi_files import file_of, odd_piece

KINDS = {
    "note_off": NOTE_OFF,
    "note_on": NOTE_ON,
    "control_change": CONTROL_CHANGE,
    "program_change": PROGRAM_CHANGE,
    "set_tempo": TEMPO,
    "time_signature": TIME_SIGNATURE,
}


def as_mido_reads(data: bytes) -> list[tuple]:
    events, now = [], 0
    for message in mido.MidiFile(file=io.BytesIO(data)).merged_track:
        now += message.time
        if message.type in KINDS:
            values = [value for name, value in vars(message).items() if name in VALUES]
            channel = getattr(message, "channel", 0)
            events.append((now, KINDS[message.type], channel, *(values + [0, 0])[:2]))
    return events


VALUES = {"note", "velocity", "control", "value", "program", "tempo", "numerator", "denominator"}


@pytest.mark.parametrize("seed", range(12))
def test_the_same_events_as_mido(seed):
    data = odd_piece(seed)
    ticks_per_quarter, events = read_events(data)
    assert ticks_per_quarter == mido.MidiFile(file=io.BytesIO(data)).ticks_per_beat
    assert [event for event in events if event[1]] == as_mido_reads(data)


def test_real_files(bach_midi):
    for path in bach_midi.iterdir():
        assert [event for event in read_events(path.read_bytes())[1] if event[1]] == as_mido_reads(path.read_bytes())


def one_track(content: bytes) -> bytes:
    return b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize(
    "content",
    [
        b"\0\x90\x3c\x40\x83\xff\x7f\x3c\0",  # running status after a wait of three bytes
        b"\0\x90\x3c\x40\0\xff\x01\x02la\0\x3c\0",  # which a meta event leaves in force
        b"\0\xff\x7f\x81\0" + bytes(128) + b"\0\x90\x3c\x40",
        b"\0\xf0\x03abc\0\xf8\0\x90\x3c\x40",
    ],
)
def test_all_ways_of_writing(content):
    assert [event for event in read_events(one_track(content))[1] if event[1]] == as_mido_reads(one_track(content))


@pytest.mark.parametrize(
    "content",
    [
        b"\0\x3c\x40",  # no status
        b"\0\x90\x3c",  # no velocity
        b"\0\x90\x3c\x80",
        b"\0\xf4",
        b"\0\xff\x51\x03\x07",
        b"\0\xff\x7f\xff\xff\xff\xff\x7f",
        b"\xff\xff",
        b"\0",
    ],
)
def test_damage_is_told(content):
    with pytest.raises(RejectedMidi, match="damaged events"):
        read_events(one_track(content))


def test_the_clock_follows_tempo_changes():
    events = [
        (0, TEMPO, 0, 1_000_000, 0),
        (96, TEMPO, 0, 7, 0),
        (96, TEMPO, 0, 500_000, 0),
        (192, TEMPO, 0, 250_000, 0),
    ]
    clock = TickClock(events, ticks_per_quarter=96)
    np.testing.assert_allclose(clock.ms(np.array([0, 48, 96, 192, 288])), [0, 500, 1000, 1500, 1750])
    np.testing.assert_allclose(TickClock([], 480).ms(np.array([960])), [1000])


@pytest.mark.parametrize(
    ("signatures", "last", "lines"),
    [
        ([], 0, [0, 384]),
        ([], 383, [0, 384]),
        ([], 384, [0, 384, 768]),
        ([(0, 3, 4)], 500, [0, 288, 576]),
        ([(0, 4, 4), (500, 3, 4)], 700, [0, 384, 500, 788]),  # a change inside a bar begins one
        ([(0, 4, 4), (500, 3, 4)], 450, [0, 384, 500]),
        ([(0, 4, 4), (500, 3, 4)], 300, [0, 384]),
        ([(0, 1, 4), (96, 4, 4)], 100, [0, 96, 480]),
        ([(0, 0, 4), (50, 4, 128)], 100, [0, 384]),  # what no score has is passed over
        ([(0, 3, 4), (0, 2, 4)], 100, [0, 192]),
    ],
)
def test_bars(signatures, last, lines):
    events = [(tick, TIME_SIGNATURE, 0, a, b) for tick, a, b in signatures]
    ticks, found = bars_of(events, 96, last)
    assert ticks.tolist() == lines and len(found) == len(lines) - 1


def test_separated():
    notes = [(0, 90, 60, 1), (0, 90, 60, 9), (0, 50, 60, 99), (30, 5, 60, 7), (0, 10, 40, 5), (40, 10, 40, 5)]
    rows = np.stack(separated(*np.array(notes).T), axis=1)
    assert rows.tolist() == [[0, 10, 40, 5], [0, 30, 60, 9], [30, 5, 60, 7], [40, 10, 40, 5]]
    assert all(len(column) == 0 for column in separated(*np.empty((4, 0), int)))


def test_notes_end_before_others_begin():
    on, off = mido.Message("note_on", note=1), mido.Message("note_off", note=1)
    track = to_track([(0, on), (9, on), (9, off), (20, off)])
    assert [(message.type, message.time) for message in track][1:3] == [("note_off", 9), ("note_on", 0)]
    midi = mido.MidiFile(tracks=[track])
    assert file_of(midi).endswith(b"\xff\x2f\0")
