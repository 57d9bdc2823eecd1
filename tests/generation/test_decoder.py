"""The in-place decoder equals the model, for every model shape and several rows."""

import copy

import pytest
import torch

from rwkv_music.checkpoint.tuning import add_states
from rwkv_music.checkpoint.weights import SHIPPED_MODEL, find_codec, load_pretrained
from rwkv_music.config import ModelConfig
from rwkv_music.generation import decoder as decoder_module
from rwkv_music.generation.decoder import (
    CpuDecoder,
    Decoder,
    ModelDecoder,
    make_decoder,
    read_prompt,
    supports_decoder,
)
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import decode_cpu


def random_model(**config) -> RWKV:
    """Return a float64 model with no zero weights, so that every part of the state matters."""
    torch.manual_seed(0)
    model = RWKV(ModelConfig(vocab_size=30, **config)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


CONFIGS = [
    {"n_layer": 1, "n_embd": 64},
    {"n_layer": 3, "n_embd": 128},
    {"n_layer": 2, "n_embd": 128, "channel_mix": "x070"},
    {"n_layer": 2, "n_embd": 64, "decay_rank": 8, "iclr_rank": 24, "value_rank": 16, "gate_rank": 40},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
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
    monkeypatch.setattr(decoder_module, "PREFILL_WINDOW", 5)
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


def rounded(model: RWKV) -> RWKV:
    """Return a frozen copy of `model` in float32 whose parameters are bf16 numbers."""
    return copy.deepcopy(model).bfloat16().float().requires_grad_(False)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 17])
def test_cpu_decoder_equals_the_model(config, rows):
    """Only the matrices are rounded to bf16. With matrices in bf16, the error is that of float32."""
    model = rounded(random_model(**config))
    prompt, ids = torch.randint(30, (1, 7)), torch.randint(30, (rows, 12))
    decoder = make_decoder(model, rows)
    assert type(decoder) is CpuDecoder
    decoder.read(prompt)
    reference = model.double()
    with torch.no_grad():
        whole, expected = reference(torch.cat([prompt.expand(rows, -1), ids], 1), state=reference.init_state(rows))
    assert relative_error(decoder.logits, whole[:, 6]) < 1e-5
    for t in range(12):
        decoder.token.copy_(ids[:, t])
        decoder.step()
        assert relative_error(decoder.logits, whole[:, 7 + t]) < 1e-5
    for own, theirs in zip(decoder.state, expected, strict=True):
        assert relative_error(own, theirs) < 1e-5


@pytest.mark.parametrize("channel_mix", ["x070", "x080"])
def test_cpu_decoder_rounds_matrices_to_bf16(channel_mix):
    """A rounded matrix changes its products by at most 2^-9, and a layer has four products in sequence."""
    model = random_model(n_layer=2, n_embd=128, channel_mix=channel_mix)
    ids = torch.randint(30, (3, 20))
    decoder = CpuDecoder(copy.deepcopy(model).float(), 3)
    decoder.read(ids)
    expected, state = read_prompt(model, ids)
    assert 1e-5 < relative_error(decoder.logits, expected) < (4 * 2 + 1) * 2**-9
    assert relative_error(decoder.state.wkv, state.wkv) < (4 * 2 + 1) * 2**-9


def test_cpu_decoder_gives_the_same_bits_for_all_rows_threads_and_windows(monkeypatch):
    model = rounded(random_model(n_layer=2, n_embd=128))
    prompt, ids = torch.randint(30, (19,)), torch.randint(30, (13, 4))

    def last_logits(rows: int) -> torch.Tensor:
        decoder = CpuDecoder(model, rows)
        decoder.read(prompt)
        for token in ids[:rows].T:
            decoder.token.copy_(token)
            decoder.step()
        return decoder.logits

    alone = last_logits(1)
    monkeypatch.setattr(decoder_module, "CPU_WINDOW", 5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(decode_cpu, "ONE_THREAD", 0)
        together = last_logits(13)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0])


def test_cpu_decoder_reads_a_prompt_per_row_from_a_state():
    model = rounded(random_model(n_layer=2, n_embd=64))
    ids = torch.randint(30, (3, 9))
    whole, parts = CpuDecoder(model, 3), CpuDecoder(model, 3)
    whole.read(ids)
    logits, state = read_prompt(model, ids[:, :4])
    before = [x.clone() for x in state]
    parts.read(ids[:, 4:], state)
    torch.testing.assert_close(parts.logits, whole.logits)
    for given, saved in zip(state, before, strict=True):
        assert torch.equal(given, saved)


def test_cpu_decoder_of_a_model_in_bf16():
    model = random_model(n_layer=2, n_embd=64).bfloat16()
    one, other = CpuDecoder(model, 2), CpuDecoder(rounded(model), 2)
    for each in (one, other):
        each.read(torch.arange(9))
        each.step()
    assert torch.equal(one.logits, other.logits)


def test_cpu_decoder_starts_from_tuned_states():
    model = rounded(random_model(n_layer=2, n_embd=64))
    add_states(model)
    for block in model.blocks:
        torch.nn.init.normal_(block.att.time_state)
    decoder = CpuDecoder(model, 2)
    decoder.read(torch.arange(9))
    expected, _ = read_prompt(model, torch.arange(9))
    torch.testing.assert_close(decoder.logits, expected.expand(2, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("token", [-1, 30])
def test_cpu_decoder_rejects_a_token_outside_of_the_vocabulary(token):
    with pytest.raises(IndexError, match="29"):
        CpuDecoder(rounded(random_model(n_layer=1, n_embd=64)), 1).read(torch.tensor([3, token, 5]))


def test_cpu_decoder_passes_on_nan():
    model = rounded(random_model(n_layer=1, n_embd=64))
    model.blocks[0].ffn.key.weight[3, 5] = torch.nan
    decoder = CpuDecoder(model, 1)
    decoder.step()
    assert decoder.logits.isnan().all()


def test_cpu_decoder_follows_changed_weights():
    """A frozen model keeps its packed weights until they change."""
    model = rounded(random_model(n_layer=1, n_embd=64))
    first = CpuDecoder(model, 1)
    assert decode_cpu.packed(model) is decode_cpu.packed(model)
    model.head.weight.mul_(2)
    second = CpuDecoder(model, 1)
    for each in (first, second):
        each.step()
    assert torch.equal(2 * first.logits, second.logits)
    model.requires_grad_(True)
    assert decode_cpu.packed(model) is not decode_cpu.packed(model)


def test_greedy_tokens_of_the_shipped_model():
    """200 tokens of the kernel are the most likely ones by the model itself, in float32."""
    model = load_pretrained(SHIPPED_MODEL).requires_grad_(False)
    ids = [int(find_codec(SHIPPED_MODEL).bos_id)]
    decoder = CpuDecoder(model, 1)
    decoder.read(torch.tensor(ids))
    for _ in range(200):
        ids.append(int(decoder.logits.argmax()))
        decoder.token.fill_(ids[-1])
        decoder.step()
    likeliest = model(torch.tensor([ids[:-1]])).argmax(dim=-1)
    assert likeliest[0].tolist() == ids[1:]
