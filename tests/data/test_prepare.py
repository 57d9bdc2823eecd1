import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_music.data import prepare as prepare_module
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.codecs import load_codec
from rwkv_music.data.prepare import LISTINGS, PARTS, find_midi, prepare
from rwkv_music.data.workers import Failure
from rwkv_music.errors import UserError


def rejected(data: Path) -> dict[str, dict]:
    """By file name."""
    lines = [json.loads(line) for line in (data / "rejected.jsonl").read_text().splitlines()]
    return {Path(line["file"]).name: line for line in lines}


def pieces(data: Path, split: str) -> set[bytes]:
    tokens = BinIdx(data / split)
    return {tokens[i].tobytes() for i in range(len(tokens))}


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_dataset_is_whole(bach_data, bach_midi):
    facts = json.loads((bach_data / "dataset.json").read_text())
    codec = load_codec(bach_data / "tokenizer.json")
    assert sorted(path.name for path in bach_data.iterdir()) == sorted(["dataset.json", *PARTS, *LISTINGS])
    assert facts["tokenizer"]["fingerprint"] == codec.fingerprint
    assert facts["files"] == 12 and facts["rejected"] == {}
    encoded = {codec.encode(path).tobytes() for path in bach_midi.iterdir()}
    assert pieces(bach_data, "train") | pieces(bach_data, "val") == encoded
    for split in ("train", "val"):
        tokens = BinIdx(bach_data / split)
        counts = facts["splits"][split]
        assert counts["pieces"] == len(tokens) > 0 and counts["tokens"] == tokens.n_tokens
        assert counts["notes"] == sum(codec.count_notes(tokens[i]) for i in range(len(tokens)))
    listed = [json.loads(line) for line in (bach_data / "pieces.jsonl").read_text().splitlines()]
    for split in ("train", "val"):
        in_order = [codec.encode(Path(piece["file"])) for piece in listed if piece["split"] == split]
        tokens = BinIdx(bach_data / split)
        assert len(in_order) == len(tokens) and all((ids == tokens[i]).all() for i, ids in enumerate(in_order))
    assert not left_over(bach_data.parent)


def test_same_bytes_whatever_the_workers(bach_data, bach_midi, tmp_path):
    """One process or two, files in another folder: every part of the dataset is the same."""
    shutil.copytree(bach_midi, tmp_path / "elsewhere")
    prepare([tmp_path / "elsewhere"], tmp_path / "data", workers=2, val_fraction=0.2)
    for name in ["dataset.json", *PARTS]:
        assert (tmp_path / "data" / name).read_bytes() == (bach_data / name).read_bytes(), name
    listing, there = ((folder / "pieces.jsonl").read_text() for folder in (tmp_path / "data", bach_data))
    assert listing == there.replace(str(bach_midi), str(tmp_path / "elsewhere"))


def test_the_split_follows_the_content(bach_midi, tmp_path):
    """Renamed and joined by others, a piece stays on its side; another seed is another split."""
    paths = sorted(bach_midi.iterdir())
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    (many / "sub").mkdir(parents=True)
    for i, path in enumerate(paths):
        shutil.copy(path, many / "sub" / f"{99 - i}.MIDI")
        if i % 2:
            shutil.copy(path, few / path.name)
    for folder in (few, many):
        prepare([folder], tmp_path / f"{folder.name}-data", workers=1, val_fraction=0.5)
    prepare([many], tmp_path / "other-data", workers=1, val_fraction=0.5, seed=1)
    for split in ("train", "val"):
        assert pieces(tmp_path / "few-data", split) <= pieces(tmp_path / "many-data", split)
        assert pieces(tmp_path / "other-data", split) != pieces(tmp_path / "many-data", split)


def test_each_split_has_a_piece():
    digests = [f"{i:064x}" for i in range(5)]
    for fraction, expected in ((0, 0), (1e-9, 1), (1 - 1e-9, 4)):
        assert prepare_module._choose_val(digests, fraction, seed=0).sum() == expected
    for seed in range(5):
        assert not prepare_module._choose_val(digests[:1], 0.9, seed).any()  # a single piece is for training
    many = prepare_module._choose_val([f"{i:064x}" for i in range(4000)], 0.1, seed=0)
    assert abs(many.mean() - 0.1) < 0.02


def test_bad_files_are_left_out_and_told(bach_midi, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = sorted(bach_midi.iterdir())[:3]
    for path in good:
        shutil.copy(path, folder)
    data = good[0].read_bytes()
    (folder / "Copy.MID").write_bytes(data)
    (folder / "cut.mid").write_bytes(data[: len(data) // 2])
    (folder / "empty.mid").write_bytes(b"")
    (folder / "words.Midi").write_text("These are words.")
    (folder / "notes.txt").write_text("not looked at")
    (folder / "gone.mid").symlink_to(folder / "nowhere")
    (folder / "folder.mid").mkdir()
    facts = prepare([folder], tmp_path / "data", workers=2)
    told = rejected(tmp_path / "data")
    assert {name: line["reason"] for name, line in told.items() if name not in ("Copy.MID", good[0].name)} == {
        "cut.mid": "truncated",
        "empty.mid": "empty file",
        "words.Midi": "not a MIDI file",
        "gone.mid": "cannot be opened (No such file or directory)",
    }
    # Of two files with the same bytes the first by name stays.
    assert told[good[0].name]["reason"] == "duplicate" and Path(told[good[0].name]["of"]).name == "Copy.MID"
    assert facts["files"] == 8 and sum(facts["rejected"].values()) == 5
    assert sum(counts["pieces"] for counts in facts["splits"].values()) == 3


def test_a_reader_that_crashes_or_hangs_costs_one_file(bach_midi, tmp_path, monkeypatch):
    """The worker processes themselves are tested in test_workers.py; here, what becomes of their failures."""
    paths = sorted(str(path) for path in bach_midi.iterdir())[:4]
    real = prepare_module.map_in_order

    def failing(*args):
        for i, answer in enumerate(real(*args)):
            yield {1: Failure("crashed the reader"), 2: Failure("took longer than 60 s")}.get(i, answer)

    (tmp_path / "in").mkdir()
    for path in paths:
        shutil.copy(path, tmp_path / "in")
    monkeypatch.setattr(prepare_module, "map_in_order", failing)
    facts = prepare([tmp_path / "in"], tmp_path / "data", workers=1)
    assert facts["rejected"] == {"crashed the reader": 1, "took longer than 60 s": 1}
    assert sum(counts["pieces"] for counts in facts["splits"].values()) == 2


def test_find_midi(tmp_path):
    for name in ("b.mid", "a/c.MID", "a/.hidden.midi", "a/d.midi.txt", "e.Midi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = [os.path.relpath(path, tmp_path) for path in find_midi([tmp_path, tmp_path / "a"])]
    assert found == ["a/.hidden.midi", "a/c.MID", "b.mid", "e.Midi"]


def test_a_dataset_is_replaced_by_a_whole_one_only(bach_midi, bach_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(bach_data, data)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mid").write_text("words")
    with pytest.raises(UserError, match="None of the 1 MIDI files could be used .1 not a MIDI file."):
        prepare([tmp_path / "bad"], data, workers=1)
    assert (data / "train.bin").read_bytes() == (bach_data / "train.bin").read_bytes()
    prepare([bach_midi], data, workers=1, val_fraction=0)
    assert len(BinIdx(data / "train")) == 12
    assert not left_over(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: folder.mkdir(), "There is no .mid or .midi file"),
        (lambda folder: folder.write_text(""), "There is no folder"),
    ],
)
def test_nothing_to_read(tmp_path, make, says):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=says):
        prepare([tmp_path / "in"], tmp_path / "data")
    assert not (tmp_path / "data").exists() and not left_over(tmp_path)


def test_out_is_in_use(bach_midi, bach_data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="not a dataset .thesis.txt."):
        prepare([bach_midi], tmp_path / "mine", workers=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
    shutil.copytree(bach_data, tmp_path / "data")
    (tmp_path / "data" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="not a dataset"):
        prepare([bach_midi], tmp_path / "data", workers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare([bach_midi], tmp_path / "file", workers=1)
    with pytest.raises(UserError, match="choose one of remi"):
        prepare([bach_midi], tmp_path / "new", tokenizer="abc", workers=1)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="validation fraction"):
            prepare([bach_midi], tmp_path / "new", val_fraction=fraction, workers=1)
    assert not (tmp_path / "new").exists() and not left_over(tmp_path)


def test_a_disk_that_takes_no_more(bach_midi, tmp_path):
    """A limit on the size of files stands in for a full disk: the system refuses to write, half-way."""
    program = f"""
import resource, signal
from rwkv_music.data.prepare import prepare
from rwkv_music.errors import UserError
if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, {resource.RLIM_INFINITY}))
    try:
        prepare([{str(bach_midi)!r}], {str(tmp_path / "data")!r}, workers=1)
    except UserError as error:
        print("told:", error)
"""
    (tmp_path / "main.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], env=environment, check=True, capture_output=True, text=True
    )
    assert "told: File too large while writing the dataset" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.py"]


def test_no_validation_and_the_order_of_documents(bach_midi, tmp_path):
    facts = prepare([bach_midi], tmp_path / "data", workers=2, val_fraction=0)
    assert facts["splits"]["val"] == {"pieces": 0, "tokens": 0, "notes": 0}
    assert len(BinIdx(tmp_path / "data" / "val")) == 0
    codec = load_codec(tmp_path / "data" / "tokenizer.json")
    tokens = BinIdx(tmp_path / "data" / "train")
    assert len(tokens) == 12
    for i, path in enumerate(sorted(bach_midi.iterdir())):
        np.testing.assert_array_equal(tokens[i], codec.encode(path))
