"""Settings: derived defaults, the command line, and config.json, also of earlier versions."""

import argparse
import dataclasses
import json

import pytest

from rwkv_music.config import PRESETS, DataConfig, ModelConfig, RunConfig, TrainConfig, add_arguments, from_arguments
from rwkv_music.errors import UserError
from tests.damaged_json import DAMAGED_JSON


def test_default_ranks_follow_the_width():
    model = ModelConfig(n_layer=12, n_embd=768)
    # train_temp: max(32, round(factor * sqrt(C) / 32) * 32) with factors 2.5, 2.5, 1.7 and 5.
    assert (model.decay_rank, model.iclr_rank, model.value_rank, model.gate_rank) == (64, 64, 32, 128)
    assert (model.dim_ffn, model.n_head) == (3072, 12)
    assert ModelConfig(n_embd=768, gate_rank=96).gate_rank == 96


def test_presets():
    sizes = {name: (preset["n_layer"], preset["n_embd"]) for name, preset in PRESETS.items()}
    assert sizes.items() >= {"0.1b": (12, 768), "0.4b": (24, 1024), "1.5b": (24, 2048), "7b": (32, 4096)}.items()


def test_every_setting_has_a_flag_with_help():
    parser = argparse.ArgumentParser()
    add_arguments(parser, TrainConfig, required=("out",))
    options = parser.parse_args(["--out", "RUN", "--lr", "1e-3", "--schedule", "wsd"])
    assert vars(options) == {"out": "RUN", "lr": 1e-3, "schedule": "wsd"}
    assert from_arguments(TrainConfig, options, lr=5.0, steps=7) == TrainConfig(
        out="RUN", lr=1e-3, schedule="wsd", steps=7
    )
    text = parser.format_help()
    assert all(f"--{field.name}" in text for field in dataclasses.fields(TrainConfig))
    assert "(default: 0.0006)" in text


def test_save_and_load(tmp_path):
    config = RunConfig(ModelConfig(vocab_size=7), DataConfig(data="D"), TrainConfig(out="R", grad_clip=0.5))
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config


def test_a_former_flag_works_and_is_not_listed():
    parser = argparse.ArgumentParser()
    add_arguments(parser, DataConfig)
    assert vars(parser.parse_args(["--carry", "4"])) == vars(parser.parse_args(["--tbptt", "4"])) == {"tbptt": 4}
    assert "--tbptt" in parser.format_help() and "carry" not in parser.format_help()


def test_a_file_of_an_earlier_version_loads(tmp_path):
    """It has `carry` instead of `tbptt`, and no `fast`."""
    config = RunConfig(ModelConfig(vocab_size=7), DataConfig(tbptt=3), TrainConfig(out="R"))
    tree = dataclasses.asdict(config)
    tree["data"]["carry"] = tree["data"].pop("tbptt")
    assert tree["train"].pop("fast") == "auto"
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert RunConfig.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    "content", [*DAMAGED_JSON.values(), b'{"model": {}}', b'{"model": {"x": 1}, "data": {}, "train": {}}']
)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        RunConfig.load(tmp_path / "config.json")
    with pytest.raises(UserError, match="give a run folder"):
        RunConfig.load(tmp_path / "nowhere" / "config.json")


@pytest.mark.parametrize("value", (10**400, 10**15, -(10**400)))
@pytest.mark.parametrize("config", (ModelConfig, DataConfig, TrainConfig))
def test_huge_numbers_are_refused(config, value):
    """Every numeric setting has limits, so that no later calculation or allocation overflows."""
    numbers = [field for field in dataclasses.fields(config) if type(field.default) in (int, float)]
    assert numbers
    for field in numbers:
        with pytest.raises(UserError, match=f"^{field.name} is {value}: choose "):
            config(**{field.name: value})


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
def test_numbers_that_are_not_finite_are_refused(value):
    for config in (DataConfig, TrainConfig):
        for field in dataclasses.fields(config):
            if type(field.default) is float:
                with pytest.raises(UserError, match=f"^{field.name} is {value}: choose "):
                    config(**{field.name: value})


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "n_layer", "3"),
        ("model", "n_embd", 64.5),
        ("data", "ctx_len", None),
        ("data", "data", 7),
        ("train", "lr", True),
        ("train", "tune", ["all"]),
        ("train", "steps", {}),
        ("train", "beta1", 7),
    ],
)
def test_wrong_types_are_refused(tmp_path, section, name, value):
    tree = dataclasses.asdict(RunConfig(ModelConfig(), DataConfig(), TrainConfig()))
    tree[section][name] = value
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=f"config.json .*{name} is "):
        RunConfig.load(tmp_path / "config.json")
