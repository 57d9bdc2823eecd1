"""Compile the CUDA kernels on first use, and load them as torch operators.

Notable choices:
- The library is stored in torch's extension cache (TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions). The name of its
  folder contains the version of nvcc and a hash of the sources, the flags and the versions of torch and CUDA. If any of
  these changes, a new library is built. Without a usable toolchain, the newest library with the same hash is used,
  whichever version of nvcc built it.
- The kernels are compiled for the architectures of the visible GPUs. TORCH_CUDA_ARCH_LIST is ignored.
- If several processes start at once, one process builds the library under a file lock, and the others wait. The
  operating system releases the lock when the process ends, and a library gets its final name only when it is complete.
  An interrupted build therefore can neither block nor break the next one.
- nvcc also compiles and links the C++ bindings. They therefore use the headers and libraries of its toolkit, wherever
  the toolkit is installed. No Python headers are needed.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_folder

SOURCES = Path(__file__).parent
LIBRARY = "librwkv_music_cuda.so"
TOOLKIT = "/usr/local/cuda"  # where NVIDIA's installers put the toolkit by default, often without adding it to PATH
FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fPIC"]
OLDEST_CAPABILITY = (8, 0)  # the first with bf16 tensor cores and asynchronous copies


@functools.cache
def load():
    """Return torch.ops.rwkv_music_cuda, the operators defined in *_bindings.cpp. Build them first if necessary.

    Raises UserError if there is no usable GPU or compiler, or if the compilation fails.
    """
    torch.ops.load_library(build(architectures()))
    return torch.ops.rwkv_music_cuda


def architectures() -> list[str]:
    """Return the sorted architectures of the visible GPUs, such as ["80", "90a"].

    Raises UserError if torch was built without CUDA, if no GPU is visible, or if a GPU has a lower compute capability
    than OLDEST_CAPABILITY.
    """
    if torch.version.cuda is None:
        raise UserError("This PyTorch was built without CUDA: install a CUDA build of torch to train on a GPU.")
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or run on the CPU.")
    names = set()
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < OLDEST_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise UserError(
                f"GPU {device} ({name}) has compute capability {major}.{minor}, but the kernels need 8.0 or higher: "
                "exclude it with CUDA_VISIBLE_DEVICES, or run on the CPU."
            )
        names.add(architecture(major, minor))
    return sorted(names)


def architecture(major: int, minor: int) -> str:
    """Return nvcc's name for a compute capability. The suffix "a" enables instructions that exist only on Hopper."""
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


@dataclass(frozen=True)
class Toolchain:
    """The programs that a build needs."""

    nvcc: str
    nvcc_version: str  # "13.0.88"
    host_compiler: str
    ninja: str


def find_toolchain() -> Toolchain:
    """Find nvcc (CUDA_HOME, CUDA_PATH, the PATH, then TOOLKIT), a C++ compiler (CXX, g++, c++) and ninja.

    Raises UserError if a program is missing or unusable, or if nvcc and torch have different major versions of CUDA.
    """
    folders = [os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ.get("PATH", ""), TOOLKIT + "/bin"]))
    torch_cuda = torch.version.cuda
    if nvcc is None:
        raise UserError(
            f"nvcc, which compiles the CUDA kernels, was not found: install the CUDA {torch_cuda} toolkit, "
            "or set CUDA_HOME to its folder."
        )
    with explained(f"running {nvcc} --version"):
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release \d+\.\d+, V(\d+\.[\d.]+)", version.stdout)
    if release is None:
        raise UserError(
            f"`{nvcc} --version` printed no CUDA release: repair that toolkit, or set CUDA_HOME to another one."
        )
    major, torch_major = release[1].split(".")[0], torch_cuda.split(".")[0]
    if major != torch_major:
        raise UserError(
            f"{nvcc} is CUDA {release[1]}, but torch {torch.__version__} was built with CUDA {torch_cuda}: "
            f"set CUDA_HOME to a toolkit of version {torch_major}, or install a build of torch for CUDA {major}."
        )
    return Toolchain(nvcc, release[1], find_host_compiler(), _find_ninja())


def find_host_compiler() -> str:
    """Find a C++ compiler (CXX, g++, c++). Raises UserError if there is none."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "c++"))), None)
    if compiler is None:
        raise UserError(
            "No C++ compiler was found (CXX, g++, c++): install one, on Debian and Ubuntu with `apt install g++`."
        )
    return compiler


def _find_ninja() -> str:
    # pip installs ninja next to the interpreter. That folder is on the PATH only if the virtual environment is active.
    ninja = shutil.which("ninja", path=os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)]))
    if ninja is None:
        raise UserError("ninja, which builds the CUDA kernels, was not found: install it with `pip install ninja`.")
    return ninja


def build(names: list[str]) -> Path:
    """Return the path of the library for these architectures, after compiling it if necessary.

    Raises UserError as `find_toolchain` does, and if nvcc does not support an architecture or the compilation fails.
    """
    flags = [*FLAGS, *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in names)]
    cache = cache_folder()
    prefix = "sm_" + "_".join(names) + "-" + _fingerprint(flags) + "-nvcc_"
    try:
        tools = find_toolchain()
    except UserError:
        if built := sorted(cache.glob(f"{prefix}*/{LIBRARY}"), key=lambda path: path.stat().st_mtime):
            return built[-1]
        raise
    library = cache / (prefix + tools.nvcc_version) / LIBRARY

    def command(partial: Path) -> list[str]:
        _check_architectures(tools, names)
        gpus = ", ".join(f"sm_{name}" for name in names)
        to = library.parent
        print(f"Compiling the CUDA kernels for {gpus} into {to} (first use only) ...", file=sys.stderr, flush=True)
        (partial / "build.ninja").write_text(_ninja_file(tools, flags), encoding="utf-8")
        return [tools.ninja, "-C", str(partial)]

    return build_once(library, "the CUDA kernels", command)


def build_once(library: Path, what: str, command: Callable[[Path], list[str]]) -> Path:
    """Return the path `library`, after building the library if it does not exist.

    The build replaces the whole folder of `library`, so nothing else may be kept there. `command` is called with an
    empty folder, and returns a command that creates the library there. `what` is the name of the library in errors.
    Raises UserError if the command fails or if a file cannot be written.
    """
    folder = library.parent
    if library.exists():
        return library
    with explained(f"building {what}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        if library.exists():
            return library
        for abandoned in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(abandoned, ignore_errors=True)
        with explained(f"building {what}"), atomic_folder(folder) as partial:
            made = subprocess.run(command(partial), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if made.returncode != 0:
                log = folder.with_name(folder.name + ".log")
                log.write_text(made.stdout, encoding="utf-8")
                first = (line.strip() for line in made.stdout.splitlines() if "error" in line.lower())
                reason = next(first, "the compiler failed")
                raise UserError(f"Compiling {what} failed ({reason}): see {log} for the compiler's output.")
    return library


def cache_folder() -> Path:
    """Return the folder that contains the build lock and a subfolder for each library."""
    from torch.utils.cpp_extension import get_default_build_root  # imported here because it is slow to import

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "rwkv_music"


def _fingerprint(flags: list[str]) -> str:
    parts = [torch.__version__, str(torch.version.cuda), *flags]
    for path in sorted(path for path in SOURCES.iterdir() if path.suffix in (".cu", ".cuh", ".h", ".cpp")):
        parts += [path.name, path.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A context that holds an exclusive lock on `path`. The operating system releases it when this process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"The file system of {path} does not support file locks ({error.strerror}): "
                "set TORCH_EXTENSIONS_DIR to a folder on a local disk."
            ) from error
        yield


def _check_architectures(tools: Toolchain, names: list[str]) -> None:
    known = subprocess.run([tools.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    for name in names:
        if f"compute_{name.rstrip('a')}" not in known:
            raise UserError(
                f"{tools.nvcc} (CUDA {tools.nvcc_version}) cannot compile for this GPU's architecture, sm_{name}: "
                "install a newer CUDA toolkit."
            )


def _ninja_file(tools: Toolchain, flags: list[str]) -> str:
    """Return a ninja file that compiles each source and links the library."""
    torch_folder = Path(torch.__file__).parent
    sources = [*sorted(SOURCES.glob("*.cu")), *sorted(SOURCES.glob("*.cpp"))]
    libraries = f"-L{torch_folder / 'lib'} -ltorch -ltorch_cpu -lc10 -lc10_cuda"
    lines = [
        f"nvcc = {_quoted(tools.nvcc)} -ccbin {_quoted(tools.host_compiler)} {' '.join(flags)}",
        "rule compile",
        f"  command = $nvcc -I{_quoted(torch_folder / 'include')} -c $in -o $out",
        "rule link",
        f"  command = $nvcc -shared -cudart shared $in -o $out {libraries}",
        *(f"build {source.stem}.o: compile {_escaped(source)}" for source in sources),
        f"build {LIBRARY}: link {' '.join(source.stem + '.o' for source in sources)}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(path: Path) -> str:
    """Escape a path for a build line of ninja."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _quoted(path: Path | str) -> str:
    """Quote a path for a command in a ninja file, where ninja first expands `$`, and the shell then parses the line."""
    return "'" + str(path).replace("$", "$$") + "'"
