"""The loss with the true tag and with others: the model is replaced by a function of the tag that it reads."""

import numpy as np
import pytest
import torch

from rwkv_music.config import ModelConfig
from rwkv_music.data.pieces import Pieces
from rwkv_music.evaluation import tags
from rwkv_music.evaluation.tags import as_table, tag_losses
from rwkv_music.model_v8 import RWKV
from rwkv_music.prepare.pipeline import prepare
from rwkv_music.tokenizers.registry import load_codec


@pytest.fixture(scope="module")
def tagged(bach_midi, tmp_path_factory):
    """Return a dataset with three composers, and a mode that only one piece in three has."""
    folder = tmp_path_factory.mktemp("tagged")
    lines = [
        f"{path.name},{('bach', 'brahms', 'berg')[i % 3]},{'' if i % 3 else 'major'}"
        for i, path in enumerate(sorted(bach_midi.glob("*.mid")))
    ]
    (folder / "tags.csv").write_text("\n".join(["file,composer,mode", *lines]), encoding="utf-8")
    prepare(
        [bach_midi], folder / "data", workers=1, val_fraction=0, metadata=folder / "tags.csv", tags=["composer", "mode"]
    )
    return folder / "data"


def test_each_version_reads_its_tag(tagged, monkeypatch):
    """One nat a token with the true value, three with unknown, and two with any other."""
    codec = load_codec(tagged / "tokenizer.json")
    own = {value: codec.vocabulary.index(f"Tag_composer={value}") for value in ("bach", "brahms", "berg", "none")}
    others = set()

    def nats(model, batch):
        documents = batch.input_ids.flatten().split(batch.cu_seqlens.diff().tolist())
        read = [int(ids[1]) for ids in documents]
        assert len(read) == 3 and read[0] != read[1] and read[2] == own["none"]
        assert all(torch.equal(ids[2:], documents[0][2:]) for ids in documents)
        others.add(read[1])
        return np.concatenate([np.full(len(ids), 1.0 + i) for i, ids in enumerate(documents)]), None

    monkeypatch.setattr(tags, "nats_of_targets", nats)
    [loss] = tag_losses(None, codec, tagged, longest=200)  # the column `mode` has one value, so no other one
    assert (loss.column, loss.pieces, loss.tokens) == ("composer", 12, 12 * (199 - 2))
    assert (loss.right, loss.other, loss.unknown, loss.preferred) == (1, 2, 3, 1)
    assert others == {own["bach"], own["brahms"], own["berg"]}
    assert "composer" in as_table([loss]) and "100%" in as_table([loss])


def test_the_loss_is_that_of_the_model(tagged):
    codec = load_codec(tagged / "tokenizer.json")
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # so that the tag has an effect
    [loss] = tag_losses(model, codec, tagged, longest=64)
    total = 0.0
    for piece in Pieces(tagged, "train", codec):
        ids = torch.from_numpy(piece.ids[:64].astype(np.int64))
        logits = model(ids[None, :-1])[0].float()
        total += torch.nn.functional.cross_entropy(logits[2:], ids[3:], reduction="sum").item()
    assert loss.right * loss.tokens == pytest.approx(total, rel=1e-4)
    assert loss.other != loss.right


def test_a_dataset_without_tags_has_no_losses(bach_data):
    assert tag_losses(None, load_codec(bach_data / "tokenizer.json"), bach_data) == []
