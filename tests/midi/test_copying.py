"""The copy rate, on melodies with known n-grams."""

import math

import numpy as np
import pytest

from rwkv_music.midi import copying
from rwkv_music.midi.copying import NgramIndex, copy_rate, ngram_hashes
from tests.midi.scores import notes_of

PITCHES = [60, 62, 64, 65, 67, 69, 71, 72, 71, 67]


def melody(pitches: list[int], part: int = 0, at: float = 0, step: float = 0.5) -> list[tuple]:
    return [(at + step * i, step, pitch, part) for i, pitch in enumerate(pitches)]


def test_an_ngram_is_eight_notes_of_one_part():
    assert len(ngram_hashes(notes_of(melody(PITCHES)))) == len(PITCHES) - 7
    assert len(ngram_hashes(notes_of(melody(PITCHES[:7])))) == 0
    two_parts = ngram_hashes(notes_of(melody(PITCHES) + melody(PITCHES, part=1)))
    assert len(two_parts) == 2 * 3 and len(np.unique(two_parts)) == 3
    assert len(ngram_hashes(notes_of(melody(PITCHES), drums=True))) == 0


def test_key_place_lengths_and_lower_notes_do_not_matter():
    expected = ngram_hashes(notes_of(melody(PITCHES))).tolist()
    moved = melody([pitch - 5 for pitch in PITCHES], part=3, at=7)
    staccato = [(start, 0.1, *rest) for start, _, *rest in moved]
    with_chords = staccato + [(start, 1, pitch - 12, part) for start, _, pitch, part in staccato[::2]]
    assert ngram_hashes(notes_of(with_chords)).tolist() == expected


def test_each_interval_and_time_matters():
    expected = ngram_hashes(notes_of(melody(PITCHES[:8])))[0]
    others = {int(expected)}
    for i in range(8):
        changed = PITCHES[:8]
        changed[i] += 1
        others.add(int(ngram_hashes(notes_of(melody(changed)))[0]))
        later = melody(PITCHES[:8])
        later = [(start + 0.25 * (j > i), *rest) for j, (start, *rest) in enumerate(later)]
        others.add(int(ngram_hashes(notes_of(later))[0]))
    assert len(others) == 1 + 8 + 7  # the last of the later melodies is the same one


def test_copy_rate():
    training = NgramIndex()
    assert copy_rate(ngram_hashes(notes_of(melody(PITCHES))), training) == 0
    training.add(ngram_hashes(notes_of(melody(PITCHES[:9]))))
    assert len(training) == 2
    assert copy_rate(ngram_hashes(notes_of(melody(PITCHES))), training) == pytest.approx(2 / 3)
    assert math.isnan(copy_rate(ngram_hashes(notes_of(melody(PITCHES[:3]))), training))


def test_only_ngrams_with_generated_notes_count():
    notes = notes_of(melody([*PITCHES, *PITCHES]))
    everything = ngram_hashes(notes)
    generated = np.zeros(len(notes), bool)
    assert len(ngram_hashes(notes, generated)) == 0
    generated[9] = True
    assert ngram_hashes(notes, generated).tolist() == everything[2:10].tolist()
    assert ngram_hashes(notes, np.ones(len(notes), bool)).tolist() == everything.tolist()


def test_the_index_is_sorted_in_batches(monkeypatch):
    monkeypatch.setattr(copying, "LEAST_PENDING", 10)
    draws = np.random.default_rng(0)
    added = [draws.integers(1 << 64, size=draws.integers(9), dtype=np.uint64) for _ in range(100)]
    index = NgramIndex()
    for hashes in added:
        index.add(np.concatenate([hashes, hashes]))
    everything = np.concatenate(added)
    assert index.hashes.tolist() == sorted(set(everything.tolist()))
    assert index.contains(everything).all() and not index.contains(everything + np.uint64(1)).any()
