"""The learning rate's course; AdamW by its formula."""

import pytest
import torch

from rwkv_music.config import TrainConfig
from rwkv_music.training.deepspeed_engine.fast.adamw import adamw_
from rwkv_music.training.learning_rate import learning_rate, set_learning_rate


def test_warm_up_then_cosine():
    train = TrainConfig(steps=110, warmup_steps=10, lr=1.0, lr_final=0.1)
    assert [learning_rate(step, train) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(59, train) == pytest.approx(0.55)  # half way down
    assert learning_rate(109, train) == pytest.approx(0.1)
    rates = [learning_rate(step, train) for step in range(10, 110)]
    assert all(a > b for a, b in zip(rates[:-1], rates[1:], strict=True))


def test_warm_up_stable_decay():
    train = TrainConfig(steps=100, warmup_steps=10, lr=1.0, lr_final=0.2, schedule="wsd", decay_fraction=0.2)
    assert [learning_rate(step, train) for step in (4, 10, 50, 79)] == pytest.approx([0.5, 1.0, 1.0, 1.0])
    assert [learning_rate(step, train) for step in (89, 99)] == pytest.approx([0.6, 0.2])


def test_no_warm_up_and_steps_past_the_end():
    train = TrainConfig(steps=10, warmup_steps=0, lr=1.0, lr_final=0.1)
    assert learning_rate(0, train) < 1.0 and learning_rate(1000, train) == pytest.approx(0.1)
    assert learning_rate(5, TrainConfig(steps=5, warmup_steps=10, lr=1.0)) == pytest.approx(0.6)


def test_each_group_gets_its_share():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "lr_scale": scale} for w, scale in zip(weights, (1.0, 2.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_adamw_follows_its_formula(dtype):
    torch.manual_seed(0)
    lr, beta1, beta2, eps, weight_decay = 0.01, 0.9, 0.99, 1e-18, 0.1
    masters, m, v = torch.randn(50), torch.zeros(50), torch.zeros(50)
    weights, expected = masters.to(dtype), masters.double()
    mean, square = torch.zeros(50).double(), torch.zeros(50).double()
    for t in range(1, 6):
        gradient, divisor, bad = torch.randn(50).to(dtype), torch.tensor(1.0 + t), torch.tensor(float(t == 3))
        taken = t - (t > 3)  # the third is left out
        step = torch.tensor(float(taken))
        options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        if t != 3:
            g = gradient.double() / (1 + t)
            mean, square = beta1 * mean + (1 - beta1) * g, beta2 * square + (1 - beta2) * g**2
            change = (mean / (1 - beta1**taken)) / ((square / (1 - beta2**taken)).sqrt() + eps)
            expected = expected * (1 - lr * weight_decay) - lr * change
        adamw_(masters, m, v, gradient, weights, step=step, divisor=divisor, bad=bad, **options)
        torch.testing.assert_close(masters.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(weights, masters.to(dtype))
