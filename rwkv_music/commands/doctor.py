"""`doctor`: check a machine's hardware and software before training. Each problem is printed with a remedy.

A machine without a GPU passes, because it can train on the CPU. Most checks receive facts about the machine, such as
its GPUs, as arguments, so tests can run them for other machines. torch and DeepSpeed are imported inside the checks, so
that a missing or broken installation is reported like any other problem.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rwkv_music.commands import common
from rwkv_music.errors import UserError, plural
from rwkv_music.system import available_cores, available_memory

if TYPE_CHECKING:
    import torch

GIB = 2**30
SET_UP = "run `pip install -e '.[music]'` in the project's folder to install the tested versions"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
CORE = {"numpy": "batches", "mido": "reading and writing MIDI", "tensorboard": "curves", "tqdm": "progress bars"}
EXTRAS = {
    "music21": "scores and music21's corpora",
    "matplotlib": "piano rolls",
}
CPU_TOLERANCE = 1e-5  # relative error in float32
CUDA_TOLERANCE = 5e-3  # in bfloat16


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str  # what was checked, one or two words
    status: Literal["ok", "warn", "fail"]  # "warn": training works, but something else fails or is slow
    detail: str
    remedy: str = ""  # empty if ok


@dataclass(frozen=True)
class Gpu:
    """A CUDA device as reported by torch."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, {self.memory_bytes / GIB:.0f} GiB, compute capability {major}.{minor}"


def checks() -> Iterator[Check]:
    """Run all checks on this machine, yielding each result as it is found."""
    yield check_python(sys.version_info[:3])
    try:
        import torch
    except Exception as error:  # a broken shared library may raise anything
        yield Check("torch", "fail", f"cannot be imported ({_first_line(error)})", SET_UP)
        return
    gpus = find_gpus()
    yield check_torch(torch.__version__, torch.version.cuda, len(gpus), Path("/dev/nvidia0").exists())
    yield check_gpus(gpus)
    yield _guarded("cuda toolkit", lambda: check_cuda_toolkit(gpus))
    yield check_program("compiler", ("c++", "g++", "clang++"), "apt install g++", gpus)
    yield check_program("ninja", ("ninja",), "pip install ninja", gpus)
    yield _guarded("deepspeed", lambda: check_deepspeed(gpus))
    yield _guarded("extensions", check_extensions)
    distributed = torch.distributed.is_available()
    gloo = distributed and torch.distributed.is_gloo_available()
    yield check_collectives(gloo, distributed and torch.distributed.is_nccl_available(), gpus)
    yield check_packages("libraries", CORE, "fail")
    yield check_packages("extras", EXTRAS, "warn")
    yield check_room("disk", shutil.disk_usage(".").free, f"free in {Path.cwd()}", fail_gib=1, warn_gib=10)
    yield check_room("memory", available_memory(), "available", fail_gib=1, warn_gib=4)
    yield _guarded("cpu operator", lambda: check_operator("cpu operator", "cpu", torch.float32, CPU_TOLERANCE))
    if gpus:
        yield _guarded("cuda kernels", lambda: check_operator("cuda kernels", "cuda", torch.bfloat16, CUDA_TOLERANCE))


def add(commands) -> None:
    command = common.add_command(commands, "doctor", "check this machine's hardware and software for training")
    command.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Print every check and a summary. Return the exit status: 1 if training would fail, else 0."""
    width = min(shutil.get_terminal_size().columns, 100)
    failed = 0
    for check in checks():
        print(layout(check, width, color=sys.stdout.isatty()), flush=True)
        failed += check.status == "fail"
    print()
    if failed:
        print(f"Training would fail on this machine: {plural(failed, 'check')} failed.")
    else:
        print("Training works on this machine.")
    return int(failed > 0)


def layout(check: Check, width: int, color: bool = False) -> str:
    """Format a check in lines of at most `width` columns: status, name and detail, then the remedy."""
    indent = " " * 21
    first = f"{check.status:<6}{check.name:<15}"
    lines = textwrap.wrap(check.detail, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    if check.remedy:
        lines += textwrap.wrap(
            check.remedy, width, initial_indent=indent + "-> ", subsequent_indent=indent + "   ", break_on_hyphens=False
        )
    text = "\n".join(lines)
    if color:
        code = {"ok": 32, "warn": 33, "fail": 31}[check.status]
        text = f"\033[{code}m{check.status}\033[0m" + text[len(check.status) :]
    return text


def check_python(version: tuple[int, ...]) -> Check:
    """Check the Python version against the tested range."""
    text = ".".join(map(str, version))
    oldest, newest = (".".join(map(str, v)) for v in (OLDEST_PYTHON, NEWEST_PYTHON))
    remedy = f"use Python {oldest} to {newest}"
    if version[:2] < OLDEST_PYTHON:
        return Check("python", "fail", f"{text} is too old", remedy)
    if version[:2] > NEWEST_PYTHON:
        return Check("python", "warn", f"{text} is newer than the tested versions", remedy)
    return Check("python", "ok", text)


def find_gpus() -> list[Gpu]:
    """Return the CUDA devices that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(gpu.name, (gpu.major, gpu.minor), gpu.total_memory) for gpu in found]


def check_torch(version: str, cuda: str | None, n_gpus: int, driver_present: bool) -> Check:
    """Check that torch can use the NVIDIA GPU, if there is one. `cuda` is torch's CUDA version; None: a CPU build."""
    text = f"{version}, built for {'the CPU' if cuda is None else f'CUDA {cuda}'}"
    if driver_present and not n_gpus:
        remedy = "install a CUDA build of torch"
        if cuda is not None:
            remedy = f"check CUDA_VISIBLE_DEVICES, and check with `nvidia-smi` that the driver supports CUDA {cuda}"
        return Check("torch", "warn", f"{text}: it cannot use this machine's NVIDIA GPU", remedy)
    return Check("torch", "ok", text)


def check_gpus(gpus: list[Gpu]) -> Check:
    """Check that the kernels run on every visible GPU."""
    if not gpus:
        return Check("gpu", "ok", f"none: training runs on the CPU, {plural(available_cores(), 'core')}")
    kinds = {gpu: gpus.count(gpu) for gpu in gpus}
    text = "; ".join(f"{count} x {gpu}" for gpu, count in kinds.items())
    if any(gpu.capability < (8, 0) for gpu in gpus):
        remedy = "the kernels need compute capability 8.0 or higher: hide older GPUs with CUDA_VISIBLE_DEVICES"
        return Check("gpu", "fail", text, remedy)
    return Check("gpu", "ok", text)


def check_cuda_toolkit(gpus: list[Gpu]) -> Check:
    """Check that nvcc can compile the kernels. A failure is a warning: kernels compiled earlier run without nvcc."""
    from rwkv_music.cuda.build import find_toolchain

    if not gpus:
        return Check("cuda toolkit", "ok", "not needed without a GPU")
    try:
        tools = find_toolchain()
    except UserError as error:
        return Check("cuda toolkit", "warn", *_split(error))
    return Check("cuda toolkit", "ok", f"nvcc {tools.nvcc_version} at {tools.nvcc}")


def check_program(name: str, programs: Iterable[str], remedy: str, gpus: list[Gpu], path: str | None = None) -> Check:
    """Check that one of `programs` is installed. They are needed to compile extensions.

    `path` lists the folders to search (default: PATH and this Python's folder).
    """
    if path is None:
        path = os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)])
    found = next(filter(None, (shutil.which(program, path=path) for program in programs)), None)
    if found:
        return Check(name, "ok", found)
    needed = "it compiles the CUDA kernels" if gpus else "needed only for DeepSpeed's offload"
    if name == "compiler" and not gpus:
        needed += " and for faster generation on a CPU"
    return Check(name, "warn", f"not found; {needed}", remedy)


def check_deepspeed(gpus: list[Gpu]) -> Check:
    """Check that DeepSpeed can be imported and selects the right accelerator."""
    logging.disable(logging.WARNING)  # because DeepSpeed logs the accelerator, which this check already prints
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        from rwkv_music.training.deepspeed_engine.engine import fast_mismatch

        accelerator, untested = get_accelerator().device_name(), fast_mismatch("auto")
    except Exception as error:
        if "DS_ACCELERATOR" in os.environ:
            return Check("deepspeed", "fail", f"fails: {_first_line(error)}", "unset DS_ACCELERATOR")
        return Check("deepspeed", "fail", f"cannot be imported ({_first_line(error)})", SET_UP)
    finally:
        logging.disable(logging.NOTSET)
    return judge_deepspeed(deepspeed.__version__, accelerator, gpus, untested)


def judge_deepspeed(version: str, accelerator: str, gpus: list[Gpu], untested: str | None) -> Check:
    """Check that DeepSpeed's accelerator ("cpu", "cuda", ...) is the device that training would use.

    `untested` describes how the installed DeepSpeed differs from the tested one, as part of a sentence. It is None if
    they do not differ.
    """
    text = f"{version}, accelerator {accelerator}"
    expected = "cuda" if gpus else "cpu"
    if accelerator == expected and untested:
        return Check("deepspeed", "warn", f"{text}; {untested}, so training does not use its faster code paths", SET_UP)
    if accelerator == expected:
        return Check("deepspeed", "ok", text)
    if accelerator == "cpu":
        return Check("deepspeed", "warn", f"{text}, but there is a GPU", "unset DS_ACCELERATOR to train on the GPU")
    remedy = f"export DS_ACCELERATOR={expected}"
    return Check("deepspeed", "fail", f"{text}, but training here needs {expected}", remedy)


def check_extensions() -> Check:
    """Check torch's compiled extensions, such as DeepSpeed's CPU optimizer, for lock files.

    Loading a locked extension waits until the lock file is gone.
    """
    from rwkv_music.cuda.extension_locks import extensions_folder, find_locks

    try:
        folder = extensions_folder()
    except UserError as error:
        return Check("extensions", "warn", *_split(error))
    locks = find_locks(folder)
    if not locks:
        return Check("extensions", "ok", f"no locks in {folder}")
    abandoned = [lock for lock in locks if lock.abandoned]
    files = " and ".join(str(lock.path) for lock in abandoned or locks)
    text = "; ".join(map(str, locks))
    if abandoned:
        text = f"an interrupted build left a lock file, which can make training hang ({text})"
        return Check("extensions", "warn", text, f"remove {files}")
    text = f"a build is running or was interrupted ({text})"
    return Check("extensions", "warn", text, f"if no build is running, remove {files}")


def check_collectives(gloo: bool, nccl: bool, gpus: list[Gpu]) -> Check:
    """Check torch's collectives: NCCL for GPUs, gloo for CPUs. DeepSpeed needs them even for one process."""
    present = [name for name, found in (("gloo", gloo), ("nccl", nccl)) if found]
    text, needed = " and ".join(present) or "neither gloo nor nccl", "nccl" if gpus else "gloo"
    if needed not in present:
        return Check("collectives", "fail", text, f"install a build of torch with {needed}, which DeepSpeed needs here")
    return Check("collectives", "ok", text)


def check_packages(name: str, packages: dict[str, str], missing_is: Literal["warn", "fail"]) -> Check:
    """Check, without importing them, that all `packages` are installed.

    `packages` maps the name of each distribution to what it is used for. `missing_is` is the status if one is missing.
    """
    versions, missing = [], []
    for package in packages:
        try:
            versions.append(f"{package}=={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if not missing:
        return Check(name, "ok", ", ".join(versions))
    names = ", ".join(f"{package} ({packages[package]})" for package in missing)
    return Check(name, missing_is, f"missing: {names}", SET_UP)


def check_room(name: str, free_bytes: int, where: str, fail_gib: float, warn_gib: float) -> Check:
    """Check the free space on disk or in memory. Below `fail_gib`, even a small run fails."""
    text = f"{free_bytes / GIB:,.1f} GiB {where}"
    if free_bytes < fail_gib * GIB:
        return Check(name, "fail", text, f"free some: even a small run needs {fail_gib} GiB")
    if free_bytes < warn_gib * GIB:
        return Check(name, "warn", text, f"free some: all but the smallest models need {warn_gib} GiB or more")
    return Check(name, "ok", text)


def check_operator(name: str, device: str, dtype: torch.dtype, tolerance: float) -> Check:
    """Check wkv7s on `device` against its formula, forward and backward. On a GPU this compiles the kernels."""
    from rwkv_music.ops.wkv7s import wkv7s

    try:
        error = operator_error(wkv7s, device, dtype)
    except UserError as problem:
        return Check(name, "fail", *_split(problem))
    return judge_error(name, error, tolerance)


def judge_error(name: str, error: float, tolerance: float) -> Check:
    """Check an operator's relative error against the rounding tolerance."""
    text = f"relative error {error:.1e} against float64, tolerance {tolerance:.0e}"
    if error <= tolerance:  # false for NaN too
        return Check(name, "ok", text)
    return Check(name, "fail", text, "reinstall torch and rwkv-music; if the error persists, report it with this line")


def operator_error(operator: Callable, device: str, dtype: torch.dtype) -> float:
    """Return the largest relative error of `operator`, an implementation of wkv7s, against the formula in float64.

    The maximum is taken over y, the final state and the seven gradients. The inputs have 40 tokens: a chunk of 32
    tokens and part of a second one.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (2, 40, 2, 64)  # B, T, H, N
    r, w, k, v, kk, gate = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(6))
    kk = torch.nn.functional.normalize(kk, dim=-1)
    rounded = [x.to(dtype) for x in (r, w, k, v, -kk, kk * gate.sigmoid())]
    state_dtype = torch.promote_types(dtype, torch.float32)
    rounded.append(0.1 * torch.randn(2, 2, 64, 64, generator=generator, dtype=state_dtype))
    cotangent = torch.randn(shape, generator=generator).to(dtype)

    def results(operator: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        y, state = operator(*leaves)
        loss = (y * cotangent.to(y)).sum() + state.sum()
        return [x.detach().double().cpu() for x in (y, state, *torch.autograd.grad(loss, leaves))]

    found = results(operator, [x.to(device) for x in rounded])
    expected = results(_wkv7s_reference, [x.double() for x in rounded])
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


def _wkv7s_reference(r, w, k, v, a, b, state):
    import torch

    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
    ys = []
    for t in range(r.shape[1]):
        removed = torch.einsum("bhij,bhj->bhi", state, a[:, t])
        written = torch.einsum("bhi,bhj->bhij", removed, b[:, t]) + torch.einsum("bhi,bhj->bhij", v[:, t], k[:, t])
        state = state * decay[:, t, :, None, :] + written
        ys.append(torch.einsum("bhij,bhj->bhi", state, r[:, t]))
    return torch.stack(ys, dim=1), state


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Run `check`, and convert any exception to a failed check."""
    try:
        return check()
    except Exception as error:  # the remaining checks must run whatever is broken here
        return Check(name, "fail", f"{type(error).__name__}: {_first_line(error)}", SET_UP)


def _split(error: UserError) -> tuple[str, str]:
    """Split a UserError's sentence into problem and remedy."""
    detail, _, remedy = str(error).rpartition(": ")
    return (detail, remedy) if detail else (remedy, "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
