"""Tuning on a GPU: gradients of what trains by the fused halves, and whole runs under every ZeRO stage."""

import copy

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.checkpoint.tuning import add_trained, freeze
from rwkv_music.checkpoint.weights import load_model
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import fused_sublayers
from tests.gpu.test_training import data, train  # noqa: F401


@pytest.mark.parametrize("tune", ["state", "lora", "time", "ffn,head"])
def test_gradients_of_what_trains(monkeypatch, tune):
    """No further from exact arithmetic than plain PyTorch is in bf16, by half as much again."""
    if tune == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(0)
    exact = RWKV(ModelConfig(n_layer=3, n_embd=128, vocab_size=40))
    settings = TrainConfig(tune=tune, lora_rank=4)
    freeze(exact, settings)
    add_trained(exact, settings, seed=0)
    with torch.no_grad():
        for p in exact.parameters():
            p += 0.05 * torch.randn_like(p)
    rounded = copy.deepcopy(exact).cuda().bfloat16()
    exact = copy.deepcopy(rounded).cpu().double()
    tokens = torch.randint(40, (2, 201))
    cu_seqlens = torch.tensor([0, 3, 4, 170, 303, 400, 400, 400], dtype=torch.int32)  # two empty, as a recording has

    def gradients(model: RWKV) -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        inputs, targets, edges = (x.to(model.device) for x in (tokens[:, :-1], tokens[:, 1:], cu_seqlens))
        edges = edges if edges.is_cuda else edges[:6]
        model.loss(inputs, targets, cu_seqlens=edges, max_length=200).backward()
        return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients(exact), gradients(rounded)
    with monkeypatch.context() as patch:
        patch.setattr(fused_sublayers, "supports", lambda x, head_size: False)
        cu_seqlens = cu_seqlens[:6]
        plain = gradients(rounded)
    assert found.keys() == expected.keys() == {name for name, p in rounded.named_parameters() if p.requires_grad}
    for name, wanted in expected.items():
        error, plain_error = ((z[name] - wanted).norm() / wanted.norm() for z in (found, plain))
        assert error <= max(1.5 * plain_error, 5e-3), f"{name}: {error:.1e}, plain {plain_error:.1e}"


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):  # noqa: F811
    run = tmp_path_factory.mktemp("base") / "run"
    train(data, run, 2, "--steps", "10")
    return run


@pytest.mark.parametrize("tune", ["state", "lora", "time,ln"])
def test_each_zero_stage_tunes_alike(tune, base, data, tmp_path):  # noqa: F811
    if tune == "lora":
        pytest.importorskip("peft")
    lr = ["--lr", "1e-1"] if tune == "state" else []
    curves = [
        train(data, tmp_path / str(stage), stage, "--init", str(base), "--tune", tune, "--steps", "20", *lr)
        for stage in (1, 2, 3)
    ]
    assert curves[0][-1] < curves[0][0]
    for curve in curves[1:]:
        assert max(abs(a - b) for a, b in zip(curve, curves[0], strict=True)) < 1e-2
    assert load_model(tmp_path / "1", "cuda")[3] == 20
