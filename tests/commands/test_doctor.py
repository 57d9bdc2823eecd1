"""The command `doctor`: every check on good and bad machines, the output, and the exit status."""

import os
import subprocess
import sys
import time

import pytest
import torch

from rwkv_music.commands import doctor
from rwkv_music.commands.doctor import GIB, Check, Gpu
from rwkv_music.ops.wkv7s import wkv7s

H200 = Gpu("NVIDIA H200", (9, 0), 140 * GIB)
TURING = Gpu("Tesla T4", (7, 5), 15 * GIB)


def test_this_machine_passes_quickly():
    start = time.perf_counter()
    found = list(doctor.checks())
    assert time.perf_counter() - start < 20  # under 6 s on two quiet cores
    assert [check for check in found if check.status == "fail"] == []
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "gpu", "deepspeed", "compiler", "disk", "cpu operator"} <= set(names)
    assert all(bool(check.remedy) == (check.status != "ok") for check in found)


@pytest.mark.parametrize(
    "version, status", [((3, 9, 18), "fail"), ((3, 10, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warn")]
)
def test_python(version, status):
    assert doctor.check_python(version).status == status


def test_torch():
    assert doctor.check_torch("2.13.0+cpu", None, 0, driver_present=False).status == "ok"
    assert doctor.check_torch("2.13.0+cu130", "13.0", 8, driver_present=True).status == "ok"
    cpu_build = doctor.check_torch("2.13.0+cpu", None, 0, driver_present=True)
    assert cpu_build.status == "warn" and "CUDA build" in cpu_build.remedy
    hidden = doctor.check_torch("2.13.0+cu130", "13.0", 0, driver_present=True)
    assert hidden.status == "warn" and "CUDA_VISIBLE_DEVICES" in hidden.remedy


def test_gpus():
    assert doctor.check_gpus([]).status == "ok" and "CPU" in doctor.check_gpus([]).detail
    two = doctor.check_gpus([H200, H200])
    assert two.status == "ok" and two.detail == "2 x NVIDIA H200, 140 GiB, compute capability 9.0"
    mixed = doctor.check_gpus([H200, TURING])
    assert mixed.status == "fail" and "7.5" in mixed.detail and "CUDA_VISIBLE_DEVICES" in mixed.remedy


def test_programs(tmp_path):
    missing = doctor.check_program("ninja", ["ninja"], "pip install ninja", [H200], path=str(tmp_path))
    assert missing == Check("ninja", "warn", "not found; it compiles the CUDA kernels", "pip install ninja")
    (tmp_path / "ninja").touch(mode=0o755)
    found = doctor.check_program("ninja", ["ninja"], "pip install ninja", [], path=str(tmp_path))
    assert found.status == "ok" and found.detail == str(tmp_path / "ninja")


def test_cuda_toolkit_is_checked_only_with_a_gpu(monkeypatch):
    assert doctor.check_cuda_toolkit([]).status == "ok"
    monkeypatch.setattr(torch.version, "cuda", "99.0")  # no nvcc has this version
    check = doctor.check_cuda_toolkit([H200])
    assert check.status == "warn" and "nvcc" in check.detail and "CUDA_HOME" in check.remedy


@pytest.mark.parametrize(
    "accelerator, gpus, status",
    [("cpu", [], "ok"), ("cuda", [H200], "ok"), ("cpu", [H200], "warn"), ("cuda", [], "fail"), ("xpu", [], "fail")],
)
def test_accelerator(accelerator, gpus, status):
    assert doctor.judge_deepspeed("0.19.8", accelerator, gpus, None).status == status


def test_another_deepspeed_is_reported(monkeypatch):
    assert doctor.check_deepspeed([]).status == "ok"
    monkeypatch.setattr("deepspeed.__version__", "0.99.0")
    check = doctor.check_deepspeed([])
    assert check.status == "warn" and "0.99.0 is not the tested version" in check.detail


def test_build_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert doctor.check_extensions().status == "ok"
    file = tmp_path / "cpu_adam" / "lock"
    file.parent.mkdir()
    file.touch()
    young = doctor.check_extensions()
    assert young.status == "warn" and "is running" in young.detail and young.remedy.startswith("if no build is running")
    os.utime(file, (time.time() - 3600,) * 2)
    old = doctor.check_extensions()
    assert old.status == "warn" and "interrupted" in old.detail and "cpu_adam, locked for 60 min" in old.detail
    assert old.remedy == f"remove {file}"


def test_an_extensions_folder_that_cannot_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "folder"))
    check = doctor.check_extensions()
    assert check.status == "warn" and str(tmp_path / "file") in check.detail and check.remedy


def test_collectives():
    assert doctor.check_collectives(True, False, []).status == "ok"
    assert doctor.check_collectives(True, True, [H200]).status == "ok"
    assert doctor.check_collectives(True, False, [H200]).status == "fail"
    assert doctor.check_collectives(False, False, []).status == "fail"


def test_missing_packages_are_named_with_their_purpose():
    assert doctor.check_packages("libraries", {"numpy": "batches"}, "fail").status == "ok"
    check = doctor.check_packages("extras", {"numpy": "batches", "no-such-package": "dreams"}, "warn")
    assert (
        check.status == "warn" and check.detail == "missing: no-such-package (dreams)" and "pip install" in check.remedy
    )


@pytest.mark.parametrize("gib, status", [(0.5, "fail"), (3, "warn"), (50, "ok")])
def test_room(gib, status):
    assert doctor.check_room("disk", int(gib * GIB), "free", fail_gib=1, warn_gib=10).status == status


def test_the_operator_passes_and_a_wrong_one_fails():
    assert doctor.operator_error(wkv7s, "cpu", torch.float64) < 1e-12
    assert doctor.operator_error(wkv7s, "cpu", torch.bfloat16) < doctor.CUDA_TOLERANCE

    def slightly_wrong(r, w, k, v, a, b, state):
        return wkv7s(r, w + 1e-2, k, v, a, b, state)

    error = doctor.operator_error(slightly_wrong, "cpu", torch.float32)
    assert error > 10 * doctor.CPU_TOLERANCE
    assert doctor.judge_error("cpu operator", error, doctor.CPU_TOLERANCE).status == "fail"
    assert doctor.judge_error("cpu operator", float("nan"), doctor.CPU_TOLERANCE).status == "fail"
    assert doctor.judge_error("cpu operator", 1e-7, doctor.CPU_TOLERANCE).status == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_error_splits_into_problem_and_remedy():
    from rwkv_music.cuda.build import load
    from rwkv_music.errors import UserError

    with pytest.raises(UserError) as caught:
        load()
    detail, remedy = doctor._split(caught.value)
    assert detail and remedy and f"{detail}: {remedy}" == str(caught.value)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_line_fits_the_terminal(width):
    long = Check("cuda toolkit", "warn", "a detail that goes on " * 8, "a remedy that goes on as well " * 5)
    lines = doctor.layout(long, width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("warn  cuda toolkit")
    assert {line[:20].strip() for line in lines[1:]} == {""}
    assert sum("-> " in line for line in lines) == 1
    plain = doctor.layout(long, width)
    assert doctor.layout(long, width, color=True).replace("\033[33m", "").replace("\033[0m", "") == plain


def test_an_exception_is_a_failed_check():
    def broken() -> Check:
        raise ImportError("libcudart.so.13: cannot open shared object file\nsecond line")

    check = doctor._guarded("deepspeed", broken)
    assert check.status == "fail" and check.detail == "ImportError: libcudart.so.13: cannot open shared object file"


def test_exit_status_is_1_when_training_would_fail():
    """DS_ACCELERATOR selects an accelerator that does not exist here."""
    command = [sys.executable, "-m", "rwkv_music", "doctor"]
    done = subprocess.run(
        command, env={**os.environ, "DS_ACCELERATOR": "npu"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("fail")][0].startswith("fail  deepspeed")
    assert "unset DS_ACCELERATOR" in done.stdout and "Training would fail" in done.stdout
