"""Augmentation: all parts move by one interval within their ranges, drums stay, token counts do not change."""

import mido
import numpy as np
import pytest

from rwkv_music.data.augment import RANGES, Augmenter
from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.notes import read_notes
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec

DRUM_CHANNEL = 9
PROGRAMS = {0: 0, 1: 32, DRUM_CHANNEL: 0}


@pytest.fixture(scope="module", params=TOKENIZERS)
def codec(request) -> Codec:
    return make_codec(request.param)


@pytest.fixture(scope="module")
def ids(codec, tmp_path_factory) -> np.ndarray:
    """Token ids of a piano, a bass near its lowest note, and drums, with a silence of more than a second."""
    midi = mido.MidiFile(ticks_per_beat=480)
    for channel, program in PROGRAMS.items():
        track = mido.MidiTrack([mido.Message("program_change", program=program, channel=channel)])
        for step in range(24):
            pitch = {0: 60 + 5 * step % 19, 1: 25 + 3 * step % 12, DRUM_CHANNEL: 36 + step % 3}[channel]
            silence = 1900 if step == 12 else 0
            track.append(
                mido.Message("note_on", note=pitch, velocity=40 + 3 * step, channel=channel, time=120 + silence)
            )
            track.append(mido.Message("note_off", note=pitch, channel=channel, time=120))
        midi.tracks.append(track)
    path = tmp_path_factory.mktemp("parts") / "parts.mid"
    midi.save(path)
    return codec.encode(path).astype(np.int64)


def notes(codec: Codec, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the pitches of each part in order of their starts."""
    found = read_notes(codec.decode(ids))
    return {part.name: found.pitch[found.part == i] for i, part in enumerate(found.parts)}


def test_transposition_moves_all_parts_together_except_drums(codec, ids):
    augmenter = Augmenter(codec, "transpose", seed=0)
    before = notes(codec, ids)
    shifts = set()
    for sample in range(60):
        [varied] = augmenter.vary([ids], sample)
        after = notes(codec, varied)
        assert list(after) == list(before)
        moved = {name: set((after[name] - before[name]).tolist()) for name in before}
        assert moved.pop("drums", {0}) == {0}
        assert all(len(found) == 1 for found in moved.values()) and len(set.union(*moved.values())) == 1
        shifts |= set.union(*moved.values())
    lowest_bass = RANGES[32 // 8][0]
    room = lowest_bass - min(before["bass"]) if "bass" in before else -5
    assert shifts == set(range(max(room, -5), 7))


def test_loudness_and_tempo_vary_without_changing_the_token_kinds(codec, ids):
    augmenter = Augmenter(codec, "all", seed=0)
    v = codec.token_properties
    original = read_notes(codec.decode(ids))
    lengths, velocities = set(), set()
    for sample in range(40):
        [varied] = augmenter.vary([ids], sample)
        assert len(varied) == len(ids) and np.array_equal(v.kinds[varied], v.kinds[ids])
        assert np.array_equal(v.is_onset[varied], v.is_onset[ids])  # an onset does not become a note-off
        found = read_notes(codec.decode(varied))
        assert len(found) == len(original)
        length = found.end.max() / original.end.max()
        assert 0.86 < length < 1.16
        rhythm = (found.start / length - original.start)[: len(found) // 2]
        assert np.abs(rhythm).max() < 0.06  # the rhythm only scales
        lengths.add(round(length, 2))
        velocities.add(int(np.median(found.velocity)))
    assert len(lengths) >= 5 and len(velocities) >= 3


def test_variation_depends_on_seed_and_sample_only(codec, ids):
    augmenter = Augmenter(codec, "all", seed=3)
    once, again = augmenter.vary([ids, ids], 17), Augmenter(codec, "all", seed=3).vary([ids], 17)
    assert np.array_equal(once[0], again[0])
    assert not np.array_equal(once[0], once[1])  # parts vary independently
    others = [Augmenter(codec, "all", seed=4).vary([ids], 17), augmenter.vary([ids], 18)]
    assert not any(np.array_equal(once[0], other[0]) for other in others)


def test_notes_out_of_range_only_move_towards_it():
    codec = make_codec("multitrack")
    vocabulary = {token: i for i, token in enumerate(codec.vocabulary)}
    for pitch, program, possible in ((110, 0, range(-5, 1)), (15, 0, range(0, 7)), (60, DRUMS, [0]), (60, 118, [0])):
        kind = "PitchDrum" if program == DRUMS else "Pitch"
        ids = np.array([vocabulary[f"{kind}_{pitch}"]])
        before = np.array([vocabulary["Part_1"], vocabulary[f"Program_{'Drums' if program == DRUMS else program}"]])
        augmenter = Augmenter(codec, "transpose", 0)
        found = {int(augmenter.vary([ids], sample, before)[0][0] - ids[0]) for sample in range(80)}
        assert found == set(possible)
