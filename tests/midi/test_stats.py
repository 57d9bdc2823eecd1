"""Statistics and the duplicate key."""

import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import DRUMS, RejectedMidi
from rwkv_music.midi.stats import PART_NOTES, RECORD, compute_stats
from tests.midi.midi_files import file_of, make_midi, note

NOTES = [(0, 60), (24, 64), (48, 67), (48, 72), (96, 60)]  # (start in forty-eighths of a quarter note, pitch)


def piece(notes=NOTES, drums=(), tempo=500_000, program=0, velocity=64, ticks=480, shift=0, reverse=False) -> bytes:
    """Return a file with quarter notes in one track and drums in another."""
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


def test_compute_stats():
    found = compute_stats(piece(drums=[(0, 36), (24, 36), (48, 38)], tempo=1_000_000, program=40))
    assert found.seconds == pytest.approx(3) and found.notes == 8 and found.tracks == 2
    assert found.tempo == pytest.approx(60)
    assert np.flatnonzero(found.programs).tolist() == [40, DRUMS]
    assert found.pitch.sum() == 5 and found.pitch[60] == 2 and found.velocity[16] == 8
    record = found.record()
    assert record.dtype == RECORD and record["notes"] == 8 and record["pitch"][0, 60] == 2
    assert np.flatnonzero(np.unpackbits(record["programs"][0], count=129)).tolist() == [40, DRUMS]
    assert found.meter == (4, 4) and record["meter"].tolist() == [[4, 4]]
    # Parts of 5 and 3 notes.
    bins = np.repeat(np.arange(30), record["part_notes"][0])
    assert (PART_NOTES[bins] <= [3, 5]).all() and (PART_NOTES[bins + 1] > [3, 5]).all()


def test_main_meter():
    signatures = [(0, 3, 4), (100, 6, 8), (200, 3, 4)]  # 6/8 lasts 100 ticks, 3/4 lasts 99 and 10
    signatures = [
        (tick + 1, mido.MetaMessage("time_signature", numerator=n, denominator=d)) for tick, n, d in signatures
    ]
    chord = [message for pitch in range(60, 64) for message in note(2, 211, pitch)]
    found = compute_stats(file_of(make_midi(signatures, chord)))
    assert found.meter == (3, 4)
    assert compute_stats(file_of(make_midi(signatures, note(2, 201, 60)))).meter == (6, 8)


def test_seconds_and_the_longest_lasting_tempo(bach_midi):
    data = sorted(bach_midi.iterdir())[0].read_bytes()
    midi = mido.MidiFile(file=io.BytesIO(data))
    assert compute_stats(data).seconds == pytest.approx(midi.length, rel=0.05)
    track = mido.MidiTrack(
        [
            mido.Message("note_on", note=60),
            mido.MetaMessage("set_tempo", tempo=250_000, time=480),  # at 0.5 s: 240 per minute for 1 s
            mido.MetaMessage("set_tempo", tempo=2_000_000, time=1920),  # then 30 per minute for 0.5 s
            mido.Message("note_off", note=60, time=120),
        ]
    )
    found = compute_stats(file_of(mido.MidiFile(ticks_per_beat=480, tracks=[track])))
    assert found.seconds == pytest.approx(2) and found.tempo == pytest.approx(240)


DRUM_NOTES = [(0, 36), (48, 38)]
SAME_MUSIC = {
    "louder, slower, other instruments": piece(tempo=900_000, velocity=99, program=55),
    "another resolution": piece(ticks=96),
    "later": piece(shift=480),
    "transposed": piece([(start, pitch - 7) for start, pitch in NOTES]),
    "duplicated note": piece([*NOTES, NOTES[0]]),
    "notes in another order": piece(reverse=True),
}
OTHER_MUSIC = {
    "extra note": piece([*NOTES, (120, 60)]),
    "missing note": piece(NOTES[:-1]),
    "different rhythm": piece([(0, 60), (12, 64), *NOTES[2:]]),
    "different melody": piece([(0, 60), (24, 63), *NOTES[2:]]),
    "inversion": piece([(start, 120 - pitch) for start, pitch in NOTES]),
    "with drums": piece(drums=DRUM_NOTES),
}


@pytest.mark.parametrize("case", SAME_MUSIC)
def test_key_of_the_same_music(case):
    assert compute_stats(SAME_MUSIC[case]).key == compute_stats(piece()).key


def test_key_of_different_music():
    keys = [compute_stats(data).key for data in [piece(), *OTHER_MUSIC.values()]]
    assert len(set(keys)) == len(keys)


def test_key_of_transposed_drums_differs():
    up = [(start, pitch + 2) for start, pitch in NOTES]
    assert compute_stats(piece(up, drums=DRUM_NOTES)).key == compute_stats(piece(drums=DRUM_NOTES)).key
    assert compute_stats(piece(drums=[(0, 40), (48, 42)])).key != compute_stats(piece(drums=DRUM_NOTES)).key
    assert compute_stats(piece([], drums=DRUM_NOTES)).key != compute_stats(piece(DRUM_NOTES)).key


def test_keys_of_real_pieces_differ(bach_midi):
    assert len({compute_stats(path.read_bytes()).key for path in bach_midi.iterdir()}) == 12


def test_compute_stats_rejects_invalid_files():
    for data, reason in ((b"", "empty file"), (piece([]), "no notes"), (piece()[:-3], "truncated")):
        with pytest.raises(RejectedMidi, match=reason):
            compute_stats(data)
