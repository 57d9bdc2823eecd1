"""Sampling: the documented distribution, masked tokens, random numbers, the repetition penalty, grammar tables."""

import numpy as np
import pytest
import torch

from rwkv_music.errors import UserError
from rwkv_music.generation.sampling import Sampler, Sampling, sample_token, uniforms
from rwkv_music.tokenizers.registry import make_codec

GRID = (torch.arange(20_000) + 0.5) / 20_000  # even coverage of [0, 1)


def drawn_share(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """Return the frequency of each token over an even grid of random numbers."""
    tokens = sample_token(logits.expand(len(GRID), -1), GRID, sampling)
    return np.bincount(tokens.numpy(), minlength=len(logits)) / len(GRID)


def expected_share(logits: torch.Tensor, s: Sampling) -> np.ndarray:
    """Compute the distribution documented by `Sampling`, one token at a time."""
    p = torch.softmax(logits.double(), dim=-1).numpy()
    order = np.argsort(-p, kind="stable")
    kept, mass = np.zeros(len(p)), 0.0
    for rank, token in enumerate(order):
        if mass < s.top_p and (not s.top_k or rank < s.top_k) and p[token] >= s.min_p * p.max():
            kept[token] = p[token] ** (1 / s.temperature)
        mass += p[token]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=2.0),
        Sampling(temperature=0.01),
        Sampling(top_p=0.7),
        Sampling(top_p=1e-9),
        Sampling(top_k=3),
        Sampling(top_k=1000),
        Sampling(min_p=0.2),
        Sampling(min_p=1.0),
        Sampling(temperature=1.5, top_p=0.8, top_k=9, min_p=0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_the_documented_distribution(sampling, dtype):
    logits = (3 * torch.randn(40, generator=torch.Generator().manual_seed(1))).to(dtype)
    drawn, expected = drawn_share(logits, sampling), expected_share(logits, sampling)
    assert np.abs(drawn - expected).max() < 2 / len(GRID)
    assert not (drawn > 0)[expected == 0].any()


def test_masked_tokens_are_never_drawn():
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, 300:400] = torch.randn(100, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.0, 1 - 2**-24])
    for sampling in (Sampling(), Sampling(temperature=3.0), Sampling(top_p=0.999), Sampling(temperature=0)):
        token = sample_token(logits, ends, sampling)
        assert ((token >= 300) & (token < 400)).all()
    assert sample_token(logits, ends, Sampling()).tolist() == [300, 399]


def test_temperature_zero_is_greedy():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_token(logits, torch.rand(8), Sampling(temperature=0)), logits.argmax(dim=-1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("setting", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0}], ids=str)
def test_non_finite_rows_give_minus_one(bad, setting):
    logits = torch.zeros(3, 10)
    logits[1, 4] = bad
    token = sample_token(logits, torch.full((3,), 0.5), Sampling(**setting))
    assert token[1] == -1 and token[0] == token[2] >= 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -1),
        ("temperature", np.nan),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", 2),
        ("seed", -9),
        ("repetition_penalty", 1e9),
        ("repetition_penalty", np.nan),
        ("repetition_window", 0),
    ],
)
def test_invalid_settings_are_refused(name, value):
    with pytest.raises(UserError, match="choose"):
        Sampling(**{name: value})


def test_random_numbers_depend_only_on_seed_and_row():
    def first(seed: int, rows: int, n: int = 600) -> np.ndarray:  # more than two blocks
        return torch.stack([numbers for _, numbers in zip(range(n), uniforms(seed, rows), strict=False)]).numpy()

    many = first(7, 12)
    assert many.dtype == np.float32 and many.min() >= 0 and many.max() < 1
    assert np.array_equal(first(7, 3), many[:, :3])
    later = [numbers for _, numbers in zip(range(600), uniforms(7, 4, first_row=8), strict=False)]
    assert np.array_equal(torch.stack(later).numpy(), many[:, 8:])
    assert abs(many.mean() - 0.5) < 0.02
    correlation = np.corrcoef(np.hstack([many, first(8, 12)]).T) - np.eye(24)
    assert np.abs(correlation).max() < 0.2  # rows and seeds differ


def test_the_penalty_counts_the_keys_in_the_window():
    keys = np.array([-1, -1, 0, 0, 7, 9])  # tokens 2 and 3 play the same key
    sampler = Sampler(Sampling(repetition_penalty=0.5, repetition_window=4), 2, 6, keys=keys)
    sampler.start(torch.tensor([2, 2, 2, 0, 2, 3]))  # the window holds 2, 0, 2, 3
    logits = torch.zeros(2, 6)
    sampler.numbers.fill_(0.5)

    def penalties() -> list[list[float]]:
        return (-0.5 * sampler._recent_keys.counts()).tolist()

    assert penalties() == [[0, 0, -1.5, -1.5, 0, 0]] * 2
    forced = logits.clone()
    forced[0, 4] = forced[1, 1] = 100
    sampler.draw(forced)
    assert sampler.drawn.tolist() == [4, 1]
    assert penalties() == [[0, 0, -1, -1, -0.5, 0], [0, 0, -1, -1, 0, 0]]
    for _ in range(4):
        sampler.draw(forced)
    assert penalties() == [[0, 0, 0, 0, -2, 0], [0, 0, 0, 0, 0, 0]]


def test_a_penalty_lowers_the_probability_by_its_nats():
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1))
    n = len(GRID)
    sampler = Sampler(Sampling(repetition_penalty=0.7), n, 40)
    sampler.start(torch.tensor([5, 5, 8]))
    sampler.numbers.copy_(GRID)
    sampler.draw(logits.expand(n, -1))
    lowered = logits.clone()
    lowered[5] -= 1.4
    lowered[8] -= 0.7
    drawn = np.bincount(sampler.drawn.numpy(), minlength=40) / n
    assert np.abs(drawn - expected_share(lowered, Sampling())).max() < 2 / n


@pytest.mark.parametrize("name", ["multitrack", "midi-llm"])
def test_only_melodic_notes_are_penalized(name):
    codec = make_codec(name)
    v = codec.token_properties
    counted = v.keys >= 0
    assert counted.sum() == {"multitrack": 128, "midi-llm": 12 * 128 * 11}[name]
    assert (v.pitch[counted] >= 0).all() and v.is_onset[counted].all()


def test_a_token_must_be_allowed_by_every_table():
    rng = np.random.default_rng(0)
    tables = [rng.random((4, 30)) < 0.7 for _ in range(3)]
    sampler = Sampler(Sampling(), 50, 30, tables)
    for _ in range(20):
        classes = rng.integers(0, 4, (3, 50))
        sampler.classes.copy_(torch.from_numpy(classes))
        sampler.numbers.copy_(torch.rand(50))
        sampler.draw(torch.zeros(50, 30))
        allowed = np.logical_and.reduce([table[row] for table, row in zip(tables, classes, strict=True)])
        drawn = sampler.drawn.numpy()
        assert (drawn >= 0).all() and allowed[np.arange(50), drawn].all()
