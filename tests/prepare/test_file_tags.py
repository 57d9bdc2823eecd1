"""Tags of files, and the datasets and training rows that have them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rwkv_music.data.augment import Augmenter
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.pieces import Pieces
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.errors import UserError
from rwkv_music.prepare.file_tags import FileTags
from rwkv_music.tokenizers import tags as tag_module
from rwkv_music.tokenizers.multitrack_cells import read_excerpt, with_holes, write_bars
from rwkv_music.tokenizers.registry import load_codec, make_codec
from tests.prepare.test_pipeline import quick_prepare


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_matches_the_ends_of_paths_and_the_longest_match_applies(tmp_path):
    table = write(
        tmp_path / "t.csv",
        "\ufefffile,Composer,genre\na.mid,Bach,\n./x/a.mid,Clara  SCHUMANN,none\n"
        f"{tmp_path}/y/b.mid,Anon,Song\nc.mid,,\nother\\d.mid,D,d\n",
    )
    tags = FileTags(table, [f"{tmp_path}/x", f"{tmp_path}/lakh.tar.gz"])
    assert tags.columns == ["collection", "composer", "genre"]
    assert tags.of(f"{tmp_path}/x/a.mid") == {"collection": "x", "composer": "clara schumann"}
    assert tags.of(f"{tmp_path}/y/a.mid") == {"composer": "bach"}
    assert tags.of(f"{tmp_path}/y/b.mid") == {"composer": "anon", "genre": "song"}
    assert tags.of(f"{tmp_path}/lakh.tar.gz/other/d.mid") == {"collection": "lakh", "composer": "d", "genre": "d"}
    assert tags.of(f"{tmp_path}/ba.mid") == {} and tags.unused == 1


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", r"t\.csv names no columns"),
        (" ,\n", r"t\.csv names no columns"),
        ("name,composer\na,b\n", "name, composer.*needs file"),
        ("file;composer\na;b\n", "file;composer"),
        ("file,a,A\nx,1,2\n", "more than one column a:"),
        ("file,a,b,b\nx,1,2,3\n", "more than one column b:"),
        ("file,a,File\nx,1,y\n", "more than one column file:"),
        ("file,a,b=c\nx,1,2\n", "column b=c: .*equals sign"),
        ("file,a\nx.mid,1\nx.mid,2\n", "Line 3.*earlier line"),
        ("file,a\nx.mid,1,2\n", "Line 2.*more values than"),
        ("file,a\n,1\n", "Line 2.*no value in the column file"),
        ("file," + ",".join(f"c{i}" for i in range(17)) + "\n", "17 columns.*16"),
    ],
)
def test_bad_tables(text, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        FileTags(write(tmp_path / "t.csv", text))


def test_a_column_that_tag_folders_adds(tmp_path):
    table = write(tmp_path / "t.csv", "file,Collection\nx.mid,y\n")
    assert FileTags(table).of("x.mid") == {"collection": "y"}
    with pytest.raises(UserError, match="column collection, .*--tag-folders"):
        FileTags(table, [f"{tmp_path}"])


def test_columns_without_a_name_are_ignored(tmp_path):
    tags = FileTags(write(tmp_path / "t.csv", "file,,a,\nx.mid,1,2,3\n"))
    assert tags.columns == ["a"] and tags.of("x.mid") == {"a": "2"}


@pytest.fixture(scope="module")
def tagged(bach_midi, tmp_path_factory) -> Path:
    """A dataset of the chorales in two folders, with the key of their number as composer."""
    folder = tmp_path_factory.mktemp("tagged")
    lines = ["file,composer"]
    for i, path in enumerate(sorted(bach_midi.iterdir())):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        shutil.copy(path, folder / "ab"[i % 2])
        lines.append(f"{path.name},C{i % 3}" if i else f"{path.name},")
    table = write(folder / "t.csv", "\n".join([*lines, "absent.mid,C1"]))
    quick_prepare(
        [folder / "a", folder / "b"],
        folder / "data",
        tokenizer="multitrack",
        val_fraction=0.2,
        tags=table,
        tag_folders=True,
    )
    return folder / "data"


def test_pieces_have_one_tag_of_each_column(tagged):
    facts = json.loads((tagged / "dataset.json").read_text())
    codec, plain = load_codec(tagged / "tokenizer.json"), make_codec("multitrack")
    assert codec.vocabulary[: plain.vocab_size] == plain.vocabulary and codec.fingerprint != plain.fingerprint
    assert facts["tags"]["unused"] == 1 and facts["tags"]["columns"]["collection"]["values"] == 2
    lines = [json.loads(line) for line in (tagged / "pieces.jsonl").read_text().splitlines()]
    for split in ("train", "val"):
        own = [line for line in lines if line["split"] == split]
        for piece, line in zip(Pieces(tagged, split, codec), own, strict=True):
            tags = {"collection": "none", "composer": "none"} | line["tags"]
            assert line["tags"]["collection"] == Path(line["file"]).parent.name
            names = [codec.vocabulary[i] for i in piece.ids[1:3]]
            assert names == [f"Tag_{column}={value}" for column, value in tags.items()]
            assert line["n_tokens"] == len(piece.ids) and piece.bar_starts[0] == 3
            assert np.array_equal(np.delete(piece.ids, [1, 2]), plain.encode(Path(line["file"])))
            excerpt = read_excerpt(piece.ids, int(piece.bar_starts[1]), int(piece.bar_starts[3]))
            for tokens in (write_bars(excerpt), with_holes(codec.rules, excerpt.bars(0, 1), [])[0]):
                assert np.array_equal(tokens[:4], piece.ids[:4])
            assert np.array_equal(codec.excerpt(piece.ids, *piece.bar_starts[[1, 2, 3]].tolist())[0][:4], piece.ids[:4])


@pytest.mark.parametrize("task", ["completion", "infill", "pretrain", "tbptt"])
def test_training_forgets_each_tag_in_half_of_the_samples(tagged, task):
    codec = load_codec(tagged / "tokenizer.json")
    options = {"task": "pretrain" if task == "tbptt" else task, "seed": 3}
    data = MusicDataset(tagged, "train", 2048, **options)
    unvaried = MusicDataset(tagged, "train", 2048, vary=False, **options)
    seen = []
    for each in (data, unvaried):
        counts = Counter()
        if task == "tbptt":
            streams = DocumentStreams(each, 2)
            batches = (streams.batch(i) for i in range(20 * streams.windows_per_pass))
        else:
            batches = (each.batch(i, i + 1) for i in range(120))
        for batch in batches:
            names = [codec.vocabulary[i] for i in batch.input_ids.flatten().tolist()]
            counts.update(name.split("=")[1] != "none" for name in names if name.startswith("Tag_collection"))
        seen.append(counts)
    assert 0.3 < seen[0][True] / seen[0].total() < 0.7
    assert seen[1].keys() == {True} and seen[1].total() == seen[0].total()


def test_forgetting_depends_on_seed_and_sample_and_changes_no_notes():
    codec = make_codec("multitrack", tags={"a": ["x"], "b": ["y"]})
    ids = codec.with_tags(codec.empty_piece().ids, {"a": "x", "b": "y"}).astype(np.int64)
    results = [[Augmenter(codec, kind, 5).vary([ids, ids], i) for i in range(40)] for kind in ("none", "none", "all")]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert len(np.unique(np.concatenate(results[0]), axis=0)) == 4  # columns are independent


def test_tables_that_fit_nothing_and_other_tokenizers(bach_midi, tmp_path):
    table = write(tmp_path / "t.csv", "file,composer\nabsent.mid,Bach\n")
    with pytest.raises(UserError, match=r"t\.csv matches.*--resume"):
        quick_prepare([bach_midi], tmp_path / "data", tokenizer="multitrack", tags=table)
    with pytest.raises(UserError, match="midi-llm has no option tags"):
        quick_prepare([bach_midi], tmp_path / "data", tokenizer="midi-llm", tags=table)


def test_values_beyond_the_limit_become_unknown(bach_midi, tmp_path, monkeypatch):
    monkeypatch.setattr("rwkv_music.prepare.pipeline.MAX_VALUES", 1)
    lines = [f"{path.name},{'often' if i < 8 else 'rare'}" for i, path in enumerate(sorted(bach_midi.iterdir()))]
    table = write(tmp_path / "t.csv", "\n".join(["file,a", *lines]))
    facts = quick_prepare([bach_midi], tmp_path / "data", tokenizer="multitrack", tags=table)
    assert facts["tags"]["columns"] == {"a": {"values": 1, "pieces": 8, "rare": 4}}
    assert load_codec(tmp_path / "data" / "tokenizer.json").tags == {"a": ["often"]}
    with pytest.raises(ValueError, match="1,000"):
        tag_module.tag_tokens({"a": [str(i) for i in range(1001)]})
