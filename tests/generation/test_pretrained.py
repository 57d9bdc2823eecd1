"""`RWKV.generate`. (`from_pretrained` is tested in tests/checkpoint.)"""

import pytest
import torch

from rwkv_music import RWKV
from rwkv_music.errors import UserError
from tests.test_model_v8 import random_model, tokens


def random_generator() -> RWKV:
    plain = random_model()
    model = RWKV(plain.config)
    model.load_state_dict(plain.state_dict())
    return model.to(next(plain.parameters()).dtype).eval()


def test_greedy_decoding_of_several_prompts():
    model, prompts = random_generator(), tokens(3, 11)
    drawn = model.generate(prompts, 6, temperature=0)
    whole = prompts
    with torch.no_grad():
        for _ in range(6):
            whole = torch.cat([whole, model(whole)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(drawn, whole[:, 11:]) and drawn.dtype == torch.int64


def test_generate_continues_from_states_and_stops():
    model, prompts = random_generator(), tokens(3, 30)
    expected = model.generate(prompts, 12, top_p=0.9, seed=4, repetition_penalty=0.5, repetition_window=2)
    assert torch.equal(model.generate(prompts, 12, top_p=0.9, seed=4, repetition_penalty=0.5, repetition_window=2),
                       expected)  # fmt: skip
    assert len({tuple(row) for row in expected.tolist()}) == 3
    _, state = model(prompts[:, :20], state=model.init_state(3))
    again = model.generate(prompts[:, 20:], 12, state=state, top_p=0.9, seed=4, repetition_penalty=0.5,
                           repetition_window=2)  # fmt: skip
    assert torch.equal(again, expected)
    assert not torch.equal(model.generate(prompts, 12, seed=5), model.generate(prompts, 12, seed=6))
    stop = int(expected[0, 3])
    stopped = model.generate(prompts[:1], 12, stop_tokens=(stop,), top_p=0.9, seed=4, repetition_penalty=0.5,
                             repetition_window=2)  # fmt: skip
    first = expected[0].tolist().index(stop)
    assert torch.equal(stopped, expected[:1, : first + 1])


def test_generate_refuses_invalid_arguments():
    model, state = random_generator(), random_generator().init_state(2)
    for ids, more, reason in (
        (tokens(5), {}, "give int64"),
        (tokens(1, 0), {}, "give int64"),
        (tokens(1, 3) + 61, {}, "outside the vocabulary of 61"),
        (tokens(1, 3), {"state": state}, "state has 2 rows"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.generate(ids, 4, **more)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        model.generate(tokens(1, 3), 0)
    with pytest.raises(TypeError, match="heat"):
        model.generate(tokens(1, 3), 4, heat=2)
    with pytest.raises(UserError, match="top-p is 2"):
        model.generate(tokens(1, 3), 4, top_p=2)
