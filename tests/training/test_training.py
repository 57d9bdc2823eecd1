"""Whole runs: every ZeRO stage, one process and two, stop and resume, curves, what is made of a run."""

import json
import shlex
import sys
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from rwkv_music.__main__ import main as command
from rwkv_music.checkpoint.run_folder import read_manifest, tensor_files
from rwkv_music.checkpoint.weights import load_model
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.evaluation.losses import summed_loss
from tests.training.conftest import SMALL, train


def largest_difference(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b)
    return float(np.abs(np.subtract(a, b)).max())


def test_the_loss_falls(one_process):
    curve = one_process.curve()
    assert len(curve) == 20 and np.isfinite(curve).all()
    assert curve[-1] < curve[0] - 0.5
    assert one_process.curve("val/loss")[1] < one_process.curve("val/loss")[0]


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_two_processes_train_as_one_under_each_zero_stage(stage, one_process, bach_data, tmp_path):
    two = train(tmp_path / "run", "--data", bach_data, *SMALL, ranks=2, config=f"zero{stage}.json")
    assert largest_difference(two.curve(), one_process.curve()) < 1e-3
    assert largest_difference(two.curve("val/loss"), one_process.curve("val/loss")) < 1e-3
    whole, half = (int(run.text("run/6_optimizer_states").split()[0].replace(",", "")) for run in (one_process, two))
    # Partitions are padded to whole multiples of the ranks, by a few elements a parameter group.
    assert half == pytest.approx(whole / 2, rel=0.01)


# Three ranks do not divide the tensors: their shares are padded. Their six shares of four rows include two empty ones.
@pytest.mark.parametrize(
    "stage, ranks, more", [(2, 2, []), (3, 3, ["--elastic", 1, "--micro_batch_size", 1, "--task", "mix"])]
)
def test_without_bf16_the_split_into_ranks_and_micro_batches_does_not_matter(stage, ranks, more, bach_data, tmp_path):
    (tmp_path / "fp32.json").write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    one, several = (
        train(
            tmp_path / str(n),
            *["--data", bach_data, *SMALL, *more, "--warmup_steps", 5],
            ranks=n,
            config=tmp_path / "fp32.json",
        )
        for n in (1, ranks)
    )
    assert largest_difference(one.curve(), several.curve()) < 1e-5


@pytest.mark.parametrize("stage, parts", [(2, [(2, 2), (2, 1)]), (3, [(4, 2)])])
def test_ranks_that_share_rows_train_as_one_rank(stage, parts, bach_data, tmp_path):
    """With other numbers of ranks, and of ranks that share rows, after ten steps."""
    (tmp_path / "fp32.json").write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    arguments = ["--data", bach_data, *SMALL, "--ctx_len", 127, "--adam_eps", 1e-8]
    one = train(tmp_path / "one", *arguments, config=tmp_path / "fp32.json")
    for (ranks, context_parallel), stop_after in zip(parts, (10, 20), strict=False):
        more = ["--context_parallel", context_parallel, "--stop_after", stop_after if len(parts) > 1 else 20]
        several = train(tmp_path / "several", *arguments, *more, ranks=ranks, config=tmp_path / "fp32.json")
    assert largest_difference(one.curve(), several.curve()) < 1e-5
    assert largest_difference(one.curve("val/loss"), several.curve("val/loss")) < 1e-5
    assert largest_difference(one.curve("train/tokens"), several.curve("train/tokens")) == 0


def test_stop_and_resume_equals_going_on_bit_for_bit(one_process, bach_data, tmp_path):
    arguments = ["--data", bach_data, *SMALL, "--micro_batch_size", 2]
    first = train(tmp_path / "run", *arguments, "--stop_after", 10)
    assert first.last_checkpoint.name == "step_00000010"
    resumed = train(tmp_path / "run", "--micro_batch_size", 2)  # all other settings are the run's own
    assert "resumed from" in resumed.output
    assert resumed.curve() == one_process.curve()
    assert tensor_hashes(resumed.last_checkpoint) == tensor_hashes(one_process.last_checkpoint)


def tensor_hashes(checkpoint: Path) -> dict[str, str]:
    """Of the files that hold the master weights and AdamW's moments."""
    files = read_manifest(checkpoint)
    return {name: files[name]["sha256"] for name in tensor_files(checkpoint)}


def test_a_run_goes_on_elsewhere_from_a_checkpoint_that_is_named(one_process, tmp_path):
    """Settings, tokenizer and position come with the checkpoint."""
    elsewhere = train(tmp_path / "run", "--resume", one_process.last_checkpoint, "--steps", 22)
    assert "resumed from" in elsewhere.output and len(elsewhere.curve()) == 2
    assert elsewhere.last_checkpoint.name == "step_00000022"
    model, codec, config, step = load_model(elsewhere.folder)
    assert (config.train.batch_size, config.train.micro_batch_size, step) == (4, 2, 22)


# train.py as on GPUs that wait for the host, under ZeRO-3; it fails unless all blocks are gathered at once.
HOST_BOUND = """
import sys, train
from rwkv_music.training import signals
from rwkv_music.training.deepspeed_engine import engine
from rwkv_music.training.deepspeed_engine.fast import cuda_graphs
cuda_graphs.is_host_bound, cuda_graphs.can_replay = lambda *_: True, lambda *_: False
gathered = engine._zero3_section
def at_once(model, flat, zero, at_once):
    assert at_once
    return gathered(model, flat, zero, at_once)
engine._zero3_section = at_once
signals.leave(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("at_once", (False, True))
def test_zero3_that_lets_go_of_every_weight_trains_samples_and_is_read_back(at_once, bach_data, tmp_path):
    """With no weight small enough to stay on every rank, as with large models; the small ones all are.

    In fp32 and with an epsilon: else AdamW makes whole steps of the rounding in gradients that are almost zero, and so
    of another order of sums. In bf16 many are, and those of the token that ends a piece are always.
    """
    lets_go = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    if not at_once:
        lets_go["stage3_max_live_parameters"] = 0
    runs = []
    for ranks, zero in ((2, lets_go), (1, {"stage": 2})):
        (tmp_path / f"{ranks}.json").write_text(json.dumps({"zero_optimization": zero}))
        more = ["--sample_every", 10, "--sample_bars", 1] if ranks == 2 else []
        program = ()
        if at_once and ranks == 2:
            program = (tmp_path / "host_bound.py",)
            program[0].write_text(HOST_BOUND)
        line = [tmp_path / f"run{ranks}", "--data", bach_data, *SMALL, "--adam_eps", 1e-8, *more]
        runs.append(train(*line, ranks=ranks, config=tmp_path / f"{ranks}.json", program=program))
    run, alone = runs
    assert largest_difference(run.curve(), alone.curve()) < 1e-4
    assert sorted(path.name for path in (run.folder / "samples").glob("*.mid")) == [
        "step_00000010-completion.mid",
        "step_00000020-completion.mid",
    ]
    ours, theirs = (load_model(one.folder)[0].state_dict() for one in (run, alone))
    for (name, a), b in zip(ours.items(), theirs.values(), strict=True):
        assert (a - b).norm() < 0.02 * b.norm() + 1e-3, (name, (a - b).norm(), b.norm())


def test_tensorboard_shows_the_curves_and_a_completion(one_process):
    events = EventAccumulator(str(one_process.folder)).Reload()
    scalars = {"train/loss", "train/lr", "train/grad_norm", "val/loss", "speed/tokens_per_second", "speed/mfu"}
    scalars |= {"train/tokens", "speed/step_seconds", "train/skipped_steps", "val/bits_per_note", "val/bigram_loss"}
    assert scalars == set(events.Tags()["scalars"])  # no constant curve, and none of a GPU's memory
    assert one_process.curve("train/tokens")[-1] == 20 * 4 * 128
    [content] = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val
    layout = Layout.FromString(content)
    assert [category.title for category in layout.category] == ["Loss", "Progress"]
    charts = [chart for category in layout.category for chart in category.chart]
    assert list(charts[0].multiline.tag) == ["train/loss$", "val/loss$", "val/bigram_loss$"]
    assert {tag.rstrip("$") for chart in charts for tag in chart.multiline.tag} == scalars
    texts = {name: one_process.text(f"run/{name}") for name in ("2_command", "3_commit", "4_versions", "5_deepspeed")}
    assert shlex.join(sys.argv) in texts["2_command"] and "deepspeed 0." in texts["4_versions"]
    assert '"stage": 2' in texts["5_deepspeed"] and texts["3_commit"]
    assert events.Tags()["images"] == ["samples/completion"]
    assert events.Images("samples/completion")[-1].width == 1200
    assert one_process.curve("speed/mfu")[-1] > 0
    assert len(mido.MidiFile(one_process.folder / "samples" / "step_00000020-completion.mid").tracks) >= 1


def test_the_summary_says_what_is_about_to_happen(one_process):
    for line in (
        "RWKV v8 Heron, 2 layers x 64",
        "4 rows x 128 tokens = 512 tokens per step",
        "warm-up 100, at least as long as the run",
        "bf16 weights",
        "ZeRO-2",
    ):
        assert line in one_process.output
    for noise in ("Traceback", "WARNING", "built successfully"):
        assert noise not in one_process.output


def test_the_weights_of_a_run_are_its_master_weights(one_process):
    model, codec, config, step = load_model(one_process.folder)
    assert (config.model.n_embd, step, model.config.vocab_size) == (64, 20, codec.vocab_size)
    saved = load_file(one_process.last_checkpoint / "weights_00000.safetensors")  # one rank's are all of them
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())


def test_evaluate_prints_the_trainers_own_validation_loss(one_process, bach_data, capsys):
    assert command(["evaluate", str(one_process.folder), "--data", str(bach_data)]) == 0
    table = capsys.readouterr().out.splitlines()
    header, val = table[1].split(), next(line for line in table if line.startswith("val")).split()
    assert header[:4] == ["split", "tokens", "nats/token", "bits/note"]
    # The trainer validated in bf16.
    assert float(val[2]) == pytest.approx(one_process.curve("val/loss")[-1], abs=0.01)
    assert 0 < float(val[-2]) < float(val[-1])  # bigram, unigram


def test_a_mix_is_validated_on_both_of_its_tasks(bach_data, tmp_path):
    mixed = ["--task", "mix", "--ctx_len", 256, "--steps", 2, "--val_every", 2]
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, *mixed)
    both = run.curve("val/loss") + run.curve("val/completion_loss")
    assert f"validation loss {both[0]:.4f} nats per token, {both[1]:.4f} on completions" in run.output
    model = load_model(run.folder)[0]
    completions = MusicDataset(bach_data, "val", 256, task="completion")
    nats, targets = summed_loss(model, completions, 4, "cpu").tolist()
    assert both[1] == pytest.approx(nats / targets, abs=0.01)  # the trainer validated in bf16


def test_generate_completes_a_piece(one_process, bach_midi, tmp_path, capsys):
    prompt = sorted(bach_midi.glob("*.mid"))[0]
    out = tmp_path / "out.mid"
    arguments = ["generate", str(one_process.folder), "--prompt", str(prompt), "--context-bars", "2", "--bars", "1"]
    assert command([*arguments, "--count", "2", "--out", str(out)]) == 0
    for name in ("out-1", "out-2"):
        assert mido.MidiFile(tmp_path / f"{name}.mid").length > 0
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert "2 bars of prompt" in capsys.readouterr().out
