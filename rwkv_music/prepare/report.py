"""The report of a dataset, one self-contained HTML page: counts, rejected files, charts, and some piano rolls.

Pieces are added one by one to histograms with fixed bins, so memory does not depend on the size of the corpus.
"""

import html
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import mido
import numpy as np

from rwkv_music.errors import plural
from rwkv_music.midi.general_midi import instrument_name
from rwkv_music.midi.measures import likely_key
from rwkv_music.midi.stats import N_PROGRAMS, PART_NOTES, VELOCITY_BINS
from rwkv_music.prepare.charts import SPLITS, Histogram, draw_bar_table, draw_histogram, draw_roll, logarithmic

LOG_BINS_PER_DECADE = 6
MOST_ROWS = 20  # maximum number of rows in a table of instruments, meters or tags
EXAMPLES = 3  # maximum number of files listed for each reason for a rejection
STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#22262b;--soft:#5d646e;--line:#dadde2;--link:#1a5fb4;--train:#2e6e9e;
--val:#d9691e}
@media(prefers-color-scheme:dark){:root{--back:#17191c;--text:#e4e6ea;--soft:#a2a9b3;--line:#3a3f47;--link:#8ab8f5;
--train:#5a9fd4;--val:#f0995a}}
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:var(--text);
background:var(--back)}
a{color:var(--link)}code{display:block;max-height:24em;overflow:auto;overflow-wrap:anywhere}
.soft{color:var(--soft)}
table{border-collapse:collapse}td,th{padding:.15em 1em .15em 0;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top}td:first-child,th:first-child,.left{text-align:left;overflow-wrap:anywhere}
td.bar{min-width:8em}td.bar i{display:block;height:.75em;margin-top:.4em;background:var(--train)}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:.6em 2em;align-items:start}
svg{display:block;width:100%;height:auto}svg text{font-size:11.5px;fill:currentColor}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--soft)}svg .train{fill:var(--train)}
svg .val{fill:none;stroke:var(--val);stroke-width:1.6}
.key i,.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}.key span,.legend span{margin-right:1em}
figure{margin:0 0 1.6em}figcaption{overflow-wrap:anywhere}
.roll{background:#fff;color:#22262b;padding:.3em;font-size:13px}
@media(prefers-color-scheme:dark){.roll{filter:invert(.9) hue-rotate(180deg)}}
"""


@dataclass
class _Rejected:
    """The files that were rejected for one reason."""

    count: int = 0
    examples: list[str] = field(default_factory=list)  # the first EXAMPLES files


class CorpusReport:
    """Statistics of a dataset's pieces, collected one piece at a time, and the page that shows them."""

    def __init__(self, tokenizer: str):
        self.tokenizer = tokenizer
        self.seconds = _decades("length of a piece (seconds)", 0, 4)
        self.tokens = _decades("length of a piece (tokens)", 1, 6)
        self.bars = _decades("length of a piece (bars)", 0, 4)
        self.density = _decades("density of notes (notes per second)", -1, 2)
        self.parts = Histogram("parts of a piece (number)", np.arange(0.5, 66))
        self.part_notes = logarithmic("notes in a part (number)", PART_NOTES, "parts")
        self.tempo = Histogram("tempo (quarter notes per minute)", np.arange(20, 261, 10))
        self.pitch = Histogram("pitch without drums (MIDI number, middle C = 60)", np.arange(129), "notes", step=12)
        self.velocity = Histogram("velocity (1 to 127)", np.linspace(0, 128, VELOCITY_BINS + 1), "notes", step=16)
        self.programs = np.zeros(N_PROGRAMS, np.int64)
        self.keys: Counter[str] = Counter()
        self.meters: Counter[str] = Counter()
        self.total_seconds = {split: 0.0 for split in SPLITS}
        self._rejected: dict[str, _Rejected] = {}
        self._rolls: list[str] = []

    def add(self, split: str, record: np.ndarray, n_tokens: int, n_bars: int) -> None:
        """Add a piece of `split`. `record` is its `midi.stats.RECORD` [1]."""
        row = SPLITS.index(split)
        piece = record[0]
        seconds = float(piece["seconds"])
        self.total_seconds[split] += seconds
        self.seconds.add(row, seconds)
        self.tokens.add(row, n_tokens)
        self.bars.add(row, n_bars)
        self.density.add(row, piece["notes"] / max(seconds, 1e-3))
        self.tempo.add(row, float(piece["tempo"]))
        self.parts.add(row, int(piece["part_notes"].sum()))
        self.part_notes.counts[row] += piece["part_notes"]
        self.pitch.counts[row] += piece["pitch"]
        self.velocity.counts[row] += piece["velocity"]
        self.programs += np.unpackbits(piece["programs"], count=N_PROGRAMS)
        self.keys[likely_key(np.bincount(np.arange(128) % 12, piece["pitch"])) or "unknown"] += 1
        self.meters["/".join(map(str, piece["meter"].tolist()))] += 1

    def reject(self, file: str, reason: str) -> None:
        """Add a file that is not in the dataset."""
        rejected = self._rejected.setdefault(reason, _Rejected())
        rejected.count += 1
        if len(rejected.examples) < EXAMPLES:
            rejected.examples.append(file)

    def add_roll(self, line: dict, midi: mido.MidiFile) -> None:
        """Add the piano roll of a piece. `line` is the piece's entry in pieces.jsonl, and `midi` has its first bars."""
        tags = "".join(f", {column} {value}" for column, value in line.get("tags", {}).items())
        length = f"{line['seconds']:,.0f} s, {plural(line['n_bars'], 'bar')}, {plural(line['n_notes'], 'note')}"
        numbers = f"{length}, {line['split']}{tags}"
        caption = f'{_link(line["file"])} <span class="soft">{html.escape(numbers)}</span>'
        self._rolls.append(
            f'<figure><figcaption>{caption}</figcaption><div class="roll">{draw_roll(midi)}</div></figure>'
        )

    def html(self, facts: dict, command: str = "") -> str:
        """Return the page. `facts` is the content of dataset.json. If there is a `command`, show it and the date."""
        splits = facts["splits"]
        kept = sum(counts["pieces"] for counts in splits.values())
        made = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}" if command else ""
        histograms = [self.seconds, self.bars, self.tokens, self.density, self.parts, self.part_notes]
        histograms += [self.tempo, self.pitch, self.velocity]
        rows = [
            [split, *(f"{count:,}" for count in counts.values()), _duration(self.total_seconds[split])]
            for split, counts in splits.items()
        ]
        lost = [[reason, f"{n['pieces']:,}", f"{n['number']:,}"] for reason, n in facts["lost"].items()]
        passed_over = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in facts["passed_over"].items()]
        programs = {instrument_name(program): int(n) for program, n in enumerate(self.programs)}
        instruments = Counter({name: count for name, count in programs.items() if count})
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><meta charset="utf-8"><title>Corpus report</title>',
                '<meta name="viewport" content="width=device-width">',
                f"<style>{STYLE}</style>",
                "<h1>Corpus report</h1>",
                f"<p><code>{html.escape(command)}</code>{made}</p>" if command else "",
                f"<p>{plural(facts['files'], 'file')}, {plural(kept, 'piece')}, "
                f"{plural(facts['distinct_music'], 'distinct piece')} "
                "(copies and transpositions of a piece count once and are in the same split). Tokenizer: "
                f"<b>{html.escape(self.tokenizer)}</b> with {facts['tokenizer']['vocab_size']:,} tokens. All pieces "
                'are listed in <a href="pieces.jsonl">pieces.jsonl</a>.</p>',
                _table(["split", *next(iter(splits.values())), "duration"], rows),
                "<h2>Rejected files</h2>",
                self._rejections(facts["files"]),
                f"<p>Other files in the folders and archives: {html.escape(', '.join(passed_over) or 'none')}.</p>",
                "<h2>Lost by the tokenizer</h2>",
                _table(["what", "pieces", "number"], lost or [["nothing", "", ""]]),
                "<h2>Lengths, parts and notes</h2>",
                '<p class="key"><span><i style="background:var(--train)"></i>training split (area)</span>'
                '<span><i style="background:var(--val)"></i>validation split (line)</span></p>',
                f'<div class="grid2">{"".join(map(draw_histogram, histograms))}</div>',
                '<div class="grid2">',
                _counts("Keys", "key, estimated from the pitches", self.keys, kept, len(self.keys)),
                _counts("Meters", "meter that lasts longest", self.meters, kept),
                _counts("Instruments", "instrument", instruments, kept),
                *(
                    _counts(f"Tag {column}", "value", Counter(counts), kept)
                    for column, counts in facts.get("tags", {}).get("table", {}).items()
                ),
                "</div>",
                "<h2>Piano rolls</h2>",
                f"<p>The first bars of {plural(len(self._rolls), 'piece')}, decoded from tokens. A hash of the notes "
                "chooses this sample, so it is random but stays the same.</p>",
                *self._rolls,
                "</html>\n",
            ]
        )

    def _rejections(self, n_files: int) -> str:
        if not self._rejected:
            return "<p>None.</p>"
        head = "<tr><th>reason</th><th>files</th><th>%</th><th class='left'>examples</th></tr>"
        rows = [
            f"<tr><td>{html.escape(reason)}</td><td>{rejected.count:,}</td>"
            f'<td>{100 * rejected.count / n_files:.1f}</td><td class="left">{", ".join(map(_link, rejected.examples))}'
            f"{', ...' * (rejected.count > len(rejected.examples))}</td></tr>"
            for reason, rejected in sorted(self._rejected.items(), key=lambda item: (-item[1].count, item[0]))
        ]
        listing = '<p>All of them are listed in <a href="rejected.jsonl">rejected.jsonl</a>.</p>'
        return f"<table>{head}{''.join(rows)}</table>{listing}"


def _decades(quantity: str, low: int, high: int) -> Histogram:
    """Return a histogram from 10^low to 10^high with bins of equal width on a logarithmic scale."""
    bins = (high - low) * LOG_BINS_PER_DECADE
    return logarithmic(quantity, 10.0 ** (low + np.arange(bins + 1) / LOG_BINS_PER_DECADE))


def _counts(title: str, head: str, counts: Counter[str], total: int, most: int = MOST_ROWS) -> str:
    """Return a titled table of the most frequent values, with the number of pieces for each."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = rows[:most], rows[most:]
    table = draw_bar_table([head, "pieces"], shown, total)
    others = f"<p>Not shown: {plural(len(rest), 'other')}.</p>" if rest else ""
    return f"<section><h2>{html.escape(title)}</h2>{table}{others}</section>"


def _link(file: str) -> str:
    """Return the last two components of a source's name as HTML, with a link to the source's file if it exists.

    The file of an archive's member is the archive. The file of one of several pieces is the file that contains them.
    """
    path = Path(os.path.abspath(file))
    text = html.escape("/".join(path.parts[-2:]))
    target = next((place for place in (path, *path.parents) if os.path.isfile(place)), None)
    return f'<a href="{html.escape(target.as_uri())}">{text}</a>' if target else text


def _table(heads: list[str], rows: list[list[str]]) -> str:
    cells = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(cells) + "</table>"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min"
