"""Tuning by whole runs: a state, adapters and parts on a base, under every ZeRO stage, resumed, played, exported."""

import hashlib
import json
import os
from pathlib import Path

import mido
import pytest
import torch

from rwkv_music.__main__ import main as command
from rwkv_music.checkpoint.export import export
from rwkv_music.checkpoint.run_folder import read_manifest, tensor_files
from rwkv_music.checkpoint.weights import load_model, load_pretrained, open_weights
from rwkv_music.errors import UserError
from tests.training.conftest import SMALL, Run, train

SHORT = "--ctx_len 128 --batch_size 4 --steps 6 --log_every 1 --val_every 6".split()
TUNES = {"state": ["--lr", 0.1], "lora": ["--lr", 0.01, "--lora_rank", 4], "time,ln": ["--lr", 0.002]}
STATES = {f"blocks.{layer}.att.time_state" for layer in range(2)}


@pytest.fixture(scope="module")
def base(one_process, tmp_path_factory) -> Path:
    """A file of weights."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    export(one_process.folder, path, "safetensors", torch.float32)
    return path


@pytest.fixture(scope="module")
def tuned(base, bach_data, tmp_path_factory) -> dict[str, Run]:
    """A run in one process under ZeRO-2 for each of TUNES."""
    before, folder = base.read_bytes(), tmp_path_factory.mktemp("tuned")
    runs = {
        tune: train(folder / tune, "--data", bach_data, *SHORT, "--init", base, "--tune", tune, *more)
        for tune, more in TUNES.items()
    }
    assert base.read_bytes() == before
    return runs


def differences(run: Run, base: Path) -> set[str]:
    """The parameters of a tuned run's model that are not the base's."""
    ours, theirs = load_model(run.folder)[0].state_dict(), load_pretrained(base).state_dict()
    return {name for name, weight in ours.items() if name not in theirs or not torch.equal(weight, theirs[name])}


@pytest.mark.parametrize("tune", TUNES)
def test_what_is_named_trains_and_nothing_else(tune, tuned, base):
    run, whole = tuned[tune], open_weights(base).tensors.shapes
    assert run.curve()[-1] < run.curve()[0]
    changed = differences(run, base)
    if tune == "state":
        assert changed == STATES
    elif tune == "lora":
        adapted = ("receptance.weight", "key.weight", "value.weight", "output.weight")
        assert changed == {name for name in whole if name.endswith(adapted)}
    else:
        expected = {name for name in whole if ".att." in name or ".ln" in f".{name}"}
        assert changed <= expected and len(changed) > 0.9 * len(expected)  # a bias at 0.0 may have had no gradient
    saved = sum((run.last_checkpoint / name).stat().st_size for name in tensor_files(run.last_checkpoint))
    trained = int(run.output.split("trains ")[1].split(" parameters")[0].replace(",", ""))
    assert 12 * trained <= saved < 12 * trained + 20_000  # fp32 weights and two moments, and headers


# ZeRO-3 with a copy of all weights on each node of two ranks, also of the smallest.
COPIES = {"stage": 3, "zero_hpz_partition_size": 2}
ALL_COPIED = {**COPIES, "stage3_param_persistence_threshold": 0}


@pytest.mark.parametrize(
    "tune, zero",
    [
        ("state", {"stage": 1}),
        ("state", {"stage": 2}),
        *((tune, zero) for tune in TUNES for zero in ({"stage": 3}, COPIES, ALL_COPIED)),
    ],
)
def test_two_processes_tune_as_one_under_each_zero_stage(tune, zero, tuned, base, bach_data, tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": zero}))
    more = ["--init", base, "--tune", tune, *TUNES[tune]]
    two = train(tmp_path / "run", "--data", bach_data, *SHORT, *more, ranks=2, config=tmp_path / "ds.json")
    for tag in ("train/loss", "val/loss"):
        assert two.curve(tag) == pytest.approx(tuned[tune].curve(tag), abs=2e-3)
    one, other = (load_model(run.folder)[0].state_dict() for run in (tuned[tune], two))
    for name, weight in one.items():
        assert (weight - other[name]).norm() < 0.02 * weight.norm() + 1e-3, name


def test_a_stopped_tuning_goes_on_bit_for_bit_and_knows_its_base(tuned, base, bach_data, tmp_path, monkeypatch):
    here = tmp_path / "base.safetensors"
    here.write_bytes(base.read_bytes())
    more = ["--tune", "state", *TUNES["state"]]
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        data = os.path.relpath(bach_data)
        train(tmp_path / "run", "--data", data, *SHORT, "--init", here.name, *more, "--stop_after", 2)
    load_model(tmp_path / "run")  # from another working directory
    train(tmp_path / "run", "--stop_after", 3)
    here.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match="tuned on .*base.safetensors, which no longer exists"):
        load_model(tmp_path / "run")
    resumed = train(tmp_path / "run", "--init", tmp_path / "moved.safetensors")
    assert resumed.curve() == tuned["state"].curve()
    hashes = [
        {name: read_manifest(run.last_checkpoint)[name]["sha256"] for name in tensor_files(run.last_checkpoint)}
        for run in (resumed, tuned["state"])
    ]
    assert hashes[0] == hashes[1]

    other = load_pretrained(base).state_dict()
    other["ln_out.bias"][0] += 1
    torch.save(other, tmp_path / "other.pth")
    refused = train(tmp_path / "run", "--init", tmp_path / "other.pth", "--steps", 8, check=False)
    assert refused.status == 1 and "other.pth is not the base that" in refused.output
    assert "Traceback" not in refused.output


def test_sampling_under_zero3_plays_from_the_state(tuned, base, bach_data, tmp_path):
    """With no weight small enough to stay on every rank, as with large models."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    (tmp_path / "zero3.json").write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": zero}))
    more = ["--init", base, "--tune", "state", *TUNES["state"], "--sample_every", 6, "--sample_bars", 1]
    run = train(tmp_path / "run", "--data", bach_data, *SHORT, *more, ranks=2, config=tmp_path / "zero3.json")
    assert run.curve() == pytest.approx(tuned["state"].curve(), abs=2e-3)
    assert (run.folder / "samples" / "step_00000006-completion.mid").is_file()


def test_a_state_is_played_evaluated_and_exported(tuned, one_process, base, bach_data, bach_midi, tmp_path, capsys):
    run = tuned["state"].folder

    def losses(*arguments: object) -> list[str]:
        assert command(["evaluate", *map(str, arguments), "--data", str(bach_data)]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("train", "val"))]

    # The run that the base was exported from is the same base: it is known by its weights.
    assert command(["export", str(run), "--format", "state", "--out", str(tmp_path / "state.pth")]) == 0
    capsys.readouterr()
    plain, own = losses(one_process.folder), losses(run)
    assert own != plain
    assert own == losses(one_process.folder, "--state", run)
    assert own == losses(one_process.folder, "--state", tmp_path / "state.pth")
    states = torch.load(tmp_path / "state.pth", weights_only=True)
    assert states.keys() == STATES and states["blocks.1.att.time_state"].shape == (1, 64, 64)

    prompt = ["--prompt", str(sorted(bach_midi.glob("*.mid"))[0]), "--context-bars", "2", "--bars", "1"]
    for name, arguments in {
        "plain": [one_process.folder],
        "own": [run],
        "by": [one_process.folder, "--state", run],
    }.items():
        assert command(["generate", *map(str, arguments), *prompt, "--out", str(tmp_path / f"{name}.mid")]) == 0
        assert mido.MidiFile(tmp_path / f"{name}.mid").length > 0
    assert hashed(tmp_path / "plain.mid") != hashed(tmp_path / "by.mid")


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_adapters_are_merged_and_load_in_peft(tuned, base, tmp_path):
    from peft import PeftModel

    run = tuned["lora"].folder
    assert command(["export", str(run), "--format", "lora", "--out", str(tmp_path / "adapter")]) == 0
    assert (
        command(
            ["export", str(run), "--format", "safetensors", "--dtype", "fp32", "--out", str(tmp_path / "m.safetensors")]
        )
        == 0
    )
    tokens = torch.randint(100, (2, 40), generator=torch.Generator().manual_seed(0))
    merged = load_pretrained(tmp_path / "m.safetensors")
    with torch.no_grad():
        expected = merged(tokens)
        torch.testing.assert_close(load_model(run)[0](tokens), expected)
        peft = PeftModel.from_pretrained(load_pretrained(base), str(tmp_path / "adapter"))
        torch.testing.assert_close(peft.base_model.model(tokens), expected, atol=1e-5, rtol=1e-4)
        assert (load_pretrained(base)(tokens) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["export", "{state}", "--out", "{tmp}/x.pth"], "--format state"),
        (["export", "{state}", "--format", "lora", "--out", "{tmp}/x"], "was trained with --tune state"),
        (["evaluate", "{lora}", "--data", "{data}", "--state", "{state}"], "is not the base that"),
        (["evaluate", "{lora}", "--data", "{data}", "--state", "{lora}"], "trained with --tune state"),
        (["evaluate", "{lora}", "--data", "{data}", "--state", "{data}/no.pth"], "no.pth"),
    ],
)
def test_a_state_or_a_base_that_does_not_fit_is_told(arguments, says, tuned, bach_data, tmp_path, capsys):
    places = {"state": tuned["state"].folder, "lora": tuned["lora"].folder, "tmp": tmp_path, "data": bach_data}
    assert command([argument.format(**places) for argument in arguments]) == 1
    said = capsys.readouterr().err.strip()
    assert says in said and said.endswith(".") and "\n" not in said


def test_tuning_needs_a_base(bach_data, tmp_path):
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, "--tune", "state", check=False)
    assert run.status == 1 and "add --init BASE" in run.output and not (tmp_path / "run").exists()
