"""The corpus report: a valid, self-contained page with the right numbers, links and examples."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np

from rwkv_music.midi.stats import compute_stats
from rwkv_music.prepare.report import CorpusReport, _decades, _link
from tests.midi.midi_files import make_midi, note
from tests.prepare.test_pipeline import quick_prepare


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

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_self_contained_and_states_the_counts(bach_data, bach_midi):
    facts = json.loads((bach_data / "dataset.json").read_text())
    page = Page((bach_data / "report.html").read_text())
    files = [path.as_uri() for path in sorted(bach_midi.iterdir())]
    assert page.open == [] and page.links == ["pieces.jsonl", *files]
    assert page.tags.count("svg") == 9 + 12  # histograms and piano rolls
    for quantity in (
        "(seconds)",
        "(tokens)",
        "(bars)",
        "(notes per second)",
        "quarter notes per minute",
        "(MIDI number",
    ):
        assert quantity in page.text
    for counts in facts["splits"].values():
        for count in counts.values():
            assert f"{count:,}" in page.text
    assert "12 files, 12 pieces, 12 distinct pieces" in page.text and "Acoustic Grand Piano" in page.text
    assert re.search(r"Meters.*4/4\d+", page.text) and re.search(r"Keys.* major\d", page.text)
    assert "python -m" not in page.text and "bar" in page.text


def test_rejected_files_command_and_sample(tmp_path, monkeypatch):
    """The page gives examples of rejected files with links, and a sample that does not depend on the names of files."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it is optional
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(30):
        scale = [message for j in range(8) for message in note(j * 240, j * 240 + 240, 40 + (i + 1) * j % 50)]
        make_midi(scale).save(folder / f"{i:02d}.mid")
    bad = ["bad-0.mid", "bad-0\udcff.mid", "bad-1.mid", "bad-2.mid"]  # the second name is not UTF-8
    for name in bad:
        (folder / name).write_text("words")
    (folder / "twin.mid").write_bytes((folder / "00.mid").read_bytes())
    quick_prepare([folder], tmp_path / "data", command="prepare <in> --out data")
    text = (tmp_path / "data" / "report.html").read_text()
    page = Page(text)
    assert "prepare <in> --out data" in page.text and re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", page.text)
    rejected = page.links[1 : page.links.index("rejected.jsonl")]
    assert rejected == [(folder / name).as_uri() for name in (*bad[:3], "twin.mid")]
    assert "not a MIDI file411.4" in page.text  # 4 of 35 files
    shown = page.links[page.links.index("rejected.jsonl") + 1 :]
    assert len(shown) == len(set(shown)) == 20
    (folder / "07.mid").rename(folder / "zz.mid")
    quick_prepare([folder], tmp_path / "again")
    again = Page((tmp_path / "again" / "report.html").read_text()).links[-20:]
    assert {link.replace("zz.mid", "07.mid") for link in again} == set(shown)


def test_histograms(bach_midi):
    report = CorpusReport("multitrack")
    pieces = [compute_stats(path.read_bytes()) for path in sorted(bach_midi.iterdir())]
    for number, piece in enumerate(pieces):
        report.add("val" if number < 3 else "train", piece.record(), 1000, 20)
    assert report.seconds.counts.sum(axis=1).tolist() == [9, 3]
    assert report.tokens.counts[0].max() == 9 and report.tokens.counts[0].argmax() == 12  # 10^(1 + 12 / 6)
    np.testing.assert_array_equal(report.pitch.counts[1], sum(piece.pitch for piece in pieces[:3]))
    assert report.programs[0] == 12 and sum(report.keys.values()) == sum(report.meters.values()) == 12
    assert report.parts.counts.sum() == 12 and report.part_notes.counts.sum() >= 48


def test_values_outside_the_range_count_in_the_outer_bins():
    histogram = _decades("x", 0, 2)
    for value in (0.0, 1.0, 9.99, 10.0, 1e9):
        histogram.add(0, value)
    assert histogram.counts[0].tolist() == [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]


def test_links_to_pieces_inside_a_file(tmp_path):
    (tmp_path / "a & b.abc").write_text("")
    assert Page(_link(f"{tmp_path}/a & b.abc/12")).links == [(tmp_path / "a & b.abc").as_uri()]
    assert Page(_link(f"{tmp_path}/gone.mid")).links == []
    assert Page(_link(f"{tmp_path}/\udcff.mid")).text.endswith("/\udcff.mid")


def test_reasons_are_escaped():
    facts = {
        "files": 1,
        "distinct_music": 0,
        "tokenizer": {"vocab_size": 3},
        "passed_over": {},
        "lost": {},
        "splits": {split: {"pieces": 0, "tokens": 0} for split in ("train", "val")},
    }
    report = CorpusReport("multitrack")
    report.reject("<script>.mid", "failed with <script>")
    text = report.html(facts)
    assert report.html(facts) == text  # the same bytes every time
    page = Page(text)
    assert "script" not in page.tags and "failed with <script>" in page.text and "<script>.mid" in page.text
