"""The corpus report: a valid, self-contained page with the right numbers, and histograms with the right bins."""

import json
from html.parser import HTMLParser

import numpy as np

from rwkv_music.midi.stats import compute_stats
from rwkv_music.prepare.report import CorpusReport, _logarithmic


class Page(HTMLParser):
    """The text, tags and links of an HTML page. Fails on a closing tag that does not match the open one."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.links = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_self_contained_and_states_the_counts(bach_data):
    facts = json.loads((bach_data / "dataset.json").read_text())
    page = Page((bach_data / "report.html").read_text())
    assert page.open == [] and all(link.startswith("#") for link in page.links)
    assert page.tags.count("svg") == 1
    for quantity in ("seconds", "tokens", "bars", "notes per second", "tempo", "pitch", "velocity"):
        assert quantity in page.text
    for counts in facts["splits"].values():
        for count in counts.values():
            assert f"{count:,}" in page.text
    assert "12 files, 12 pieces, 12 distinct pieces" in page.text and "piano" in page.text


def test_histograms(bach_midi):
    report = CorpusReport("multitrack")
    pieces = [compute_stats(path.read_bytes()) for path in sorted(bach_midi.iterdir())]
    for number, piece in enumerate(pieces):
        report.add("val" if number < 3 else "train", piece.record(), 1000, 20)
    assert report.seconds.counts.sum(axis=1).tolist() == [9, 3]
    assert report.tokens.counts[0].max() == 9 and report.tokens.counts[0].argmax() == 12  # 10^(1 + 12 / 6)
    np.testing.assert_array_equal(report.pitch.counts[1], sum(piece.pitch for piece in pieces[:3]))
    assert report.programs[0] == 12


def test_values_outside_the_range_count_in_the_outer_bins():
    histogram = _logarithmic("x", 0, 2)
    for value in (0.0, 1.0, 9.99, 10.0, 1e9):
        histogram.add(0, value)
    assert histogram.counts[0].tolist() == [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]


def test_reasons_are_escaped():
    facts = {
        "files": 1,
        "distinct_music": 0,
        "tokenizer": {"vocab_size": 3},
        "rejected": {"failed with <script>": 1},
        "lost": {},
        "splits": {split: {"pieces": 0, "tokens": 0} for split in ("train", "val")},
    }
    text = CorpusReport("multitrack").html(facts)
    assert CorpusReport("multitrack").html(facts) == text  # the same bytes every time
    page = Page(text)
    assert "script" not in page.tags and "<script>" in page.text
