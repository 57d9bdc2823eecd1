"""benchmarks/learning.py: the Transformer, the recorded trainer, the queue of runs and the summary."""

import json
import sys

import pytest
import torch

from tests.benchmarks.test_scaling import benchmarks  # noqa: F401
from tests.training.conftest import one_rank, train

JOB = {
    "preset": "tiny", "ctx_len": 128, "batch_size": 2, "steps": 4, "warmup_steps": 2, "weight_decay": 0.1,
    "augment": "transpose", "val_every": 2, "attention": "mask", "compile": False, "seed": 1, "lr": 1e-3,
    "dropout": 0.1, "optimizer": "muon", "channel_mix": "x080",
}  # fmt: skip

# A worker that answers without training: the loss is 1000 times the learning rate plus the weight decay.
FAKE = """
import json, sys, time
from pathlib import Path
marks = Path(__file__).parent
for line in sys.stdin:
    job = json.loads(line)
    if job["name"] == "adamw" and not (marks / "crashed").exists():
        (marks / "crashed").touch()
        sys.exit(1)
    if job["name"] == "muon" and job["weight_decay"] == 2:
        print(json.dumps({"result": {"failed": "The loss is nan."}}), flush=True)
        continue
    points = {"validation": [[1, 9.0], [2, 1e3 * job["lr"] + job["weight_decay"]]], "training": [], "step_ms": 2.0}
    print(json.dumps({"points": points}), flush=True)
    time.sleep(SECONDS)
    print(json.dumps({"result": {**points, "parameters": 1, "seconds": SECONDS, "held_gib": 0}}), flush=True)
"""


def test_transformer_attends_to_earlier_tokens_of_the_same_document(benchmarks):  # noqa: F811
    import transformer

    torch.manual_seed(0)
    model = transformer.Transformer(2, 128, 50, 16, 0.0, "mask")
    model.init_weights(0)
    ids, bounds = torch.randint(50, (2, 16)), torch.tensor([0, 6, 16, 32], dtype=torch.int32)
    before = model.logits(ids, bounds)
    assert before.shape == (2, 16, 50)
    changed = ids.clone()
    changed[0, 9] += 1 if ids[0, 9] < 49 else -1
    differs = (model.logits(changed, bounds) != before).any(-1)
    assert differs.nonzero().tolist() == [[0, t] for t in range(9, 16)]
    changed = ids.clone()
    changed[0, 5] += 1 if ids[0, 5] < 49 else -1
    assert (model.logits(changed, bounds) != before).any(-1).nonzero().tolist() == [[0, 5]]

    alone = model.logits(ids[:1, 6:], torch.tensor([0, 10], dtype=torch.int32))
    torch.testing.assert_close(alone[0], before[0, 6:], atol=1e-5, rtol=1e-4)  # positions are relative
    model.attention = "sdpa"
    rows = torch.tensor([0, 16, 32], dtype=torch.int32)
    whole = model.logits(ids, rows)
    model.attention = "mask"
    torch.testing.assert_close(whole, model.logits(ids, rows), atol=1e-5, rtol=1e-4)


def test_master_weights_follow_the_gradient_that_bf16_would_lose(benchmarks):  # noqa: F811
    import transformer

    model = transformer.make_model({"n_layer": 1, "n_embd": 64}, 20, 8, 0.0, "mask", torch.device("cpu"))
    masters = model.init_weights(0)
    optimizer = transformer.MixedPrecision(model, masters, weight_decay=0.1, grad_clip=1.0)
    start = [master.clone() for master in masters]
    tokens = torch.randint(20, (3, 8))
    losses = []
    for _ in range(20):
        loss = model(tokens, tokens.roll(-1, 1), torch.tensor([0, 8, 16, 24], dtype=torch.int32)) / 24
        loss.backward()
        optimizer.step(1e-3)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1 and all(p.grad is None for p in model.parameters())
    for parameter, master, first in zip(model.parameters(), masters, start, strict=True):
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, master.bfloat16())
        assert not torch.equal(master, first)


def test_rwkv_is_recorded_as_train_py_trains_it_also_in_a_second_run(benchmarks, bach_data, tmp_path):  # noqa: F811
    import learning_worker

    flags = "--preset tiny --ctx_len 128 --batch_size 2 --steps 4 --warmup_steps 2 --weight_decay 0.1 --val_every 2"
    flags += " --augment transpose --seed 1 --lr 1e-3 --lr_final 1e-4 --optimizer muon --log_every 2 --save_every 0"
    expected = train(tmp_path / "run", "--data", bach_data, *flags.split())
    for _ in range(2):
        notes = []
        with one_rank():
            found = learning_worker.train_rwkv({**JOB, "data": str(bach_data)}, notes.append)
        assert [step for step, _ in found["validation"]] == [2, 4] and len(notes) == 2
        assert [loss for _, loss in found["validation"]] == pytest.approx(expected.curve("val/loss"), abs=1e-5)
        assert [loss for _, loss in found["training"]] == pytest.approx(expected.curve(), abs=1e-5)
        assert found["step_ms"] > 0 and found["parameters"] > 10**6


def test_transformer_trains_on_the_same_rows(benchmarks, bach_data, monkeypatch):  # noqa: F811
    import learning_worker

    from rwkv_music.data.dataset import MusicDataset

    read, batch = [], MusicDataset.batch
    monkeypatch.setattr(MusicDataset, "batch", lambda self, a, b: read.append((a, b)) or batch(self, a, b))
    results = [learning_worker.train_transformer({**JOB, "data": str(bach_data)}, lambda _: None) for _ in range(2)]
    assert read[:6] == [(0, 2), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]  # the first of all is the warm-up's
    first, second = results
    assert first["validation"] == second["validation"] and first["training"] == second["training"]
    assert [step for step, _ in first["validation"]] == [2, 4]
    assert first["validation"][-1][1] < first["validation"][0][1]


def race(data, tmp_path, monkeypatch, *more: str, seconds: float = 0.0) -> dict:
    """Run learning.py's main with workers that only answer; return learning.json."""
    import learning

    (tmp_path / "fake.py").write_text(FAKE.replace("SECONDS", str(seconds)))
    monkeypatch.setattr(learning, "WORKER", tmp_path / "fake.py")
    monkeypatch.setattr(learning, "SET_UP_S", {"rwkv": 0, "transformer": 0})
    monkeypatch.setattr(learning, "FIRST_S", {"rwkv": 0, "transformer": 0})
    arguments = ["learning.py", str(data), "--out", str(tmp_path / "out"), "--steps", "2", *more]
    monkeypatch.setattr(sys, "argv", arguments)
    status = learning.main()
    return {"status": status, **json.loads((tmp_path / "out" / "learning.json").read_text())}


def test_queue_retries_after_a_crash_and_takes_the_best_of_each_grid(benchmarks, bach_data, tmp_path, monkeypatch):  # noqa: F811
    result = race(bach_data, tmp_path, monkeypatch, "--gpus", "0,1")
    finished = [run for run in result["runs"] if run["finished"]]
    runs = [(run["name"], (run["lr"], run["weight_decay"]), run["dropout"], run["seed"]) for run in finished]
    assert result["status"] == 1 and len(result["runs"]) == 22 and len(runs) == len(set(runs)) == 21  # one failed
    expected = {"adamw": (1e-3, 0.1), "muon": (2e-3, 0.1), "transformer": (1e-3, 0.1), "x070": (1e-3, 0.1)}
    for name, setting in expected.items():
        assert {seed for n, own, _, seed in runs if n == name and own == setting} >= {0, 1, 2}
    assert {(name, setting) for name, setting, *_ in runs if name.endswith("long")} == {
        ("muon_long", (2e-3, 0.1)), ("transformer_long", (1e-3, 0.1)),
    }  # fmt: skip
    [long] = [run for run in result["runs"] if run["name"] == "muon_long"]
    assert (long["ctx_len"], long["batch_size"]) == (4096, 8)
    assert all(run["optimizer"] == "adamw" for run in result["runs"] if run["name"] == "x070")
    found = result["summary"]["contestants"]["adamw"]
    assert found["seeds"] == 3 and found["best_loss"]["mean"] == pytest.approx(1.1) and found["weight_decay"] == 0.1
    assert found["tokens_per_second"] == 32 * 1024 / 2e-3
    assert (tmp_path / "out" / "learning.png").stat().st_size > 10_000

    more = race(bach_data, tmp_path, monkeypatch, "--gpus", "0", "--add")
    assert [run for run in more["runs"] if run["finished"]] == [run for run in result["runs"] if run["finished"]]


def test_a_run_that_the_time_limit_cuts_off_keeps_its_points(benchmarks, bach_data, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "crashed").touch()
    result = race(bach_data, tmp_path, monkeypatch, "--gpus", "0", "--minutes", "0.05", seconds=60.0)
    [run] = result["runs"]
    assert not run["finished"] and run["best_loss"] == 1.1 and run["validation"] == [[1, 9.0], [2, 1.1]]
    assert result["summary"] == {}


def test_steps_to_a_loss_and_ratio_to_adamw(benchmarks):  # noqa: F811
    from learning import steps_to, summary

    def run(name: str, seed: int, losses: list[float], step_ms: float) -> dict:
        validation = [[100 * (i + 1), loss] for i, loss in enumerate(losses)]
        facts = {"lr": 1.0, "dropout": 0.0, "weight_decay": 0.1, "optimizer": name, "kind": "rwkv"}
        facts |= {"parameters": 1, "tokens_per_second": 1}
        best = min(validation, key=lambda point: point[1])
        points = {"validation": validation, "best_step": best[0], "best_loss": best[1], "step_ms": step_ms}
        return {"name": name, "seed": seed, "finished": True, **facts, **points}

    one = run("muon", 0, [1.0, 0.6, 0.4], 20.0)
    assert [steps_to(one, loss) for loss in (1.5, 1.0, 0.8, 0.5, 0.4, 0.3)] == [100, 100, 150, 250, 300, None]
    runs = [one, run("adamw", 0, [1.0, 0.7, 0.5], 10.0), run("muon", 1, [1.0, 0.4], 20.0)]
    result = summary([*runs, run("adamw", 1, [1.0, 0.8, 0.7], 10.0)])
    ratio = result["muon_to_the_best_loss_of_adamw"]
    assert ratio["steps_over_adamw"]["mean"] == pytest.approx((250 / 300 + 150 / 300) / 2)
    assert ratio["seconds_over_adamw"]["most"] == pytest.approx(2 * 250 / 300)
    assert result["contestants"]["adamw"]["best_loss"]["mean"] == pytest.approx(0.6)
