import io

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.events import RejectedMidi
from rwkv_music.midi.stats import DRUMS, RECORD, Filters, survey
from tests.midi.midi_files import file_of

NOTES = [(0, 60), (24, 64), (48, 67), (48, 72), (96, 60)]  # at a forty-eighth of a quarter note


def piece(notes=NOTES, drums=(), tempo=500_000, program=0, velocity=64, ticks=480, shift=0, reverse=False) -> bytes:
    """Notes of a quarter note each, and drums, as a file with a track for each."""
    midi = mido.MidiFile(ticks_per_beat=ticks)
    for channel, rows in ((0, notes), (9, drums)):
        events = [(0, 0, mido.Message("program_change", channel=channel, program=program))]
        for start, pitch in reversed(rows) if reverse else rows:
            at = (start + shift) * ticks // 48
            note = {"note": pitch, "channel": channel}
            events.append((at, 1, mido.Message("note_on", velocity=velocity, **note)))
            events.append((at + ticks, 0, mido.Message("note_off", **note)))
        track, now = mido.MidiTrack(), 0
        for at, _, message in sorted(events, key=lambda event: event[:2]):
            track.append(message.copy(time=at - now))
            now = at
        midi.tracks.append(track)
    midi.tracks[0].insert(0, mido.MetaMessage("set_tempo", tempo=tempo))
    return file_of(midi)


def test_figures():
    found = survey(piece(drums=[(0, 36), (24, 36), (48, 38)], tempo=1_000_000, program=40))
    assert found.seconds == pytest.approx(3) and found.notes == 8 and found.tracks == 2
    assert found.tempo == pytest.approx(60)
    assert np.flatnonzero(found.programs).tolist() == [40, DRUMS]
    assert found.pitch.sum() == 5 and found.pitch[60] == 2 and found.velocity[16] == 8
    record = found.record()
    assert record.dtype == RECORD and record["notes"] == 8 and record["pitch"][0, 60] == 2
    assert np.flatnonzero(np.unpackbits(record["programs"][0], count=129)).tolist() == [40, DRUMS]


def test_seconds_and_the_tempo_that_lasts_longest(bach_midi):
    data = sorted(bach_midi.iterdir())[0].read_bytes()
    midi = mido.MidiFile(file=io.BytesIO(data))
    assert survey(data).seconds == pytest.approx(midi.length, rel=0.05)
    track = mido.MidiTrack(
        [
            mido.Message("note_on", note=60),
            mido.MetaMessage("set_tempo", tempo=250_000, time=480),  # after half a second, 240 a minute for a second
            mido.MetaMessage("set_tempo", tempo=2_000_000, time=1920),  # then 30, for half a second
            mido.Message("note_off", note=60, time=120),
        ]
    )
    found = survey(file_of(mido.MidiFile(ticks_per_beat=480, tracks=[track])))
    assert found.seconds == pytest.approx(2) and found.tempo == pytest.approx(240)


DRUM_NOTES = [(0, 36), (48, 38)]
SAME = {
    "louder, slower, other instruments": piece(tempo=900_000, velocity=99, program=55),
    "another resolution": piece(ticks=96),
    "later": piece(shift=480),
    "transposed": piece([(start, pitch - 7) for start, pitch in NOTES]),
    "a note twice": piece([*NOTES, NOTES[0]]),
    "in another order": piece(reverse=True),
}
OTHER = {
    "a note more": piece([*NOTES, (120, 60)]),
    "a note less": piece(NOTES[:-1]),
    "another rhythm": piece([(0, 60), (12, 64), *NOTES[2:]]),
    "another melody": piece([(0, 60), (24, 63), *NOTES[2:]]),
    "its inversion": piece([(start, 120 - pitch) for start, pitch in NOTES]),
    "with drums": piece(drums=DRUM_NOTES),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_music(case):
    assert survey(SAME[case]).key == survey(piece()).key


def test_other_music():
    keys = [survey(data).key for data in [piece(), *OTHER.values()]]
    assert len(set(keys)) == len(keys)


def test_drums_are_not_transposed():
    up = [(start, pitch + 2) for start, pitch in NOTES]
    assert survey(piece(up, drums=DRUM_NOTES)).key == survey(piece(drums=DRUM_NOTES)).key
    assert survey(piece(drums=[(0, 40), (48, 42)])).key != survey(piece(drums=DRUM_NOTES)).key
    assert survey(piece([], drums=DRUM_NOTES)).key != survey(piece(DRUM_NOTES)).key


def test_real_pieces_are_told_apart(bach_midi):
    assert len({survey(path.read_bytes()).key for path in bach_midi.iterdir()}) == 12


def test_rejected():
    for data, reason in ((b"", "empty file"), (piece([]), "no notes"), (piece()[:-3], "truncated")):
        with pytest.raises(RejectedMidi, match=reason):
            survey(data)


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        (Filters(), None),
        (Filters((1.5, 1.5), (3.3, 3.4), (1, 1), (0,)), None),
        (Filters(seconds=(2, 9)), "shorter than 2 s"),
        (Filters(seconds=(0, 1)), "longer than 1 s"),
        (Filters(notes_per_second=(4, 9)), "sparser than 4 notes/s"),
        (Filters(notes_per_second=(0, 3)), "denser than 3 notes/s"),
        (Filters(tracks=(2, float("inf"))), "fewer than 2 tracks"),
        (Filters(tracks=(0, 0)), "more than 0 tracks"),
        (Filters(programs=(1, 128)), "other programs"),
    ],
)
def test_filters(filters, reason):
    assert filters.reason(survey(piece())) == reason


def test_filters_that_cannot_be():
    with pytest.raises(UserError, match="seconds are 9:1"):
        Filters(seconds=(9, 1))
    with pytest.raises(UserError, match="from 0 to 127"):
        Filters(programs=(129,))


def test_filters_as_json():
    filters = Filters(seconds=(5, float("inf")), programs=(0, 40))
    assert filters.as_options() == {"seconds": [5, None], "programs": [0, 40]}
