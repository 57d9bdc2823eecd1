"""Tests of the CUDA kernels' build: architectures, concurrent processes, interrupted builds, and error messages.

No test needs a GPU. The first test compiles the sources with nvcc. The others use a fake nvcc, a fast script that logs
its calls.
"""

import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rwkv_music.cuda import build
from rwkv_music.errors import UserError

# The oldest, Hopper, and the newest. The sources differ below 9.0 only, so Hopper and the newest share their PTX code.
ARCHITECTURES = {"80": "sm_80", "90": "[sm_90,sm_120]"}
KERNELS = sorted(build.SOURCES.glob("*.cu"))

FAKE_NVCC = """#!/bin/bash
release=${FAKE_RELEASE:-13.0}
case "$1" in
    --version) echo "Cuda compilation tools, release $release, V$release.${FAKE_PATCH:-1}"; exit ;;
    --list-gpu-arch) echo compute_80 compute_90; exit ;;
esac
echo call >> "$FAKE_LOG"
if [ -n "$FAKE_ERROR" ]; then echo "kernel.cu(3): error: $FAKE_ERROR"; exit 1; fi
sleep "${FAKE_SLEEP:-0}"
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then touch "$2"; fi; shift; done
"""

FORK = multiprocessing.get_context("fork")  # a new interpreter would import torch again, which takes seconds


def build_in_group(queue: multiprocessing.SimpleQueue) -> None:
    """Build in a process group of its own, so that a test can kill the compiler too."""
    os.setsid()
    queue.put(build.build(["80"]))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_every_kernel_compiles_for_old_and_new_architectures(tmp_path, pytestconfig):
    """Skip sources that compiled before and have not changed since: all of them take half a minute."""
    command = ["nvcc", *build.FLAGS, "-Werror=all-warnings"]
    command += [f"-gencode=arch=compute_{virtual},code={codes}" for virtual, codes in ARCHITECTURES.items()]
    compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    headers = [path.read_text() for path in sorted(build.SOURCES.glob("*.cuh"))]
    cache = getattr(pytestconfig, "cache", None)

    def compile_one(source: Path) -> str:
        """Return the compiler's output if it fails, otherwise an empty string."""
        inputs = "\0".join([*command, compiler, *headers, source.read_text()])
        key, digest = f"cuda/{source.name}", hashlib.sha256(inputs.encode()).hexdigest()
        if cache and cache.get(key, None) == digest:
            return ""
        product = ["-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        made = subprocess.run([*command, *product], capture_output=True, text=True)
        if made.returncode != 0:
            return made.stdout + made.stderr
        if cache:
            cache.set(key, digest)
        return ""

    assert KERNELS
    with ThreadPoolExecutor(2) as pool:
        for source, error in zip(KERNELS, pool.map(compile_one, KERNELS), strict=True):
            assert not error, f"{source.name}:\n{error}"


def test_kernels_include_no_torch_header():
    for source in [*KERNELS, *build.SOURCES.glob("*.cuh")]:
        includes = [line for line in source.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if any(word in line for word in ("torch", "ATen", "c10"))], source.name


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Set up the fake nvcc and an empty extension cache; return the log of the fake's calls."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return tmp_path / "calls"


CALLS_PER_BUILD = len(KERNELS) + len(list(build.SOURCES.glob("*.cpp"))) + 1  # the last one links


def calls(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_concurrent_processes_build_once(fake, monkeypatch):
    monkeypatch.setenv("FAKE_SLEEP", "0.05")
    queue = FORK.SimpleQueue()
    processes = [FORK.Process(target=build_in_group, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    libraries = {queue.get() for _ in processes}
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(libraries) == 1 and libraries.pop().is_file()
    assert calls(fake) == CALLS_PER_BUILD


def test_existing_library_needs_no_nvcc(fake, monkeypatch):
    library = build.build(["80"])
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert build.build(["80"]) == library
    assert calls(fake) == CALLS_PER_BUILD


@pytest.mark.parametrize("name, value", [("FAKE_RELEASE", "13.1"), ("FAKE_PATCH", "2")])
def test_other_nvcc_version_builds_another_library(name, value, fake, monkeypatch):
    first = build.build(["80"])
    monkeypatch.setenv(name, value)
    assert build.build(["80"]) != first
    assert calls(fake) == 2 * CALLS_PER_BUILD


def test_build_after_a_killed_build(fake, monkeypatch):
    monkeypatch.setenv("FAKE_SLEEP", "30")
    process = FORK.Process(target=build_in_group, args=(FORK.SimpleQueue(),))
    process.start()
    while not calls(fake):
        assert process.is_alive()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setenv("FAKE_SLEEP", "0")
    library = build.build(["80"])
    assert library.is_file()
    assert sorted(path.name for path in library.parent.parent.iterdir()) == sorted(["lock", library.parent.name])


def test_other_flags_or_torch_version_build_another_library(fake, monkeypatch):
    first = build.build(["80"])
    assert build.build(["90a"]) != first
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert build.build(["80"]) != first


def test_arch_list_variable_is_neither_used_nor_changed(fake, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "5.0")
    library = build.build(["80"])
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "5.0"
    assert "arch=compute_80,code=sm_80" in (library.parent / "build.ninja").read_text()


def test_failed_compilation_reports_error_and_log_and_leaves_no_library(fake, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "expected a ;")
    with pytest.raises(UserError, match=r"error: expected a ;.*\.log") as raised:
        build.build(["80"])
    log = Path(re.search(r"\S+\.log", str(raised.value))[0])
    assert "expected a ;" in log.read_text()
    monkeypatch.delenv("FAKE_ERROR")
    assert build.build(["80"]).is_file()


def test_nvcc_too_old_for_gpu(fake):
    with pytest.raises(UserError, match="sm_120.* newer CUDA toolkit"):
        build.build(["120"])


def test_nvcc_of_other_major_version(fake, monkeypatch):
    monkeypatch.setenv("FAKE_RELEASE", "12.4")
    with pytest.raises(UserError, match="12.4.*13.0.*CUDA_HOME"):
        build.find_toolchain()


def test_no_nvcc(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build, "TOOLKIT", "/nowhere")
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH"):
        monkeypatch.setenv(name, "/nowhere")
    with pytest.raises(UserError, match="nvcc.*not found.*CUDA 13.0 toolkit"):
        build.find_toolchain()


def test_no_host_compiler(fake, monkeypatch):
    # `env` and `bash` must stay on the PATH for the fake nvcc, compilers must not.
    tools = fake.parent / "bin"
    tools.mkdir()
    for name in ("bash", "env"):
        os.symlink(shutil.which(name), tools / name)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="C\\+\\+ compiler.*CXX"):
        build.find_toolchain()


def test_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="without CUDA"):
        build.architectures()


def test_gpu_too_old(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match=r"GPU 0 \(Tesla T4\).*7\.5.*8\.0"):
        build.architectures()


def test_architecture_of_hopper_has_suffix():
    assert [build.architecture(*capability) for capability in ((8, 6), (9, 0), (12, 0))] == ["86", "90a", "120"]
