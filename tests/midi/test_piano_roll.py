"""Piano rolls: sizes, colors, labels and files."""

import itertools
import subprocess
import sys
import warnings

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi.events import TimedMessage
from rwkv_music.midi.piano_roll import (
    COLORS,
    DRUM_COLOR,
    GIVEN_STRENGTH,
    MAX_QUARTERS,
    MAX_SYSTEMS,
    WIDTH,
    _figure,
    _Score,
    _systems,
    draw_piano_roll,
    part_colors,
    save_piano_roll,
)
from rwkv_music.midi.regions import Region
from tests.midi.midi_files import make_midi, note

BAR = 1920


def name(text: str) -> TimedMessage:
    return 0, mido.MetaMessage("track_name", name=text)


def meter(tick: int, numerator: int, denominator: int = 4) -> TimedMessage:
    return tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)


def melody(bars: int, pitch: int, channel: int = 0, velocity: int = 100) -> list[TimedMessage]:
    """A whole note in each bar."""
    return [event for bar in range(bars) for event in note(BAR * bar, BAR * (bar + 1), pitch, velocity, channel)]


@pytest.fixture
def band() -> mido.MidiFile:
    """Eight bars of two parts on one channel, and drums."""
    return make_midi([name("Lead"), *melody(8, 72)], [name("Low"), *melody(8, 50)], melody(8, 36, channel=9))


def boxes(figure, panel: int = 0) -> list[tuple[float, float, tuple[float, ...], bool]]:
    """Return (start tick, middle row, color, whether outlined) of each note in the panel of that number."""
    drawn = []
    panels = [axes for axes in figure.axes if len(axes.get_yticks())]
    for notes in panels[panel].collections:
        if notes.get_zorder() == 3:
            widths = np.broadcast_to(notes.get_linewidths(), len(notes.get_paths()))
            for path, color, width in zip(notes.get_paths(), notes.get_facecolors(), widths, strict=True):
                start, middle = path.vertices[:4].min(0)[0], path.vertices[:4, 1].mean()
                drawn.append((float(start), float(middle), tuple(color[:3].round(4).tolist()), bool(width)))
    return sorted(drawn)


def color(part: int, strength: float = 1.0) -> tuple[float, ...]:
    return tuple((1 - strength * (1 - part_colors(part + 1)[part])).round(4).tolist())


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def bar_labels(figure) -> list[str]:
    """Return the labels below the first system."""
    panels = [axes for axes in figure.axes if axes.get_xticklabels() and axes.get_xticklabels()[0].get_text()]
    return [label.get_text().split("\n")[0] for label in panels[0].get_xticklabels()]


def test_a_part_has_one_color_and_written_notes_are_strong_and_outlined(band):
    figure = _figure(band, "", [Region(2, 6)], dpi=100)
    for row, part in ((72, 0), (50, 1)):
        given = [(BAR * bar, row, color(part, GIVEN_STRENGTH), False) for bar in range(2)]
        written = [(BAR * bar, row, color(part), True) for bar in range(2, 8)]
        assert [box for box in boxes(figure) if box[1] == pytest.approx(row)] == [
            (start, pytest.approx(middle), drawn, outlined) for start, middle, drawn, outlined in given + written
        ]
    assert texts(figure) == ["", "Lead", "Low", "drums", "given", "written"]


def test_a_region_of_some_parts(band):
    figure = _figure(band, "", [Region(1, 2, frozenset({(1, 0), (2, 9)}))], dpi=100)
    outlined = {(start // BAR, round(row)) for start, row, _, is_outlined in boxes(figure) if is_outlined}
    assert outlined == {(1, 50), (2, 50)}
    drums = [(start // BAR, is_outlined) for start, _, _, is_outlined in boxes(figure, panel=1)]
    assert drums == [(bar, bar in (1, 2)) for bar in range(8)]
    lanes = figure.axes[0]  # the bar of each part above the notes
    assert [bar.get_facecolors()[0, :3].round(4).tolist() for bar in lanes.collections[:2]] == [
        list(color(1)),
        [round(int(DRUM_COLOR[i : i + 2], 16) / 255, 4) for i in (1, 3, 5)],
    ]
    spans = [bar.get_paths()[0].get_extents() for bar in lanes.collections[:2]]
    assert [(span.x0, span.x1) for span in spans] == [(BAR, 3 * BAR)] * 2


def test_a_region_whose_parts_have_no_notes_is_shaded():
    midi = make_midi(melody(4, 60))
    without, shaded = (_figure(midi, "", regions, dpi=100) for regions in ((), [Region(1, 2, frozenset({(7, 3)}))]))
    assert [len(figure.axes[0].patches) for figure in (without, shaded)] == [0, 1]


@pytest.mark.parametrize("others", [1, 2])
def test_a_track_added_to_continue_the_only_part_of_a_channel_has_its_color(others):
    """If several parts share the channel, the continuation is none of them."""
    own = [[name(f"Voice {i}"), *melody(2, 60 + 5 * i)] for i in range(others)]
    midi = make_midi(*own, note(2 * BAR, 3 * BAR, 76))
    figure = _figure(midi, "", [Region(2, 1)], dpi=100)
    assert boxes(figure)[-1][2:] == (color(0 if others == 1 else others, 0.6 + 0.4 * 0.8), True)
    names = {1: ["Voice 0"], 2: ["Voice 0", "Voice 1", "piano"]}[others]
    assert texts(figure) == ["", *names, "given", "written"]


def test_parts_that_were_written_as_a_whole_keep_their_own_colors():
    """They share the channel and program of the part that was given, as the voices of a chorale do."""
    midi = make_midi([name("Soprano"), *melody(2, 72)], [name("Alto"), *melody(2, 65)], [name("Bass"), *melody(2, 48)])
    figure = _figure(midi, "", [Region(0, 2, frozenset({(1, 0), (2, 0)}))], dpi=100)
    assert texts(figure) == ["", "Soprano", "Alto", "Bass", "given", "written"]


def test_notes_that_coincide_share_a_row():
    figure = _figure(make_midi(melody(1, 60), melody(1, 60, channel=1)), "", (), dpi=100)
    (_, high, first, _), (_, low, second, _) = sorted(boxes(figure), key=lambda box: -box[1])
    assert 60.5 > high > 60 > low > 59.5 and (first, second) == (color(0), color(1))


@pytest.mark.parametrize("n_parts", [2, 16, 60])
def test_the_legend_names_every_part(n_parts):
    midi = make_midi(*([name(f"Part no. {i}"), *melody(1, 30 + i, i % 9)] for i in range(n_parts)), melody(1, 36, 9))
    figure = _figure(midi, "", (), dpi=100)
    assert texts(figure) == ["", *(f"Part no. {i}" for i in range(n_parts)), "drums"]
    extents = [text.get_window_extent() for text in figure.texts[1:]]
    assert all(0 < box.x0 and box.x1 <= WIDTH for box in extents)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
    top_of_notes = max(axes.get_position().y1 for axes in figure.axes) * figure.bbox.height
    assert min(box.y0 for box in extents) > top_of_notes


@pytest.mark.parametrize(
    "text",
    [
        "o\udcffd.mid",
        "$x.mid",
        "$\\frac{$",
        "_hidden",
        "第一ヴァイオリン",
        "🎻 violin",
        "Виолончель",
        "a\n\0b",
        "x" * 999,
    ],
)
def test_names_and_titles_are_drawn_as_they_are(text):
    """Characters that the font lacks are replaced without a warning."""
    midi = make_midi(
        [name(text.encode("utf-8", "surrogateescape").decode("latin-1")), *melody(1, 60)], melody(1, 50, 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = _figure(midi, text, (), dpi=100)
        figure.canvas.draw()
    title, drawn, _ = texts(figure)
    assert title and drawn and "\n" not in title + drawn and len(drawn) <= 32
    assert title == text or text not in ("$x.mid", "_hidden", "Виолончель")


@pytest.mark.parametrize("upbeat", [1, 2, 3])
@pytest.mark.parametrize("bars", [6, 14, 22, 23, 90])
def test_bar_labels_do_not_overlap(upbeat, bars):
    end = 480 * upbeat + BAR * bars
    midi = make_midi([meter(0, upbeat), meter(480 * upbeat, 4)], note(0, 480, 60), note(480, end, 64))
    figure = _figure(midi, "a piece", (), dpi=100)
    for axes in figure.axes:
        labels = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(labels) > 3 and all(a.x1 < b.x0 for a, b in itertools.pairwise(labels))
    assert bar_labels(figure)[0] == "bar 0"
    signatures = [text for text in figure.axes[0].texts if "/" in text.get_text()]
    boxes = [text.get_window_extent() for text in signatures]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert signatures[-1].get_text() == "4/4"  # the meter of most bars is shown if there is no room for both


@pytest.mark.parametrize(
    "meters, expected",
    [
        ([meter(0, 4)], ["bar 1", "2", "3", "4"]),
        ([meter(0, 3), meter(1440, 4)], ["bar 0", "1", "2", "3"]),
        ([meter(0, 4), meter(960, 4)], ["bar 0", "1", "2", "3"]),  # a bar cut short by a time signature
        ([meter(0, 4), meter(BAR, 3)], ["bar 1", "2", "3", "4"]),
    ],
)
def test_bars_are_numbered_as_musicians_do(meters, expected):
    assert bar_labels(_figure(make_midi(meters, note(0, 6000, 60)), "", (), dpi=100))[:4] == expected


def test_long_pieces_are_broken_into_systems():
    score = _Score(make_midi(melody(100, 60)), ())
    systems = _systems(score)
    assert [first for first, _ in systems] == [0, *(end for _, end in systems[:-1])] and systems[-1][1] == 100
    assert {end - first for first, end in systems[:-1]} == {15}


@pytest.mark.parametrize(
    "bars, first_written, note_on_cut_bars",
    [
        (1000, None, "Bars 257 to 1,000 of 1,000 are not shown."),
        (1000, 10, "Bars 257 to 1,000 of 1,000 are not shown."),
        (1000, 400, "Bars 1 to 336 and 593 to 1,000 of 1,000 are not shown."),
        (1000, 990, "Bars 1 to 744 of 1,000 are not shown."),
        (257, None, "Bar 257 of 257 is not shown."),
        (257, 250, "Bar 1 of 257 is not shown."),
        (258, 65, "Bars 1 and 258 of 258 are not shown."),
    ],
)
def test_pieces_that_do_not_fit_are_cut_around_the_regions(bars, first_written, note_on_cut_bars):
    assert MAX_SYSTEMS * MAX_QUARTERS == 4 * 256
    regions = [] if first_written is None else [Region(first_written, 4)]
    figure = _figure(make_midi(note(0, 480, 60), note((bars - 1) * BAR, bars * BAR, 64)), "long", regions, dpi=100)
    assert note_on_cut_bars in texts(figure)


@pytest.mark.parametrize(
    "midi, regions",
    [
        (mido.MidiFile(), ()),
        (make_midi([]), [Region(2, 2), Region(0, 1, frozenset({(5, 5)}))]),
        (make_midi(note(0, 1, 0) + note(10**9, 10**9, 127), ticks_per_beat=1), [Region(7, 1)]),
        (make_midi([meter(0, 255, 1)], note(0, 480, 60)), ()),
        (make_midi(melody(1, 90, channel=9)), [Region(0, 1)]),
    ],
)
def test_unusual_pieces_are_drawn(midi, regions):
    picture = draw_piano_roll(midi, "title", regions)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (WIDTH, 3) and 100 < picture.shape[0] < 4000
    assert (picture < 200).any()


def test_a_file_is_deterministic_and_has_twice_the_pixels(band, tmp_path):
    save_piano_roll(band, tmp_path / "a.png", "a title", [Region(2, 6)])
    save_piano_roll(band, tmp_path / "b.png", "a title", [Region(2, 6)])
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and first == (tmp_path / "b.png").read_bytes()
    height = draw_piano_roll(band, "a title", [Region(2, 6)]).shape[0]
    assert [int.from_bytes(first[i : i + 4], "big") for i in (16, 20)] == [2 * WIDTH, 2 * height]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(UserError, match="a.png"):
        save_piano_roll(band, tmp_path / "nowhere" / "a.png")


def test_pyplot_is_not_imported():
    program = """
import sys, mido
from rwkv_music.midi.piano_roll import draw_piano_roll
assert "matplotlib" not in sys.modules
draw_piano_roll(mido.MidiFile())
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_softer_notes_are_paler():
    midi = make_midi([event for i in range(3) for event in note(480 * i, 480 * i + 480, 60, 20 + 40 * i)])
    lightness = [sum(drawn) for _, _, drawn, _ in boxes(_figure(midi, "", (), dpi=100))]
    assert lightness[0] > lightness[1] > lightness[2]


# Color blindness as matrices on linear RGB (complete forms): Machado, Oliveira and Fernandes 2009, "A
# physiologically-based model for simulation of color vision deficiency".
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(rgb: np.ndarray, vision: str) -> np.ndarray:
    """Return CIELAB of sRGB colors [n, 3] as seen with a form of color blindness."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(seen @ to_xyz.T / [0.9505, 1.0, 1.089]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize(
    "vision, n, least", [*((vision, len(COLORS), 25) for vision in VISION), ("normal", 16, 24), ("normal", 64, 10)]
)
def test_colors_of_parts_are_distinguishable(vision, n, least):
    seen = lab(part_colors(n), vision)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= least  # 2 is just noticeable
    assert (part_colors(n) == part_colors(n + 5)[:n]).all()
