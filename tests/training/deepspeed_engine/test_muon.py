"""Muon: against whole matrices, under every ZeRO stage and on any number of ranks, saved and resumed."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_music.config import LORA_TARGETS, TrainConfig
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import RWKV
from rwkv_music.training.deepspeed_engine import muon
from tests.training import muon_ranks
from tests.training.conftest import SMALL, Run, environment, one_rank, train
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
        runs[1] = {f"{stage} {fast}": muon_ranks.run(stage, fast, steps)[0] for stage, fast, steps in RUNS}
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
    print(apart, expected)
    assert len(apart) == 18 and all(len(losses) in (4, 30) for of_runs in runs.values() for losses in of_runs.values())
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
