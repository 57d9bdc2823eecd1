"""train.py with several datasets: the same rows on any ranks, a validation of each dataset, and bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from rwkv_music.checkpoint.weights import load_model
from rwkv_music.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.mixture import Mixture
from rwkv_music.data.ngrams import ngram_nats_per_token
from rwkv_music.errors import UserError
from rwkv_music.evaluation.losses import summed_loss
from rwkv_music.training.arguments import configure, parse
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.loop import Loop
from rwkv_music.training.reader_processes import ReaderProcesses
from rwkv_music.training.validation import Validation
from tests.training.conftest import SMALL, Run, train
from tests.training.test_reader_processes import MIX, START_SECONDS
from tests.training.test_training import largest_difference

STEPS = ["--steps", 6, "--val_every", 3, "--adam_eps", 1e-8]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "fp32.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    return path


@pytest.fixture(scope="module")
def mixed(bach_data, few_data, tmp_path_factory, fp32) -> Run:
    """Six steps of a mixture in one process, with a sample."""
    arguments = ["--data", f"{bach_data}:2", "--data", few_data, *SMALL, *STEPS, "--sample_every", 6]
    return train(tmp_path_factory.mktemp("mixed") / "run", *arguments, "--sample_bars", 1, config=fp32)


def test_a_run_resumes_with_the_same_rows_on_other_ranks(mixed, bach_data, few_data, tmp_path, fp32):
    arguments = ["--data", f"{bach_data}:2", "--data", f"{few_data}:1", *SMALL, *STEPS]
    train(tmp_path / "run", *arguments, "--stop_after", 3, config=fp32)
    resumed = train(tmp_path / "run", "--steps", 6, ranks=2, config=fp32)
    assert "resumed from" in resumed.output and "Up to step" not in resumed.output
    for curve in ("train/loss", "val/loss", "val/loss_data", "val/loss_few"):
        assert largest_difference(resumed.curve(curve), mixed.curve(curve)) < 1e-5, curve


def test_the_steps_read_the_rows_of_the_mixture(bach_data, few_data, tmp_path, monkeypatch):
    """Two micro-batches a step, of a mix of tasks."""
    read, step = [], Loop.step
    monkeypatch.setattr(Loop, "step", lambda loop, batches, *rest: read.extend(batches) or step(loop, batches, *rest))
    tasks = [word for name, value in MIX.items() for word in (f"--{name}", value)]
    data = ["--data", f"{bach_data}:1", "--data", f"{few_data}:3"]
    run = train(tmp_path / "run", *data, *SMALL, *tasks, "--steps", 2, "--val_every", 0, "--micro_batch_size", 2)
    mixture = Mixture(RunConfig.load(run.folder / "config.json").data)
    assert [part.weight for part in mixture.parts] == [1, 3] and len(read) == 4
    for i, batch in enumerate(read):
        assert torch.equal(batch.input_ids, mixture.batch(2 * i, 2 * i + 2).input_ids)


def test_reader_processes_read_the_same_rows(bach_data, few_data):
    config = DataConfig(data={str(bach_data): 2.0, str(few_data): 1.0}, ctx_len=256, seed=2, **MIX)
    mixture = Mixture(config)
    with ReaderProcesses(mixture, config, 1) as readers:
        assert readers._readers[0].connection.poll(START_SECONDS)
        for batch, start in zip(readers.read([range(3), range(3, 6)]), (0, 3), strict=True):
            expected = mixture.batch(start, start + 3)
            assert torch.equal(batch.input_ids, expected.input_ids) and torch.equal(batch.targets, expected.targets)


def test_each_dataset_is_validated(mixed, bach_data, few_data):
    """The main figures are the means with the weights; the best checkpoint follows the main loss."""
    events = EventAccumulator(str(mixed.folder)).Reload()
    curves = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for curve in ("val/loss", "val/bits_per_note", "val/bigram_loss"):
        mean, *of_each = (curves[tag] for tag in (curve, f"{curve}_data", f"{curve}_few"))
        assert mean == pytest.approx([(2 * a + b) / 3 for a, b in zip(*of_each, strict=True)], rel=1e-6), curve
    model = load_model(mixed.folder)[0]
    losses = {}
    for name, folder in {"data": bach_data, "few": few_data}.items():
        nats, targets = summed_loss(model, MusicDataset(folder, "val", 128), 4, "cpu").tolist()
        losses[name] = curves[f"val/loss_{name}"][-1]
        assert losses[name] == pytest.approx(nats / targets, abs=1e-4)
        splits = BinIdx(folder / "train"), BinIdx(folder / "val")
        bigram = ngram_nats_per_token(*splits, model.config.vocab_size, order=2)[1]
        assert curves[f"val/bigram_loss_{name}"][-1] == pytest.approx(bigram)
    main = curves["val/loss"][-1]
    of_each = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    assert f"step 6: validation loss {main:.4f} nats per token ({of_each})\n" in mixed.output
    recorded = json.loads((mixed.folder / "validations.json").read_text())
    assert recorded["validations"][-1]["loss"] == pytest.approx(main)
    assert recorded["measured_on"].startswith("2/3 of ") and "; 1/3 of " in recorded["measured_on"]


def test_the_summary_and_tensorboard_name_the_mixture(mixed, bach_data, few_data):
    for line in (
        f"{bach_data} (data), 66.7% of the rows: train ",
        f"{few_data} (few), 33.3% of the rows: train ",
        " passes over few), lr",
    ):
        assert line in mixed.output and line in mixed.text("run/1_summary")
    events = EventAccumulator(str(mixed.folder)).Reload()
    [content] = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val
    charts = [chart for category in Layout.FromString(content).category for chart in category.chart]
    assert ["val/loss_.+$"] in [list(chart.multiline.tag) for chart in charts]
    content = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["data"].string_value == "data:2, few:1"
    assert list((mixed.folder / "samples").glob("*.mid"))


def test_a_dataset_without_a_validation_split_does_not_count(bach_data, few_data, tmp_path):
    shutil.copytree(few_data, tmp_path / "none")
    facts = json.loads((tmp_path / "none" / "dataset.json").read_text())
    facts["splits"]["val"]["pieces"] = 0
    (tmp_path / "none" / "dataset.json").write_text(json.dumps(facts))
    data = DataConfig(data={str(tmp_path / "none"): 3.0, str(bach_data): 1.0})
    config = RunConfig(ModelConfig(), data, TrainConfig(batch_size=4, micro_batch_size=4, val_every=1))
    validation = Validation.of(config, BatchPlan(config.train, {}, 1, 1))
    assert validation.names == ("data",) and [part.folder for part in validation.parts] == [bach_data]
    losses = validation.bigram_losses
    assert losses["val/bigram_loss"] == losses["val/bigram_loss_data"] and len(losses) == 2


def test_a_run_may_resume_with_other_weights_and_forgets_its_validations(mixed, bach_data, few_data, tmp_path, fp32):
    shutil.copytree(mixed.folder, tmp_path / "run", symlinks=True)
    data = ["--data", f"{bach_data}:1", "--data", few_data]
    run = train(tmp_path / "run", *data, "--steps", 7, "--sample_every", 0, config=fp32)
    assert f"Up to step 6, the run was trained on {bach_data}:2, {few_data}:1." in run.output
    recorded = json.loads((run.folder / "validations.json").read_text())
    assert [entry["step"] for entry in recorded["validations"]] == [6, 7] and "1/2 of " in recorded["measured_on"]
    same_weights = (mixed.curve("val/loss_data")[-1] + mixed.curve("val/loss_few")[-1]) / 2
    assert recorded["validations"][0]["loss"] == pytest.approx(same_weights, abs=1e-5)  # measured again


def settings(out: Path, *values: object) -> DataConfig:
    """Return the settings that the command line with `values` of --data gives."""
    data = [word for value in values for word in ("--data", str(value))]
    return configure(parse(["--out", str(out), "--deepspeed_config", "zero2.json", *data])).data


def test_weights_on_the_command_line(tmp_path, monkeypatch):
    """A folder whose name has a colon is found as it is, and may have a weight."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "b:3", "c:d"):
        (tmp_path / name).mkdir()
    a, b, b3, cd = (str(tmp_path / name) for name in ("a", "b", "b:3", "c:d"))
    assert settings(tmp_path, "a").data == settings(tmp_path, "a:2").data == settings(tmp_path, f"{a}/:1e-3").data == a
    assert settings(tmp_path, "b:3").data == settings(tmp_path, "b:3:5").data == b3
    assert settings(tmp_path, ":5").data == str(tmp_path / ":5")
    assert settings(tmp_path, "a:2", "b").data == {a: 2.0, b: 1.0}
    assert settings(tmp_path, "a:0.25", "b:3", "b/:3", "c:d").data == {a: 0.25, b3: 1.0, b: 3.0, cd: 1.0}


def test_wrong_datasets_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for weight in ("0", "-1", "nan", "inf", "x", "1/2", ""):
        with pytest.raises(UserError, match=f"^--data a:{weight} is not a folder, and '{weight}' is not a weight"):
            settings(tmp_path, f"a:{weight}", "b")
    for other in ("a", "a/:3", "link", tmp_path / "a"):
        with pytest.raises(UserError, match=f"^--data a:2 and --data {other} are the same dataset: give it once"):
            settings(tmp_path, "a:2", "b", other)


def test_a_mixture_that_cannot_be_read_leaves_nothing_behind(bach_data, bach_data_midi_llm, tmp_path):
    for other, more, sentence in (
        (bach_data_midi_llm, (), "The tokenizers of "),
        (tmp_path / "nowhere", (), "is not a dataset folder"),
        (tmp_path, ("--tbptt", 1), "--data names 2 datasets: drop --tbptt"),
    ):
        run = train(tmp_path / "run", "--data", bach_data, "--data", other, *SMALL, *more, check=False)
        assert run.status == 1 and sentence in run.output and len(run.output.splitlines()) == 1
    assert not (tmp_path / "run").exists()
