import json

import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.tokenizers.registry import load_codec, make_codec


def test_saved_and_loaded(tmp_path, bach_midi):
    codec = make_codec("remi")
    codec.save(tmp_path / "tokenizer.json")
    facts = json.loads((tmp_path / "tokenizer.json").read_text())
    assert facts["name"] == "remi" and facts["vocab_size"] == len(facts["vocabulary"]) == codec.vocab_size
    assert set(facts["libraries"]) == {"miditok", "symusic"}
    loaded = load_codec(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == codec.fingerprint == facts["fingerprint"]
    path = sorted(bach_midi.iterdir())[0]
    np.testing.assert_array_equal(loaded.encode(path), codec.encode(path))


def test_options_survive(tmp_path):
    make_codec("remi", positions_per_beat=12).save(tmp_path / "t.json")
    assert load_codec(tmp_path / "t.json").options == {"positions_per_beat": 12, "n_velocities": 32}


def test_another_library_version_is_noticed(tmp_path, bach_midi):
    """A library that would number the same music differently must not encode for this tokenizer.json."""
    codec = make_codec("remi")
    swapped = [*codec.vocabulary[:-2], codec.vocabulary[-1], codec.vocabulary[-2]]
    other = type(codec)(vocabulary=swapped, libraries={"miditok": "0.0.1"})
    other.save(tmp_path / "t.json")
    with pytest.raises(UserError, match="numbers tokens differently.*miditok==0.0.1"):
        load_codec(tmp_path / "t.json").encode(sorted(bach_midi.iterdir())[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["vocabulary"].reverse(), "altered"),
        (lambda facts: facts["options"].update(n_velocities=16), "altered"),
        (lambda facts: facts["options"].update(colour=1), "not a tokenizer.json"),
        (lambda facts: facts.update(format_version=99), "not a tokenizer.json"),
        (lambda facts: facts.pop("name"), "not a tokenizer.json"),
        (lambda facts: facts.update(name="abc"), "no tokenizer 'abc'"),
    ],
)
def test_altered_tokenizers_are_refused(tmp_path, change, says):
    path = tmp_path / "tokenizer.json"
    make_codec("remi").save(path)
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=says):
        load_codec(path)


@pytest.mark.parametrize("options", [{"positions_per_beat": 0}, {"positions_per_beat": 97}, {"n_velocities": 128}])
def test_options_that_cannot_be(options):
    with pytest.raises(UserError, match="choose from 1 to"):
        make_codec("remi", **options)


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="remi has no option colour"):
        make_codec("remi", colour=1)
    with pytest.raises(UserError, match="choose one of remi"):
        make_codec("abc")
    with pytest.raises(UserError, match="No such file"):
        load_codec(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe not json")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_codec(tmp_path / "tokenizer.json")
