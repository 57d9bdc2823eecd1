"""A dataset at a glance, as one self-contained HTML page: counts, what was left out, and histograms of its pieces.

Histograms have fixed bins and are added to piece by piece, so that nothing grows with the corpus.
"""

import html
from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.stats import DRUMS, N_PROGRAMS, VELOCITY_BINS

LOG_BINS_PER_DECADE = 6
TEMPO_BINS = np.arange(20, 261, 10)
FAMILIES = (  # General MIDI's, eight programs each
    "piano", "mallets", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reeds", "pipes", "synth lead",
    "synth pad", "synth effects", "folk", "percussion", "sound effects", "drums",
)  # fmt: skip
WIDTH, HEIGHT, MARGIN = 420, 170, 22
COLOURS = {"train": "#2E6E9E", "val": "#E0812B"}


@dataclass
class Histogram:
    """Counts of something in fixed bins, by split.

    Attributes:
        title: what is counted, with its unit.
        edges: float64 [bins + 1]; what lies outside goes to the nearest bin.
        counts: int64 [splits, bins].
        labels: under the bins, {bin: text}.
    """

    title: str
    edges: np.ndarray
    counts: np.ndarray
    labels: dict[int, str]

    def add(self, row: int, value: float) -> None:
        bin_ = np.searchsorted(self.edges, value, side="right") - 1
        self.counts[row, np.clip(bin_, 0, self.counts.shape[1] - 1)] += 1


class CorpusReport:
    """Collects the pieces of a dataset and draws them."""

    def __init__(self, tokenizer: str):
        self.tokenizer = tokenizer
        self.seconds = _logarithmic("length of a piece (seconds)", 0, 4)
        self.tokens = _logarithmic("length of a piece (tokens)", 1, 6)
        self.bars = _logarithmic("length of a piece (bars)", 0, 4)
        self.density = _logarithmic("notes a second", -1, 2)
        self.tempo = _linear(
            "tempo (quarter notes a minute)", TEMPO_BINS, {i: str(TEMPO_BINS[i]) for i in range(0, 24, 4)}
        )
        octaves = {pitch: f"C{pitch // 12 - 1}" for pitch in range(0, 128, 12)}
        self.pitch = _linear("pitch of the notes, drums apart", np.arange(129), octaves)
        loudness = {i: str(i * 128 // VELOCITY_BINS) for i in range(0, VELOCITY_BINS, 4)}
        self.velocity = _linear("velocity of the notes", np.arange(VELOCITY_BINS + 1), loudness)
        self.programs = np.zeros(N_PROGRAMS, np.int64)
        self.total_seconds = {split: 0.0 for split in COLOURS}

    def add(self, split: str, record: np.ndarray, n_tokens: int, n_bars: int) -> None:
        """Take in a piece of `split`: its survey.RECORD [1], and how long it is."""
        row = list(COLOURS).index(split)
        piece = record[0]
        seconds = float(piece["seconds"])
        self.total_seconds[split] += seconds
        self.seconds.add(row, seconds)
        self.tokens.add(row, n_tokens)
        self.bars.add(row, n_bars)
        self.density.add(row, piece["notes"] / max(seconds, 1e-3))
        self.tempo.add(row, float(piece["tempo"]))
        self.pitch.counts[row] += piece["pitch"]
        self.velocity.counts[row] += piece["velocity"]
        self.programs += np.unpackbits(piece["programs"], count=N_PROGRAMS)

    def html(self, facts: dict) -> str:
        """The page, for what dataset.json says."""
        splits = facts["splits"]
        rows = [
            [split, *(f"{count:,}" for count in counts.values()), _duration(self.total_seconds[split])]
            for split, counts in splits.items()
        ]
        rejected = [[reason, f"{count:,}"] for reason, count in facts["rejected"].items()] or [["nothing", ""]]
        families = np.add.reduceat(self.programs, [*range(0, DRUMS, 8), DRUMS])
        playing = sorted(zip(families.tolist(), FAMILIES, strict=True), reverse=True)
        histograms = (self.seconds, self.bars, self.tokens, self.density, self.tempo, self.pitch, self.velocity)
        kept = sum(counts["pieces"] for counts in splits.values())
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><meta charset="utf-8"><title>Corpus report</title>',
                f"<style>{_STYLE}</style>",
                "<h1>Corpus report</h1>",
                f"<p>{facts['files']:,} files, {kept:,} pieces, {facts['distinct_music']:,} of them different "
                "(copies and transpositions count once, and are on one side of the split); tokenizer "
                f"<b>{html.escape(self.tokenizer)}</b> with {facts['tokenizer']['vocab_size']:,} tokens.</p>",
                _table(["split", *next(iter(splits.values())), "duration"], rows),
                "<h2>Left out</h2>",
                _table(["why", "files"], rejected),
                "<h2>Pieces in which they play</h2>",
                _table(["instruments", "pieces"], [[name, f"{count:,}"] for count, name in playing if count]),
                "<h2>Histograms</h2>",
                f'<p><span style="color:{COLOURS["train"]}">&#9632; train</span> '
                f'<span style="color:{COLOURS["val"]}">&#9632; val</span>, each as a share of its split</p>',
                '<div class="plots">',
                *map(_svg, histograms),
                "</div></html>\n",
            ]
        )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15em 1em .15em 0;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.plots{display:flex;flex-wrap:wrap;gap:1em}"
    "svg{background:#fafafa}text{font:11px system-ui,sans-serif;fill:#555}.title{font-size:13px;fill:#222}"
)


def _linear(title: str, edges: np.ndarray, labels: dict[int, str]) -> Histogram:
    return Histogram(title, edges, np.zeros((len(COLOURS), len(edges) - 1), np.int64), labels)


def _logarithmic(title: str, low: int, high: int) -> Histogram:
    """Bins from 10^low to 10^high, equal on a logarithmic scale."""
    edges = 10.0 ** (low + np.arange((high - low) * LOG_BINS_PER_DECADE + 1) / LOG_BINS_PER_DECADE)
    labels = {i * LOG_BINS_PER_DECADE: f"{10.0 ** (low + i):,g}" for i in range(high - low)}
    return _linear(title, edges, labels)


def _svg(histogram: Histogram) -> str:
    """A histogram as bars, the splits side by side in every bin."""
    shares = histogram.counts / np.maximum(histogram.counts.sum(axis=1, keepdims=True), 1)
    n_splits, n_bins = shares.shape
    highest = max(shares.max(), 1e-12)
    step = (WIDTH - 2 * MARGIN) / n_bins
    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">']
    parts.append(f'<text class="title" x="{MARGIN}" y="14">{html.escape(histogram.title)}</text>')
    floor = HEIGHT - MARGIN
    for row, colour in enumerate(COLOURS.values()):
        for i in np.flatnonzero(shares[row]).tolist():
            height = shares[row, i] / highest * (HEIGHT - 2 * MARGIN)
            x = MARGIN + (i + row / n_splits) * step
            width = max(step / n_splits - 0.3, 0.5)
            size = f'width="{width:.1f}" height="{height:.1f}"'
            parts.append(f'<rect x="{x:.1f}" y="{floor - height:.1f}" {size} fill="{colour}"/>')
    for i, label in histogram.labels.items():
        parts.append(f'<text x="{MARGIN + i * step:.1f}" y="{HEIGHT - 7}">{html.escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def _table(heads: list[str], rows: list[list[str]]) -> str:
    cells = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(cells) + "</table>"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min"
