"""Which parameters train, their gradients, the hash of a base, and initial states."""

import copy

import pytest
import torch

from rwkv_music.checkpoint.tuning import Base, add_states, add_trained, freeze, is_frozen, part_of, set_states
from rwkv_music.checkpoint.weights import open_weights
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import fused_sublayers

SHAPE = ModelConfig(n_layer=3, n_embd=128, vocab_size=40)
PACKED = {"cu_seqlens": torch.tensor([0, 3, 4, 70, 103, 140], dtype=torch.int32), "max_length": 66}


def model() -> RWKV:
    torch.manual_seed(0)
    made = RWKV(SHAPE)
    with torch.no_grad():  # with the zero output matrices of the initialization many gradients would be zero
        for p in made.parameters():
            p += 0.05 * torch.randn_like(p)
    return made


def test_every_parameter_belongs_to_a_part():
    names = [name for name, _ in model().named_parameters()]
    assert all(part_of(name) for name in names)
    assert part_of("blocks.1.att.ln_x.weight") == {"time", "ln"}
    for part, some in {"ln": "ln_out.bias", "ffn": "blocks.2.ffn.x_k", "enn": "blocks.0.ffn.enn.weight"}.items():
        assert part_of(some) == {part}
    assert not is_frozen("blocks.0.ln0.weight", "head,ln") and is_frozen("blocks.0.att.key.weight", "head,ln")
    assert all(is_frozen(name, "state") and is_frozen(name, "lora") and not is_frozen(name, "all") for name in names)


@pytest.mark.parametrize(
    ("tune", "fault"),
    [("state,ln", "'state'.* of emb, time, ffn, enn, ln, head"), ("lnn", "'lnn'"), ("ln,ln", "repeats"), ("", "''")],
)
def test_unknown_parts_are_refused(tune, fault):
    with pytest.raises(UserError, match=f"tune '{tune}' .*{fault}"):
        TrainConfig(tune=tune)


@pytest.mark.parametrize("packed", [{}, PACKED])
def test_every_document_starts_from_the_learned_state(packed):
    """Logits equal those of the untuned model that is given the state explicitly."""
    plain = model()
    tuned = copy.deepcopy(plain)
    add_states(tuned)
    with torch.no_grad():
        for block in tuned.blocks:
            block.att.time_state.normal_()
    documents = 5 if packed else 2
    state = tuned.init_state(documents)
    assert torch.equal(state.wkv[1, 0], tuned.blocks[1].att.time_state) and not state.att_shift.any()
    tokens = torch.randint(40, (2, 70))
    expected, after = plain(tokens, state=state, **packed)
    torch.testing.assert_close(tuned(tokens, **packed), expected)
    assert (expected - plain(tokens, **packed)).abs().max() > 0.1
    _, continued = tuned(tokens, state=after, **packed)  # an explicit state replaces the learned one
    torch.testing.assert_close(continued, plain(tokens, state=after, **packed)[1])


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
@pytest.mark.parametrize("tune", ["state", "lora", "time", "ffn,head"])
def test_fused_sublayers_compute_exactly_the_gradients_of_trained_parameters(monkeypatch, tune, recompute):
    net = model().double()
    train = TrainConfig(tune=tune, lora_rank=4)
    freeze(net, train)
    add_trained(net, train, seed=0)
    net.recompute = recompute
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn_like(p)
    tokens = torch.randint(40, (2, 71))

    def gradients() -> tuple[float, dict[str, torch.Tensor]]:
        net.zero_grad(set_to_none=True)
        loss = net.loss(tokens[:, :-1], tokens[:, 1:], **PACKED)
        loss.backward()
        return loss.item(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    expected_loss, expected = gradients()
    monkeypatch.setattr(fused_sublayers, "supports", lambda x, head_size: True)
    loss, found = gradients()
    assert abs(loss - expected_loss) < 1e-10
    assert found.keys() == expected.keys() == {name for name, p in net.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        assert gradient.any() and (found[name] - gradient).norm() < 1e-8 * gradient.norm(), name


def test_optimizer_groups_contain_only_trained_parameters():
    net = model()
    freeze(net, TrainConfig(tune="ln"))
    groups = net.parameter_groups(0.1)
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0
    freeze(net, TrainConfig(tune="state"))
    assert net.parameter_groups(0.1) == []
    add_states(net)
    assert [len(group["params"]) for group in net.parameter_groups(0.1)] == [3]


def test_a_base_is_identified_by_its_weights_not_by_its_file(tmp_path):
    from safetensors.torch import save_file

    weights = model().state_dict()
    half = {name: weight.bfloat16() for name, weight in weights.items()}
    torch.save(half, tmp_path / "half.pth")
    save_file(weights, tmp_path / "full.safetensors")
    full, same = (Base(open_weights(tmp_path / f), SHAPE, "state") for f in ("full.safetensors", "half.pth"))
    assert full.sha256() == same.sha256()
    half["blocks.1.att.key.weight"][0, 0] += 1
    torch.save(half, tmp_path / "other.pth")
    other = Base(open_weights(tmp_path / "other.pth"), SHAPE, "state")
    assert other.sha256() != full.sha256()
    with pytest.raises(UserError, match="other.pth is not the base.* RUN "):
        other.check(full.sha256(), "RUN")
    hashes = {Base(weights, SHAPE, "time").sha256() for weights in (other.weights, full.weights)}
    assert len(hashes) == 1  # they differ only in a trained parameter


def test_states_of_another_shape_are_refused():
    states = {f"blocks.{layer}.att.time_state": torch.zeros(2, 64, 64) for layer in range(2)}
    with pytest.raises(UserError, match="3 layers x 128"):
        set_states(model(), states, "FILE")
