"""Piano rolls: a MIDI file as a picture, for TensorBoard and beside every completion.

Time runs along x (bars, with minutes and seconds under them), pitch along y. Colour says two things at once: a prompt
is drawn in cool hues and its completion in warm ones, a pair that red-green and blue-yellow colour blindness both leave
apart, and within each family every voice has a hue of its own. Velocity is the shade: soft notes are pale.

Matplotlib is imported when a picture is drawn, and only its object interface is used: nothing here touches pyplot, a
display or the state of a program that draws figures of its own.
"""

import os
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mido
import numpy as np

from rwkv_music.errors import explained
from rwkv_music.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMPT_HUES = ("#0B5394", "#2E9CCA", "#5A4FBF", "#7A8FA6")
COMPLETION_HUES = ("#D1470C", "#E8A200", "#8C4A1E", "#C98A4B")
INSTRUMENTS = (  # General MIDI's families, eight programs each
    "piano",
    "mallets",
    "organ",
    "guitar",
    "bass",
    "strings",
    "ensemble",
    "brass",
    "reeds",
    "pipes",
    "synth lead",
    "synth pad",
    "synth effects",
    "folk",
    "percussion",
    "sound effects",
)
DRUM_CHANNEL = 9
DEFAULT_TEMPO = 500_000  # microseconds a quarter note, until a file says otherwise (Standard MIDI Files 1.0)
WIDTH_PX, HEIGHT_PX = 1200, 400  # a TensorBoard image card shown at full width
LABEL_ROOM = 0.035  # of the width: what "bar 1" takes, and some air


@dataclass(frozen=True)
class Notes:
    """The notes of a piece, ordered by start: one array entry a note, all arrays of length n.

    A voice is one channel of one track, named by its track or its instrument; `voice` indexes `voice_names`.
    """

    start: np.ndarray  # float64, seconds
    end: np.ndarray  # float64, seconds
    start_tick: np.ndarray  # int64
    end_tick: np.ndarray  # int64
    pitch: np.ndarray  # int64, 60 is C4
    velocity: np.ndarray  # int64, 1 .. 127
    voice: np.ndarray  # int64
    voice_names: list[str]

    def __len__(self) -> int:
        return len(self.start)


def read_notes(midi: mido.MidiFile) -> Notes:
    """The notes of `midi`. A note that is never released ends with its track; repeated pitches close in order."""
    rows: list[tuple[int, int, int, int, int]] = []
    voice_names: list[str] = []
    for track in midi.tracks:
        sounding: dict[tuple[int, int], deque[tuple[int, int]]] = defaultdict(deque)
        voices: dict[int, int] = {}
        programs: dict[int, int] = {}
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "note_on" and message.velocity > 0:
                voices.setdefault(message.channel, len(voice_names) + len(voices))
                sounding[message.channel, message.note].append((tick, message.velocity))
            elif message.type in ("note_on", "note_off") and sounding[message.channel, message.note]:
                start, velocity = sounding[message.channel, message.note].popleft()
                rows.append((start, tick, message.note, velocity, voices[message.channel]))
            elif message.type == "program_change":
                programs.setdefault(message.channel, message.program)
        for (channel, pitch), held in sounding.items():
            rows.extend((start, tick, pitch, velocity, voices[channel]) for start, velocity in held)
        for channel in voices:
            instrument = "drums" if channel == DRUM_CHANNEL else INSTRUMENTS[programs.get(channel, 0) // 8]
            voice_names.append(track.name.strip() if len(voices) == 1 and track.name.strip() else instrument)
    start_tick, end_tick, pitch, velocity, voice = np.array(sorted(rows), dtype=np.int64).reshape(-1, 5).T
    start, end = tick_seconds(midi, start_tick), tick_seconds(midi, end_tick)
    return Notes(start, end, start_tick, end_tick, pitch, velocity, voice, voice_names)


def tick_seconds(midi: mido.MidiFile, ticks: np.ndarray) -> np.ndarray:
    """Seconds from the beginning at each of `ticks` [n] (int64), by the tempo changes of every track: float64 [n]."""
    changes = {0: DEFAULT_TEMPO} | {tick: message.tempo for tick, message in _timeline(midi, "set_tempo")}
    at = np.array(list(changes), dtype=np.int64)
    seconds_per_tick = np.array(list(changes.values())) / (1e6 * midi.ticks_per_beat)
    elapsed = np.concatenate([[0.0], np.cumsum(np.diff(at) * seconds_per_tick[:-1])])
    segment = np.searchsorted(at, ticks, side="right") - 1
    return elapsed[segment] + (ticks - at[segment]) * seconds_per_tick[segment]


def bar_ticks(midi: mido.MidiFile, n_bars: int) -> np.ndarray:
    """The ticks at which bars 0 .. n_bars begin (int64 [n_bars + 1]), by the time signatures; 4/4 until one is given.

    A change of time signature begins a bar, as a score has it, even where it falls inside one.
    """
    changes = {0: (4, 4)}
    changes |= {tick: (message.numerator, message.denominator) for tick, message in _timeline(midi, "time_signature")}
    following = [*list(changes)[1:], None]
    lines = [np.empty(0, dtype=np.int64)]
    count = 0
    for (tick, (numerator, denominator)), next_change in zip(changes.items(), following, strict=True):
        length = max(1, midi.ticks_per_beat * 4 * numerator // denominator)
        wanted = n_bars + 1 - count
        bars = wanted if next_change is None else min(wanted, -(-(next_change - tick) // length))
        lines.append(tick + length * np.arange(bars, dtype=np.int64))
        count += bars
    return np.concatenate(lines)


def draw(midi: mido.MidiFile, out: str | os.PathLike, prompt_end_seconds: float | None = None, title: str = "") -> None:
    """Write the piano roll of `midi` to `out`, a PNG of 2400 x 800 pixels, atomically.

    What starts at or after `prompt_end_seconds` is the completion; with None the whole piece is drawn as a prompt is.
    Raises UserError where `out` cannot be written.
    """
    figure = _figure(midi, prompt_end_seconds, title, dpi=200)
    with explained(f"writing the piano roll {out}"), atomic_path(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})  # the same picture is the same bytes


def figure_array(midi: mido.MidiFile, prompt_end_seconds: float | None = None, title: str = "") -> np.ndarray:
    """The piano roll of `midi` as pixels, uint8 [400, 1200, 3], the layout "HWC" of SummaryWriter.add_image."""
    figure = _figure(midi, prompt_end_seconds, title, dpi=100)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def note_colours(notes: Notes, prompt_end_seconds: float | None) -> np.ndarray:
    """The colour of each note, float [n, 3] in 0 .. 1: hue by part and voice, shade by velocity."""
    hues = np.array([[int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)] for hue in PROMPT_HUES + COMPLETION_HUES])
    boundary = np.inf if prompt_end_seconds is None else prompt_end_seconds - 1e-6
    hue = notes.voice % len(PROMPT_HUES) + len(PROMPT_HUES) * (notes.start >= boundary)
    strength = (0.3 + 0.7 * np.clip(notes.velocity / 100, 0, 1))[:, None]
    return 1 - strength * (1 - hues[hue])


def _timeline(midi: mido.MidiFile, kind: str) -> list[tuple[int, mido.MetaMessage]]:
    """(tick, message) of every message of one kind, over all tracks, in the order of time."""
    found = []
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == kind:
                found.append((tick, message))
    return sorted(found, key=lambda item: item[0])


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

    # A hair of space after each note tells a repeated note from a held one, but never swallows a short one.
    gap = np.minimum(length * 0.0015, 0.25 * (notes.end - notes.start))
    left, right, middle = notes.start, np.maximum(notes.end - gap, notes.start + length * 0.001), notes.pitch
    corners = [(left, middle - 0.42), (left, middle + 0.42), (right, middle + 0.42), (right, middle - 0.42)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    axes.add_collection(
        PolyCollection(list(boxes), facecolors=note_colours(notes, prompt_end_seconds), linewidths=0, zorder=3)
    )
    _rule_pitches(axes, low, high)
    _rule_bars(axes, midi, length)
    _label_parts(axes, notes, prompt_end_seconds, length, title)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _pitch_range(pitch: np.ndarray) -> tuple[int, int]:
    """The lowest and highest row: a little air around the notes, and two octaves at least."""
    low, high = (int(pitch.min()) - 2, int(pitch.max()) + 2) if len(pitch) else (48, 72)
    missing = max(0, 24 - (high - low))
    return low - missing // 2, high + missing - missing // 2


def _rule_pitches(axes, low: int, high: int) -> None:
    """Shade the rows of the black keys and name every C."""
    for pitch in range(low, high + 1):
        if pitch % 12 in (1, 3, 6, 8, 10):
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#F3F4F6", linewidth=0, zorder=0)
        elif pitch % 12 == 0:
            axes.axhline(pitch - 0.5, color="#D5D8DD", linewidth=0.8, zorder=1)
    cs = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    axes.set_yticks(cs, [f"C{pitch // 12 - 1}" for pitch in cs])
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor="#4A4F57", pad=4)


def _rule_bars(axes, midi: mido.MidiFile, length: float) -> None:
    """A line at each bar; a number and the time where there is room for them."""
    n_bars = 64
    lines = tick_seconds(midi, bar_ticks(midi, n_bars))
    while lines[-1] <= length and n_bars < 100_000:
        n_bars *= 4
        lines = tick_seconds(midi, bar_ticks(midi, n_bars))
    lines = lines[lines < length - 1e-6]
    step = next((step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if len(lines) / step <= 24), 1024)
    if len(lines) <= 200:
        axes.vlines(lines, *axes.get_ylim(), color="#E3E5E9", linewidth=0.7, zorder=1)
    axes.vlines(lines[::step], *axes.get_ylim(), color="#C9CDD3", linewidth=0.9, zorder=1)
    labelled = [(line, 1 + step * i) for i, line in enumerate(lines[::step].tolist())]
    if len(labelled) > 1 and labelled[1][0] - labelled[0][0] < LABEL_ROOM * length:  # after an upbeat
        del labelled[0]
    labels = [f"{bar}\n{int(line) // 60}:{int(line) % 60:02d}" for line, bar in labelled]
    labels[0] = f"bar {labels[0]}"
    axes.set_xticks([line for line, _ in labelled], labels, linespacing=1.25)
    axes.tick_params(axis="x", length=0, labelsize=8.5, labelcolor="#4A4F57", pad=4)


def _label_parts(axes, notes: Notes, prompt_end_seconds: float | None, length: float, title: str) -> None:
    """Above the roll: the title at the left and the voices at the right; under them, the parts at the line between."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    axes.text(0, 1.15, title, transform=axes.transAxes, fontsize=11.5, fontweight="bold", color="#22262B", va="center")
    families = [PROMPT_HUES]
    if prompt_end_seconds is not None:
        families = [PROMPT_HUES, COMPLETION_HUES]
        axes.axvspan(prompt_end_seconds, length, color="#FFF6EC", linewidth=0, zorder=0.5, alpha=0.7)
        axes.axvline(prompt_end_seconds, color="#22262B", linewidth=1.6, zorder=4)
        sides = [("prompt ", "right", prompt_end_seconds), (" completion", "left", length - prompt_end_seconds)]
        for (text, side, room), hues in zip(sides, families, strict=True):
            if room > 0.08 * length:
                axes.text(
                    prompt_end_seconds,
                    1.045,
                    text,
                    transform=axes.get_xaxis_transform(),
                    ha=side,
                    va="center",
                    color=hues[0],
                    fontsize=9.5,
                    fontweight="bold",
                )
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
