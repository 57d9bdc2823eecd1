"""Checkpoints: resumed on other ranks and stages, damaged, pruned, cut short, never run as code."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train as train_py
from rwkv_music.__main__ import main as rwkv_music
from rwkv_music.checkpoint.run_folder import checkpoints, fault, find_checkpoint, read_progress, skipped_checkpoints
from rwkv_music.checkpoint.weights import load_model
from rwkv_music.errors import UserError
from tests.damaged_json import DAMAGED_JSON
from tests.training.conftest import PROJECT, SMALL, TINY, Run, command, environment, train

FILES = {path.stem: json.loads(path.read_text()) for path in (PROJECT / "ds_configs").glob("*.json")}
FILES |= {f"{name} in fp32": {"zero_optimization": FILES[name]["zero_optimization"]} for name in list(FILES)}
FILES["hierarchical"] = {  # zeropp without its quantization, whose kernels are a GPU's, and with nodes of two ranks
    **FILES["zeropp"],
    "zero_optimization": {
        **FILES["zeropp"]["zero_optimization"],
        "zero_hpz_partition_size": 2,
        "stage3_param_persistence_threshold": 0,  # so that nodes have copies of what is gathered
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
    },
}
# bf16 rounds each micro-batch's gradient, and by default their sum at every addition: in another order, otherwise.
FP32_SUMS = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
FILES |= {f"{name}, fp32 sums": {**file, **FP32_SUMS} for name, file in FILES.items() if "bf16" in file}


def write_file(folder: Path, name: str) -> Path:
    (folder / f"{name}.json").write_text(json.dumps(FILES[name]))
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def unbroken(bach_data, tmp_path_factory) -> dict[int, Run]:
    """40 steps with a checkpoint in the middle: on one rank in bf16, row by row, and on two in fp32."""
    folder = tmp_path_factory.mktemp("unbroken")
    more = ["--data", bach_data, *SMALL, "--steps", 40, "--save_every", 20, "--val_every", 0]
    files, rows = {1: "zero2, fp32 sums", 2: "zero1 in fp32"}, {1: 1, 2: 2}
    return {
        ranks: train(
            folder / str(ranks),
            *more,
            "--micro_batch_size",
            rows[ranks],
            ranks=ranks,
            config=write_file(folder, files[ranks]),
        )
        for ranks in files
    }


def copy_of_half(run: Run, folder: Path) -> Path:
    """A run folder that is no further than `run` was in its middle."""
    shutil.copytree(run.folder / "checkpoints" / "step_00000020", folder / "checkpoints" / "step_00000020")
    return folder


@pytest.fixture
def fast_compiler(pytestconfig, tmp_path_factory, monkeypatch) -> None:
    """Compile DeepSpeed's CPU Adam without optimization, in half the time, into a folder of the tests."""
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("torch_extensions") if cache else tmp_path_factory.getbasetemp() / "torch_extensions"
    folder.mkdir(exist_ok=True)
    compiler = folder / "g++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))


@pytest.mark.parametrize(
    "before, ranks, file",
    [
        (2, 1, "zero2 in fp32"),
        (2, 2, "zero3 in fp32"),
        (1, 4, "zero2, fp32 sums"),
        (1, 4, "zero3, fp32 sums"),
        (1, 1, "zero2_offload, fp32 sums"),
        (1, 2, "zero3_offload, fp32 sums"),
        (1, 2, "hierarchical, fp32 sums"),
    ],
)
def test_any_ranks_and_any_stage_go_on(unbroken, before, ranks, file, fast_compiler, tmp_path):
    folder = copy_of_half(unbroken[before], tmp_path / "run")
    resumed = train(folder, ranks=ranks, config=write_file(tmp_path, file))
    differences = np.abs(np.subtract(resumed.curve(), unbroken[before].curve()[20:]))
    assert len(differences) == 20
    # The first loss is one of the weights alone. Rows that lie in micro-batches of one size have the same gradients,
    # and fp32 sums of them under ZeRO-2 the same bits, whatever the ranks.
    most = 1e-4 if "in fp32" in file else 1e-8 if file == "zero2, fp32 sums" else 1e-3
    assert differences[0] < 1e-4 and differences.max() < most, differences
    assert load_model(folder)[3] == 40  # with no DeepSpeed, whatever wrote it


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut short":
        content = content[:-100]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, how, says",
    [
        ("moments_00000.safetensors", "cut short", "bytes, not"),
        ("index.json", "one bit", "another SHA-256"),
        ("manifest.json", "cut short", "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_by_name(unbroken, name, how, says, tmp_path):
    shutil.copytree(unbroken[1].folder / "checkpoints", tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "step_00000040" / name, how)
    chosen = find_checkpoint(tmp_path)
    assert chosen.name == "step_00000020"
    [clause] = skipped_checkpoints(tmp_path, chosen)
    assert clause.startswith(f"step_00000040: its {name}") and says in clause


ENTRY = '{"size_bytes": 1, "sha256": "00"}'


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 10**5,
        b'{"version": 1, "files": {"a": {"size_bytes": ' + b"9" * 5000 + b', "sha256": "00"}}}',
        b'{"version": 1, "files": []}',
        b'{"version": 1, "files": {"a": 1}}',
        f'{{"version": 1, "files": {{"a\\u0000": {ENTRY}}}}}'.encode(),
        f'{{"version": 1, "files": {{"../a": {ENTRY}}}}}'.encode(),
        "folder",
        "pipe",
        "no checkpoint folder",
    ],
    ids=str,
)
def test_a_damaged_manifest_costs_one_checkpoint_whatever_the_damage(manifest, one_process, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(one_process.last_checkpoint, folder / "step_00000020")
    path = folder / "step_00000030" / "manifest.json"
    if manifest == "no checkpoint folder":
        path.parent.write_text("")
    else:
        path.parent.mkdir()
    if isinstance(manifest, bytes):
        path.write_bytes(manifest)
    elif manifest == "folder":
        path.mkdir()
    elif manifest == "pipe":
        os.mkfifo(path)
    chosen = find_checkpoint(tmp_path)
    assert chosen.name == "step_00000020"
    [clause] = skipped_checkpoints(tmp_path, chosen)
    assert clause.startswith("step_00000030: its manifest.json cannot be read (") and "\n" not in clause


def test_a_bit_that_flipped_in_a_tensor_is_noticed(unbroken, tmp_path):
    shutil.copytree(unbroken[1].folder / "checkpoints", tmp_path / "run" / "checkpoints")
    damage(tmp_path / "run" / "checkpoints" / "step_00000040" / "weights_00000.safetensors", "one bit")
    with pytest.raises(UserError, match="weights_00000.safetensors has changed"):
        load_model(tmp_path / "run")
    resumed = train(tmp_path / "run", "--steps", 41)
    assert "step_00000040: its weights_00000.safetensors" in resumed.output
    assert "step_00000020, step 20" in resumed.output
    assert fault(tmp_path / "run" / "checkpoints" / "step_00000041") is None


def test_no_whole_checkpoint_is_told(unbroken, tmp_path):
    folder = copy_of_half(unbroken[1], tmp_path / "run")
    (folder / "checkpoints" / "step_00000020" / "progress.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint.* \(step_00000020: its progress.json cannot be"):
        find_checkpoint(folder)


def test_only_the_newest_are_kept_and_leftovers_cleared(unbroken, tmp_path):
    folder = copy_of_half(unbroken[1], tmp_path / "run")
    for left in (".step_00000021.partial", ".step_00000010.removed"):
        (folder / "checkpoints" / left).mkdir()
    train(folder, "--steps", 26, "--save_every", 2, "--keep", 2)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_00000024", "step_00000026"]


def test_a_skipped_damaged_checkpoint_costs_no_valid_one(unbroken, bach_data, tmp_path):
    shutil.copytree(unbroken[1].folder / "checkpoints", tmp_path / "run" / "checkpoints")
    damage(tmp_path / "run" / "checkpoints" / "step_00000040" / "weights_00000.safetensors", "one bit")
    train(tmp_path / "run", "--save_every", 2, "--stop_after", 24, "--keep", 1)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_00000024", "step_00000040"]
    began_with = (tmp_path / "run" / "config.json").read_text()
    shutil.copytree(bach_data, tmp_path / "data")
    again = train(tmp_path / "run", "--save_every", 4, "--stop_after", 24, "--data", tmp_path / "data")
    assert f"trained on {bach_data}." in again.output
    assert (tmp_path / "run" / "config.json").read_text() == began_with  # under the other one nothing was done
    assert "step_00000024, step 24" in again.output
    assert "Step 24 has been reached: raise --stop_after" in again.output


# To rank 1 the last checkpoint is not there yet.
BEHIND = """
import os, sys, train
from rwkv_music.checkpoint import run_folder
from rwkv_music.training.signals import leave
seen = run_folder.checkpoints
run_folder.checkpoints = lambda run: seen(run)[: -1 if os.environ["RANK"] == "1" else None]
leave(train.main(sys.argv[1:]))
"""


def test_ranks_that_see_another_newest_checkpoint_do_not_begin(unbroken, tmp_path):
    shutil.copytree(unbroken[1].folder / "checkpoints", tmp_path / "run" / "checkpoints")
    line = command(tmp_path / "run", "--stop_after", 41, "--steps", 50)
    launcher = [sys.executable, str(PROJECT / "launch" / "node.py"), "2", "-c", BEHIND, *line[2:]]
    done = subprocess.run(launcher, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 70, done.stderr
    [said] = done.stderr.splitlines()
    assert "(rank 0 step_00000040, rank 1 step_00000020)" in said and "Traceback" not in said


def test_minutes_make_a_checkpoint_due_as_well(unbroken, tmp_path):
    folder = copy_of_half(unbroken[1], tmp_path / "run")
    train(folder, "--steps", 24, "--save_every", 0, "--save_minutes", 1e-9)
    assert [read_progress(path).step for path in checkpoints(folder)] == [20, 21, 22, 23, 24]


def test_a_job_that_was_thought_dead_does_not_write_into_the_run(bach_data, tmp_path):
    folder = tmp_path / "run"
    line = command(folder, "--data", bach_data, *TINY, "--steps", 10**6, "--save_every", 3, "--keep", 1)
    running = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: checkpoints(folder))
    (folder / ".owner").write_text("another\n")
    assert "has taken over" in running.communicate(timeout=60)[1]
    assert running.returncode == 1


def test_a_damaged_manifest_is_passed_over(unbroken, tmp_path):
    folder = copy_of_half(unbroken[1], tmp_path / "run")
    damaged = find_checkpoint(folder)
    earlier = damaged.with_name("step_00000001")
    shutil.copytree(damaged, earlier)
    for content in (*DAMAGED_JSON.values(), b'{"version": 1, "files": {"a\\u0000": {"size_bytes": 1, "sha256": ""}}}'):
        (damaged / "manifest.json").write_bytes(content)
        assert find_checkpoint(folder) == earlier
        [clause] = skipped_checkpoints(folder, earlier)
        assert "manifest.json" in clause and "\n" not in clause
    tree = json.loads((earlier / "manifest.json").read_text())
    for name in ("a\0b", "\ud800"):
        files = {**tree["files"], name: {"size_bytes": 1, "sha256": ""}}
        (damaged / "manifest.json").write_text(json.dumps({**tree, "files": files}))
        assert find_checkpoint(folder) == earlier


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("name", ["weights_00000.safetensors", "index.json", "config.json", "manifest.json"])
def test_a_pickle_in_a_checkpoint_is_refused(unbroken, name, tmp_path, monkeypatch, capsys):
    folder = copy_of_half(unbroken[1], tmp_path / "run") / "checkpoints" / "step_00000020"
    bomb = pickle.dumps(Bomb())
    (folder / name).write_bytes(bomb)
    if name != "manifest.json":  # an attacker would have made it fit
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = {"size_bytes": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    assert rwkv_music(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and said.endswith("."), said
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["dataset.json", "tokenizer.json", "train.idx", "train.bin"])
def test_a_pickle_in_a_dataset_is_refused(bach_data, name, tmp_path, monkeypatch, capsys):
    shutil.copytree(bach_data, tmp_path / "data")
    (tmp_path / "data" / name).write_bytes(pickle.dumps(Bomb(), protocol=0))
    monkeypatch.chdir(tmp_path)
    line = command(tmp_path / "run", "--data", tmp_path / "data", *SMALL, "--sample_every", 10)
    assert train_py.main(line[2:]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("train.py: ") and said.endswith(".") and "\n" not in said, said
    assert not (tmp_path / "exploded").exists()


def test_killed_at_any_moment_it_goes_on_from_a_whole_checkpoint(bach_data, tmp_path):
    """The second kill falls into a save. benchmarks/kills.py does it a hundred times."""
    folder, random = tmp_path / "run", np.random.default_rng(0)
    line = command(folder, "--data", bach_data, *SMALL, "--steps", 10**6, "--save_every", 2, "--keep", 2)
    reached = 0
    for kill in range(2):
        running = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(lambda done=reached: checkpoints(folder) and newest_step(folder) > done)
        if kill % 2:
            wait_for(lambda: list((folder / "checkpoints").glob(".step_*.partial")), every=0)
        time.sleep(random.uniform(0, 0.01 if kill % 2 else 0.5))
        running.send_signal(signal.SIGKILL)
        assert running.communicate()[1] == b""
        assert fault(find_checkpoint(folder)) is None and newest_step(folder) > reached
        reached = newest_step(folder)
    assert train(folder, "--steps", reached + 2).last_checkpoint.name == f"step_{reached + 2:08d}"


def newest_step(folder: Path) -> int:
    return read_progress(find_checkpoint(folder)).step


def wait_for(condition, seconds: float = 120, every: float = 0.05):
    """What `condition` returns when it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError("waited in vain")


def test_files_are_made_with_the_users_umask(unbroken):
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in unbroken[1].folder.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def test_a_checkpoint_needs_no_deepspeed(unbroken):
    script = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from rwkv_music.checkpoint.weights import load_model\n"
        f"print(load_model({str(unbroken[1].folder)!r})[3])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), cwd=PROJECT, capture_output=True)
    assert done.stdout.strip() == b"40", done.stderr.decode()
