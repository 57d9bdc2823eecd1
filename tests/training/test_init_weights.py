"""Runs that begin with given weights: what comes out again, on any ranks and stage; what is fresh; what is told."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from rwkv_music import RWKV, ModelConfig, export
from rwkv_music.checkpoint.tensors import UNREAD
from rwkv_music.checkpoint.weights import load_model, open_weights
from rwkv_music.tokenizers.registry import load_codec
from tests.training.conftest import SMALL, Run, train

STILL = "--steps 1 --lr 0 --lr_final 0 --warmup_steps 0 --ctx_len 64 --batch_size 4 --val_every 0".split()


@pytest.fixture(scope="module")
def vocabulary(bach_data) -> int:
    return load_codec(bach_data / "tokenizer.json").vocab_size


def given(folder: Path, vocab_size: int, **changes) -> Path:
    """A .pth such as BlinkDL's: every tensor random, of unusual shape, in bf16; with those that nothing reads."""
    config = ModelConfig(**{"n_layer": 2, "n_embd": 64, "dim_ffn": 160, "gate_rank": 40, "value_rank": 16, **changes},
                         vocab_size=vocab_size)  # fmt: skip
    torch.manual_seed(1)
    weights = RWKV(config).state_dict()
    weights |= {name: weights[name.replace("blocks.0", "blocks.1")] for name in UNREAD}
    weights = {name: (0.2 * torch.randn_like(w)).bfloat16() for name, w in weights.items()}
    path = folder / "given.pth"
    torch.save(weights, path)
    return path


def still(folder: Path, data: Path, init: Path, *more: object, **start) -> Run:
    """A run of one step that changes nothing."""
    return train(folder, "--data", data, "--init", init, *STILL, *more, **start)


def bits(path: Path) -> dict[str, torch.Tensor]:
    return {name: w.view(torch.int16) for name, w in torch.load(path, weights_only=True).items()}


@pytest.fixture(scope="module")
def v8_run(bach_data, vocabulary, tmp_path_factory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("v8")
    path = given(folder, vocabulary)
    return path, still(folder / "run", bach_data, path, config="zero1.json")


def test_weights_pass_through_a_run_bit_for_bit(v8_run, bach_data, tmp_path):
    path, run = v8_run
    assert f"with the weights of {path}" in run.output and "fresh" not in run.output
    assert json.loads((run.folder / "config.json").read_text())["train"]["init"] == str(path)
    shutil.copytree(run.folder, tmp_path / "resumed")
    again = train(tmp_path / "resumed", "--data", bach_data, *STILL, "--steps", 2, ranks=2, config="zero3.json")
    assert again.last_checkpoint.name == "step_00000002"
    before = bits(path)
    for folder in (run.folder, again.folder):
        export(folder, tmp_path / "out.pth")
        after = bits(tmp_path / "out.pth")
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (tmp_path / "out.pth.tokenizer.json").read_bytes() == (run.folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_and_number_of_ranks_exports_the_same_bytes(v8_run, ranks, stage, bach_data, tmp_path):
    path, one = v8_run
    if (stage, ranks) == (1, 1):
        run = one  # Its bytes are given.pth's, which the test above holds it to.
    else:
        run = still(tmp_path / "run", bach_data, path, ranks=ranks, config=f"zero{stage}.json")
    hashes = set()
    for folder in (one.folder, run.folder):
        export(folder, tmp_path / "out.safetensors", "safetensors")
        hashes.add(hashlib.sha256((tmp_path / "out.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_a_tuned_run_gives_back_its_base_as_it_was(v8_run, bach_data, tmp_path):
    path, _ = v8_run
    run = still(tmp_path / "run", bach_data, path, "--tune", "ln", config="zero1.json")
    export(run.folder, tmp_path / "out.pth")
    before, after = bits(path), bits(tmp_path / "out.pth")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not load_model(run.folder)[0].state_dict().keys() & set(UNREAD)


def test_a_v7_becomes_a_v8_with_the_same_logits(bach_data, vocabulary, tmp_path):
    path = given(tmp_path, vocabulary, channel_mix="x070")
    run = still(tmp_path / "run", bach_data, path, "--channel_mix", "x080", ranks=2, config="zero3.json")
    assert "enn is initialized to ones" in run.output
    before, after = RWKV.from_pretrained(path), RWKV.from_pretrained(run.folder)
    assert after.config.channel_mix == "x080"
    ids = torch.randint(vocabulary, (1, 40))
    with torch.no_grad():
        assert torch.equal(before(ids), after(ids))


@pytest.mark.parametrize("ranks, config", [(1, "zero2.json"), (2, "zero3.json")])
def test_another_vocabulary_keeps_the_body_and_the_run_goes_on_without_the_file(ranks, config, bach_data, tmp_path):
    path = given(tmp_path, 100)
    run = still(tmp_path / "run", bach_data, path, ranks=ranks, config=config)
    assert "emb, head and enn are initialized anew because its vocabulary has 100 tokens" in run.output
    before, after = open_weights(path), open_weights(run.folder)
    for name in before.tensors.shapes:
        if name not in ("emb.weight", "head.weight") and ".enn." not in name:
            assert torch.equal(before.read(name, torch.float32), after.read(name, torch.float32)), name
    assert after.read("blocks.1.ffn.enn.weight", torch.float32).unique().tolist() == [1.0]
    assert 0 < after.read("emb.weight", torch.float32).abs().max() <= 1.01e-4
    gains = torch.linalg.svdvals(after.read("head.weight", torch.float32))
    torch.testing.assert_close(gains, torch.full_like(gains, gains.mean().item()), rtol=0.01, atol=0)  # orthogonal
    path.unlink()
    assert "resumed from" in train(run.folder, "--steps", 2, ranks=ranks, config=config).output


def test_a_run_begins_with_another_runs_masters_and_learns(one_process, bach_data, tmp_path):
    run = train(tmp_path / "run", "--data", bach_data, "--init", one_process.folder, *SMALL, "--steps", 2,
                "--warmup_steps", 0, "--lr", 1e-3)  # fmt: skip
    assert run.curve()[0] < one_process.curve()[0] - 0.5
    copy = still(tmp_path / "copy", bach_data, one_process.last_checkpoint, ranks=2, config="zero3.json")
    before, after = open_weights(one_process.folder), open_weights(copy.folder)
    assert all(torch.equal(before.read(n, torch.float32), after.read(n, torch.float32)) for n in before.tensors.shapes)


@pytest.mark.parametrize(
    "more, says",
    [
        (["--n_layer", 6], "has n_layer 2, not 6: drop --n_layer."),
        (["--preset", "0.1b"], "has n_layer 2, not 12: drop --preset 0.1b."),
        (["--channel_mix", "x070"], "has channel_mix x080, not x070: drop --channel_mix."),
        (["--init", "nowhere.pth"], "There is no nowhere.pth"),
    ],
)
def test_what_contradicts_the_file_is_told_before_anything_is_made(more, says, bach_data, v8_run, tmp_path, capsys):
    import train as train_py
    from tests.training.conftest import command

    line = command(tmp_path / "run", "--data", bach_data, "--init", v8_run[0], *STILL, *more)
    assert train_py.main(line[2:]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_gone_on_with_under_another_init(v8_run, capsys):
    import train as train_py
    from tests.training.conftest import command

    assert train_py.main(command(v8_run[1].folder, "--init", "other.pth", "--steps", 2)[2:]) == 1
    assert f"with {v8_run[0]}, not with other.pth: drop --init" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_begun_with(one_process, bach_data, tmp_path):
    import shutil

    shutil.copytree(one_process.last_checkpoint, tmp_path / "step_00000020")
    file = tmp_path / "step_00000020" / "weights_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    run = train(tmp_path / "run", "--data", bach_data, "--init", file.parent, *STILL, check=False)
    assert run.status == 1 and "weights_00000.safetensors has changed" in run.output
    assert "Traceback" not in run.output and not (tmp_path / "run").exists()
