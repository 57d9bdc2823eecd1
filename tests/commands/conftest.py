"""Untrained models for the commands that load a run."""

import pytest
import torch

from rwkv_music.commands import common
from rwkv_music.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import load_codec


@pytest.fixture
def load_untrained(monkeypatch):
    """Return a function that makes the commands load an untrained model, with a dataset's tokenizer, instead of a run.

    Its keyword arguments are settings of DataConfig.
    """

    def load(data, **settings):
        codec = load_codec(data / "tokenizer.json")
        torch.manual_seed(0)
        shape = ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)
        config = RunConfig(shape, DataConfig(**settings), TrainConfig())
        model = RWKV(config.model).requires_grad_(False)
        monkeypatch.setattr(common, "load_run", lambda run, which, state: (model, codec, config, "step 7"))

    return load
