"""The report of a dataset, one self-contained HTML page: counts, rejected files, and histograms of the pieces.

Histograms have fixed bins and grow piece by piece, so memory does not depend on the size of the corpus.
"""

import html
import io
from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.stats import DRUMS, N_PROGRAMS, VELOCITY_BINS

LOG_BINS_PER_DECADE = 6
FAMILIES = (  # of General MIDI, eight programs each
    "piano", "mallets", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reeds", "pipes", "synth lead",
    "synth pad", "synth effects", "folk", "percussion", "sound effects", "drums",
)  # fmt: skip
MOST_TAGS = 20  # values of a column that are listed
COLORS = {"train": "#2E6E9E", "val": "#E0812B"}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15em 1em .15em 0;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)


@dataclass
class Histogram:
    """Counts in fixed bins, by split."""

    quantity: str  # label of the x axis, with the unit
    edges: np.ndarray  # float64 [bins + 1]; values outside are counted in the nearest bin
    counted: str = "pieces"  # what is counted, "pieces" or "notes"
    scale: str = "linear"  # of the x axis, "linear" or "log"

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(COLORS), len(self.edges) - 1), np.int64)  # [splits, bins]

    def add(self, row: int, value: float) -> None:
        bin_ = np.searchsorted(self.edges, value, side="right") - 1
        self.counts[row, np.clip(bin_, 0, self.counts.shape[1] - 1)] += 1


class CorpusReport:
    """Statistics of a dataset's pieces, collected one piece at a time, and the page that shows them."""

    def __init__(self, tokenizer: str):
        self.tokenizer = tokenizer
        self.seconds = _logarithmic("length of a piece (seconds)", 0, 4)
        self.tokens = _logarithmic("length of a piece (tokens)", 1, 6)
        self.bars = _logarithmic("length of a piece (bars)", 0, 4)
        self.density = _logarithmic("notes per second", -1, 2)
        self.tempo = Histogram("tempo (quarter notes per minute)", np.arange(20, 261, 10))
        self.pitch = Histogram("pitch (MIDI number, middle C = 60), without drums", np.arange(129), "notes")
        self.velocity = Histogram("velocity", np.linspace(0, 128, VELOCITY_BINS + 1), "notes")
        self.programs = np.zeros(N_PROGRAMS, np.int64)
        self.total_seconds = {split: 0.0 for split in COLORS}

    def add(self, split: str, record: np.ndarray, n_tokens: int, n_bars: int) -> None:
        """Add a piece of `split`: its `midi.stats.RECORD` [1], and its length in tokens and bars."""
        row = list(COLORS).index(split)
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
        """Return the page for `facts`, the content of dataset.json."""
        splits = facts["splits"]
        rows = [
            [split, *(f"{count:,}" for count in counts.values()), _duration(self.total_seconds[split])]
            for split, counts in splits.items()
        ]
        rejected = [[reason, f"{count:,}"] for reason, count in facts["rejected"].items()] or [["none", ""]]
        lost = [[reason, f"{n['pieces']:,}", f"{n['number']:,}"] for reason, n in facts["lost"].items()]
        families = np.add.reduceat(self.programs, [*range(0, DRUMS, 8), DRUMS])
        by_count = sorted(zip(families.tolist(), FAMILIES, strict=True), reverse=True)
        histograms = [self.seconds, self.bars, self.tokens, self.density, self.tempo, self.pitch, self.velocity]
        kept = sum(counts["pieces"] for counts in splits.values())
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><meta charset="utf-8"><title>Corpus report</title>',
                f"<style>{STYLE}</style>",
                "<h1>Corpus report</h1>",
                f"<p>{facts['files']:,} files, {kept:,} pieces, {facts['distinct_music']:,} distinct pieces "
                "(copies and transpositions of a piece count once and are in the same split). Tokenizer: "
                f"<b>{html.escape(self.tokenizer)}</b> with {facts['tokenizer']['vocab_size']:,} tokens.</p>",
                _table(["split", *next(iter(splits.values())), "duration"], rows),
                "<h2>Rejected files</h2>",
                _table(["reason", "files"], rejected),
                "<h2>Lost by the tokenizer</h2>",
                _table(["what", "pieces", "number"], lost or [["nothing", "", ""]]),
                *_tags(facts.get("tags", {}).get("table", {})),
                "<h2>Instruments</h2>",
                _table(["family", "pieces"], [[name, f"{count:,}"] for count, name in by_count if count]),
                "<h2>Histograms</h2>",
                _svg(histograms) + "</html>\n",
            ]
        )


def _logarithmic(quantity: str, low: int, high: int) -> Histogram:
    """Return a histogram from 10^low to 10^high whose bins are equally wide on a logarithmic scale."""
    bins = (high - low) * LOG_BINS_PER_DECADE
    return Histogram(quantity, 10.0 ** (low + np.arange(bins + 1) / LOG_BINS_PER_DECADE), scale="log")


def _svg(histograms: list[Histogram]) -> str:
    """Draw the histograms, each split as shares of its own total. The same counts give the same bytes."""
    # Imported here because the worker processes import this module but draw nothing.
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 11), layout="constrained")
    *axes, key = figure.subplots(-(-(len(histograms) + 1) // 2), 2).flat
    key.axis("off")
    for histogram, ax in zip(histograms, axes, strict=True):
        shares = histogram.counts / np.maximum(histogram.counts.sum(axis=1, keepdims=True), 1)
        for (split, color), share in zip(COLORS.items(), shares, strict=True):
            ax.stairs(100 * share, histogram.edges, fill=split == "train", color=color, lw=1.5, label=split)
        ax.set(xscale=histogram.scale, xlabel=histogram.quantity, ylabel=f"{histogram.counted} (% of the split)")
        ax.spines[["top", "right"]].set_visible(False)
    key.legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False, fontsize="large")
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">\n")[2]


def _tags(table: dict[str, dict[str, int]]) -> list[str]:
    """Return a table of the most frequent values of each column of tags."""
    lines = []
    for column, counts in table.items():
        rows = [[value, f"{count:,}"] for value, count in list(counts.items())[:MOST_TAGS]]
        rest = list(counts.values())[MOST_TAGS:]
        if rest:
            rows.append([f"{len(rest):,} others", f"{sum(rest):,}"])
        lines += [f"<h2>Tag {html.escape(column)}</h2>", _table(["value", "pieces"], rows)]
    return lines


def _table(heads: list[str], rows: list[list[str]]) -> str:
    cells = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(cells) + "</table>"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min"
