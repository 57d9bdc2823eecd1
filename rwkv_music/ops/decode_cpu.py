"""Decoding on a CPU with the C++ kernel `decode_cpu.cpp`: building the kernel, packing the weights, calling the kernel.

Notable choices:
- The speed of a step is limited by the memory bandwidth for the weights. The kernel therefore reads a bf16 copy of the
  matrices, half the size of fp32, and reads it only once for all rows. Everything else is fp32. The result is that of
  an fp32 `model_v8` with matrices rounded to bf16.
- The kernel includes no headers of torch or Python and is called with ctypes, so it compiles in about two seconds. The
  library is stored in the same folder as the CUDA kernels (`cuda/build.py`). It is compiled for the processor of this
  host. The name of its subfolder depends on the instruction set, because hosts can share a home folder.
- The packed weights of a model without trainable parameters are kept for the next decoder.
"""

import ctypes
import functools
import hashlib
import mmap
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_music.cuda import build
from rwkv_music.errors import UserError, explained

SOURCE = Path(__file__).with_suffix(".cpp")
LIBRARY = "librwkv_music_cpu.so"
# Without -fno-trapping-math, GCC vectorizes no loop that compares values. The flag does not change results.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
# Up to this product of tokens and width, one thread is about as fast as several threads, and far faster on a busy host,
# because several threads wait for each other.
ONE_THREAD = 8 * 256
PANEL = 32  # PANEL, GATES and VECTORS must be the same in the kernel
GATES = "wagv"
VECTORS = (
    "ln1.weight", "ln1.bias", *(f"att.x_{mix}" for mix in "rkvwag"), "att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a",
    "att.r_k", "att.ln_x.weight", "att.ln_x.bias", "ln2.weight", "ln2.bias", "ffn.x_k",
)  # fmt: skip


@functools.cache
def load():
    """Return the kernel as a function, after compiling it if necessary.

    If this fails, print a line on stderr and return None.
    """
    try:
        function = ctypes.CDLL(str(_build())).rwkv_music_forward
    except (UserError, OSError) as error:
        print(f"Decoding on the CPU is slower without its C++ kernel. {error}", file=sys.stderr, flush=True)
        return None
    function.argtypes, function.restype = [ctypes.c_void_p] * 9, None
    return function


def _build() -> Path:
    with explained("reading the kernel for decoding on the CPU"):
        parts = [*FLAGS, _instruction_set(), SOURCE.read_text(encoding="utf-8")]
    name = "cpu-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def command(partial: Path) -> list[str]:
        return [build.find_host_compiler(), *FLAGS, str(SOURCE), "-o", str(partial / LIBRARY)]

    return build.build_once(build.cache_folder() / name / LIBRARY, "the kernel for decoding on the CPU", command)


def _instruction_set() -> str:
    """Return the processor's instruction set extensions, which can differ between hosts that share a home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


class _Shape(ctypes.Structure):
    """The struct `Shape` of the kernel."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "width", "hidden", "vocabulary")),
        ("ranks", ctypes.c_int64 * len(GATES)),
        *((name, ctypes.c_int64) for name in ("bf16_tables", "rows", "tokens", "threads")),
    ]


@dataclass(frozen=True)
class PackedWeights:
    """The weights of a model in the form that the kernel reads."""

    matrices: Tensor  # bf16, one-dimensional: all matrices in panels
    vectors: Tensor  # float32 [n, C]
    tables: list[Tensor | None]  # not copied: the embedding [V, C] and, for each layer, its DeepEmbed [V, C] or None
    shape: _Shape


# For each model: the identity and the version of each parameter, the packed weights, and the parameters. The parameters
# are kept so that their identities (`id`) are not reused.
_kept: WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int]], PackedWeights, list[Tensor]]] = WeakKeyDictionary()


def packed(model: nn.Module) -> PackedWeights:
    """Return the packed weights of an RWKV on the CPU, in fp32 or bf16, with a head size of 64."""
    parameters = list(model.parameters())
    if any(parameter.requires_grad or parameter.is_inference() for parameter in parameters):
        return _pack(model)
    versions = [(id(parameter), parameter._version) for parameter in parameters]
    if model not in _kept or _kept[model][0] != versions:
        _kept[model] = versions, _pack(model), parameters
    return _kept[model][1]


@torch.no_grad()
def _pack(model: nn.Module) -> PackedWeights:
    blocks, first = model.blocks, model.blocks[0]
    matrices: list[Tensor] = []
    vectors = [first.ln0.weight, first.ln0.bias]
    for block in blocks:
        att, ffn = block.att, block.ffn
        gates = [gate for gate in GATES if hasattr(att, f"{gate}1")]
        matrices += [att.receptance.weight, att.key.weight, att.value.weight]
        matrices += [getattr(att, f"{gate}{i}").T for i in (1, 2) for gate in gates]
        matrices += [att.output.weight, ffn.key.weight, ffn.value.weight]
        # Layer 0 has no v0. The kernel does not read v0 there, so a0 takes its place.
        vectors += [attrgetter("att.a0" if name == "att.v0" and "v" not in gates else name)(block) for name in VECTORS]
    matrices.append(model.head.weight)
    vectors += [model.ln_out.weight, model.ln_out.bias]

    sizes = [_padded(rows) * _padded(columns) for rows, columns in (matrix.shape for matrix in matrices)]
    panels = _in_huge_pages(sum(sizes))
    for matrix, own in zip(matrices, panels.split(sizes), strict=True):
        _fill_panels(own, matrix)
    config, embedding = model.config, model.emb.weight.detach()
    ranks = (config.decay_rank, config.iclr_rank, config.gate_rank, config.value_rank)
    shape = _Shape(
        layers=len(blocks),
        width=config.n_embd,
        hidden=_padded(config.dim_ffn),
        vocabulary=_padded(config.vocab_size),
        ranks=(ctypes.c_int64 * len(GATES))(*map(_padded, ranks)),
        bf16_tables=embedding.dtype == torch.bfloat16,
    )
    enns = [None if block.ffn.enn is None else block.ffn.enn.weight.detach() for block in blocks]
    stacked = torch.cat([vector.reshape(1, -1).float() for vector in vectors])
    return PackedWeights(panels, stacked, [embedding, *enns], shape)


def _padded(n: int) -> int:
    return -(-n // PANEL) * PANEL


def _in_huge_pages(n: int) -> Tensor:
    """Return a bf16 tensor [n], in huge pages if the system has them. Small pages would reduce the bandwidth."""
    memory = mmap.mmap(-1, 2 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # the system has no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.bfloat16)


def _fill_panels(panels: Tensor, matrix: Tensor) -> None:
    """Write `matrix` [outputs, inputs], padded with zeros, to `panels` in the order that the kernel describes."""
    outputs, inputs = map(_padded, matrix.shape)
    whole = F.pad(matrix.bfloat16(), (0, inputs - matrix.shape[1], 0, outputs - matrix.shape[0]))
    halves = whole.view(outputs // PANEL, 2, PANEL // 2, inputs)
    panels.view(outputs // PANEL, inputs, PANEL // 2, 2).copy_(halves.permute(0, 3, 2, 1))


def forward(
    weights: PackedWeights, ids: Tensor, att_shift: Tensor, wkv: Tensor, ffn_shift: Tensor, logits: Tensor
) -> None:
    """Process T >= 1 tokens of each row: update the state, and write the logits of each row's last token.

    All tensors are contiguous, and float32 except `ids`. `load()` must not return None.

    Args:
        ids: int64 [B, T], from 0 to V - 1. Other values are not detected.
        att_shift, ffn_shift: [L, B, C], updated.
        wkv: [L, B, H, N, N], updated. Unlike in `State.wkv`, the key axis is before the value axis.
        logits: [B, V'], overwritten. V' is V rounded up to a multiple of PANEL.
    """
    shape = _Shape.from_buffer_copy(weights.shape)
    shape.rows, shape.tokens = ids.shape
    shape.threads = 1 if ids.numel() * shape.width <= ONE_THREAD else torch.get_num_threads()
    tables = [None if table is None else table.data_ptr() for table in weights.tables]
    load()(
        ctypes.addressof(shape),
        weights.matrices.data_ptr(),
        weights.vectors.data_ptr(),
        (ctypes.c_void_p * len(tables))(*tables),
        *(tensor.data_ptr() for tensor in (ids, att_shift, wkv, ffn_shift, logits)),
    )
