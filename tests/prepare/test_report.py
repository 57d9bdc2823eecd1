import json
from html.parser import HTMLParser

import numpy as np

from rwkv_music.midi.stats import compute_stats
from rwkv_music.prepare.report import CorpusReport, _logarithmic


class Page(HTMLParser):
    """The text and the tags of a page; fails on one that is closed without being open."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.outside = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.outside += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_of_a_dataset(bach_data):
    facts = json.loads((bach_data / "dataset.json").read_text())
    page = Page((bach_data / "report.html").read_text())
    assert page.open == [] and page.outside == []  # whole, and it needs nothing from elsewhere
    assert page.tags.count("svg") == 7
    for counts in facts["splits"].values():
        for count in counts.values():
            assert f"{count:,}" in page.text
    assert "12 files, 12 pieces, 12 of them different" in page.text and "piano" in page.text


def test_histograms(bach_midi):
    report = CorpusReport("remi")
    pieces = [compute_stats(path.read_bytes()) for path in sorted(bach_midi.iterdir())]
    for number, piece in enumerate(pieces):
        report.add("val" if number < 3 else "train", piece.record(), 1000, 20)
    assert report.seconds.counts.sum(axis=1).tolist() == [9, 3]
    assert report.tokens.counts[0].max() == 9 and report.tokens.counts[0].argmax() == 12  # 10^(1 + 12 / 6)
    np.testing.assert_array_equal(report.pitch.counts[1], sum(piece.pitch for piece in pieces[:3]))
    assert report.programs[0] == 12


def test_what_lies_outside_goes_to_the_ends():
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
        "splits": {split: {"pieces": 0, "tokens": 0} for split in ("train", "val")},
    }
    page = Page(CorpusReport("remi").html(facts))
    assert "script" not in page.tags and "<script>" in page.text
