"""The build of the kernel for decoding on the CPU; tests/generation/test_decoder.py tests its results."""

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.cuda import build
from rwkv_music.generation.decoder import CpuDecoder, Decoder, make_decoder
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import decode_cpu


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Set up an empty extension cache; return its folder."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    decode_cpu.load.cache_clear()
    yield build.cache_folder()
    decode_cpu.load.cache_clear()


def make(model_dtype: torch.dtype) -> Decoder:
    return make_decoder(RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=30)).to(model_dtype), 1)


def test_the_kernel_is_compiled_once(empty_cache, monkeypatch):
    assert type(make(torch.float32)) is CpuDecoder
    [library] = empty_cache.glob(f"*/{decode_cpu.LIBRARY}")
    decode_cpu.load.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")  # the library is found without a compiler
    assert type(make(torch.bfloat16)) is CpuDecoder
    monkeypatch.setattr(decode_cpu, "_instruction_set", lambda: "another processor")
    decode_cpu.load.cache_clear()
    assert decode_cpu.load() is None
    assert list(empty_cache.glob(f"*/{decode_cpu.LIBRARY}")) == [library]


@pytest.mark.parametrize(
    "script, reason", [(None, "No C++ compiler"), ("echo 'error: impossible'; exit 1", "impossible")]
)
def test_without_the_kernel_pytorch_decodes_and_one_line_tells(
    script, reason, empty_cache, tmp_path, monkeypatch, capfd
):
    if script:
        compiler = tmp_path / "g++"
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for _ in range(2):
        assert type(make(torch.float32)) is Decoder
    [line] = capfd.readouterr().err.splitlines()
    assert reason in line


def test_other_dtypes_use_the_decoder_in_pytorch():
    assert type(make(torch.float64)) is Decoder
