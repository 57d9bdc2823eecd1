"""What a user can get wrong with train.py: each is one sentence, a non-zero exit, and nothing left behind."""

import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

import train as train_py
from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.errors import UserError
from rwkv_music.training import memory
from rwkv_music.training import setup as run_setup
from rwkv_music.training.loop import Loop
from rwkv_music.training.signals import EXIT_RESUMABLE, Stopped
from tests.damaged_json import DAMAGED_JSON
from tests.training.conftest import PROJECT, SMALL, train

ZERO2 = str(PROJECT / "ds_configs" / "zero2.json")


@pytest.fixture
def attempt(bach_data, tmp_path, capsys):
    """Call train.py in this process with some arguments changed; its sentence. It must fail before anything is made."""

    def call(*arguments: object, data=bach_data, config: object = ZERO2, out=tmp_path / "run") -> str:
        before = sorted(out.rglob("*")) if out.exists() else None
        status = train_py.main(
            ["--data", str(data), "--out", str(out), "--deepspeed_config", str(config), *SMALL, *map(str, arguments)]
        )
        said = capsys.readouterr()
        assert status == 1 and said.out == ""
        assert (sorted(out.rglob("*")) if out.exists() else None) == before
        return one_sentence(said.err)

    return call


def one_sentence(text: str) -> str:
    """`text` if it is one line that ends as a sentence does."""
    [line] = text.strip().splitlines()
    assert line.startswith("train.py: ") and line.endswith("."), line
    return line


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_data_that_is_not_there(attempt, tmp_path):
    assert "is not a dataset folder" in attempt(data=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "python -m rwkv_music prepare" in attempt(data=tmp_path / "empty")


def test_data_without_its_tokenizer(attempt, bach_data, tmp_path):
    shutil.copytree(bach_data, tmp_path / "data")
    (tmp_path / "data" / "tokenizer.json").unlink()
    assert "is damaged (no tokenizer.json): prepare the data again" in attempt(data=tmp_path / "data")
    content = (bach_data / "tokenizer.json").read_bytes()
    (tmp_path / "data" / "tokenizer.json").write_bytes(content.replace(b"Pitch", b"pitch", 1))
    assert "tokenizer.json is not the file that dataset.json describes" in attempt(data=tmp_path / "data")


@pytest.mark.parametrize("more", [(), ("--tbptt", 1)])
def test_tokens_that_no_tokenizer_made(more, bach_data, tmp_path):
    shutil.copytree(bach_data, tmp_path / "data")
    path = tmp_path / "data" / "train.bin"
    path.write_bytes(b"\xff" * path.stat().st_size)
    run = train(tmp_path / "run", "--data", tmp_path / "data", *SMALL, *more, check=False)
    assert run.status == 1 and "Traceback" not in run.output
    assert "token 65535" in run.output and "train.bin" in run.output and "prepare the data again" in run.output


def test_data_cut_short(attempt, bach_data, tmp_path):
    shutil.copytree(bach_data, tmp_path / "data")
    path = tmp_path / "data" / "train.bin"
    path.write_bytes(path.read_bytes()[:-100])
    assert "train.bin" in attempt(data=tmp_path / "data")


def test_a_batch_that_does_not_divide(attempt):
    sentence = attempt("--batch_size", 6, "--micro_batch_size", 4)
    assert "batch_size 6 is not a multiple of micro_batch_size 4 x 1 rank: choose a multiple of 4" in sentence


def test_a_batch_that_does_not_divide_among_ranks(attempt, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "batch_size 4 does not divide among 3 ranks: choose a multiple of 3" in attempt()


def test_a_deepspeed_file_that_contradicts_the_flags(attempt, tmp_path):
    stage = {"zero_optimization": {"stage": 2}}
    config = write(tmp_path / "a.json", {**stage, "train_batch_size": 8})
    assert "sets train_batch_size to 8, but --batch_size is 4: remove one of the two" in attempt(config=config)
    config = write(tmp_path / "b.json", {**stage, "gradient_clipping": 0.5})
    assert "sets gradient_clipping to 0.5, but --grad_clip is 2.0" in attempt("--grad_clip", 2, config=config)
    config = write(tmp_path / "c.json", {**stage, "gradient_accumulation_steps": 4})
    assert "gradient_accumulation_steps to 4" in attempt("--micro_batch_size", 2, config=config)


def test_a_deepspeed_file_that_cannot_serve(attempt, tmp_path):
    assert "reading" in attempt(config=tmp_path / "missing.json")
    for content in DAMAGED_JSON.values():
        (tmp_path / "a.json").write_bytes(content)
        assert "a.json cannot be read" in attempt(config=tmp_path / "a.json")
    assert "ZeRO stage" in attempt(config=write(tmp_path / "c.json", {}))
    stage = {"zero_optimization": {"stage": 2}}
    assert 'a section "optimizer"' in attempt(
        config=write(tmp_path / "d.json", {**stage, "optimizer": {"type": "Adam"}})
    )
    for zero in (True, {"stage": 2, "offload_optimizer": "cpu"}, {"stage": 3, "offload_param": []}):
        assert "make it an object" in attempt(config=write(tmp_path / "f.json", {"zero_optimization": zero}))
    for key, value in {
        "train_batch_size": "x",
        "gradient_accumulation_steps": 0,
        "train_micro_batch_size_per_gpu": 4.0,
    }.items():
        assert "an integer above 0" in attempt(config=write(tmp_path / "g.json", {**stage, key: value}))
    assert "make it a number" in attempt(config=write(tmp_path / "h.json", {**stage, "gradient_clipping": True}))
    for bucket in ("big", 0, True, None):
        zero = {"zero_optimization": {"stage": 2, "reduce_bucket_size": bucket}}
        assert "reduce_bucket_size" in attempt(config=write(tmp_path / "i.json", zero))
    steps = write(tmp_path / "j.json", {**stage, "gradient_accumulation_steps": 4})
    assert 'set it to "auto"' in attempt("--elastic", 1, config=steps)
    assert "fp16" in attempt(config=write(tmp_path / "e.json", {**stage, "fp16": {"enabled": True}}))
    sums = {"data_types": {"grad_accum_dtype": "fp32"}, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    assert "grad_accum_dtype" in attempt(config=write(tmp_path / "i.json", sums))


def test_ranks_that_are_not_told_where_to_meet(attempt, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert "MASTER_ADDR and MASTER_PORT" in attempt()


def test_each_machine_says_what_does_not_fit_there(attempt, monkeypatch, tmp_path):
    """Its file system may not be that of the first one."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "is not a dataset folder" in attempt(data=tmp_path / "nowhere")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(train_py, "process_group_exists", lambda: False)
    with pytest.raises(ValueError, match="not enough values"):  # it says nothing
        attempt(data=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ("run", "run/checkpoints"))
def test_a_run_folder_that_is_a_file(name, bach_data, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, check=False)
    assert run.status == 1 and (tmp_path / name).read_text() == "mine"
    assert "A file is in the way while making the run folder" in one_sentence(run.output)


def test_what_a_cpu_cannot(bach_data, tmp_path):
    large = train(tmp_path / "run", "--data", bach_data, "--preset", "7b", check=False)
    assert "GiB per rank for 1 rank" in one_sentence(large.output)
    for size in ("--ctx_len", 99_999_999), ("--batch_size", 9_999_999), ("--n_embd", 2**20):
        huge = train(tmp_path / "run", "--data", bach_data, *SMALL, *size, check=False)
        assert huge.status == 1 and "GiB per rank for 1 rank" in one_sentence(huge.output)
    quantized = train(tmp_path / "run", "--data", bach_data, *SMALL, config="zeropp.json", check=False)
    assert "zero_quantized_weights" in one_sentence(quantized.output)
    assert large.status == quantized.status == 1 and not (tmp_path / "run").exists()


def test_what_a_gpu_cannot(bach_data, tmp_path, monkeypatch):
    """A device with little memory: a step that does not fit is refused before the model is allocated."""

    def allocate(*_arguments) -> None:
        raise AssertionError("the model is allocated")

    monkeypatch.setattr(run_setup, "available_bytes", lambda device: 10.0 * 2**30)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**60)
    for size in ("--ctx_len", 99_999_999), ("--n_layer", 1024, "--n_embd", 4096):
        with monkeypatch.context() as patch:
            patch.setattr(run_setup.deepspeed_engine, "materialize", allocate)
            huge = train(tmp_path / "run", "--data", bach_data, *SMALL, *size, check=False)
        assert huge.status == 1 and "but only 10.00 GiB are available" in one_sentence(huge.output)
    assert not (tmp_path / "run").exists()
    fits = train(tmp_path / "run", "--data", bach_data, *SMALL, "--steps", 1, "--val_every", 0)
    assert fits.status == 0


def test_what_fails_after_a_stop_does_not_change_its_status(bach_data, tmp_path, monkeypatch):
    """The run was asked to stop and has saved, but the last of its curves cannot be written."""

    def stop(_loop) -> None:
        raise Stopped("asked to stop after step 7", EXIT_RESUMABLE)

    def close(_loop) -> None:
        raise UserError("The disk is full.")

    monkeypatch.setattr(Loop, "run", stop)
    monkeypatch.setattr(Loop, "close", close)
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, check=False)
    assert run.status == EXIT_RESUMABLE
    assert set(run.output.splitlines()) == {"train.py: asked to stop after step 7.", "train.py: The disk is full."}


@pytest.mark.parametrize("flag", ("--out", "--data", "--init", "--resume", "--deepspeed_config", "--lora_targets"))
def test_empty_text(flag, tmp_path, monkeypatch, capsys):
    """An unset variable of a shell: an empty path would be the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        train_py.main(["--data", "D", "--out", "R", "--deepspeed_config", ZERO2, flag, ""])
    assert caught.value.code == 2 and f"argument {flag}: the value is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be(attempt):
    assert "n_embd 100 is not a multiple of head_size 64" in attempt("--n_embd", 100)


def test_numbers_out_of_range(attempt):
    assert "steps is 0: choose 1 or more" in attempt("--steps", 0)
    assert "log_every is 0" in attempt("--log_every", 0)
    assert "n_layer is 100000: choose a value from 1 to 1024" in attempt("--n_layer", 100_000)
    assert "ctx_len is -1" in attempt("--ctx_len", -1)
    assert "lr is nan" in attempt("--lr", "nan")
    assert "beta2 is 1.0: choose a value of at least 0 and less than 1" in attempt("--beta2", 1)
    assert "decay_fraction is 1.5: choose a value from 0 to 1" in attempt("--decay_fraction", 1.5)


@pytest.mark.parametrize("setting", ("data", "out"))
def test_a_path_that_is_not_utf8(setting, attempt, tmp_path):
    sentence = attempt(**{setting: tmp_path / "r\udcffn"})
    assert f"{setting} is '" in sentence and "r\\udcffn', which is not UTF-8" in sentence


def test_a_name_that_no_file_system_allows(attempt):
    for setting in ("data", "resume", "init"):
        assert f"{setting} has a name longer than 255 bytes" in attempt(f"--{setting}", "x" * 256)


def test_a_checkpoint_of_another_shape(attempt, one_process):
    sentence = attempt("--n_embd", 128, out=one_process.folder)
    assert "holds a model of another shape (n_embd is 64, not 128)" in sentence


def test_starting_afresh_among_checkpoints(attempt, one_process):
    assert "already holds checkpoints" in attempt("--resume", "none", out=one_process.folder)


def test_a_position_that_would_mean_something_else(attempt, one_process):
    assert "was made with ctx_len 128, not 64" in attempt("--ctx_len", 64, out=one_process.folder)
    assert "was made with seed 0, not 1" in attempt("--seed", 1, out=one_process.folder)


def test_a_folder_of_something_else(attempt, tmp_path):
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "config.json", {"their": "own"})
    assert "config.json cannot be read" in attempt(out=tmp_path / "other")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    assert f"reading {tmp_path}/folder/config.json" in attempt(out=tmp_path / "folder")


def test_a_damaged_checkpoint_that_is_named(attempt, one_process, tmp_path):
    shutil.copytree(one_process.last_checkpoint, tmp_path / "step_00000020")
    (tmp_path / "step_00000020" / "weights_00000.safetensors").write_bytes(b"short")
    sentence = attempt("--resume", tmp_path / "step_00000020")
    assert "is damaged (its weights_00000.safetensors has 5 bytes, not" in sentence and "name another" in sentence
    # In the run's own folder, every other path is refused.
    shutil.copytree(one_process.folder, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / one_process.last_checkpoint.name
    (newest / "weights_00000.safetensors").write_bytes(b"short")
    sentence = attempt("--resume", newest)
    assert "is damaged" in sentence and "--resume auto" in sentence and "name another" not in sentence


def test_resuming_from_what_is_no_checkpoint(attempt, tmp_path):
    assert "is not a checkpoint" in attempt("--resume", tmp_path)


def test_data_of_another_tokenizer(attempt, one_process, bach_data, tmp_path):
    shutil.copytree(bach_data, tmp_path / "data")
    facts = json.loads((tmp_path / "data" / "dataset.json").read_text())
    facts["tokenizer"]["fingerprint"] = "0" * 64
    write(tmp_path / "data" / "dataset.json", facts)
    assert "another tokenizer" in attempt(data=tmp_path / "data", out=one_process.folder)


def test_a_split_with_nothing_to_predict(attempt, bach_data, tmp_path):
    shutil.copytree(bach_data, tmp_path / "data")
    with BinIdxWriter(tmp_path / "data" / "train") as writer:
        writer.add(np.array([1], dtype=np.uint16))
    assert "train split" in attempt(data=tmp_path / "data")


def test_a_place_that_cannot_be_written(bach_data, tmp_path):
    (tmp_path / "file").write_text("")
    run = train(tmp_path / "file" / "run", "--data", bach_data, *SMALL, check=False)
    assert run.status == 1 and "while making the run folder" in one_sentence(run.output)


def test_a_compilation_that_was_cut_short(bach_data, tmp_path, monkeypatch):
    """Its lock would hang every rank in DeepSpeed; one of them says which file to remove."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - 3600,) * 2)
    done = train(tmp_path / "run", "--data", bach_data, *SMALL, ranks=2, config="zero2_offload.json", check=False)
    assert done.status == 1 and not done.folder.exists()
    [sentence] = [line for line in done.output.splitlines() if line.startswith("train.py: ")]
    assert f"remove {lock} and start again" in one_sentence(sentence)


def test_a_wrong_flag_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        train_py.main(["--out", "x", "--deepspeed_config", ZERO2, "--no_such_flag", "1"])
    assert caught.value.code == 2
    assert "--no_such_flag" in capsys.readouterr().err


def test_a_full_disk_keeps_the_last_checkpoint(bach_data, tmp_path):
    small_disk = tmp_path / "disk"
    small_disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", small_disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        run = train(small_disk / "run", "--data", bach_data, *SMALL, "--save_every", 1, check=False)
        assert run.status == 1
        sentence = [line for line in run.output.splitlines() if line.startswith("train.py: ")]
        assert len(sentence) == 1 and "disk" in sentence[0] and "Traceback" not in run.output, run.output[-3000:]
        checkpoints = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir() if path.is_dir())
        assert checkpoints and all(name.startswith("step_") for name in checkpoints)
        whole = {path.name for path in (small_disk / "run" / "checkpoints" / checkpoints[0]).iterdir()}
        assert whole == {path.name for path in (small_disk / "run" / "checkpoints" / checkpoints[-1]).iterdir()}
    finally:
        subprocess.run(["umount", small_disk], check=True)
