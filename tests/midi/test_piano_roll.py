"""Piano rolls: sizes, colors, labels and files."""

import itertools
import subprocess
import sys

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.notes import Notes, read_notes
from rwkv_music.midi.piano_roll import (
    COMPLETION_HUES,
    HEIGHT_PX,
    PROMPT_HUES,
    WIDTH_PX,
    _figure,
    draw,
    figure_array,
    note_colors,
)
from tests.midi.midi_files import make_midi, note


@pytest.fixture
def two_voices() -> mido.MidiFile:
    """Four bars of 3/4 with quarter notes over dotted half notes, at half the tempo from bar 3 on."""
    conductor = [
        (0, mido.MetaMessage("time_signature", numerator=3, denominator=4)),
        (0, mido.MetaMessage("set_tempo", tempo=500_000)),
        (2 * 1440, mido.MetaMessage("set_tempo", tempo=1_000_000)),
    ]
    right = [event for beat in range(12) for event in note(480 * beat, 480 * (beat + 1), 72 + beat % 5)]
    left = [event for bar in range(4) for event in note(1440 * bar, 1440 * (bar + 1), 48, channel=1)]
    return make_midi(conductor, [(0, mido.MetaMessage("track_name", name="Right hand")), *right], left)


@pytest.mark.parametrize("upbeat", [1, 2, 3])
@pytest.mark.parametrize("bars", [6, 14, 22, 23, 90])
def test_bar_labels_do_not_overlap(upbeat, bars):
    meters = [(0, mido.MetaMessage("time_signature", numerator=upbeat, denominator=4))]
    meters += [(480 * upbeat, mido.MetaMessage("time_signature", numerator=4, denominator=4))]
    end = 480 * upbeat + 1920 * bars
    figure = _figure(make_midi(meters, note(0, 480, 60), note(480, end, 64)), None, "a piece", dpi=100)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) > 3 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert figure.axes[0].get_xticklabels()[0].get_text().startswith("bar ")


def test_figure_array_size_and_colors(two_voices):
    alone, completed = figure_array(two_voices), figure_array(two_voices, prompt_end_seconds=3.0, title="step 1,000")
    for picture in (alone, completed):
        assert picture.shape == (HEIGHT_PX, WIDTH_PX, 3) and picture.dtype == np.uint8
    blue = pixels_like(completed, note_colors(read_notes(two_voices), 3.0)[0])
    orange = pixels_like(completed, note_colors(read_notes(two_voices), 3.0)[-1])
    boundary = WIDTH_PX * (0.038 + 0.95 * 3.0 / two_voices.length)  # from the position of the axes in the figure
    assert boundary - 8 < blue[:, 1].max() < boundary < orange[:, 1].min() < boundary + 8
    assert len(pixels_like(alone, note_colors(read_notes(two_voices), 3.0)[-1])) == 0


def pixels_like(picture: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return (row, column) of the pixels of one color, without the legend at the top."""
    found = np.argwhere(np.abs(picture - 255 * color).max(axis=-1) < 1)
    return found[found[:, 0] > 60]


@pytest.mark.parametrize("name", ["o\udcffd.mid", "$x.mid", "$\\frac{$.mid"])
def test_titles_are_drawn_as_they_are(two_voices, name):
    pictures = [figure_array(two_voices, title=title) for title in ("", name)]
    assert (pictures[0] != pictures[1]).any()


def test_draw_writes_a_deterministic_png(two_voices, tmp_path):
    draw(two_voices, tmp_path / "a.png", 3.0, "a title")
    draw(two_voices, tmp_path / "b.png", 3.0, "a title")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and first == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(UserError, match="a.png"):
        draw(two_voices, tmp_path / "nowhere" / "a.png")


@pytest.mark.parametrize("midi", [mido.MidiFile(), make_midi([]), make_midi(note(0, 1, 0) + note(10**7, 10**7, 127))])
def test_unusual_pieces_are_drawn(midi):
    assert figure_array(midi, prompt_end_seconds=1.0).shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_pyplot_is_not_imported():
    program = """
import sys, mido
from rwkv_music.midi.piano_roll import figure_array
assert "matplotlib" not in sys.modules
figure_array(mido.MidiFile())
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_softer_notes_are_paler():
    velocity = np.array([20, 60, 100])
    zeros = np.zeros(3, dtype=np.int64)
    lightness = note_colors(Notes(zeros, zeros, zeros, zeros, zeros, velocity, zeros, ["piano"]), None).sum(axis=1)
    assert lightness[0] > lightness[1] > lightness[2]


# Color blindness as matrices on linear RGB (complete forms): Machado, Oliveira and Fernandes 2009, "A
# physiologically-based model for simulation of color vision deficiency".
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
def test_prompt_and_completion_hues_are_distinguishable(vision):
    def lab(hue: str) -> np.ndarray:
        srgb = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        x, y, z = np.cbrt(to_xyz @ seen / [0.9505, 1.0, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    pairs = itertools.product(PROMPT_HUES, COMPLETION_HUES)
    assert min(np.linalg.norm(lab(cool) - lab(warm)) for cool, warm in pairs) > 40  # CIELAB; 2 is just noticeable
