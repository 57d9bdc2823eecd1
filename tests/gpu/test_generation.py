"""Generation on a GPU: the recorded step and draw against the plain model, and completions to the bar."""

import itertools

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.config import ModelConfig
from rwkv_music.generation.completion import ForcedExit
from rwkv_music.generation.decoder import Decoder, as_cuda_graph, read_prompt
from rwkv_music.generation.sampling import Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.codec import Piece
from rwkv_music.tokenizers.registry import make_codec

V = 500


@pytest.fixture(scope="module")
def model() -> RWKV:
    """Random weights everywhere, in bf16 on the GPU."""
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=3, n_embd=256, vocab_size=V))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.requires_grad_(False).to("cuda", torch.bfloat16)


def take(n: int, tokens) -> np.ndarray:
    return np.stack(list(itertools.islice(tokens, n)), axis=1)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_recorded_step_is_as_near_to_float64_as_the_model(model, rows):
    prompt, ids = torch.randint(V, (40,)), torch.randint(V, (rows, 20))
    exact = RWKV(model.config).double()
    exact.load_state_dict({name: weight.double().cpu() for name, weight in model.state_dict().items()})
    with torch.no_grad():
        sequence = torch.cat([prompt.expand(rows, -1), ids], dim=1)
        expected = exact(sequence)[:, -1]
        plain = model(sequence.cuda())[:, -1].double().cpu()
    decoder = Decoder(model, rows)
    with torch.no_grad():
        step = as_cuda_graph(decoder.step, model.device)
    decoder.start(*read_prompt(model, prompt.cuda()))
    for t in range(20):
        decoder.token.copy_(ids[:, t])
        step()
    error = (decoder.logits.double().cpu() - expected).norm() / expected.norm()
    assert error < 1.5 * (plain - expected).norm() / expected.norm() + 1e-3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1),
        Sampling(temperature=0),
        Sampling(seed=2, top_p=0.9, min_p=0.01, temperature=1.3),
        Sampling(seed=3, top_k=40),
        Sampling(seed=4, repetition_penalty=0.5, repetition_window=16),
    ],
    ids=str,
)
def test_recorded_or_not_the_tokens_are_the_same(model, sampling, monkeypatch):
    prompt = np.arange(30)
    recorded_tokens = take(80, TokenGenerator(model, 5, sampling).generate(prompt))
    monkeypatch.setattr("rwkv_music.generation.token_generator.as_cuda_graph", lambda function, device: function)
    assert np.array_equal(take(80, TokenGenerator(model, 5, sampling).generate(prompt)), recorded_tokens)


def test_a_player_plays_again_from_the_beginning(model):
    generator = TokenGenerator(model, 4, Sampling(seed=1, repetition_penalty=0.3))
    first = take(60, generator.generate(np.arange(30)))
    take(60, generator.generate(np.arange(5)))
    assert np.array_equal(take(60, generator.generate(np.arange(30))), first)


@pytest.mark.parametrize("tokenizer", ["midi-llm", "midi-llm-piano"])
@pytest.mark.parametrize("rows", [1, 33])
def test_the_grammar_holds_on_the_device(tokenizer, rows):
    """Every token is allowed when it is drawn, by the host's own look at the tables; and every row ends."""
    codec = make_codec(tokenizer)
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=2, n_embd=128, vocab_size=codec.vocab_size)).requires_grad_(False)
    model.to("cuda", torch.bfloat16)
    piece = Piece(np.array([codec.bos_id]), np.empty(0, np.int64))

    def new_grammar() -> ForcedExit:
        return ForcedExit(codec.grammar(piece, rows, bars=2), codec.token_properties.moves_on)

    grammar = new_grammar()
    generator = TokenGenerator(
        model, rows, Sampling(temperature=1.5, seed=1), grammar.tables, codec.token_properties.keys
    )
    tokens = generator.generate(piece.ids, grammar)
    for step in range(3000):
        allowed, running = grammar.allowed(), ~grammar.ended
        grammar.active = step > 300
        token = next(tokens)
        assert allowed[np.flatnonzero(running), token[running]].all()
        if grammar.ended.all():
            break
    assert grammar.ended.all() and (grammar.bars == 2).all()


def test_memory_does_not_grow_with_the_tokens(model):
    tokens = TokenGenerator(model, 8).generate(np.arange(30))
    take(300, tokens)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    take(3000, tokens)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 2**20
    assert torch.cuda.memory_allocated() - before < 2**16
