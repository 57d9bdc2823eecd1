"""The doctor: what this machine has, what would fail, and what to do about it.

`python -m rwkv_music doctor` prints one line a check and ends with status 1 if training here would fail. A machine
without a GPU is healthy: it trains on the CPU.

Notable choices:
- Each check is a plain function of what it inspects, so that it can be asked about machines other than this one.
- The operator is not only found but tried, forward and backward, against its formula in float64; on a GPU that compiles
  the kernels, as the first training run would.
- torch, DeepSpeed and the rest are imported inside the checks: a missing one is a finding, not a traceback.
"""

from __future__ import annotations

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

from rwkv_music.errors import UserError
from rwkv_music.system import available_cores, available_memory

if TYPE_CHECKING:
    import torch

GIB = 2**30
SET_UP = "run `pip install -e '.[music]'` in the project's folder: it installs the versions that are tested"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
CORE = {"numpy": "batches", "mido": "reading and writing MIDI", "tensorboard": "curves", "tqdm": "progress bars"}
EXTRAS = {
    "miditok": "the remi tokenizer",
    "symusic": "the remi tokenizer",
    "music21": "the demo corpora",
    "matplotlib": "piano rolls",
}
CPU_TOLERANCE = 1e-5  # relative error of the operator in float32
CUDA_TOLERANCE = 5e-3  # in bfloat16


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at, a word or two.
        status: "ok"; "warn": training works, something else does not or will be slow; "fail": training would fail.
        detail: what was found.
        remedy: what to do about it; empty when ok.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device as torch sees it."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, {self.memory_bytes / GIB:.0f} GiB, compute capability {major}.{minor}"


def checks() -> Iterator[Check]:
    """Look this machine over: one Check at a time, as each is found."""
    yield check_python(sys.version_info[:3])
    try:
        import torch
    except Exception as error:  # a broken torch fails in as many ways as there are shared libraries
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


def main() -> int:
    """Print every check and a verdict; the exit status: 1 if training here would fail, else 0."""
    width = min(shutil.get_terminal_size().columns, 100)
    failed = 0
    for check in checks():
        print(layout(check, width, colour=sys.stdout.isatty()), flush=True)
        failed += check.status == "fail"
    print()
    if failed:
        print(f"Training would fail here: see the {'line' if failed == 1 else f'{failed} lines'} marked fail.")
    else:
        print("Training works here.")
    return int(failed > 0)


def layout(check: Check, width: int, colour: bool = False) -> str:
    """A check as text of at most `width` columns: status, name, detail, and the remedy on a line of its own."""
    indent = " " * 21
    first = f"{check.status:<6}{check.name:<15}"
    lines = textwrap.wrap(check.detail, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    if check.remedy:
        lines += textwrap.wrap(
            check.remedy, width, initial_indent=indent + "-> ", subsequent_indent=indent + "   ", break_on_hyphens=False
        )
    text = "\n".join(lines)
    if colour:
        code = {"ok": 32, "warn": 33, "fail": 31}[check.status]
        text = f"\033[{code}m{check.status}\033[0m" + text[len(check.status) :]
    return text


def check_python(version: tuple[int, ...]) -> Check:
    """Whether this Python is one that the project is tested on."""
    text = ".".join(map(str, version))
    oldest, newest = (".".join(map(str, v)) for v in (OLDEST_PYTHON, NEWEST_PYTHON))
    remedy = f"use Python {oldest} to {newest}"
    if version[:2] < OLDEST_PYTHON:
        return Check("python", "fail", f"{text} is too old", remedy)
    if version[:2] > NEWEST_PYTHON:
        return Check("python", "warn", f"{text} is newer than what is tested", remedy)
    return Check("python", "ok", text)


def find_gpus() -> list[Gpu]:
    """The CUDA devices that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(gpu.name, (gpu.major, gpu.minor), gpu.total_memory) for gpu in found]


def check_torch(version: str, cuda: str | None, n_gpus: int, driver_present: bool) -> Check:
    """Whether torch can use the GPU that is there.

    Args:
        version: torch's version.
        cuda: the CUDA that it was built with, None for a CPU build.
        n_gpus: GPUs that torch can use.
        driver_present: whether the system shows an NVIDIA device.
    """
    text = f"{version}, built for {'the CPU' if cuda is None else f'CUDA {cuda}'}"
    if driver_present and not n_gpus:
        remedy = "install a CUDA build of torch"
        if cuda is not None:
            remedy = f"check CUDA_VISIBLE_DEVICES, and with `nvidia-smi` that the driver supports CUDA {cuda}"
        return Check("torch", "warn", f"{text}: it does not use the NVIDIA GPU that is there", remedy)
    return Check("torch", "ok", text)


def check_gpus(gpus: list[Gpu]) -> Check:
    """Whether our kernels run on every GPU in view."""
    if not gpus:
        return Check("gpu", "ok", f"none: trains on the CPU, {available_cores()} cores")
    kinds = {gpu: gpus.count(gpu) for gpu in gpus}
    text = "; ".join(f"{count} x {gpu}" for gpu, count in kinds.items())
    if any(gpu.capability < (8, 0) for gpu in gpus):
        remedy = "the kernels need compute capability 8.0: hide older GPUs with CUDA_VISIBLE_DEVICES"
        return Check("gpu", "fail", text, remedy)
    return Check("gpu", "ok", text)


def check_cuda_toolkit(gpus: list[Gpu]) -> Check:
    """Whether nvcc can compile the kernels. A warning only: kernels compiled earlier run without it."""
    from rwkv_music.cuda.build import find_toolchain

    if not gpus:
        return Check("cuda toolkit", "ok", "not needed without a GPU")
    try:
        tools = find_toolchain()
    except UserError as error:
        return Check("cuda toolkit", "warn", *_split(error))
    return Check("cuda toolkit", "ok", f"nvcc {tools.nvcc_version} at {tools.nvcc}")


def check_program(name: str, programs: Iterable[str], remedy: str, gpus: list[Gpu], path: str | None = None) -> Check:
    """Whether one of `programs` is on `path` (the PATH when None, and beside this Python).

    They compile: our kernels on a GPU, and on a CPU the optimizer that DeepSpeed's offload uses.
    """
    if path is None:
        path = os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)])
    found = next(filter(None, (shutil.which(program, path=path) for program in programs)), None)
    if found:
        return Check(name, "ok", found)
    needed = "the CUDA kernels are compiled with it" if gpus else "only DeepSpeed's offload needs it here"
    return Check(name, "warn", f"not found; {needed}", remedy)


def check_deepspeed(gpus: list[Gpu]) -> Check:
    """Whether DeepSpeed can be imported, and picks the device that torch has."""
    logging.disable(logging.WARNING)  # it announces the accelerator it picks, which is this check's own news
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        accelerator = get_accelerator().device_name()
    except Exception as error:
        if "DS_ACCELERATOR" in os.environ:
            return Check("deepspeed", "fail", f"fails: {_first_line(error)}", "unset DS_ACCELERATOR")
        return Check("deepspeed", "fail", f"cannot be imported ({_first_line(error)})", SET_UP)
    finally:
        logging.disable(logging.NOTSET)
    return judge_accelerator(deepspeed.__version__, accelerator, gpus)


def judge_accelerator(version: str, accelerator: str, gpus: list[Gpu]) -> Check:
    """Whether DeepSpeed's accelerator ("cpu", "cuda", ...) is the one that this machine trains on."""
    text = f"{version}, accelerator {accelerator}"
    expected = "cuda" if gpus else "cpu"
    if accelerator == expected:
        return Check("deepspeed", "ok", text)
    if accelerator == "cpu":
        return Check("deepspeed", "warn", f"{text}, though there is a GPU", "unset DS_ACCELERATOR to train on the GPU")
    remedy = f"export DS_ACCELERATOR={expected}"
    return Check("deepspeed", "fail", f"{text}, but this machine trains on {expected}", remedy)


def check_extensions() -> Check:
    """Whether an extension, such as DeepSpeed's optimizer for offload, is locked, so that who loads it would hang."""
    from rwkv_music.cuda.extension_locks import extensions_folder, find_locks

    try:
        folder = extensions_folder()
    except UserError as error:
        return Check("extensions", "warn", *_split(error))
    locks = find_locks(folder)
    if not locks:
        return Check("extensions", "ok", f"none is locked in {folder}")
    abandoned = [lock for lock in locks if lock.abandoned]
    files = " and ".join(str(lock.path) for lock in abandoned or locks)
    text = "; ".join(map(str, locks))
    if abandoned:
        text = f"a compilation that was cut short left its lock, which hangs every start that needs it ({text})"
        return Check("extensions", "warn", text, f"remove {files}")
    text = f"a compilation is running, or was cut short ({text})"
    return Check("extensions", "warn", text, f"if none is running, remove {files}")


def check_collectives(gloo: bool, nccl: bool, gpus: list[Gpu]) -> Check:
    """Whether processes can talk: over NCCL between GPUs, gloo between CPUs. DeepSpeed sets it up even for one."""
    present = [name for name, here in (("gloo", gloo), ("nccl", nccl)) if here]
    text = f"{' and '.join(present) or 'neither gloo nor nccl'} between processes"
    wanted = "nccl" if gpus else "gloo"
    if wanted not in present:
        return Check("processes", "fail", text, f"DeepSpeed needs {wanted} here: install a torch that is built with it")
    return Check("processes", "ok", text)


def check_packages(name: str, packages: dict[str, str], missing_is: Literal["warn", "fail"]) -> Check:
    """Whether `packages` (a distribution and what it is for) are installed; nothing is imported."""
    versions, missing = [], []
    for package in packages:
        try:
            versions.append(f"{package}=={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if not missing:
        return Check(name, "ok", ", ".join(versions))
    lost = ", ".join(f"{package} ({packages[package]})" for package in missing)
    return Check(name, missing_is, f"missing: {lost}", SET_UP)


def check_room(name: str, free_bytes: int, where: str, fail_gib: float, warn_gib: float) -> Check:
    """Whether there is enough of the disk or the memory: below `fail_gib` even a small run fails."""
    text = f"{free_bytes / GIB:,.1f} GiB {where}"
    if free_bytes < fail_gib * GIB:
        return Check(name, "fail", text, f"free some: even a small run needs {fail_gib} GiB")
    if free_bytes < warn_gib * GIB:
        return Check(name, "warn", text, f"free some: runs beyond the smallest presets need {warn_gib} GiB and more")
    return Check(name, "ok", text)


def check_operator(name: str, device: str, dtype: torch.dtype, tolerance: float) -> Check:
    """Whether wkv7s on `device` agrees with its formula, forward and backward."""
    from rwkv_music.ops.wkv7s import wkv7s

    try:
        error = operator_error(wkv7s, device, dtype)
    except UserError as told:
        return Check(name, "fail", *_split(told))
    return judge_error(name, error, tolerance)


def judge_error(name: str, error: float, tolerance: float) -> Check:
    """Whether an operator's relative error is one that rounding explains."""
    if error <= tolerance:  # false for NaN too
        return Check(name, "ok", f"agrees with float64: relative error {error:.1e}, {tolerance:.0e} allowed")
    return Check(
        name,
        "fail",
        f"disagrees with float64: relative error {error:.1e}, {tolerance:.0e} allowed",
        "do not train here; reinstall torch and rwkv-music, and if it stays report it with this line",
    )


def operator_error(operator: Callable, device: str, dtype: torch.dtype) -> float:
    """How far `operator`, a wkv7s, is from its formula in float64.

    The largest relative error over y, the final state and the seven gradients, on two rows of 40 tokens and two heads
    of 64: long enough to cross the edges of chunks of 16 and 32.
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

    def outcome(operator: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        y, state = operator(*leaves)
        weighed = (y * cotangent.to(y)).sum() + state.sum()
        return [x.detach().double().cpu() for x in (y, state, *torch.autograd.grad(weighed, leaves))]

    found = outcome(operator, [x.to(device) for x in rounded])
    expected = outcome(_wkv7s_by_the_formula, [x.double() for x in rounded])
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


def _wkv7s_by_the_formula(r, w, k, v, a, b, state):
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
    """The check, or the failure that it ran into."""
    try:
        return check()
    except Exception as error:  # whatever is broken here, the other checks are still worth seeing
        return Check(name, "fail", f"{type(error).__name__}: {_first_line(error)}", SET_UP)


def _split(error: UserError) -> tuple[str, str]:
    """The two halves of a UserError's sentence: what is wrong, and what to do."""
    detail, _, remedy = str(error).rpartition(": ")
    return (detail, remedy) if detail else (remedy, "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
