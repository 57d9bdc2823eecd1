"""The measures, on music with known values."""

import math

import mido
import numpy as np
import pytest

from rwkv_music.midi.fill_measures import FillMeasures
from rwkv_music.midi.measures import (
    Measures,
    compared,
    groove_consistency,
    likely_key,
    mean_and_deviation,
    measure,
    pitch_class_entropy,
    polyphony,
    scale_consistency,
)


def melody(pitches: list[int], channel: int = 0, length: int = 240) -> mido.MidiTrack:
    track = mido.MidiTrack()
    for pitch in pitches:
        track.append(mido.Message("note_on", note=pitch, velocity=80, channel=channel))
        track.append(mido.Message("note_off", note=pitch, channel=channel, time=length))
    return track


def test_pitch_class_entropy():
    assert pitch_class_entropy(np.array([60, 72, 48])) == 0
    assert pitch_class_entropy(np.arange(24)) == pytest.approx(math.log2(12))
    assert pitch_class_entropy(np.array([60, 60, 62, 64])) == pytest.approx(1.5)


def test_scale_consistency():
    d_major, a_minor = np.array([62, 64, 66, 67, 69, 71, 73]), np.array([57, 59, 60, 62, 64, 65, 67])
    assert scale_consistency(d_major) == scale_consistency(a_minor) == 1
    assert scale_consistency(np.arange(12)) == pytest.approx(7 / 12)
    assert scale_consistency(np.append(d_major, 63)) == pytest.approx(7 / 8)


def test_groove_consistency():
    lines = np.array([0, 1920, 3840, 5280])  # 4/4, 4/4, 3/4 at 480 ticks a quarter
    same = np.array([0, 480, 1920, 2400])
    assert groove_consistency(same, lines[:3]) == 1
    assert groove_consistency(np.array([0, 480, 1920]), lines[:3]) == pytest.approx(1 - 1 / 48)
    assert groove_consistency(same, lines) == pytest.approx(1 - (0 + 2) / 2 / 48)
    assert math.isnan(groove_consistency(same, lines[:2]))


def test_polyphony():
    start, end = np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 6.0])
    assert polyphony(start, end) == pytest.approx((1 + 2 + 1 + 1) / 4)  # silence does not count
    assert polyphony(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == 1  # consecutive notes do not overlap


def test_measure():
    midi = mido.MidiFile(ticks_per_beat=480, tracks=[melody([60, 62, 64, 65, 67, 69, 71, 72] * 2)])
    midi.tracks.append(melody([36, 38] * 8, channel=9))
    found = measure(midi)
    assert found.pitch_range == 12 and found.scale_consistency == 1 and found.polyphony == 1
    assert found.note_density == pytest.approx(32 / 4) and found.groove_consistency == 1
    empty = measure(mido.MidiFile(tracks=[mido.MidiTrack()]))
    assert all(math.isnan(value) for value in vars(empty).values())
    named = melody([36] * 20, channel=9)
    named.insert(0, mido.MetaMessage("track_name", name="Kit"))
    for track in (melody([36] * 20, channel=9), named):
        drums = measure(mido.MidiFile(ticks_per_beat=480, tracks=[track]))
        assert math.isnan(drums.pitch_range) and drums.groove_consistency < 1


def test_mean_and_deviation_ignore_nan():
    nan = float("nan")
    pieces = [Measures(1, 0.5, nan, 2, 1, nan), Measures(3, 0.5, 0.9, 2, 2, nan)]
    mean, spread = mean_and_deviation(pieces)
    assert (mean.pitch_class_entropy, spread.pitch_class_entropy) == (2, 1)
    assert (mean.groove_consistency, spread.groove_consistency) == (0.9, 0)
    assert math.isnan(mean.pitch_range)
    table = compared(["real", "samples"], [pieces, pieces])
    assert len(table.splitlines()) == 7 and "2.00 +- 1.00" in table and "real" in table.splitlines()[0]
    fills = [FillMeasures(0.25, 0.5, nan), FillMeasures(0.75, nan, nan)]
    mean, _ = mean_and_deviation(fills)
    assert (mean.onset_f1, mean.chroma_similarity) == (0.5, 0.5) and math.isnan(mean.groove_similarity)
    assert "onset f1" in compared(["model"], [fills]).splitlines()[1]


def test_likely_key():
    c_major = np.bincount([0, 2, 4, 5, 7, 9, 11, 0, 4, 7, 0, 7], minlength=12)
    a_minor = np.bincount([9, 11, 0, 2, 4, 5, 8, 9, 0, 4, 9, 4], minlength=12)
    assert likely_key(c_major) == "C major" and likely_key(a_minor) == "A minor"
    assert likely_key(np.roll(c_major, 3)) == "E♭ major" and likely_key(np.roll(a_minor, -3)) == "F♯ minor"
    assert likely_key(np.zeros(12)) is None
