"""Tags of files, and the datasets and training rows that have them."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
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
from tests.midi.midi_files import file_of, make_midi, note
from tests.prepare.test_pipeline import quick_prepare


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def of(tags: FileTags, file, md5: str = "", **metadata: str) -> dict[str, str]:
    return tags.of({"file": str(file), "md5": md5, "metadata": metadata})


def test_a_line_matches_the_ends_of_paths_and_the_longest_match_applies(tmp_path):
    table = write(
        tmp_path / "t.csv",
        "\ufefffile,Composer,genre,other\na.mid,Bach,,x\n./x/a.mid,Clara  SCHUMANN,none,y\n"
        f"{tmp_path}/y/b.mid,Anon,Song\nc.mid,,\nother\\d.mid,D,d\n",
    )
    tags = FileTags(table, ["composer", "Genre"], [f"{tmp_path}/x", f"{tmp_path}/lakh.tar.gz"])
    assert tags.columns == ["collection", "composer", "genre"]
    assert of(tags, tmp_path / "x/a.mid") == {"collection": "x", "composer": "clara schumann"}
    assert of(tags, tmp_path / "y/a.mid") == {"composer": "bach"}
    assert of(tags, tmp_path / "y/b.mid") == {"composer": "anon", "genre": "song"}
    assert of(tags, tmp_path / "lakh.tar.gz/other/d.mid") == {"collection": "lakh", "composer": "d", "genre": "d"}
    assert of(tags, tmp_path / "ba.mid") == {} and tags.unused == 1


def test_pieces_of_one_file_have_the_tags_of_the_file(tmp_path):
    tags = FileTags(
        write(tmp_path / "t.csv", "path,a\ntunes.abc,all\ntunes.abc/2,second\nb.parquet/7,seventh\n"), ["a"]
    )
    found = [of(tags, name)["a"] for name in ("x/tunes.abc", "x/tunes.abc/1", "x/tunes.abc/2", "b.parquet/7/3")]
    assert found == ["all", "all", "second", "seventh"] and of(tags, "b.parquet/8") == {}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_tables_identify_files_by_path_or_md5(suffix, tmp_path):
    md5 = "0123456789abcdef0123456789ABCDEF"
    rows = [
        {"md5": md5, "midi": "a.mid", "year": 1850, "genre": "Rock, Pop"},
        {"md5": "", "midi": "b.mid", "year": "", "genre": "x"},
    ]
    if suffix == ".jsonl":
        rows[0]["genre"] = ["Rock, Pop", "Folk"]
        rows[1] = {"midi": "b.mid", "year": None, "genre": "x", "n": {"deep": 1}}
        text = "\n\n".join(json.dumps(row) for row in rows)
    else:
        separator = "," if suffix == ".csv" else "\t"
        text = "\n".join(
            separator.join(f'"{value}"' for value in row) for row in [rows[0], *(r.values() for r in rows)]
        )
    table = write(tmp_path / f"t{suffix}", text)
    tags = FileTags(table, ["genre", "year"])
    assert of(tags, "z.mid", md5.lower()) == {"genre": "rock, pop", "year": "1850"}
    assert of(tags, "a.mid") == {} and tags.unused == 1
    tags = FileTags(table, ["genre", "year"], key="MIDI")
    assert of(tags, "a.mid") == {"genre": "rock, pop", "year": "1850"} and of(tags, "b.mid") == {"genre": "x"}
    tags.check_use("a.mid")


def test_columns_of_parquet_files_are_tags(tmp_path):
    table = write(tmp_path / "t.csv", "file,b\nx.mid,2\n")
    assert of(FileTags(None, ["Title"], elsewhere={"Title", "n"}), "x.mid", Title="A  b") == {"title": "a b"}
    both = FileTags(table, ["a", "b"], elsewhere={"a", "b"})
    assert of(both, "x.mid", a="1", b="1") == {"a": "1", "b": "2"}  # the table has precedence


def test_conditions(tmp_path):
    table = write(tmp_path / "t.csv", "file,license,a\nx.mid,CC0,1\ny.mid,,1\nz.mid,CC-BY,2\n")
    where = {"License": ["cc0", "cc-by"], "a": ["1"]}
    tags = FileTags(table, (), where=where)
    reasons = [tags.excluded({"file": name}) for name in ("x.mid", "y.mid", "z.mid", "no.mid")]
    assert reasons == [None, "other license", "other a", "other license"]
    assert tags.columns == [] and of(tags, "x.mid") == {}
    assert FileTags(table, (), where={"license": ["none"]}).excluded({"file": "y.mid"}) is None


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("t.csv", "", r"t\.csv has no column file or path or md5 \(its columns: none\): .*--metadata-key"),
        ("t.csv", " ,\n", "columns: none"),
        ("t.csv", "name,composer\na,b\n", "columns: composer, name"),
        (
            "t.csv",
            "file,b\nx,1\n",
            "column composer, which .*t.csv does not have: choose from b, file",
        ),
        ("t.csv", "file,composer,Composer\nx,1,2\n", "more than one column composer:"),
        ("t.csv", "file,composer,File\nx,1,y\n", "more than one column file:"),
        ("t.csv", "file,composer\nx.mid,1\nx.mid,2\n", "Line 3 of .*the file of an earlier line, x.mid"),
        ("t.csv", "file,composer\nx.mid,1,2\n", "Line 2.*more values than"),
        ("t.csv", 'file,composer\nx.mid,"1\n', "not a table in UTF-8"),
        ("t.jsonl", '{"file": "x", "composer": "1"}\n{"file"', "Line 2 of .*t.jsonl is not a JSON object"),
        ("t.jsonl", "[]\n", "Line 1"),
        ("t.jsonl", "", "columns: none"),
        ("t.txt", "file,composer\nx,1\n", r"t\.txt.*\.csv, \.tsv, \.jsonl"),
    ],
)
def test_bad_tables(name, text, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        FileTags(write(tmp_path / name, text), ["composer"])


@pytest.mark.parametrize(
    "chosen, reason",
    [
        (["a", "A "], "--tags names the column a twice"),
        (["collection"], "--tag-folders adds the column collection"),
        (["b=c"], "column 'b=c'.*equals sign"),
        (["b", ""], "empty column name.*comma"),
        ([f"c{i}" for i in range(16)], "17 columns.*16"),
        ([], "Nothing uses .*t.csv: .*--tags"),
    ],
)
def test_bad_columns(chosen, reason, tmp_path):
    table = write(tmp_path / "t.csv", "file,a\nx.mid,1\n")
    with pytest.raises(UserError, match=reason):
        FileTags(table, chosen, [f"{tmp_path}"] if chosen else ())
    with pytest.raises(UserError, match="--tags names the column a, but there is no table: give one with --metadata"):
        FileTags(None, ["a"])
    with pytest.raises(UserError, match="--where names the column b, but .*: choose from c"):
        FileTags(None, [], where={"b": ["x"]}, elsewhere=["c"])


def test_columns_without_a_name_are_ignored(tmp_path):
    tags = FileTags(write(tmp_path / "t.csv", "file,,a,\nx.mid,1,2,3\n"), ["a"])
    assert of(tags, "x.mid") == {"a": "2"}


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
        metadata=table,
        tags=["composer"],
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
        quick_prepare([bach_midi], tmp_path / "data", tokenizer="multitrack", metadata=table, tags=["composer"])
    with pytest.raises(UserError, match="midi-llm has no option tags"):
        quick_prepare([bach_midi], tmp_path / "data", tokenizer="midi-llm", metadata=table, tags=["composer"])


def test_values_beyond_the_limit_become_unknown(bach_midi, tmp_path, monkeypatch):
    lines = [f"{path.name},{'often' if i < 8 else 'rare'}" for i, path in enumerate(sorted(bach_midi.iterdir()))]
    options = {
        "tokenizer": "multitrack",
        "val_fraction": 0,
        "metadata": write(tmp_path / "t.csv", "\n".join(["file,a", *lines])),
        "tags": ["a"],
    }
    minimum = quick_prepare([bach_midi], tmp_path / "minimum", **options, tag_min=5)
    monkeypatch.setattr("rwkv_music.prepare.pipeline.MAX_VALUES", 1)
    maximum = quick_prepare([bach_midi], tmp_path / "maximum", **options)
    for name, facts, least in (("minimum", minimum, 5), ("maximum", maximum, 1)):
        assert facts["tags"]["columns"] == {"a": {"values": 1, "pieces": 8, "rare": 4}}
        assert facts["tags"]["table"] == {"a": {"often": 8}} and facts["tags"]["min"] == least
        assert load_codec(tmp_path / name / "tokenizer.json").tags == {"a": ["often"]}
        assert "<td>often</td><td>8</td>" in (tmp_path / name / "report.html").read_text()
    with pytest.raises(ValueError, match="1,000"):
        tag_module.tag_tokens({"a": [str(i) for i in range(1001)]})
    with pytest.raises(UserError, match="--tag-min is 0"):
        quick_prepare([bach_midi], tmp_path / "data", **options | {"tag_min": 0})


def test_pieces_are_filtered_by_metadata_and_tagged_from_a_parquet_file(tmp_path):
    scales = [[note(240 * j, 240 * j + 240, 40 + i * j) for j in range(8)] for i in range(6)]
    songs = [file_of(make_midi(sum(scale, []))) for scale in scales]
    rows = {"music": songs, "License": ["CC0", "CC0", "other", None, "CC0", "CC0"], "Year": [1, 2, 3, 4, None, 2]}
    pq.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    table = "\n".join(f'{{"md5": "{hashlib.md5(song).hexdigest()}", "genre": "g"}}' for song in songs[:2])
    options = {
        "tokenizer": "multitrack",
        "val_fraction": 0,
        "metadata": write(tmp_path / "t.jsonl", table),
        "tags": ["year", "genre"],
    }
    paths = [tmp_path / "a.parquet"]
    facts = quick_prepare(paths, tmp_path / "data", **options, where={"license": ["cc0"]})
    assert facts["rejected"] == {"other license": 2} and facts["options"]["where"] == {"license": ["cc0"]}
    lines = [json.loads(line) for line in (tmp_path / "data" / "pieces.jsonl").read_text().splitlines()]
    assert [line["tags"] for line in lines] == [
        {"year": "1", "genre": "g"},
        {"year": "2", "genre": "g"},
        {},
        {"year": "2"},
    ]
    rejected = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert rejected == [{"file": f"{paths[0]}/{row}", "reason": "other license"} for row in (3, 4)]
    codec = load_codec(tmp_path / "data" / "tokenizer.json")
    tokens = [piece.ids for piece in Pieces(tmp_path / "data", "train", codec)]
    plain = make_codec("multitrack")
    for ids, song in zip(tokens, [songs[i] for i in (0, 1, 4, 5)], strict=True):
        assert np.array_equal(np.delete(ids, [1, 2]), plain.encode(song))
    with pytest.raises(UserError, match="Of 6 pieces, none meets the conditions .*6 other license.*--where"):
        quick_prepare(paths, tmp_path / "none", **options, where={"license": ["mine"]})
