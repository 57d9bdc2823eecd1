"""Tests of the model: v7 against the `rwkv` package, v8 against numpy, states, packing, the loss, initialization."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from rwkv_music.config import IGNORE_INDEX, LORA_TARGETS, ModelConfig
from rwkv_music.model_v8 import RWKV

CONFIG = {"n_layer": 3, "n_embd": 128, "vocab_size": 61}


def random_model(seed: int = 0, **changes) -> RWKV:
    """Return a small model with noise on every parameter, so that no term is exactly zero or one."""
    torch.manual_seed(seed)
    model = RWKV(ModelConfig(**{**CONFIG, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CONFIG["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


RUN_THE_PACKAGE = """
import sys, torch
from rwkv.model import RWKV
path, out = sys.argv[1:]
model = RWKV(model=path, strategy="cpu fp32")
ids = torch.load(path + ".ids", weights_only=True).tolist()
whole, _ = model.forward(ids, None, full_output=True)
state, single = None, []
for i in ids:
    logits, state = model.forward([i], state)
    single.append(logits.clone())
torch.save({"whole": whole, "single": torch.stack(single)}, out)
"""


def test_v7_equals_rwkv_package(tmp_path):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    model = random_model(channel_mix="x070")
    ids = tokens(1, 70)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    torch.save(ids[0], tmp_path / "model.ids")
    environment = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    command = [sys.executable, "-c", RUN_THE_PACKAGE, str(tmp_path / "model"), str(tmp_path / "logits")]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    package = torch.load(tmp_path / "logits", weights_only=True)
    with torch.no_grad():
        whole = model(ids)[0]
        state, single = model.init_state(1), []
        for t in range(ids.shape[1]):
            logits, state = model(ids[:, t : t + 1], state=state)
            single.append(logits[0, 0])
    torch.testing.assert_close(whole, package["whole"], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.stack(single), package["single"], rtol=0, atol=1e-4)


def numpy_heron(weights: dict[str, np.ndarray], ids: list[int], n_layer: int, n_head: int) -> np.ndarray:
    """Return the logits of RWKV v8 rc00, token by token in float64, implemented from the formulas alone."""
    z = {name: value.astype(np.float64).squeeze() for name, value in weights.items()}

    def norm(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * z[name + ".weight"] + z[name + ".bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    width = z["emb.weight"].shape[1]
    size = width // n_head
    att_before, ffn_before = np.zeros((n_layer, width)), np.zeros((n_layer, width))
    memory = np.zeros((n_layer, n_head, size, size))
    out = []
    for token in ids:
        x = norm(z["emb.weight"][token], "blocks.0.ln0")
        for i in range(n_layer):
            p = f"blocks.{i}."
            h = norm(x, p + "ln1")
            mix = {c: h + (att_before[i] - h) * z[f"{p}att.x_{c}"] for c in "rwkvag"}
            att_before[i] = h
            r = z[p + "att.receptance.weight"] @ mix["r"]
            k = z[p + "att.key.weight"] @ mix["k"]
            v = z[p + "att.value.weight"] @ mix["v"]
            decay = np.exp(
                -np.exp(-0.5) * sigmoid(z[p + "att.w0"] + np.tanh(mix["w"] @ z[p + "att.w1"]) @ z[p + "att.w2"])
            )
            a = sigmoid(z[p + "att.a0"] + mix["a"] @ z[p + "att.a1"] @ z[p + "att.a2"])
            g = sigmoid(mix["g"] @ z[p + "att.g1"]) @ z[p + "att.g2"]
            if i == 0:
                first = v
            else:
                v = v + (first - v) * sigmoid(z[p + "att.v0"] + mix["v"] @ z[p + "att.v1"] @ z[p + "att.v2"])
            kk = (k * z[p + "att.k_k"]).reshape(n_head, size)
            kk = kk / np.linalg.norm(kk, axis=1, keepdims=True)
            k = k * (1 + (a - 1) * z[p + "att.k_a"])
            y = np.zeros(width)
            for head in range(n_head):
                s = slice(head * size, (head + 1) * size)
                S = memory[i, head]
                S = S * decay[s] - np.outer(S @ kk[head], kk[head] * a[s]) + np.outer(v[s], k[s])
                memory[i, head] = S
                o = S @ r[s]
                o = (o - o.mean()) / np.sqrt(o.var() + 64e-5)
                bonus = (r[s] * k[s] * z[p + "att.r_k"][head]).sum() * v[s]
                y[s] = o * z[p + "att.ln_x.weight"][s] + z[p + "att.ln_x.bias"][s] + bonus
            x = x + z[p + "att.output.weight"] @ (y * g)
            h = norm(x, p + "ln2")
            k = h + (ffn_before[i] - h) * z[p + "ffn.x_k"]
            ffn_before[i] = h
            k = np.maximum(z[p + "ffn.key.weight"] @ k, 0) ** 2
            x = x + z[p + "ffn.value.weight"] @ k * z[p + "ffn.enn.weight"][token]
        out.append(z["head.weight"] @ norm(x, "ln_out"))
    return np.stack(out)


def test_v8_equals_numpy():
    model = random_model()
    ids = tokens(1, 70)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = numpy_heron(weights, ids[0].tolist(), CONFIG["n_layer"], model.config.n_head)
    with torch.no_grad():
        whole = model(ids)[0]
        state, single = model.init_state(1), []
        for t in range(ids.shape[1]):
            logits, state = model(ids[:, t : t + 1], state=state)
            single.append(logits[0, 0])
    np.testing.assert_allclose(whole.numpy(), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(torch.stack(single).numpy(), expected, atol=1e-4, rtol=0)


def test_initial_v8_equals_v7():
    torch.manual_seed(0)
    v8 = RWKV(ModelConfig(**CONFIG))
    v7 = RWKV(ModelConfig(**CONFIG, channel_mix="x070"))
    missing = v7.load_state_dict(v8.state_dict(), strict=False)
    assert missing.missing_keys == [] and all(".enn." in name for name in missing.unexpected_keys)
    assert torch.equal(v8(tokens(2, 20)), v7(tokens(2, 20)))


def test_state_continues_a_piece_and_rows_can_be_selected():
    model = random_model().eval()
    ids = tokens(2, 90)
    with torch.no_grad():
        whole = model(ids)
        first, state = model(ids[:, :33], state=model.init_state(2))
        second, _ = model(ids[:, 33:], state=state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=2e-5)
        swapped, _ = model(ids[[1, 0, 1], 33:], state=state.rows(torch.tensor([1, 0, 1])))
    torch.testing.assert_close(swapped, whole[[1, 0, 1], 33:], rtol=0, atol=2e-5)


def test_packed_documents_equal_single_documents():
    model = random_model()
    ids = tokens(2, 40)
    bounds = [0, 7, 8, 40, 62, 80]
    packed = model(ids, cu_seqlens=torch.tensor(bounds, dtype=torch.int32)).view(80, -1)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        alone = model(ids.view(1, 80)[:, start:stop])[0]
        torch.testing.assert_close(packed[start:stop], alone, rtol=0, atol=2e-5)


def test_packed_documents_start_from_their_own_states():
    model = random_model().eval()
    ids = tokens(1, 30)
    with torch.no_grad():
        _, state = model(tokens(2, 9, seed=1), state=model.init_state(2))
        cu_seqlens = torch.tensor([0, 12, 30], dtype=torch.int32)
        packed, after = model(ids, state=state, cu_seqlens=cu_seqlens)
        for i, (start, stop) in enumerate(((0, 12), (12, 30))):
            alone, alone_after = model(ids[:, start:stop], state=state.rows(torch.tensor([i])))
            torch.testing.assert_close(packed[:, start:stop], alone, rtol=0, atol=2e-5)
            torch.testing.assert_close(after.rows(torch.tensor([i])).wkv, alone_after.wkv, rtol=0, atol=2e-5)


def test_loss_ignores_context():
    model = random_model()
    ids, targets = tokens(2, 20), tokens(2, 20, seed=1)
    logits = model(ids)
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 20)
    torch.testing.assert_close(model.loss(ids, targets), each.mean())
    # With 8 context tokens, the target at position 6 is the 8th token, still context; position 7 is the first to count.
    counted = torch.cat([each[0, 7:], each[1, 19:]])
    torch.testing.assert_close(model.loss(ids, targets, ctx_lengths=torch.tensor([8, 20])), counted.mean())
    packed = torch.tensor([0, 10, 20, 40], dtype=torch.int32)
    summed = model.loss(ids, targets, ctx_lengths=torch.tensor([3, 10, 20]), cu_seqlens=packed, reduction="sum")
    logits = model(ids, cu_seqlens=packed)
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(summed, each[2:10].sum() + each[19:20].sum() + each[39:].sum())


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"targets": tokens(2, 20).index_fill(1, torch.tensor([3]), -1)}, "targets holds -1, .* 0 to 60, or -100"),
        ({"targets": tokens(2, 20).index_fill(1, torch.tensor([3]), 61)}, "targets holds 61, .* 0 to 60, or -100"),
        ({"targets": tokens(2, 19)}, r"targets is \[2, 19\], but input_ids is \[2, 20\]"),
        ({"positions": torch.arange(40), "ctx_lengths": torch.tensor([10, 10])}, "positions .* with ctx_lengths"),
        ({"ctx_lengths": torch.tensor([10, 10, 10])}, r"ctx_lengths is \[3\]: .*\[2\]"),
        ({"ctx_lengths": torch.tensor([10])}, r"ctx_lengths is \[1\]: .*\[2\]"),
        ({"reduction": "none"}, "reduction is 'none'"),
    ],
)
def test_loss_rejects_invalid_arguments(changes, error):
    arguments = {"input_ids": tokens(2, 20), "targets": tokens(2, 20), **changes}
    with pytest.raises(ValueError, match=error):
        random_model(n_layer=1).loss(**arguments)


def test_head_skips_ignored_positions(monkeypatch):
    model = random_model()
    seen = []
    model.head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[0]))
    targets = tokens(2, 20).index_fill(1, torch.arange(15), IGNORE_INDEX)
    model.loss(tokens(2, 20), targets)
    assert seen == [10]


def test_head_runs_on_all_positions_if_few_are_ignored():
    model = random_model()
    seen = []
    model.head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[0]))
    ids, targets = tokens(2, 32), tokens(2, 32)
    targets[0, 7] = targets[1, 31] = IGNORE_INDEX
    each = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(model.loss(ids, targets), each.sum() / 62)
    targets[0, 8] = IGNORE_INDEX
    model.loss(ids, targets)
    assert seen[1:] == [64, 61]  # the first entry is the call for the logits


def test_no_targets_give_zero_loss_and_gradients():
    model = random_model()
    loss = model.loss(tokens(1, 5), torch.full((1, 5), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and all(not p.grad.any() for p in model.parameters())


def test_initialization_follows_train_temp():
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=4, n_embd=128, vocab_size=512))
    w = model.state_dict()
    assert w["blocks.0.ffn.value.weight"].count_nonzero() == 0 and w["blocks.3.att.output.weight"].count_nonzero() == 0
    assert w["emb.weight"].abs().max() <= 1e-4
    # Orthogonal with gain 0.5 sqrt(V / C): every singular value is that gain.
    torch.testing.assert_close(torch.linalg.svdvals(w["head.weight"]), torch.full((128,), 1.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        torch.linalg.svdvals(w["blocks.1.att.key.weight"]), torch.full((128,), 0.1), rtol=0, atol=1e-5
    )
    # The bias of the decay: channel 0 of layer 0 is the slowest, -6 + 0.5 - 2.5, the last the fastest, 0.5 + 2.5.
    assert w["blocks.0.att.w0"].flatten()[[0, -1]].tolist() == pytest.approx([-8.0, 3.0])
    assert w["blocks.1.att.w0"].flatten()[64].item() == pytest.approx(
        -6 + 6 * (64 / 127) ** (1 + (1 / 3) ** 0.3) + 0.5 - 2.5, abs=1e-5
    )
    assert w["blocks.2.att.ln_x.weight"].unique().item() == pytest.approx(0.75**0.7)
    assert w["blocks.3.ffn.x_k"].flatten()[64].item() == pytest.approx(1 - 0.5 ** (0.25**4), abs=1e-6)
    assert "blocks.0.att.v1" not in w and "blocks.1.att.v1" in w


def test_parameter_groups_cover_each_parameter_once():
    model = random_model()
    groups = model.parameter_groups(weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    grouped = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    plain, fast, decayed = ({names[id(p)] for p in group["params"]} for group in groups)
    assert fast == {f"blocks.{i}.att.w0" for i in range(3)} and groups[1]["lr_scale"] == 2.0
    assert {"emb.weight", "head.weight", "blocks.1.att.key.weight", "blocks.1.ffn.value.weight"} <= decayed
    assert {"blocks.1.att.w1", "blocks.1.ln1.weight", "blocks.1.ffn.enn.weight", "blocks.1.att.r_k"} <= plain
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0, 0.1]
    *others, matrices = model.parameter_groups(weight_decay=0.1, muon=True)
    assert {names[id(p)] for p in matrices["params"]} == {
        f"blocks.{layer}.{name}.weight" for layer in range(3) for name in LORA_TARGETS
    }
    assert {names[id(p)] for p in others[2]["params"]} == {"emb.weight", "head.weight"}
    assert [matrices[key] for key in ("weight_decay", "lr_scale", "muon")] == [0.1, 1.0, True]
    assert sum(len(group["params"]) for group in (*others, matrices)) == len(grouped)


def test_every_parameter_receives_a_gradient():
    model = random_model()
    model.loss(tokens(2, 30), tokens(2, 30, seed=1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
