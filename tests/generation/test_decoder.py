"""The in-place decoder equals the model, for every model shape and several rows."""

import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.generation import decoder
from rwkv_music.generation.decoder import Decoder, ModelDecoder, make_decoder, read_prompt, supports_decoder
from rwkv_music.model_v8 import RWKV


def random_model(**config) -> RWKV:
    """Return a float64 model with no zero weights, so that every part of the state matters."""
    torch.manual_seed(0)
    model = RWKV(ModelConfig(vocab_size=30, **config)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "config",
    [
        {"n_layer": 1, "n_embd": 64},
        {"n_layer": 3, "n_embd": 128},
        {"n_layer": 2, "n_embd": 128, "channel_mix": "x070"},
        {"n_layer": 2, "n_embd": 64, "decay_rank": 8, "iclr_rank": 24, "value_rank": 16, "gate_rank": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_equal_the_models_forward(config, rows):
    model = random_model(**config)
    prompt = torch.randint(30, (1, 7))
    ids = torch.randint(30, (rows, 12))
    logits, state = read_prompt(model, prompt[0])
    decoder = Decoder(model, rows)
    decoder.start(logits, state)
    with torch.no_grad():
        whole, expected = model(torch.cat([prompt.expand(rows, -1), ids], dim=1), state=model.init_state(rows))
    torch.testing.assert_close(decoder.logits, whole[:, 6], rtol=0, atol=1e-10)
    for t in range(12):
        decoder.token.copy_(ids[:, t])
        decoder.step()
        torch.testing.assert_close(decoder.logits, whole[:, 7 + t], rtol=0, atol=1e-10)
    for own, theirs in zip(decoder.state, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-10)


def test_tensors_stay_at_fixed_addresses():
    """A CUDA graph requires this of everything it reads and writes."""
    decoder = Decoder(random_model(n_layer=2, n_embd=64), 2)
    tensors = (decoder.token, decoder.logits, *decoder.state)
    addresses = [x.data_ptr() for x in tensors]
    for _ in range(3):
        decoder.step()
    decoder.start(*read_prompt(decoder.model, torch.arange(5)))
    assert [x.data_ptr() for x in (decoder.token, decoder.logits, *decoder.state)] == addresses


@pytest.mark.parametrize("rows", [1, 3])
def test_both_decoders_agree(rows):
    model = random_model(n_layer=2, n_embd=64)
    logits, state = read_prompt(model, torch.arange(9))
    one, other = Decoder(model, rows), ModelDecoder(model, rows)
    for each in (one, other):
        each.start(logits, state)
        for token in (3, 8, 8, 1):
            each.token.fill_(token)
            each.step()
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)


def test_supported_models():
    model = random_model(n_layer=1, n_embd=64)
    assert supports_decoder(model) and isinstance(make_decoder(model, 1), Decoder)
    wide_heads = random_model(n_layer=1, n_embd=128, head_size=128)
    assert not supports_decoder(wide_heads) and isinstance(make_decoder(wide_heads, 1), ModelDecoder)
    model.blocks[0].att.key.weight.ds_id = 7  # as ZeRO-3 marks partitioned parameters
    assert not supports_decoder(model)


def test_prompt_windows_do_not_change_the_result(monkeypatch):
    model = random_model(n_layer=2, n_embd=64)
    ids = torch.randint(30, (23,))
    whole = read_prompt(model, ids)
    monkeypatch.setattr(decoder, "PREFILL_WINDOW", 5)
    in_windows = read_prompt(model, ids)
    torch.testing.assert_close(whole[0], in_windows[0], rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(whole[0], model(ids.unsqueeze(0))[:, -1], rtol=0, atol=1e-10)
    for a, b in zip(whole[1], in_windows[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_head_runs_on_the_last_token_only():
    model, seen = random_model(n_layer=1, n_embd=64), []
    model.head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    read_prompt(model, torch.randint(30, (50,)))
    assert seen == [(1, 64)]
