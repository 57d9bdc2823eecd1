"""Control classes, on cells with known values."""

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.controls import CONTROLS, NO_CLASS, control_classes, control_values, parse_controls
from tests.midi.scores import notes_of


def names(classes: np.ndarray) -> list[str | None]:
    """Return the names of a cell's classes."""
    return [c.classes[k] if k != NO_CLASS else None for c, k in zip(CONTROLS, classes.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("length", "density", "duration"),
    [
        (2, "low", "very-long"),
        (1, "medium", "long"),
        (0.5, "high", "medium"),
        (0.25, "very-high", "short"),
        (1 / 6, "extreme", "short"),
        (1 / 3, "very-high", "medium"),
    ],
)
def test_a_scale_of_one_note_value(length, density, duration):
    notes = notes_of([(length * i, length, 60) for i in range(round(4 / length))])
    classes = control_classes(notes, np.zeros(len(notes), int), np.array([4.0]))
    assert names(classes[0]) == [density, "1", "middle", duration]


def test_values_of_each_cell():
    notes = notes_of(
        [
            (0, 1, 60), (0, 2, 64), (3, 1, 68),  # a rest from 2 to 3
            (5, 0.5, 40), (4.5, 8, 43),
        ]
    )  # fmt: skip
    cell = (notes["start"] >= 4) * 2
    values = control_values(notes, cell, np.array([4.0, 4.0, 2.0]))
    assert values[0].tolist() == pytest.approx([3 / 4, 4 / 3, 64, 1])
    assert np.isnan(values[1]).all()
    assert values[2].tolist() == pytest.approx([2 / 2, 8.5 / 8, 41.5, 4.25])


def test_classes_do_not_depend_on_the_order_of_the_notes_or_on_other_cells():
    draws = np.random.default_rng(0)
    rows = [
        (float(draws.integers(64)) / 4, float(draws.integers(1, 16)) / 4, int(draws.integers(30, 90)), 0)
        for _ in range(200)
    ]
    notes = notes_of(rows)
    cell = (notes["start"] // 4).astype(int)
    together = control_classes(notes, cell, np.full(4, 4.0))
    shuffled = draws.permutation(len(notes))
    assert (control_classes(notes[shuffled], cell[shuffled], np.full(4, 4.0)) == together).all()
    for i in range(4):
        alone = notes[cell == i]
        assert (control_classes(alone, np.zeros(len(alone), int), np.array([4.0]))[0] == together[i]).all()
        # Polyphony by counting on a fine grid.
        grid = np.arange(0, 40, 0.25) + 0.125
        sounding = ((alone["start"][:, None] < grid) & (grid < alone["end"][:, None])).sum(axis=0)
        value = control_values(alone, np.zeros(len(alone), int), np.array([4.0]))[0, 1]
        assert value == pytest.approx(sounding.sum() / (sounding > 0).sum())


def test_chords_drums_and_notes_without_length():
    chord = notes_of([(0, 4, pitch) for pitch in (40, 44, 47, 52, 56)])
    assert names(control_classes(chord, np.zeros(5, int), np.array([4.0]))[0]) == ["medium", "4", "low", "very-long"]
    drums = notes_of([(i / 4, 0.1, 36) for i in range(16)], drums=True)
    assert names(control_classes(drums, np.zeros(16, int), np.array([4.0]))[0]) == ["very-high", None, None, None]
    short = notes_of([(0, 0, 80)])
    assert names(control_classes(short, np.zeros(1, int), np.array([4.0]))[0]) == ["low", "1", "high", "short"]
    assert control_classes(notes_of([]), np.zeros(0, int), np.zeros(0)).shape == (0, 4)


def test_the_text_of_controls():
    assert parse_controls("density=low, register=high,polyphony=4,duration=very-long") == {
        "density": 0, "register": 2, "polyphony": 3, "duration": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loudness=high", "loudness.*density, polyphony, register, duration"),
        ("density=huge", "huge.*density.*low, medium, high"),
        ("density", "density.*low, medium"),
        ("density=low,density=high", "density.*twice"),
        ("", "density, polyphony"),
    ],
)
def test_a_wrong_control_is_one_sentence_with_the_choices(text, said):
    with pytest.raises(UserError, match=said):
        parse_controls(text)
