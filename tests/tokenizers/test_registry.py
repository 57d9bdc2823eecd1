"""Creating, saving and loading codecs."""

import json

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.tokenizers.registry import load_codec, make_codec
from tests.damaged_json import DAMAGED_JSON


def test_save_and_load(tmp_path, bach_midi):
    codec = make_codec("multitrack")
    codec.save(tmp_path / "tokenizer.json")
    contents = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (
        contents["name"] == "multitrack" and contents["vocab_size"] == len(contents["vocabulary"]) == codec.vocab_size
    )
    loaded = load_codec(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == codec.fingerprint == contents["fingerprint"]
    path = sorted(bach_midi.iterdir())[0]
    np.testing.assert_array_equal(loaded.encode(path), codec.encode(path))


def test_options_are_saved(tmp_path):
    make_codec("multitrack", tags={"composer": ["bach"]}).save(tmp_path / "t.json")
    assert load_codec(tmp_path / "t.json").options == {"tags": {"composer": ["bach"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda contents: contents["vocabulary"].reverse(), "not a tokenizer.json"),
        (lambda contents: contents["options"].update(tags={"a": ["x"]}), "not a tokenizer.json"),
        (lambda contents: contents.update(fingerprint="0" * 64), "modified"),
        (lambda contents: contents["options"].update(color=1), "not a tokenizer.json"),
        (lambda contents: contents.update(format_version=99), "not a tokenizer.json"),
        (lambda contents: contents.pop("name"), "no name"),
        (lambda contents: contents.update(name="abc"), "tokenizer.json names the tokenizer 'abc'.*multitrack"),
    ],
)
def test_modified_files_are_rejected(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    make_codec("multitrack").save(path)
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=message):
        load_codec(path)


@pytest.mark.parametrize("content", [*DAMAGED_JSON.values(), b"{}"])
def test_damaged_files_are_rejected(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.json cannot be read .*use the tokenizer.json next to the data"):
        load_codec(path)


@pytest.mark.parametrize("key", ["format", "format_version", "name", "options", "vocabulary"])
@pytest.mark.parametrize("value", [None, [], {}, 7, "abc"])
def test_wrong_types_are_rejected(tmp_path, key, value):
    path = tmp_path / "tokenizer.json"
    make_codec("midi-llm-piano").save(path)
    contents = json.loads(path.read_text())
    path.write_text(json.dumps({**contents, key: value}))
    if not isinstance(value, type(contents[key])):
        with pytest.raises(UserError, match=f"{key} is not an? "):
            load_codec(path)


def test_errors(tmp_path):
    with pytest.raises(UserError, match="multitrack.*color"):
        make_codec("multitrack", color=1)
    with pytest.raises(UserError, match="abc.*multitrack"):
        make_codec("abc")
    with pytest.raises(UserError, match="No such file"):
        load_codec(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe not json")
    with pytest.raises(UserError, match="tokenizer.json"):
        load_codec(tmp_path / "tokenizer.json")
