"""Opening weight files: formats, the inferred shape, and refused files with the reason."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_music import RWKV
from rwkv_music.checkpoint.safetensors_io import write_tensors
from rwkv_music.checkpoint.weights import find_codec, open_weights
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError
from tests.test_model_v8 import random_model, tokens

ODD = {"n_embd": 192, "dim_ffn": 320, "decay_rank": 24, "iclr_rank": 40, "value_rank": 16, "gate_rank": 56}


def pth(folder: Path, tensors: dict[str, Tensor] | None = None, **changes) -> Path:
    """Write a .pth of a random bf16 model, with layer 0's unread tensors as BlinkDL's trainer writes them."""
    if tensors is None:
        model = random_model(**changes)
        C, rank = model.config.n_embd, model.config.value_rank
        tensors = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
        tensors |= {"blocks.0.att.v0": torch.ones(1, 1, C), "blocks.0.att.v1": torch.ones(C, rank)}
    torch.save(tensors, folder / "model.pth")
    return folder / "model.pth"


@pytest.mark.parametrize("changes", [{}, {"channel_mix": "x070"}, ODD, {"n_layer": 1, "channel_mix": "x070", **ODD}])
def test_the_shape_is_inferred_from_the_tensors(changes, tmp_path):
    config = random_model(**changes).config
    assert open_weights(pth(tmp_path, **changes)).config == config


def test_a_loaded_model_has_the_files_weights_and_trains(tmp_path):
    made = random_model(**ODD)
    path = pth(tmp_path, **ODD)
    model = RWKV.from_pretrained(path, dtype=torch.float32)
    for (name, weight), (_, read) in zip(made.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(weight.bfloat16().float(), read), name
    model.loss(tokens(2, 9), tokens(2, 9, seed=1)).backward()
    assert all(p.grad is not None for p in model.parameters())
    half = RWKV.from_pretrained(path, dtype=torch.bfloat16)
    assert half.emb.weight.dtype == torch.bfloat16 and torch.equal(half.emb.weight.float(), model.emb.weight)


def test_all_tensor_formats_are_read(tmp_path):
    model = random_model()
    write_tensors(tmp_path / "model.safetensors", model.state_dict())
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(model.half().state_dict(), tmp_path / "half.pth")
    for name in ("model.safetensors", "old.pth", "half.pth"):
        read = RWKV.from_pretrained(tmp_path / name).emb.weight
        torch.testing.assert_close(read.half(), model.emb.weight, rtol=0, atol=1e-3)


def test_a_slice_is_read(tmp_path):
    weights = open_weights(pth(tmp_path))
    out = torch.empty(7)
    weights.read_into(out, "blocks.1.att.key.weight", 100)
    assert torch.equal(out, random_model().blocks[1].att.key.weight.flatten()[100:107].bfloat16().float())


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Return a v7's weights with some tensors replaced, or removed if None; __ stands for a dot."""
    weights = dict(random_model(channel_mix="x070").state_dict())
    for name, tensor in tensors.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    return weights


def transposed() -> dict[str, Tensor]:
    return {n: w.t() if re.search(r"(key|value|output)\.weight", n) else w for n, w in changed().items()}


@pytest.mark.parametrize(
    "tensors, reason",
    [
        (changed(blocks__1__att__w0=None, blocks__2__ln1__bias=None), "missing: blocks.1.att.w0, blocks.2.ln1.bias)"),
        (changed(blocks__1__ffn__s_emb__weight=torch.ones(3)), "unknown: blocks.1.ffn.s_emb.weight)"),
        (changed(ln_out__weight=torch.ones(64)), "wrong shape: ln_out.weight [64] instead of [128])"),
        (changed(emb__weight=None), "is not an RWKV v7 or v8 (no emb.weight)"),
        (changed(blocks__1__att__x_r=torch.ones(1, 1, 128, dtype=torch.int8)), "quantized (blocks.1.att.x_r is int8"),
        (changed(emb__weight_mx=torch.ones(3)), "converted or quantized (emb.weight_mx)"),
        (changed(_strategy=torch.ones(1)), "converted or quantized (_strategy)"),
        (changed(blocks__0__att__r_k=torch.ones(128)), "converted (its r_k is flat"),
        (transposed(), "converted (its matrices are transposed"),
        ({"blocks.0.att.time_mix_k": torch.ones(1), "emb.weight": torch.ones(5, 4)}, "older than v7"),
        ({}, "no named tensors"),
        ({"model": {"emb.weight": torch.ones(2)}}, "not tensors (model)"),
        ({n: w for n, w in changed().items() if not n.startswith("blocks.1.")}, "no tensor of layer 1"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_errors_name_the_tensors(tensors, reason, tmp_path):
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        open_weights(pth(tmp_path, tensors))
    message = str(caught.value)
    assert str(tmp_path) in message and message.endswith(".") and "\n" not in message


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_other_files_are_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "script.pth")
    torch.save({"emb.weight": Bomb()}, "bomb.pth")
    Path("plain.pth").write_bytes(pickle.dumps({"emb.weight": Bomb()}, protocol=2))
    Path("model.gguf").write_bytes(b"GGUF" + bytes(100))
    Path("rwkv.bin").write_bytes(b"fmgg" + bytes(100))
    Path("model.onnx").write_bytes(b"\x08\x07\x12\x04" + bytes(100))
    Path("x.safetensors").write_bytes(bytes(3))
    whole = pth(tmp_path).read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    Path("empty.pth").touch()
    Path("folder").mkdir()
    Path("other").mkdir()
    write_tensors("other/model.safetensors", {"weight": torch.zeros(2)})
    reasons = {
        "script.pth": "a TorchScript program",
        "bomb.pth": "could run code",
        "plain.pth": "could run code",
        "model.gguf": "a GGUF file",
        "rwkv.bin": "a ggml file of rwkv.cpp",
        "model.onnx": "an ONNX file",
        "x.safetensors": "does not begin with a header",
        "cut.pth": "cut.pth is truncated or not a .pth",
        "empty.pth": "empty.pth is truncated or not a .pth",
        "folder": "is not a run folder or a checkpoint",
        "other": "other/model.safetensors is not an RWKV-7 model",
        "nowhere.pth": "There is no nowhere.pth",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=re.escape(reason)) as caught:
            open_weights(name)
        assert name in str(caught.value) and str(caught.value).endswith("."), str(caught.value)
    assert not Path("exploded").exists()


def test_the_codec_is_found_beside_a_file(bach_data, tmp_path):
    path = pth(tmp_path)
    with pytest.raises(UserError, match="no tokenizer for .*: .*/model.pth.tokenizer.json"):
        find_codec(path)
    (tmp_path / "model.pth.tokenizer.json").write_bytes((bach_data / "tokenizer.json").read_bytes())
    assert find_codec(path).name == "multitrack"


def test_more_than_nine_layers(tmp_path):
    path = pth(tmp_path, n_layer=11, n_embd=64)
    assert open_weights(path).config == ModelConfig(n_layer=11, n_embd=64, vocab_size=61)


def test_a_safetensors_file_of_any_name_is_opened(tmp_path):
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=9))
    for name in ("weights.pth", "weights"):
        write_tensors(tmp_path / name, model.state_dict())
        assert open_weights(tmp_path / name).config == model.config
