"""Muon: against whole matrices, under every ZeRO stage and on any number of ranks, saved and resumed."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_music.checkpoint.safetensors_io import TensorFile
from rwkv_music.config import LORA_TARGETS
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine import muon
from tests.training import muon_ranks
from tests.training.conftest import PROJECT, SMALL, environment, one_rank, train
from tests.training.muon_ranks import MODEL, RUNS, TRAIN
from tests.training.rank_process import run_ranks

MATRICES = {f"blocks.{layer}.{name}.weight" for layer in range(MODEL.n_layer) for name in LORA_TARGETS}


def newton_schulz(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def whole_matrices(steps: int, skipped: int = -1) -> tuple[list[float], dict[str, Tensor]]:
    """The same training in one process: plain loops over whole parameters."""
    model = RWKV(MODEL)
    model.load_state_dict(muon_ranks.initial_weights())
    rates = {p: TRAIN.lr * group["lr_scale"] for group in model.parameter_groups(0.0) for p in group["params"]}
    decayed = MATRICES | {"emb.weight", "head.weight"}
    first = {p: torch.zeros_like(p) for p in model.parameters()}
    second = {p: torch.zeros_like(p) for p in model.parameters()}
    losses, t = [], 0
    for step, tokens in enumerate(muon_ranks.batches(steps)):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        if step == skipped:
            continue
        t += 1
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
        for name, p in model.named_parameters():
            with torch.no_grad():
                g, lr = p.grad / max(1.0, (norm + 1e-6) / TRAIN.grad_clip), rates[p]
                if name in decayed:
                    p -= lr * TRAIN.weight_decay * p
                if name in MATRICES:
                    first[p] = 0.95 * first[p] + g
                    update = g + 0.95 * first[p]
                    tall = p.shape[0] > p.shape[1]
                    orthogonal = newton_schulz(update.T).T if tall else newton_schulz(update)
                    p -= lr * 0.2 * math.sqrt(max(p.shape)) * orthogonal
                else:
                    first[p] = TRAIN.beta1 * first[p] + (1 - TRAIN.beta1) * g
                    second[p] = TRAIN.beta2 * second[p] + (1 - TRAIN.beta2) * g * g
                    mean, square = first[p] / (1 - TRAIN.beta1**t), second[p] / (1 - TRAIN.beta2**t)
                    p -= lr * mean / (square.sqrt() + TRAIN.adam_eps)
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def expected() -> list[float]:
    return whole_matrices(30)[0]


def test_losses_are_those_of_whole_matrices_on_any_ranks_under_any_stage(expected, tmp_path):
    runs = {}
    with one_rank():
        runs[1] = {f"{stage} {fast}": muon_ranks.run(stage, fast, steps)[0] for stage, fast, steps in RUNS[1]}
    for ranks in (2, 4):
        out, log = tmp_path / f"{ranks}.json", tmp_path / f"{ranks}.log"
        status = run_ranks([muon_ranks.__file__, str(out)], ranks, environment(), log, seconds=300)
        assert status == 0, log.read_text()[-4000:]
        runs[ranks] = json.loads(out.read_text())
    apart = {
        f"{ranks} ranks, ZeRO-{name}": float(np.abs(np.subtract(losses, expected[: len(losses)])).max())
        for ranks, of_runs in runs.items()
        for name, losses in of_runs.items()
    }
    print(apart)
    assert len(apart) == 12
    assert max(apart.values()) < 1e-5, apart


@pytest.mark.parametrize("stage, fast", [(2, "auto"), (3, "auto"), (3, "off")])
def test_a_skipped_step_changes_no_weight_and_no_momentum(stage, fast):
    with one_rank():
        losses, weights = muon_ranks.run(stage, fast, steps=4, bad_step=1)
    expected_losses, expected_weights = whole_matrices(4, skipped=1)
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-4, msg=name)


def ds_file(folder, stage, **zero):
    """A DeepSpeed file in fp32."""
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage, **zero}}))
    return path


def test_half_of_a_run_resumes_bit_for_bit_and_on_other_ranks_and_stages(bach_data, tmp_path):
    line = ["--data", bach_data, *SMALL, "--n_embd", 32, "--head_size", 16, "--ctx_len", 32, "--val_every", 0]
    line += ["--optimizer", "muon", "--adam_eps", 1e-6, "--warmup_steps", 5, "--save_every", 10]
    whole = train(tmp_path / "whole", *line, ranks=2, config=ds_file(tmp_path, 1))
    middle = whole.folder / "checkpoints" / "step_00000010"
    kinds = set()
    for rank in (0, 1):
        for name in TensorFile(middle / f"moments_{rank:05d}.safetensors").shapes:
            parameter, _, moment = name.rpartition(".")
            kinds.add((parameter in MATRICES, moment))
    assert kinds == {(True, "momentum"), (False, "exp_avg"), (False, "exp_avg_sq")}
    assert "optimizer Muon for the 24,576 parameters" in whole.output
    for ranks, stage in ((2, 1), (1, 3)):
        folder = tmp_path / f"{ranks} ranks"
        shutil.copytree(middle, folder / "checkpoints" / middle.name)
        resumed = train(folder, ranks=ranks, config=ds_file(tmp_path, stage))
        apart = np.abs(np.subtract(resumed.curve(), whole.curve()[10:]))
        assert len(apart) == 10 and apart.max() <= (0 if (ranks, stage) == (2, 1) else 1e-5), apart
        if ranks == 2:
            for rank in (0, 1):
                for file in (f"weights_{rank:05d}.safetensors", f"moments_{rank:05d}.safetensors"):
                    ours, theirs = (run.last_checkpoint / file for run in (resumed, whole))
                    assert ours.read_bytes() == theirs.read_bytes(), file
    other = train(folder, "--optimizer", "adamw", "--steps", 21, config=ds_file(tmp_path, 3), check=False)
    assert other.status == 1
    assert "step_00000020 was made with --optimizer muon, not adamw" in other.output


@pytest.mark.parametrize(
    "arguments, config, facts",
    [
        (["--tune", "lora"], "zero2.json", ("--optimizer muon", "--tune lora", "--optimizer adamw")),
        (["--tune", "ln,emb"], "zero2.json", ("--optimizer muon", "--tune ln,emb", "--optimizer adamw")),
        ([], "zero2_offload.json", ("--optimizer muon", "zero2_offload.json", "offload_optimizer")),
    ],
)
def test_a_combination_that_muon_does_not_support_is_one_sentence(arguments, config, facts, bach_data, tmp_path):
    options = {"config": PROJECT / "ds_configs" / config, "check": False}
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, "--optimizer", "muon", *arguments, **options)
    said = run.output.strip().splitlines()
    assert run.status == 1 and len(said) == 1 and all(fact in said[0] for fact in facts), run.output
    assert not run.folder.exists()


def test_each_matrix_has_one_owner_and_every_piece_travels_there_and_back():
    """Of four ranks, three hold pieces of most matrices, and the last one holds a whole matrix."""
    shapes = {"a": (4, 4), "b": (4, 4), "c": (8, 4), "d": (4, 4)}
    held = {name: {0: (0, 4), 1: (4, 4), 2: (8, math.prod(shape) - 8)} for name, shape in shapes.items()}
    held["d"] = {3: (0, 16)}
    plans = [muon.plan_rounds(shapes, held, rank, 4) for rank in range(4)]
    assert len({len(plan) for plan in plans}) == 1
    owned = {}
    for number, rounds in enumerate(zip(*plans, strict=True)):
        assert len({work.exchanges for work in rounds}) == 1
        for rank, work in enumerate(rounds):
            names = {piece.name for pieces in work.incoming for piece in pieces}
            assert len(names) == work.shape[0] and {shapes[name] for name in names} <= {work.shape[1:]}
            owned.update({name: (rank, number) for name in names})
            for other in range(4):
                assert work.outgoing[other] == rounds[other].incoming[rank]
            for name in names:
                pieces = [piece for of_rank in work.incoming for piece in of_rank if piece.name == name]
                assert sum(piece.length for piece in pieces) == math.prod(shapes[name])
    assert owned.keys() == shapes.keys()
    assert owned["d"][0] == 3 and {owned[name][0] for name in "abc"} <= {0, 1, 2}


def test_batches_are_of_one_shape_and_limited(monkeypatch):
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", 40)
    shapes = {"a": (4, 4), "b": (8, 8), "c": (4, 4), "d": (4, 4)}
    held = {name: {0: (0, math.prod(shape))} for name, shape in shapes.items()}
    rounds = muon.plan_rounds(shapes, held, 0, 1)
    assert [work.shape for work in rounds] == [(2, 4, 4), (1, 4, 4), (1, 8, 8)]
    assert not any(work.exchanges for work in rounds)


@pytest.mark.parametrize("dtype, shape", [(torch.float32, (3, 16, 40)), (torch.bfloat16, (2, 40, 16))])
def test_orthogonalized_singular_values_are_about_one(dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    made = muon.orthogonalize(x)
    assert made.dtype == dtype and made.shape == x.shape
    values = torch.linalg.svdvals(made.float())
    assert 0.6 < values.min() and values.max() < 1.3
    u, _, v = torch.linalg.svd(x.float(), full_matrices=False)
    assert torch.nn.functional.cosine_similarity(made.float().flatten(), (u @ v).flatten(), 0) > 0.95
    assert not muon.orthogonalize(torch.zeros_like(x)).any()
