"""The models of the page: the one of the package, and a run that is followed."""

import pytest

from rwkv_music.checkpoint.run_folder import checkpoints
from rwkv_music.checkpoint.validations import Validations
from rwkv_music.checkpoint.weights import checkpoint_of
from rwkv_music.errors import UserError
from rwkv_music.ops import decode_cpu
from rwkv_music.play.models import load_models
from rwkv_music.play.server import Site, serve
from rwkv_music.prepare.pipeline import prepare
from tests.midi.midi_files import file_of, make_midi, note
from tests.play.conftest import running
from tests.training.conftest import train


def test_the_model_of_the_package_fills_in(monkeypatch):
    [model] = load_models([])
    # The weights are packed already, so that the first request does not wait for it.
    monkeypatch.setattr(decode_cpu, "_pack", None)
    assert (model.name, model.step) == ("the included model", None)
    with running(Site([model])) as client:
        _, piece = client.post("/api/start", {"kind": "example"})
        *events, last = client.write({"piece": piece["id"], "action": "fill", "bars": [4, 5], "parts": [1]})
    assert [event["bar"] for event in events if event.get("complete")] == [4, 5]
    assert len(last["done"]["candidates"]) == 1


@pytest.fixture
def run(tmp_path):
    """Return a function that trains a small run that fills in up to a step, and returns its folder."""
    (tmp_path / "midi").mkdir()
    for number in range(4):
        notes = [
            message for beat in range(16) for message in note(480 * beat, 480 * beat + 400, 60 + number + beat % 5)
        ]
        (tmp_path / "midi" / f"{number}.mid").write_bytes(file_of(make_midi(notes)))
    prepare([tmp_path / "midi"], tmp_path / "data", workers=1, val_fraction=0.25)

    def trained(step: int):
        options = (
            "--task infill --infill_bars 2 --n_layer 1 --n_embd 64 --ctx_len 64 --batch_size 4 --steps 4 --lr 1e-2"
        )
        more = ("--warmup_steps", 0, "--val_every", 1, "--stop_after", step)
        train(tmp_path / "run", "--data", tmp_path / "data", *options.split(), *more)
        return tmp_path / "run"

    return trained


def test_a_run_is_followed_to_its_newest_checkpoint(run, capsys):
    """Although the first checkpoint remains the best one."""
    folder = run(1)
    models = {follow: load_models([folder], follow) for follow in (False, True)}
    record = Validations.read(folder)
    record.add(1, 0.001, saved=True)
    run(4)
    assert checkpoint_of(folder) == checkpoints(folder)[0] != checkpoints(folder)[-1]
    capsys.readouterr()
    request = {"action": "fill", "bars": [0, 0], "parts": [0]}
    for follow, step in ((False, 1), (True, 4)):
        with running(Site(models[follow])) as client:
            _, piece = client.post("/api/start", {"kind": "example"})
            assert client.write({"piece": piece["id"], **request})[-1]["done"]["step"] == step
    assert capsys.readouterr().out == f"{folder}: step 4 loaded\n"


def test_exported_weights_cannot_be_followed():
    with pytest.raises(UserError, match="--follow .* run folder"):
        serve([], follow=True)
