"""benchmarks/deepembed.py: the gate against its formulas, its parameters, the queue of runs and a race on the CPU."""

import json
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV, Packing
from rwkv_music.ops import fused_sublayers
from tests.benchmarks.test_scaling import benchmarks  # noqa: F401

CONFIG = ModelConfig(n_layer=2, n_embd=64, vocab_size=11, channel_mix="x070")
BOUNDS = torch.tensor([0, 5, 6, 12], dtype=torch.int32)


def initialized(make: Callable[[], RWKV]) -> RWKV:
    """Return a model in fp64, initialized as by the trainer."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    return model.double()


def gated(random: bool = True) -> RWKV:
    """Return a model of CONFIG in fp64, with random parameters or with the initial ones."""
    from deepembed_worker import GatedRWKV

    model = initialized(partial(GatedRWKV, CONFIG))
    if random:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return model


def test_gate_equals_its_formulas_and_their_gradients(benchmarks):  # noqa: F811
    model = gated()
    ffn, ln0 = model.blocks[1].ffn, model.blocks[0].ln0
    x = torch.randn(1, 12, 64, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (1, 12))
    packing = Packing(BOUNDS, BOUNDS[:-1].long(), BOUNDS[1:].long() - 1, 6, None)

    def expected(t: int) -> torch.Tensor:
        now, before = x[0, t], torch.zeros_like(x[0, t]) if t in BOUNDS else x[0, t - 1]
        h = F.relu(ffn.key.weight @ (now + (before - now) * ffn.x_k.flatten())) ** 2
        embedding = model.emb.weight[ids[0, t]]
        normed = (embedding - embedding.mean()) / (embedding.var(correction=0) + 1e-5).sqrt()
        S = ffn.s_emb.weight[ids[0, t]] + ffn.s_emb_x.weight @ (normed * ln0.weight + ln0.bias)
        gate = now @ ffn.s1 @ S.reshape(32, 32) @ ffn.s2 + ffn.s0.flatten()
        return ffn.value.weight @ (h * gate)

    found, reference = ffn(x, ids, None, packing)[0], torch.stack([expected(t) for t in range(12)])
    torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-12)
    inputs = [x, *ffn.parameters(), model.emb.weight, ln0.weight, ln0.bias]
    direction = torch.randn_like(found)
    gradients = [torch.autograd.grad(out, inputs, direction, retain_graph=True) for out in (found, reference)]
    for one, other in zip(*gradients, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_training_on_a_gpu_computes_the_same_and_documents_are_independent(benchmarks, monkeypatch, recompute):  # noqa: F811
    model, ids, targets = gated(), torch.randint(11, (2, 6)), torch.randint(11, (2, 6))
    model.recompute = recompute

    def loss_and_gradients(**documents: torch.Tensor) -> list[torch.Tensor]:
        loss = model.loss(ids, targets, reduction="sum", **documents)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    plain = loss_and_gradients(cu_seqlens=BOUNDS)
    alone = [model.loss(i[None], t[None], reduction="sum") for i, t in zip(*pieces(ids, targets), strict=True)]
    torch.testing.assert_close(plain[0], sum(alone), rtol=1e-6, atol=0)  # the loss is fp32
    whole = loss_and_gradients()
    monkeypatch.setattr(fused_sublayers, "supports", lambda *_: True)
    # Replayed steps append empty documents.
    padded = torch.cat([BOUNDS, torch.tensor([12, 12], dtype=torch.int32)])
    for found, expected in ((loss_and_gradients(cu_seqlens=padded), plain), (loss_and_gradients(), whole)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def pieces(*rows: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Return the documents of rows, each flattened and divided at BOUNDS."""
    return [row.flatten().split(BOUNDS.diff().tolist()) for row in rows]


def test_gate_starts_as_x070_and_its_parameters_learn_in_the_right_groups(benchmarks):  # noqa: F811
    model, x070 = gated(random=False), initialized(partial(RWKV, CONFIG))
    own = dict(model.named_parameters())
    for name, parameter in x070.named_parameters():
        assert torch.equal(own.pop(name), parameter), name
    assert {name.split(".", 3)[-1] for name in own} == {"s0", "s1", "s2", "s_emb.weight", "s_emb_x.weight"}
    ids = torch.randint(11, (2, 6))
    assert torch.equal(model(ids), x070(ids))

    group_of = {id(p): group for group in model.parameter_groups(0.1, muon=True) for p in group["params"]}
    assert len(group_of) == len(list(model.parameters()))
    for name, parameter in own.items():
        group, matrix = group_of[id(parameter)], name.endswith("s_emb_x.weight")
        assert (group["muon"], group["weight_decay"], group["lr_scale"]) == (matrix, 0.1 if matrix else 0.0, 1.0)
    low_rank = sum(p.numel() for name, p in own.items() if name.endswith((".s1", ".s2")))
    assert model.matrix_parameters() == x070.matrix_parameters() + low_rank

    # Every parameter of the gate learns, although the first gradients of some of them are zero.
    optimizer, before = torch.optim.Adam(model.parameters(), lr=1e-2), {name: p.clone() for name, p in own.items()}
    for _ in range(4):
        optimizer.zero_grad()
        model.loss(ids, ids.roll(1, 1)).backward()
        optimizer.step()
    for name, parameter in own.items():
        assert not torch.equal(parameter, before[name]), name


def race(monkeypatch, tmp_path, data, *more: str) -> dict:
    """Run deepembed.py's main; return deepembed.json."""
    import deepembed

    monkeypatch.setattr(sys, "argv", ["deepembed.py", str(data), "--out", str(tmp_path), *more])
    status = deepembed.main()
    return {"status": status, **json.loads((tmp_path / "deepembed.json").read_text())}


def test_race_on_the_cpu_trains_the_gate_on_the_same_rows_from_the_same_weights(
    benchmarks,  # noqa: F811
    few_data,
    tmp_path,
    monkeypatch,
    capsys,
):
    import deepembed

    monkeypatch.setattr(deepembed, "LEARNING_RATES", (5e-3,))  # learns in four steps
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the worker: on a busy machine, its steps wait for a second thread
    line = "--preset tiny --ctx_len 64 --batch_size 8 --steps 4 --val_every 2 --warmup_steps 1 --grid 1 --seeds 1"
    more = ["--minutes", "60", "--contestants", "x070", "gate32"]  # so long only on a busy computer
    result = race(monkeypatch, tmp_path, few_data, *line.split(), *more)
    assert result["status"] == 0 and [run["name"] for run in result["runs"]] == ["x070", "gate32"]
    assert all(run["finished"] and len(run["validation"]) == 2 and run["lr"] == 5e-3 for run in result["runs"])
    x070, gate32 = result["runs"]
    first, last = ([run["validation"][i][1] for run in (x070, gate32)] for i in (0, -1))
    assert gate32["training"][0][1] == pytest.approx(x070["training"][0][1], abs=1e-5)
    assert last[1] < first[1] - 0.1 and abs(last[1] - last[0]) > 1e-4
    assert gate32["parameters"] > x070["parameters"]
    assert result["summary"]["differences"]["gate32"]["x070"]["spread"] is None
    assert (tmp_path / "deepembed.png").stat().st_size > 10_000
    assert "gate32 against x070" in capsys.readouterr().out


# A worker that answers without training. The loss depends on the form, the learning rate and the seed.
FAKE = """
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    loss = {"x070": 0.5, "x080": 0.51}.get(job["name"], 0.45) + abs(job["lr"] - 1e-3) + 0.02 * job["seed"]
    assert job["gated"] == (job["name"] == "gate32"), job
    assert job["channel_mix"] == ("x080" if job["name"] == "x080" else "x070"), job
    points = {"validation": [[1, 9.0], [2, loss]], "training": [], "step_ms": 2.0}
    print(json.dumps({"result": {**points, "parameters": 1, "seconds": 1.0, "held_gib": 0}}), flush=True)
"""


def test_queue_takes_the_grids_first_and_then_the_best_rate_of_each(benchmarks, bach_data, tmp_path, monkeypatch):  # noqa: F811
    import deepembed
    import learning

    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(deepembed, "WORKER", tmp_path / "fake.py")
    monkeypatch.setattr(learning, "SET_UP_S", {"rwkv": 0})
    monkeypatch.setattr(learning, "FIRST_S", {"rwkv": 0})
    result = race(monkeypatch, tmp_path, bach_data, "--steps", "2", "--gpus", "0")
    runs = [(run["name"], run["lr"], run["seed"]) for run in result["runs"]]
    assert len(runs) == 15 and all(run["finished"] for run in result["runs"])
    assert runs[:9] == [(name, lr, 0) for lr in (2e-3, 1e-3, 4e-3) for name in ("x070", "x080", "gate32")]
    assert runs[9:] == [(name, 1e-3, seed) for seed in (1, 2) for name in ("x070", "x080", "gate32")]
    found = result["summary"]["differences"]
    assert found["gate32"]["x080"] == pytest.approx({"loss": -0.06, "spread": 0.02, "wins": True})
    assert found["x080"]["x070"] == pytest.approx({"loss": 0.01, "spread": 0.02, "wins": False})
    assert "x070" not in found

    more = race(monkeypatch, tmp_path, bach_data, "--steps", "2", "--gpus", "0", "--add")
    assert more["runs"] == result["runs"]
