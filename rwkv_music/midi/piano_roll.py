"""Piano rolls: pictures of MIDI files. They are shown in TensorBoard and written beside every generated file.

Each part has one color. Notes that a model wrote have strong colors and outlines, and given notes are pale. Softer
notes are paler. The bars of the regions that a model wrote are shaded. If a region covers only some parts, a strip in
the color of each of these parts is drawn above the notes. If several parts play the same note at once, they divide the
height of its row. Drums are drawn in separate rows below the pitches.

Long pieces are broken into systems, one below the other. If some bars do not fit into the picture, a sentence above the
first system names them.

This module uses Matplotlib's object interface, not pyplot, so it needs no display and changes no global figure state.
"""

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import mido
import numpy as np

from rwkv_music.errors import explained
from rwkv_music.files import atomic_path
from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.notes import Notes, read_notes
from rwkv_music.midi.regions import Region, written_notes
from rwkv_music.midi.time import BarGrid, TempoMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Any two of these colors differ by at least 25 in CIELAB (2 is just noticeable), in normal vision, protanopia,
# deuteranopia and tritanopia.
COLORS = ("#2461B6", "#C20C49", "#49B6B6", "#866D00", "#F39279", "#86316D", "#9EC231", "#DB9EFF")
DRUM_COLOR = "#3A3F47"  # the color of the first drum part
INK, GRAY, TINT = "#22262B", "#4A4F57", "#FFF1DC"
GIVEN_STRENGTH = 0.5  # strength of the color of given notes, if a model wrote other notes

WIDTH = 1200  # pixels at 100 dpi, the full width of an image in TensorBoard
LEFT, RIGHT, LEFT_OF_DRUMS = 46, 14, 76  # margins; names of drums need more room
TITLE_HEIGHT, LEGEND_ROW, LANE, ABOVE, BELOW, DRUM_ROW, GAP = 34, 19, 7, 16, 34, 9, 5
MIN_PANEL, MAX_PANEL = 150, 300  # height in pixels of the rows of pitches in a system
LABEL_WIDTH = 40  # pixels for a bar's number and time, with a margin
MAX_NAME = 32  # characters of a name in the legend
MAX_SYSTEMS = 8
COMFORTABLE_QUARTERS, MAX_QUARTERS = 64, 128  # quarter notes per system: preferred, and maximum for long pieces

DRUM_NAMES = dict(  # of General MIDI
    enumerate(
        (
            "kick 2, kick, rim, snare, clap, snare 2, low tom, closed hat, low tom 2, pedal hat, mid tom, open hat, "
            "mid tom 2, high tom, crash, high tom 2, ride, china, ride bell, tambourine, splash, cowbell, crash 2, "
            "vibraslap, ride 2, high bongo, low bongo, mute conga, high conga, low conga, high timbale, low timbale, "
            "high agogo, low agogo, cabasa, maracas, whistle, whistle 2, guiro, guiro 2, claves, high block, "
            "low block, mute cuica, cuica, mute triangle, triangle"
        ).split(", "),
        start=35,
    )
)


def save_piano_roll(
    midi: mido.MidiFile, out: str | os.PathLike, title: str = "", regions: Sequence[Region] = ()
) -> None:
    """Write the piano roll of `midi` to `out` atomically, as a PNG with twice the resolution of `draw_piano_roll`.

    Raises UserError if `out` cannot be written.
    """
    figure = _figure(midi, title, regions, dpi=200)
    with explained(f"writing the piano roll {out}"), atomic_path(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})  # so that the file is deterministic


def draw_piano_roll(midi: mido.MidiFile, title: str = "", regions: Sequence[Region] = (), scale: int = 1) -> np.ndarray:
    """Return the piano roll of `midi` as RGB, uint8 [height, 1200, 3] (layout "HWC" of SummaryWriter.add_image).

    `regions` are the bars and parts that a model wrote. The height depends on the number of systems and parts. `scale`
    multiplies the size of text and margins, but not the width.
    """
    figure = _figure(midi, title, regions, dpi=100 * scale, width=WIDTH // scale)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def part_colors(n: int) -> np.ndarray:
    """Return `n` distinguishable RGB colors, float [n, 3] in 0..1.

    The first ones are COLORS. Each further color is the one that differs most from all previous ones.
    """
    colors = _rgb(*COLORS)[:n]
    if n > len(COLORS):
        levels = np.linspace(0, 1, 16)
        candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
        lab = _lab(candidates)
        # Exclude colors that are almost white, almost black or glaring.
        usable = (lab[:, 0] > 30) & (lab[:, 0] < 80) & (np.hypot(lab[:, 1], lab[:, 2]) < 80)
        candidates, lab = candidates[usable], lab[usable]
        taken = _lab(np.concatenate([colors, _rgb(DRUM_COLOR, "#FFFFFF", "#F3F4F6", TINT)]))
        distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(axis=1)
        while len(colors) < n:
            best = int(distance.argmax())
            colors = np.concatenate([colors, candidates[best : best + 1]])
            distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=-1))
    return colors


def _rgb(*colors: str) -> np.ndarray:
    return np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB to CIELAB, float [n, 3] each."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(linear @ to_xyz.T / [0.9505, 1.0, 1.089]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@dataclass(frozen=True)
class _Part:
    """A part that is shown: one or several parts of the file that share a color and an entry in the legend."""

    name: str
    color: np.ndarray  # float [3], RGB in 0..1
    is_drums: bool
    keys: frozenset[tuple[int, int]]  # (track, channel) of each of its parts in the file


class _Score:
    """The contents of a piece that are drawn: its notes, parts, bars and regions."""

    def __init__(self, midi: mido.MidiFile, regions: Sequence[Region]):
        self.regions = regions
        self.grid, self.tempo_map = BarGrid.from_midi(midi), TempoMap.from_midi(midi)
        self.ticks_per_quarter = midi.ticks_per_beat
        self.notes = read_notes(midi)
        self.written = written_notes(self.notes, self.grid, regions)
        self.parts, self.part = _shown_parts(self.notes, self.written, regions)
        last_tick = int(self.notes.end_tick.max(initial=1)) - 1
        self.n_bars = max([int(self.grid.bar(max(last_tick, 0))) + 1, *(r.first_bar + r.bars for r in regions)])
        self.is_drums = np.array([part.is_drums for part in self.parts], bool)[self.part]

    def bar_number(self, bar: int) -> int:
        """Return the number that musicians give to a bar. An upbeat is bar 0."""
        return bar + (not self.grid.has_upbeat)


def _shown_parts(notes: Notes, written: np.ndarray, regions: Sequence[Region]) -> tuple[list[_Part], np.ndarray]:
    """Return the parts that are shown, and the index of each note's part, int64 [n].

    A track that a model added to continue an instrument is shown as the part of this instrument. Such a track is
    recognized as follows: the model wrote all its notes, no region names it, and exactly one part with given notes has
    the same channel and program.
    """
    named = {key for region in regions for key in region.parts or ()}
    last_program = dict(zip(notes.part[~written].tolist(), notes.program[~written].tolist(), strict=True))
    representative = list(range(len(notes.parts)))
    for i, part in enumerate(notes.parts):
        instrument = part.channel, part.program
        same = [j for j, program in last_program.items() if (notes.parts[j].channel, program) == instrument]
        if i not in last_program and len(same) == 1 and (part.track, part.channel) not in named:
            representative[i] = same[0]
    shown = sorted(set(representative), key=lambda i: notes.parts[i].program == DRUMS)  # drums come last
    names = _numbered([_clean(notes.parts[i].name)[:MAX_NAME] for i in shown])
    drums = [notes.parts[i].program == DRUMS for i in shown]
    n_pitched = len(shown) - sum(drums)
    colors = part_colors(n_pitched + max(sum(drums) - 1, 0))
    if any(drums):
        colors = np.concatenate([colors[:n_pitched], _rgb(DRUM_COLOR), colors[n_pitched:]])
    parts = []
    for i, name, color, is_drums in zip(shown, names, colors, drums, strict=True):
        keys = frozenset((p.track, p.channel) for p, own in zip(notes.parts, representative, strict=True) if own == i)
        parts.append(_Part(name, color, is_drums, keys))
    index = np.array([shown.index(i) for i in representative], np.int64)
    return parts, index[notes.part]


def _numbered(names: list[str]) -> list[str]:
    """Return the names, with a number added to each name that occurs several times."""
    return [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _systems(score: _Score) -> list[tuple[int, int]]:
    """Return (first bar, bar after the last one) of each system. If not all bars fit, keep those around the regions."""
    quarter = score.ticks_per_quarter
    first = 0
    total = int(score.grid.lines(0, score.n_bars)[0]) / quarter
    if total > MAX_SYSTEMS * MAX_QUARTERS and score.regions:
        # Before the written bars, show about as many bars as fill a quarter of the picture.
        written_from = int(score.grid.lines(0, min(region.first_bar for region in score.regions))[0])
        earliest = written_from - MAX_SYSTEMS * MAX_QUARTERS // 4 * quarter
        latest = int((total - MAX_SYSTEMS * MAX_QUARTERS) * quarter)
        first = int(score.grid.bar(max(min(earliest, latest), 0)))
    n_systems = min(MAX_SYSTEMS, -(-total // COMFORTABLE_QUARTERS))
    limit = min(total / n_systems * 1.001, MAX_QUARTERS) * quarter
    while True:
        systems = _broken(score, first, limit)
        if len(systems) <= n_systems or limit >= MAX_QUARTERS * quarter:
            return systems[:MAX_SYSTEMS]
        limit *= 1.05  # more systems than expected are needed if bars do not fill them exactly


def _broken(score: _Score, first: int, limit: float) -> list[tuple[int, int]]:
    """Break the bars from `first` on into systems of at most `limit` ticks and at least one bar."""
    n = min(score.n_bars - first, MAX_SYSTEMS * MAX_QUARTERS * 16)
    lines = score.grid.lines(n, first)
    systems, start = [], 0
    while start < n and len(systems) <= MAX_SYSTEMS:
        end = max(start + 1, int(np.searchsorted(lines, lines[start] + limit, side="right")) - 1)
        systems.append((first + start, first + min(end, n)))
        start = end
    return systems


def _figure(midi: mido.MidiFile, title: str, regions: Sequence[Region], dpi: int, width: int = WIDTH) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    score = _Score(midi, regions)
    systems = _systems(score)
    pitches = score.notes.pitch[~score.is_drums]
    low, high = _pitch_range(pitches)
    drums = np.unique(score.notes.pitch[score.is_drums])
    has_pitches = len(pitches) > 0 or not len(drums)
    of_some_parts = [region for region in regions if region.parts is not None]
    lanes = [part for part in score.parts if any(_is_in(part, region) for region in of_some_parts)]
    row_height = (8 if len(systems) == 1 else 5) * width / WIDTH
    panel = int(np.clip((high - low + 1) * row_height, MIN_PANEL, MAX_PANEL)) * has_pitches
    left = LEFT_OF_DRUMS if len(drums) else LEFT

    figure = Figure(figsize=(width / 100, 4), dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    legend = _legend_rows(figure, canvas, score, left)
    cut = _cut_bars(score, systems)
    header_height = TITLE_HEIGHT + LEGEND_ROW * (_n_rows(legend) + (cut != ""))
    system_height = ABOVE + LANE * len(lanes) + panel + (GAP + DRUM_ROW * len(drums)) * (len(drums) > 0) + BELOW
    height = header_height + system_height * len(systems)
    figure.set_size_inches(width / 100, height / 100)

    def axes_at(top: float, axes_height: float, bottom_row: float, top_row: float, ticks: tuple[int, int]) -> "Axes":
        """Add axes `top` pixels below the upper edge. All systems have the same scale, so a shorter one is narrower."""
        own = (width - left - RIGHT) * (ticks[1] - ticks[0]) / longest
        axes = figure.add_axes((left / width, 1 - (top + axes_height) / height, own / width, axes_height / height))
        axes.set(xlim=ticks, ylim=(bottom_row, top_row), facecolor="white")
        axes.tick_params(length=0, labelcolor=GRAY, labelsize=8.5, pad=4, labelbottom=False)
        axes.spines[:].set_visible(False)
        return axes

    ticks_of = [tuple(score.grid.lines(1, bar)[0].item() for bar in system) for system in systems]
    longest = max(end - start for start, end in ticks_of)
    _draw_header(figure, height, legend, left, title, cut)
    top = header_height
    signature = None
    for system, ticks in zip(systems, ticks_of, strict=True):
        y = top + ABOVE
        stack = []
        if lanes:
            stack.append(axes_at(y, LANE * len(lanes), len(lanes), 0, ticks))
            _draw_lanes(stack[-1], score, lanes, system)
            y += LANE * len(lanes)
        if has_pitches:
            stack.append(axes_at(y, panel, low - 0.5, high + 0.5, ticks))
            _draw_pitch_rows(stack[-1], low, high, ticks)
            _draw_regions(stack[-1], score, False, system)
            _draw_notes(stack[-1], score, ~score.is_drums, score.notes.pitch, ticks)
            y += panel + GAP
        if len(drums):
            rows = np.searchsorted(drums, score.notes.pitch)
            stack.append(axes_at(y, DRUM_ROW * len(drums), -0.5, len(drums) - 0.5, ticks))
            _draw_drum_rows(stack[-1], drums, ticks)
            _draw_regions(stack[-1], score, True, system)
            _draw_notes(stack[-1], score, score.is_drums, rows, ticks)
        signature = _draw_bars(stack, score, system, (width - left - RIGHT) / longest, signature)
        top += system_height
    if len(score.notes) == 0:
        axes = figure.axes[0]
        axes.text(0.5, 0.5, "no notes", transform=axes.transAxes, ha="center", va="center", color="#8A9099")
    return figure


def _is_in(part: _Part, region: Region) -> bool:
    return region.parts is None or not part.keys.isdisjoint(region.parts)


def _pitch_range(pitch: np.ndarray) -> tuple[int, int]:
    """Return the lowest and highest pitch to draw: the range of the notes with a margin, at least two octaves."""
    low, high = (int(pitch.min()) - 2, int(pitch.max()) + 2) if len(pitch) else (48, 72)
    missing = max(0, 24 - (high - low))
    return low - missing // 2, high + missing - missing // 2


def _draw_pitch_rows(axes: "Axes", low: int, high: int, ticks: tuple[int, int]) -> None:
    """Shade the rows of the black keys and label every C."""
    cs = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    black = np.array([pitch for pitch in range(low, high + 1) if pitch % 12 in (1, 3, 6, 8, 10)])
    _draw_boxes(axes, *ticks, black - 0.5, black + 0.5, facecolors="#F3F4F6", linewidths=0, zorder=0)
    axes.hlines([pitch - 0.5 for pitch in cs], *ticks, color="#D5D8DD", linewidth=0.8, zorder=1)
    axes.set_yticks(cs, [f"C{pitch // 12 - 1}" for pitch in cs])


def _draw_drum_rows(axes: "Axes", drums: np.ndarray, ticks: tuple[int, int]) -> None:
    """Shade every other row and name each drum."""
    shaded = np.arange(0, len(drums), 2)
    _draw_boxes(axes, *ticks, shaded - 0.5, shaded + 0.5, facecolors="#F3F4F6", linewidths=0, zorder=0)
    axes.set_yticks(range(len(drums)), [DRUM_NAMES.get(drum, f"drum {drum}") for drum in drums.tolist()])
    axes.tick_params(labelsize=6.5)


def _draw_regions(axes: "Axes", score: _Score, of_drums: bool, system: tuple[int, int]) -> None:
    """Tint the bars of the regions: strongly if a region covers all parts of these axes, weakly if only some."""
    parts = [part for part in score.parts if part.is_drums == of_drums]
    for region in score.regions:
        of_panel = [_is_in(part, region) for part in parts]
        is_silent = not any(_is_in(part, region) for part in score.parts)  # no part of the region has notes
        if span := _span(score, region, system):
            if region.parts is None or any(of_panel) or is_silent:
                strength = 1 if region.parts is None or (all(of_panel) and not is_silent) else 0.4
                axes.axvspan(*span, color=TINT, alpha=0.85 * strength, linewidth=0, zorder=0.5)
                for tick, bar in zip(span, (region.first_bar, region.first_bar + region.bars), strict=True):
                    if 0 < bar < score.n_bars and system[0] <= bar <= system[1]:
                        style = {"linewidth": 1.4} if strength == 1 else {"linewidth": 0.9, "linestyle": (0, (3, 2))}
                        axes.axvline(tick, color=INK, zorder=4, **style)


def _draw_lanes(axes: "Axes", score: _Score, lanes: list[_Part], system: tuple[int, int]) -> None:
    """Draw the regions of each part as strips in the part's color."""
    axes.set_yticks([])
    for region in score.regions:
        if region.parts is not None and (span := _span(score, region, system)):
            for row, part in enumerate(lanes):
                if _is_in(part, region):
                    axes.broken_barh([(span[0], span[1] - span[0])], (row + 0.12, 0.76), color=part.color, linewidth=0)


def _span(score: _Score, region: Region, system: tuple[int, int]) -> tuple[int, int] | None:
    """Return the ticks at which a region starts and ends within a system, or None if they do not overlap."""
    first, end = max(region.first_bar, system[0]), min(region.first_bar + region.bars, system[1])
    if first >= end:
        return None
    return score.grid.lines(0, first)[0].item(), score.grid.lines(0, end)[0].item()


def _draw_notes(axes: "Axes", score: _Score, chosen: np.ndarray, rows: np.ndarray, ticks: tuple[int, int]) -> None:
    """Draw the notes marked in `chosen`, bool [n], in `rows`, int64 [n]. Notes are cut at the ends of the system."""
    notes = score.notes
    chosen = chosen & (notes.start_tick < ticks[1]) & ((notes.end_tick > ticks[0]) | (notes.start_tick == ticks[0]))
    chosen = np.flatnonzero(chosen)
    chosen = chosen[np.argsort(score.written[chosen], kind="stable")]  # draw written notes over given notes
    start, end = notes.start_tick[chosen].astype(float), notes.end_tick[chosen].astype(float)
    written, part, row = score.written[chosen], score.part[chosen], rows[chosen]
    if not len(start):
        return
    pixel = (ticks[1] - ticks[0]) / (axes.get_position().width * axes.figure.get_figwidth() * 100)  # in ticks
    # A small gap after each note separates repeated notes. It is at most a quarter of the note's length.
    right = np.maximum(end - np.minimum(1.5 * pixel, 0.25 * (end - start)), start + 1.2 * pixel)
    # Notes that start together at one pitch divide its row.
    _, same, count = np.unique(np.stack([start, row]), axis=1, return_inverse=True, return_counts=True)
    same = same.reshape(-1)
    order = np.lexsort((part, same))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.concatenate([[0], np.cumsum(count)[:-1]])[same[order]]
    top = row + 0.42 - 0.84 * place / count[same]
    bottom = row + 0.42 - 0.84 * (place + 1) / count[same]
    colors = np.array([part.color for part in score.parts])[part]
    strength = 0.6 + 0.4 * np.clip(notes.velocity[chosen] / 100, 0, 1)
    if score.regions:
        strength = np.where(written, strength, strength * GIVEN_STRENGTH)
    outlined = written & ((right - start) > 4 * pixel)
    style = {"facecolors": 1 - strength[:, None] * (1 - colors), "edgecolors": 0.45 * colors}
    _draw_boxes(axes, start, right, bottom, top, **style, linewidths=np.where(outlined, 0.6, 0.0), zorder=3)


def _draw_boxes(axes: "Axes", left, right, bottom, top, **style) -> None:
    """Draw n boxes. Each side is a number or an array [n]."""
    from matplotlib.collections import PolyCollection

    sides = np.broadcast_arrays(left, right, bottom, top)
    corners = np.stack([np.stack([sides[x], sides[y]], axis=-1) for x, y in ((0, 2), (0, 3), (1, 3), (1, 2))], axis=1)
    axes.add_collection(PolyCollection(list(corners.astype(float)), **style), autolim=False)


def _draw_bars(
    stack: list["Axes"], score: _Score, system: tuple[int, int], pixels_per_tick: float, signature: tuple | None
) -> tuple:
    """Draw bar lines, and write the numbers and times of bars where they fit. Return the last time signature.

    A time signature is written above the first bar to which it applies, if there is room.
    """
    first, end = system
    lines = score.grid.lines(end - first, first)
    for axes in stack:
        if np.diff(lines).min() * pixels_per_tick >= 4:
            axes.vlines(lines, *axes.get_ylim(), color="#D5D8DD", linewidth=0.8, zorder=1)
    width = np.median(np.diff(lines)) * pixels_per_tick
    step = 1 << max(0, int(np.ceil(np.log2(LABEL_WIDTH / width))))
    labeled: list[int] = []
    for i in range(end - first):
        is_due = not labeled or score.bar_number(first + i) % step == 0
        if is_due and (not labeled or (lines[i] - lines[labeled[-1]]) * pixels_per_tick >= LABEL_WIDTH):
            labeled.append(i)
    seconds = score.tempo_map.seconds(lines[labeled])
    labels = [
        f"{score.bar_number(first + i)}\n{int(time) // 60}:{int(time) % 60:02d}"
        for i, time in zip(labeled, seconds.tolist(), strict=True)
    ]
    labels[0] = f"bar {labels[0]}"
    stack[-1].set_xticks(lines[labeled].tolist(), labels, linespacing=1.25)
    stack[-1].tick_params(axis="x", labelbottom=True)
    changes: list[tuple[int, str]] = []  # bar and text
    for i, new in enumerate(map(tuple, score.grid.signatures(end - first, first).tolist())):
        if new != signature:
            changes.append((i, f"{new[0]}/{new[1]}"))
        signature = new
    bars = np.diff([*(i for i, _ in changes), end - first]).tolist()
    # Indices in `changes`. If two labels would overlap, only the one that applies to more bars is shown.
    shown: list[int] = []
    for k, (i, _) in enumerate(changes):
        if shown:
            before, text = changes[shown[-1]]
            if (lines[i] - lines[before]) * pixels_per_tick < 8 * len(text):
                if bars[k] <= bars[shown[-1]]:
                    continue
                shown.pop()
        shown.append(k)
    for i, text in (changes[k] for k in shown):
        stack[0].annotate(
            text, (lines[i], 1), (2, 3), xycoords=stack[0].get_xaxis_transform(), textcoords="offset points",
            fontsize=7.5, color=GRAY,
        )  # fmt: skip
    return signature


Legend = list[tuple[int, float, str, np.ndarray, bool]]  # row, x in pixels, name, color, whether it is outlined


def _legend_rows(figure: "Figure", canvas, score: _Score, left: int) -> Legend:
    """Arrange the legend in rows: the parts, with drums last, then a sample of given and of written notes."""
    gray = _rgb("#6B7280")[0]
    pitched, drums = ([part for part in score.parts if part.is_drums == of_drums] for of_drums in (False, True))
    groups = [[(part.name, part.color, False) for part in parts] for parts in (pitched, drums)]
    if score.regions:
        groups.append([("given", 1 - GIVEN_STRENGTH * (1 - gray), False), ("written", gray, True)])
    width = _text_width(figure, canvas)
    legend: Legend = []
    row, x = 0, float(left)
    for group in groups if len(score.parts) > 1 or score.regions else []:
        for name, color, outlined in group:
            needed = 18 + width(name)
            if x + needed > figure.get_figwidth() * 100 - RIGHT and x > left:
                row, x = row + 1, float(left)
            legend.append((row, x, name, color, outlined))
            x += needed + 16
        x += 24 * (x > left)
    return legend


def _n_rows(legend: Legend) -> int:
    return legend[-1][0] + 1 if legend else 0


def _text_width(figure: "Figure", canvas) -> Callable[[str], float]:
    """Return a function that measures the width of a text in the legend's font size, in pixels at 100 dpi."""
    renderer = canvas.get_renderer()

    def width(text: str) -> float:
        drawn = figure.text(0, 0, text, fontsize=8.5, parse_math=False)
        extent = drawn.get_window_extent(renderer).width * 100 / figure.dpi
        drawn.remove()
        return extent

    return width


def _cut_bars(score: _Score, systems: list[tuple[int, int]]) -> str:
    """Return a sentence that names the bars that are not shown, or "" if all are shown."""
    hidden = [(a, b - 1) for a, b in ((0, systems[0][0]), (systems[-1][1], score.n_bars)) if a < b]
    if not hidden:
        return ""
    numbers = [(score.bar_number(a), score.bar_number(b)) for a, b in hidden]
    ranges = " and ".join(f"{a:,} to {b:,}" if a < b else f"{a:,}" for a, b in numbers)
    is_one = len(numbers) == 1 and numbers[0][0] == numbers[0][1]
    of = f"of {score.bar_number(score.n_bars - 1):,}"
    return f"Bar {ranges} {of} is not shown." if is_one else f"Bars {ranges} {of} are not shown."


def _draw_header(figure: "Figure", height: int, legend: Legend, left: int, title: str, cut: str) -> None:
    """Draw the title, the sentence `cut` about bars that are not shown, and the legend."""
    from matplotlib.patches import Rectangle

    y, width = 1 - 19 / height, figure.get_figwidth() * 100
    style = {"va": "center", "parse_math": False}
    figure.text(left / width, y, _clean(title)[:100], fontsize=11.5, fontweight="bold", color=INK, **style)
    if cut:
        y = 1 - (TITLE_HEIGHT + LEGEND_ROW * _n_rows(legend) + 6) / height
        figure.text(left / width, y, cut, fontsize=9, color="#B3261E", **style)
    for row, x, name, color, outlined in legend:
        y = TITLE_HEIGHT + LEGEND_ROW * row + 6
        box = (x / width, 1 - (y + 4.5) / height), 13 / width, 9 / height
        edge = {"edgecolor": 0.45 * color, "linewidth": 1} if outlined else {"linewidth": 0}
        figure.add_artist(Rectangle(*box, transform=figure.transFigure, facecolor=color, **edge))
        figure.text((x + 18) / width, 1 - y / height, name, fontsize=8.5, color=GRAY, **style)


def _clean(text: str) -> str:
    """Return a text as one line. The replacement character replaces characters that the font does not have."""
    text = text.encode("utf-8", "replace").decode()
    text = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    known = _characters()
    return "".join(character if ord(character) in known else "\N{REPLACEMENT CHARACTER}" for character in text).strip()


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Return the characters that both the regular and the bold style of Matplotlib's default font have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = (get_font(findfont(FontProperties(weight=weight))) for weight in ("normal", "bold"))
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))
