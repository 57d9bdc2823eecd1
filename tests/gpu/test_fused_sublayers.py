"""Tests of the fused sublayers on a GPU in bf16, with states, against the plain modules in bf16 and in fp64."""

import copy

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.ops import fused_sublayers


@pytest.mark.parametrize("packed", [False, True])
def test_state_and_its_gradients(monkeypatch, packed):
    """The error is at most 1.5 times that of plain PyTorch in bf16."""
    torch.manual_seed(0)
    exact = RWKV(ModelConfig(n_layer=3, n_embd=128, vocab_size=40))
    with torch.no_grad():
        for p in exact.parameters():
            p += 0.05 * torch.randn_like(p)
    rounded = copy.deepcopy(exact).cuda().bfloat16()
    exact = copy.deepcopy(rounded).cpu().double()
    tokens = torch.randint(40, (2, 201))
    arguments = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}
    if packed:
        arguments["cu_seqlens"] = torch.tensor([0, 3, 4, 170, 303, 400], dtype=torch.int32)
        arguments["max_length"] = 166
    start = State(*(torch.randn_like(x) for x in rounded.init_state(5 if packed else 2)))
    weights = [torch.randn_like(x) for x in start]

    def run(model: RWKV) -> list[torch.Tensor]:
        own = model.init_state(1)
        begin = State(*(x.to(like).requires_grad_() for x, like in zip(start, own, strict=True)))
        inputs = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        loss, state = model(**inputs, state=begin)
        total = loss + 0.01 * sum((x * weight.to(x)).sum() for x, weight in zip(state, weights, strict=True))
        grads = torch.autograd.grad(total, [*begin, *model.parameters()])
        return [x.detach().double().cpu() for x in (loss, *state, *grads)]

    names = ["loss", *(f"new {n}" for n in State._fields), *State._fields, *(n for n, _ in exact.named_parameters())]
    expected, actual = run(exact), run(rounded)
    with monkeypatch.context() as patch:
        patch.setattr(fused_sublayers, "supports", lambda x, head_size: False)
        plain = run(rounded)
    for name, x, unfused, reference in zip(names, actual, plain, expected, strict=True):
        error, plain_error = ((z - reference).norm() / reference.norm() for z in (x, unfused))
        assert error <= max(1.5 * plain_error, 5e-3), f"{name}: {error:.1e}, plain {plain_error:.1e}"
