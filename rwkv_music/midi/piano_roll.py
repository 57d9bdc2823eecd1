"""Piano rolls: pictures of MIDI files, for TensorBoard and next to every completion.

The prompt is drawn in cool hues and the completion in warm ones, which stay distinguishable under red-green and
blue-yellow color blindness. Each voice has its own hue. Softer notes are paler.

This module uses Matplotlib's object interface, not pyplot, so it needs no display and changes no global figure state.
"""

import os
from typing import TYPE_CHECKING

import mido
import numpy as np

from rwkv_music.errors import explained
from rwkv_music.files import atomic_path
from rwkv_music.midi.notes import Notes, read_notes
from rwkv_music.midi.time import bar_ticks, tick_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMPT_HUES = ("#0B5394", "#2E9CCA", "#5A4FBF", "#7A8FA6")
COMPLETION_HUES = ("#D1470C", "#E8A200", "#8C4A1E", "#C98A4B")
WIDTH_PX, HEIGHT_PX = 1200, 400  # a TensorBoard image card at full width
MIN_LABEL_DISTANCE = 0.035  # fraction of the width that the label "bar 1" needs, with a margin


def draw(midi: mido.MidiFile, out: str | os.PathLike, prompt_end_seconds: float | None = None, title: str = "") -> None:
    """Write the piano roll of `midi` to `out` atomically, as a PNG of 2400 x 800 pixels.

    Notes that start at `prompt_end_seconds` or later are drawn as the completion; None draws all as the prompt. Raises
    UserError if `out` cannot be written.
    """
    figure = _figure(midi, prompt_end_seconds, title, dpi=200)
    with explained(f"writing the piano roll {out}"), atomic_path(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})  # makes the file deterministic


def figure_array(midi: mido.MidiFile, prompt_end_seconds: float | None = None, title: str = "") -> np.ndarray:
    """Return the piano roll of `midi` as pixels, uint8 [400, 1200, 3] (layout "HWC" of SummaryWriter.add_image)."""
    figure = _figure(midi, prompt_end_seconds, title, dpi=100)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def note_colors(notes: Notes, prompt_end_seconds: float | None) -> np.ndarray:
    """Return the RGB color of each note, float [n, 3] in 0..1."""
    hues = np.array([[int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)] for hue in PROMPT_HUES + COMPLETION_HUES])
    boundary = np.inf if prompt_end_seconds is None else prompt_end_seconds - 1e-6
    hue = notes.voice % len(PROMPT_HUES) + len(PROMPT_HUES) * (notes.start >= boundary)
    strength = (0.3 + 0.7 * np.clip(notes.velocity / 100, 0, 1))[:, None]
    return 1 - strength * (1 - hues[hue])


def _figure(midi: mido.MidiFile, prompt_end_seconds: float | None, title: str, dpi: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    notes = read_notes(midi)
    figure = Figure(figsize=(WIDTH_PX / 100, HEIGHT_PX / 100), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.038, 0.125, 0.95, 0.73))
    length = max(float(notes.end.max(initial=0.0)), prompt_end_seconds or 0.0, 1.0)
    low, high = _pitch_range(notes.pitch)
    axes.set(xlim=(0, length), ylim=(low - 0.5, high + 0.5), facecolor="white")

    # A small gap after each note separates repeated notes. It is at most a quarter of the note.
    gap = np.minimum(length * 0.0015, 0.25 * (notes.end - notes.start))
    left, right, middle = notes.start, np.maximum(notes.end - gap, notes.start + length * 0.001), notes.pitch
    corners = [(left, middle - 0.42), (left, middle + 0.42), (right, middle + 0.42), (right, middle - 0.42)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    axes.add_collection(
        PolyCollection(list(boxes), facecolors=note_colors(notes, prompt_end_seconds), linewidths=0, zorder=3)
    )
    _draw_pitch_rows(axes, low, high)
    _draw_bar_lines(axes, midi, length)
    _draw_labels(axes, notes, prompt_end_seconds, length, title)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _pitch_range(pitch: np.ndarray) -> tuple[int, int]:
    """Return the lowest and highest row: the range of the notes with a margin, at least two octaves."""
    low, high = (int(pitch.min()) - 2, int(pitch.max()) + 2) if len(pitch) else (48, 72)
    missing = max(0, 24 - (high - low))
    return low - missing // 2, high + missing - missing // 2


def _draw_pitch_rows(axes, low: int, high: int) -> None:
    """Shade the rows of the black keys and label every C."""
    cs = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    for pitch in range(low, high + 1):
        if pitch % 12 in (1, 3, 6, 8, 10):
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#F3F4F6", linewidth=0, zorder=0)
    for pitch in cs:
        axes.axhline(pitch - 0.5, color="#D5D8DD", linewidth=0.8, zorder=1)
    axes.set_yticks(cs, [f"C{pitch // 12 - 1}" for pitch in cs])
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor="#4A4F57", pad=4)


def _draw_bar_lines(axes, midi: mido.MidiFile, length: float) -> None:
    """Draw the bar lines, and label as many as fit with bar number and time."""
    n_bars, lines = 64, np.zeros(1)
    while lines[-1] <= length and n_bars < 400_000:
        lines = tick_seconds(midi, bar_ticks(midi, n_bars))
        n_bars *= 4
    lines = lines[lines < length - 1e-6]
    step = next((step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if len(lines) / step <= 24), 1024)
    if len(lines) <= 200:
        axes.vlines(lines, *axes.get_ylim(), color="#E3E5E9", linewidth=0.7, zorder=1)
    axes.vlines(lines[::step], *axes.get_ylim(), color="#C9CDD3", linewidth=0.9, zorder=1)
    labeled = [(line, 1 + step * i) for i, line in enumerate(lines[::step].tolist())]
    # The first bar may be a short upbeat.
    if len(labeled) > 1 and labeled[1][0] - labeled[0][0] < MIN_LABEL_DISTANCE * length:
        del labeled[0]
    labels = [f"{bar}\n{int(line) // 60}:{int(line) % 60:02d}" for line, bar in labeled]
    labels[0] = f"bar {labels[0]}"
    axes.set_xticks([line for line, _ in labeled], labels, linespacing=1.25)
    axes.tick_params(axis="x", length=0, labelsize=8.5, labelcolor="#4A4F57", pad=4)


def _draw_labels(axes, notes: Notes, prompt_end_seconds: float | None, length: float, title: str) -> None:
    """Draw the title, the legend of voices, and the labels of prompt and completion at the boundary."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    # A file name as title may have bytes that are not text, and dollar signs that do not enclose mathematics.
    title = title.encode("utf-8", "replace").decode()
    style = {"fontsize": 11.5, "fontweight": "bold", "color": "#22262B", "va": "center"}
    axes.text(0, 1.15, title, transform=axes.transAxes, parse_math=False, **style)
    families = [PROMPT_HUES] if prompt_end_seconds is None else [PROMPT_HUES, COMPLETION_HUES]
    if prompt_end_seconds is not None:
        axes.axvspan(prompt_end_seconds, length, color="#FFF6EC", linewidth=0, zorder=0.5, alpha=0.7)
        axes.axvline(prompt_end_seconds, color="#22262B", linewidth=1.6, zorder=4)
        sides = [("prompt ", "right", prompt_end_seconds), (" completion", "left", length - prompt_end_seconds)]
        for (text, side, room), hues in zip(sides, families, strict=True):
            if room > 0.08 * length:
                style = {"ha": side, "va": "center", "color": hues[0], "fontsize": 9.5, "fontweight": "bold"}
                axes.text(prompt_end_seconds, 1.045, text, transform=axes.get_xaxis_transform(), **style)
    if 2 <= len(notes.voice_names) <= len(PROMPT_HUES):
        axes.legend(
            [tuple(Patch(color=hues[voice]) for hues in families) for voice in range(len(notes.voice_names))],
            notes.voice_names,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
            loc="center right",
            bbox_to_anchor=(1.003, 1.15),
            ncols=len(notes.voice_names),
            frameon=False,
            fontsize=8.5,
            labelcolor="#4A4F57",
            handlelength=1.6,
            handleheight=0.7,
            columnspacing=1.4,
            borderpad=0,
        )
    if len(notes) == 0:
        axes.text(0.5, 0.5, "no notes", transform=axes.transAxes, ha="center", va="center", color="#8A9099")
