"""Piano rolls: notes, times and bars read from MIDI, and what the pictures show."""

import itertools
import subprocess
import sys

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.piano_roll import (
    COMPLETION_HUES,
    HEIGHT_PX,
    PROMPT_HUES,
    WIDTH_PX,
    Notes,
    _figure,
    bar_ticks,
    draw,
    figure_array,
    note_colours,
    read_notes,
    tick_seconds,
)


def make_midi(*tracks: list[tuple[int, mido.Message]], ticks_per_beat: int = 480) -> mido.MidiFile:
    """A file of tracks given as (absolute tick, message)."""
    midi = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    for events in tracks:
        track, now = mido.MidiTrack(), 0
        for tick, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=tick - now))
            now = tick
        midi.tracks.append(track)
    return midi


def note(start: int, end: int, pitch: int, velocity: int = 80, channel: int = 0) -> list[tuple[int, mido.Message]]:
    return [
        (start, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)),
        (end, mido.Message("note_off", note=pitch, velocity=0, channel=channel)),
    ]


@pytest.fixture
def two_voices() -> mido.MidiFile:
    """Four bars of 3/4, the right hand in quarters, the left in dotted halves, at half the speed from bar 3 on."""
    conductor = [
        (0, mido.MetaMessage("time_signature", numerator=3, denominator=4)),
        (0, mido.MetaMessage("set_tempo", tempo=500_000)),
        (2 * 1440, mido.MetaMessage("set_tempo", tempo=1_000_000)),
    ]
    right = [event for beat in range(12) for event in note(480 * beat, 480 * (beat + 1), 72 + beat % 5)]
    left = [event for bar in range(4) for event in note(1440 * bar, 1440 * (bar + 1), 48, channel=1)]
    return make_midi(conductor, [(0, mido.MetaMessage("track_name", name="Right hand")), *right], left)


def test_notes_have_the_times_that_mido_gives(two_voices):
    notes = read_notes(two_voices)
    elapsed, starts = 0.0, []
    for message in two_voices:  # mido's own playback order, with times in seconds
        elapsed += message.time
        if message.type == "note_on" and message.velocity > 0:
            starts.append(elapsed)
    assert np.allclose(notes.start, sorted(starts))
    assert notes.end.max() == pytest.approx(two_voices.length) == pytest.approx(3.0 + 6.0)
    assert notes.voice_names == ["Right hand", "piano"]
    assert np.bincount(notes.voice).tolist() == [12, 4]


def test_overlapping_and_unreleased_notes():
    events = [
        (0, mido.Message("note_on", note=60, velocity=50)),
        (100, mido.Message("note_on", note=60, velocity=90)),
        (200, mido.Message("note_on", note=60, velocity=0)),  # ends the first of the two
        (300, mido.Message("note_off", note=61)),  # never began
        (960, mido.MetaMessage("end_of_track")),
    ]
    notes = read_notes(make_midi(events))
    assert notes.velocity.tolist() == [50, 90]
    assert np.allclose(notes.end, tick_seconds(make_midi(events), np.array([200, 960])))


def test_drums_and_programs_name_their_voices():
    drums = note(0, 10, 36, channel=9)
    strings = [(0, mido.Message("program_change", program=48, channel=2)), *note(0, 10, 60, channel=2)]
    assert read_notes(make_midi(drums, strings)).voice_names == ["drums", "ensemble"]


def test_bars_follow_the_time_signatures():
    def meter(tick: int, numerator: int, denominator: int) -> tuple[int, mido.MetaMessage]:
        return tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)

    assert bar_ticks(make_midi([]), 2).tolist() == [0, 1920, 3840]
    changing = make_midi([meter(0, 4, 4), meter(3840, 6, 8), meter(3840 + 1440, 2, 4)])
    assert bar_ticks(changing, 5).tolist() == [0, 1920, 3840, 5280, 6240, 7200]
    assert bar_ticks(changing, 1).tolist() == [0, 1920]
    upbeat = make_midi([meter(0, 1, 4), meter(480, 3, 4)])
    assert bar_ticks(upbeat, 2).tolist() == [0, 480, 1920]
    inside = make_midi([meter(0, 4, 4), meter(2400, 3, 4)])
    assert bar_ticks(inside, 3).tolist() == [0, 1920, 2400, 3840]


@pytest.mark.parametrize("upbeat", [1, 2, 3])
@pytest.mark.parametrize("bars", [6, 14, 22, 23, 90])
def test_the_labels_of_bars_stand_apart(upbeat, bars):
    meters = [(0, mido.MetaMessage("time_signature", numerator=upbeat, denominator=4))]
    meters += [(480 * upbeat, mido.MetaMessage("time_signature", numerator=4, denominator=4))]
    end = 480 * upbeat + 1920 * bars
    figure = _figure(make_midi(meters, note(0, 480, 60), note(480, end, 64)), None, "a piece", dpi=100)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) > 3 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert figure.axes[0].get_xticklabels()[0].get_text().startswith("bar ")


def test_array_has_the_asked_size_and_both_colours(two_voices):
    alone, completed = figure_array(two_voices), figure_array(two_voices, prompt_end_seconds=3.0, title="step 1,000")
    for picture in (alone, completed):
        assert picture.shape == (HEIGHT_PX, WIDTH_PX, 3) and picture.dtype == np.uint8
    blue = pixels_like(completed, note_colours(read_notes(two_voices), 3.0)[0])
    orange = pixels_like(completed, note_colours(read_notes(two_voices), 3.0)[-1])
    boundary = WIDTH_PX * (0.038 + 0.95 * 3.0 / two_voices.length)  # the axes' place in the figure
    assert boundary - 8 < blue[:, 1].max() < boundary < orange[:, 1].min() < boundary + 8
    assert len(pixels_like(alone, note_colours(read_notes(two_voices), 3.0)[-1])) == 0


def pixels_like(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(row, column) of the pixels of a colour, below the header with its legend."""
    found = np.argwhere(np.abs(picture - 255 * colour).max(axis=-1) < 1)
    return found[found[:, 0] > 60]


def test_drawn_file_is_a_png_and_always_the_same(two_voices, tmp_path):
    draw(two_voices, tmp_path / "a.png", 3.0, "a title")
    draw(two_voices, tmp_path / "b.png", 3.0, "a title")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and first == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(UserError, match="writing the piano roll"):
        draw(two_voices, tmp_path / "nowhere" / "a.png")


@pytest.mark.parametrize("midi", [mido.MidiFile(), make_midi([]), make_midi(note(0, 1, 0) + note(10**7, 10**7, 127))])
def test_odd_pieces_are_drawn_too(midi):
    assert figure_array(midi, prompt_end_seconds=1.0).shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_pyplot_is_left_alone():
    program = """
import sys, mido
from rwkv_music.midi.piano_roll import figure_array
assert "matplotlib" not in sys.modules
figure_array(mido.MidiFile())
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_soft_notes_are_paler():
    velocity = np.array([20, 60, 100])
    zeros = np.zeros(3, dtype=np.int64)
    lightness = note_colours(Notes(zeros, zeros, zeros, zeros, zeros, velocity, zeros, ["piano"]), None).sum(axis=1)
    assert lightness[0] > lightness[1] > lightness[2]


# Colour-blind vision as matrices on linear RGB, complete forms: Machado, Oliveira and Fernandes 2009, "A
# physiologically-based model for simulation of color vision deficiency".
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
def test_prompt_and_completion_stay_apart_for_the_colour_blind(vision):
    def lab(hue: str) -> np.ndarray:
        srgb = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        x, y, z = np.cbrt(to_xyz @ seen / [0.9505, 1.0, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    pairs = itertools.product(PROMPT_HUES, COMPLETION_HUES)
    assert min(np.linalg.norm(lab(cool) - lab(warm)) for cool, warm in pairs) > 40  # CIELAB; 2 is just noticeable
