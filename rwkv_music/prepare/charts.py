"""Charts for HTML pages, as inline SVG: histograms and small piano rolls.

The style sheet of the page sets the colors of a histogram, so that the histogram is also readable on a dark page. The
CSS classes of its elements are train, val, grid and axis. The output is deterministic.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import mido
import numpy as np

from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.notes import Notes, read_notes
from rwkv_music.midi.piano_roll import DRUM_COLOR, MAX_NAME, part_colors
from rwkv_music.midi.time import BarGrid

SPLITS = ("train", "val")
WIDTH, HEIGHT = 430, 210  # size of a histogram in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 44  # margins of a histogram
MOST_TICKS = 7
ROLL_WIDTH, ROLL_LEFT, ROLL_TOP, ROLL_BOTTOM = 880, 42, 4, 20
ROW = 4  # height of a pitch in a piano roll
FEWEST_ROWS = 24
ROLL_QUARTERS = 64  # quarter notes in a piano roll
BAR_LABEL = 40  # width of a bar's number, with a margin


@dataclass
class Histogram:
    """Counts in fixed bins, by split. Memory does not depend on the number of values."""

    quantity: str  # label of the x axis, with the unit
    edges: np.ndarray  # float64 [bins + 1], increasing; values outside are counted in the nearest bin
    counted: str = "pieces"  # what is counted, such as "notes"
    scale: str = "linear"  # scale of the x axis, "linear" or "log"
    step: float = 0  # distance between ticks of the x axis; 0 selects a round number

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(SPLITS), len(self.edges) - 1), np.int64)  # [splits, bins]

    def add(self, row: int, value: float) -> None:
        bin_ = np.searchsorted(self.edges, value, side="right") - 1
        self.counts[row, np.clip(bin_, 0, self.counts.shape[1] - 1)] += 1


def logarithmic(quantity: str, edges: np.ndarray, counted: str = "pieces") -> Histogram:
    """Return a histogram with a logarithmic x axis."""
    return Histogram(quantity, edges, counted, "log")


def draw_histogram(histogram: Histogram) -> str:
    """Return a histogram as SVG.

    Each split is drawn in percent of its own total, the first as an area, the second as a line. The x axis covers the
    bins from the first to the last one with counts, and one more at each end.
    """
    filled = np.flatnonzero(histogram.counts.any(axis=0))
    if not len(filled):
        return f"<p>{html.escape(histogram.quantity)}: none</p>"
    bins = slice(max(filled[0] - 1, 0), filled[-1] + 2)
    edges = histogram.edges[bins.start : bins.stop + 1].astype(float)
    percent = 100 * histogram.counts[:, bins] / np.maximum(histogram.counts.sum(axis=1, keepdims=True), 1)
    is_log = histogram.scale == "log"
    x_ticks = _log_ticks(edges[0], edges[-1]) if is_log else _ticks(edges[0], edges[-1], histogram.step)
    y_ticks = _ticks(0, percent.max() * 1.05)
    positions = np.log(edges) if is_log else edges
    x_scale = (WIDTH - LEFT - RIGHT) / (positions[-1] - positions[0])
    y_scale = (HEIGHT - TOP - BOTTOM) / (percent.max() * 1.05)
    base = HEIGHT - BOTTOM

    def x_of(values: np.ndarray) -> np.ndarray:
        return LEFT + ((np.log(values) if is_log else np.asarray(values)) - positions[0]) * x_scale

    x, y = x_of(edges), base - percent * y_scale
    label = html.escape(f"{histogram.counted} (% of the split)")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(histogram.quantity)}">']
    for tick in y_ticks:
        at = base - tick * y_scale
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for split, heights, counts in zip(SPLITS, y, histogram.counts, strict=True):
        if counts.any():
            path = "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(heights, x[1:], strict=True))
            parts.append(f'<path class="{split}" d="M{x[0]:.1f} {base}{path}V{base}"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>')
    for tick, at in zip(x_ticks, x_of(np.array(x_ticks)), strict=True):
        parts.append(f'<path class="axis" d="M{at:.1f} {base}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{base + 17}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + base) / 2
    parts.append(
        f'<text x="{middle[0]}" y="{HEIGHT - 7}" text-anchor="middle">{html.escape(histogram.quantity)}</text>'
    )
    parts.append(f'<text transform="translate(12 {middle[1]}) rotate(-90)" text-anchor="middle">{label}</text>')
    return "".join(parts) + "</svg>"


def _ticks(low: float, high: float, step: float = 0) -> list[float]:
    """Return the multiples of `step` in low..high. If `step` is 0, choose one that gives at most MOST_TICKS numbers."""
    if not step:
        step = 10.0 ** np.floor(np.log10(high - low))
        step *= next(factor for factor in (0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / (step * factor) < MOST_TICKS)
    return [round(k * step, 9) for k in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in low..high, or only powers of ten if there are more than MOST_TICKS."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = [tick for power in powers for tick in (power, 2 * power, 5 * power) if low * 0.999 <= tick <= high * 1.001]
    return ticks if len(ticks) <= MOST_TICKS else [tick for tick in powers.tolist() if low * 0.999 <= tick <= high]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def draw_roll(midi: mido.MidiFile) -> str:
    """Return the piano roll of a piece's first ROLL_QUARTERS quarter notes as SVG, and a legend of its parts as HTML.

    Each part has one color, as in piano_roll.py. Drums are in separate rows below the pitches. The picture is for a
    white background.
    """
    notes, grid = read_notes(midi), BarGrid.from_midi(midi)
    end = min(int(notes.end_tick.max(initial=1)), ROLL_QUARTERS * midi.ticks_per_beat)
    n_bars = int(grid.bar(end - 1)) + 1
    lines = grid.lines(n_bars)
    end = min(int(lines[-1]), ROLL_QUARTERS * midi.ticks_per_beat)
    is_drum = notes.program == DRUMS
    pitches, drums = notes.pitch[~is_drum], np.unique(notes.pitch[is_drum])
    low, high = (int(pitches.min()) - 1, int(pitches.max()) + 1) if len(pitches) else (59, 60)
    if len(pitches):
        missing = max(0, FEWEST_ROWS - (high - low))
        low, high = low - missing // 2, high + missing - missing // 2
    row = np.where(is_drum, high - low + 1 + len(drums) - np.searchsorted(drums, notes.pitch), high - notes.pitch)
    n_rows = high - low + 1 + (len(drums) + 1) * (len(drums) > 0)
    height, base = ROLL_TOP + n_rows * ROW + ROLL_BOTTOM, ROLL_TOP + n_rows * ROW
    scale = (ROLL_WIDTH - ROLL_LEFT - 4) / (ROLL_QUARTERS * midi.ticks_per_beat)
    colors = _colors(notes)
    svg = [f'<svg viewBox="0 0 {ROLL_WIDTH} {height}" role="img" aria-label="piano roll">']
    right = ROLL_LEFT + end * scale
    for pitch in range(low, high + 1):
        y = ROLL_TOP + (high - pitch + 0.5) * ROW
        if pitch % 12 in (1, 3, 6, 8, 10):
            svg.append(f'<path d="M{ROLL_LEFT} {y}H{right:.1f}" stroke="#F0F1F4" stroke-width="{ROW}"/>')
        if pitch % 12 == 0 and len(pitches):
            svg.append(f'<text x="{ROLL_LEFT - 5}" y="{y + 4}" text-anchor="end">C{pitch // 12 - 1}</text>')
    if len(drums):
        y = base - len(drums) * ROW / 2
        svg.append(f'<text x="{ROLL_LEFT - 5}" y="{y + 4}" text-anchor="end">drums</text>')
    bars = "".join(f"M{ROLL_LEFT + line * scale:.1f} {ROLL_TOP}V{base}" for line in lines.tolist() if line <= end)
    svg.append(f'<path d="{bars}" stroke="#C9CDD4"/>')
    edge = 0.0
    for number, line in enumerate(lines[:-1].tolist(), start=1 - grid.has_upbeat):
        x = ROLL_LEFT + line * scale
        if x >= edge and line < end:
            svg.append(f'<text x="{x:.1f}" y="{base + 14}">{number}</text>')
            edge = x + BAR_LABEL
    svg.append(f'<text x="{ROLL_LEFT - 5}" y="{base + 14}" text-anchor="end">bar</text>')
    for part, color in enumerate(colors):
        chosen = np.flatnonzero((notes.part == part) & (notes.start_tick < end))
        start, stop = notes.start_tick[chosen], np.minimum(notes.end_tick[chosen], end)
        x, length = ROLL_LEFT + start * scale, np.maximum((stop - start) * scale - 0.8, 0.8)
        y = ROLL_TOP + (row[chosen] + 0.5) * ROW
        boxes = zip(x.tolist(), y.tolist(), length.tolist(), strict=True)
        path = "".join(f"M{left:.1f} {middle:g}h{width:.1f}" for left, middle, width in boxes)
        svg.append(f'<path d="{path}" stroke="{color}" stroke-width="{ROW - 0.6}"/>')
    legend = " ".join(
        f'<span><i style="background:{color}"></i>{html.escape(part.name[:MAX_NAME])}</span>'
        for part, color in zip(notes.parts, colors, strict=True)
    )
    return "".join(svg) + f'</svg><div class="legend">{legend}</div>'


def _colors(notes: Notes) -> list[str]:
    """Return the color of each part. Drum parts have DRUM_COLOR."""
    pitched = [part.program != DRUMS for part in notes.parts]
    colors = iter(part_colors(sum(pitched)))
    return [
        "#" + "".join(f"{round(255 * level):02x}" for level in next(colors).tolist()) if is_pitched else DRUM_COLOR
        for is_pitched in pitched
    ]


def draw_bar_table(heads: Sequence[str], rows: Sequence[tuple[str, int]], total: int) -> str:
    """Return an HTML table of counts, which are also shown in percent of `total` and as bars."""
    cells = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in (*heads, "%", "")) + "</tr>"]
    longest = max((count for _, count in rows), default=1)
    for name, count in rows:
        bar = f'<i style="width:{100 * count / max(longest, 1):.1f}%"></i>'
        share = 100 * count / max(total, 1)
        cells.append(
            f'<tr><td>{html.escape(name)}</td><td>{count:,}</td><td>{share:.1f}</td><td class="bar">{bar}</td></tr>'
        )
    return "<table>" + "".join(cells) + "</table>"
