"""Exported weights: unchanged tensors, and the same logits in other programs."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_music import RWKV, export, find_codec
from rwkv_music.__main__ import main
from rwkv_music.checkpoint.tensors import UNREAD
from rwkv_music.checkpoint.weights import open_weights
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError
from tests.test_model_v8 import numpy_heron, random_model, tokens


def in_bf16(folder: Path, **changes) -> Path:
    """Write a random model's weights in bf16, as in BlinkDL's files."""
    weights = {name: weight.bfloat16() for name, weight in random_model(**changes).state_dict().items()}
    torch.save(weights, folder / "given.pth")
    return folder / "given.pth"


def confident_model(**changes) -> RWKV:
    """Return a model with a wide range of logits, so that its greedy token is unambiguous."""
    model = random_model(**changes)
    with torch.no_grad():
        model.head.weight.mul_(4)
    return model.eval()


@pytest.mark.parametrize("mix", ["x070", "x080"])
def test_bf16_weights_are_exported_unchanged_and_deterministically(mix, tmp_path):
    given = in_bf16(tmp_path, channel_mix=mix)
    for format in ("pth", "safetensors"):
        names = [tmp_path / f"{i}.{format}" for i in range(2)]
        for name in names:
            export(given, name, format)
        assert len({hashlib.sha256(name.read_bytes()).hexdigest() for name in names}) == 1
        for (name, a), (_, b) in zip(
            torch.load(given, weights_only=True).items(),
            RWKV.from_pretrained(names[0], dtype=torch.bfloat16).state_dict().items(),
            strict=True,
        ):
            assert torch.equal(a.view(torch.int16), b.view(torch.int16)), name
    exported = torch.load(tmp_path / "0.pth", weights_only=True)
    assert [n for n in exported if n not in UNREAD] == list(torch.load(given, weights_only=True))
    config = open_weights(given).config
    assert [tuple(exported[n].shape) for n in UNREAD] == [
        (1, 1, 128), (128, config.value_rank), (config.value_rank, 128),
    ]  # fmt: skip
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert exported["blocks.1.att.x_r"].shape == (1, 1, 128)


RUN_THE_PACKAGE = """
import sys, torch
from rwkv.model import RWKV
path, ids, out = sys.argv[1:]
model = RWKV(model=path, strategy="cpu fp32")
logits, state = model.forward(torch.load(ids, weights_only=True).tolist(), None, full_output=True)
last, greedy = logits[-1], []
for _ in range(128):
    greedy.append(int(last.argmax()))
    last, state = model.forward([greedy[-1]], state)
torch.save({"logits": logits, "greedy": greedy}, out)
"""


def test_the_rwkv_package_gives_the_same_logits_and_greedy_tokens(tmp_path):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    model = confident_model(channel_mix="x070").bfloat16().float()  # generation on a CPU rounds matrices to bf16
    ids = tokens(1, 400)
    torch.save(model.state_dict(), tmp_path / "source.pth")
    torch.save(ids[0], tmp_path / "ids")
    export(tmp_path / "source.pth", tmp_path / "out.pth", dtype=torch.float32)
    environment = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    arguments = [tmp_path / "out", tmp_path / "ids", tmp_path / "result"]
    command = [sys.executable, "-c", RUN_THE_PACKAGE, *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    result = torch.load(tmp_path / "result", weights_only=True)
    with torch.no_grad():
        logits = model(ids)[0]
    assert logits.std() > 1
    torch.testing.assert_close(result["logits"], logits, rtol=0, atol=1e-4)
    generator = RWKV.from_pretrained(tmp_path / "source.pth", "cpu", torch.float32)
    assert result["greedy"] == generator.generate(ids, 128, temperature=0)[0].tolist()
    assert len(set(result["greedy"])) >= 5  # one repeated token would prove nothing


def test_transformers_gives_the_same_logits(tmp_path, monkeypatch):
    pytest.importorskip("rwkv7_hf", reason="the rwkv7-hf package is not installed")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    from rwkv7_hf import RWKV7ForCausalLM

    model, ids = confident_model(channel_mix="x070", dim_ffn=320, value_rank=16), tokens(2, 100)
    torch.save(model.state_dict(), tmp_path / "source.pth")
    export(tmp_path / "source.pth", tmp_path / "hf", "hf", torch.float32)
    theirs, report = RWKV7ForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        expected = model(ids)
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=0, atol=1e-3)
        again = RWKV.from_pretrained(tmp_path / "hf")  # the exported folder can be imported
        assert torch.equal(again(ids), expected)
    from transformers import AutoModelForCausalLM  # through the folder's remote code

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, trust_remote_code=True)
    assert isinstance(loaded, RWKV7ForCausalLM)


def test_an_exported_v8_gives_the_reference_logits(tmp_path):
    model, ids = confident_model(), tokens(1, 70)
    torch.save(model.state_dict(), tmp_path / "source.pth")
    export(tmp_path / "source.pth", tmp_path / "out.pth")
    weights = torch.load(tmp_path / "out.pth", weights_only=True)
    assert weights["blocks.2.ffn.enn.weight"].shape == (61, 128)
    expected = numpy_heron({name: w.float().numpy() for name, w in weights.items()}, ids[0].tolist(), 3, 2)
    with torch.no_grad():
        ours = RWKV.from_pretrained(tmp_path / "out.pth")(ids)[0]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4, rtol=0)


def test_the_command_writes_weights_and_tokenizer(bach_data, tmp_path, capsys):
    given = in_bf16(tmp_path, channel_mix="x070")
    (tmp_path / "given.pth.tokenizer.json").write_bytes((bach_data / "tokenizer.json").read_bytes())
    assert main(["export", str(given), "--format", "hf", "--out", str(tmp_path / "new" / "hf")]) == 0
    assert main(["export", str(tmp_path / "new" / "hf"), "--out", str(tmp_path / "out.pth"), "--dtype", "fp32"]) == 0
    assert "x070, 3 layers x 128, vocabulary 61, in fp32" in capsys.readouterr().out
    assert find_codec(tmp_path / "out.pth").fingerprint == find_codec(tmp_path / "new" / "hf").fingerprint
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(torch.equal(w.float(), back[n]) for n, w in torch.load(given, weights_only=True).items())


def test_errors_leave_no_files(tmp_path):
    given = in_bf16(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="v8.*transformers"):
        export(given, tmp_path / "hf", "hf")
    with pytest.raises(UserError, match="existing folder"):
        export(given, tmp_path)
    weights = torch.load(given, weights_only=True)
    (tmp_path / "cut.pth").write_bytes(given.read_bytes()[:-5000])
    with pytest.raises(UserError, match="cut.pth"):
        export(tmp_path / "cut.pth", tmp_path / "out.pth")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "cut.pth"} and weights
    torch.save(RWKV(ModelConfig(n_layer=1, n_embd=64, head_size=32, vocab_size=9, channel_mix="x070")).state_dict(),
               tmp_path / "narrow.pth")  # fmt: skip
    with pytest.raises(UserError, match="head_size of 32"):
        export(tmp_path / "narrow.pth", tmp_path / "hf", "hf")
