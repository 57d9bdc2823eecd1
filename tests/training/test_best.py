"""The best checkpoint of a run: saved, kept, found again after kills and restarts; --patience."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from rwkv_music.__main__ import main as rwkv_music
from rwkv_music.checkpoint.run_folder import checkpoints, fault, read_progress
from rwkv_music.checkpoint.validations import Validations, choose_checkpoint
from rwkv_music.checkpoint.weights import open_weights
from rwkv_music.errors import UserError
from rwkv_music.training import saving
from rwkv_music.training.health import SpikeDetector
from rwkv_music.training.loop import Loop
from rwkv_music.training.validation import Validation
from tests.training.conftest import TINY, Run, train


@pytest.fixture
def losses(monkeypatch) -> dict[int, float]:
    """The validation losses of the next runs by step, to be filled by the test. Each is measured in no time."""
    of_steps: dict[int, float] = {}

    def measure(self: Validation, engine, polled, group) -> dict[str, float]:
        return {"val/loss": of_steps[polled.__self__.progress.step]}

    monkeypatch.setattr(Validation, "measure", measure)
    return of_steps


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints, all of which are whole."""
    assert [fault(path) for path in checkpoints(folder)] == [None] * len(checkpoints(folder))
    return [read_progress(path).step for path in checkpoints(folder)]


def best(folder: Path) -> int:
    """Return the step of the best checkpoint, to which the link points as well."""
    chosen, _ = choose_checkpoint(folder)
    assert (folder / "checkpoints" / "best").resolve() == chosen.resolve()
    return read_progress(chosen).step


def run(folder: Path, data: Path, *more: object, **options) -> Run:
    return train(folder, "--data", data, *TINY, "--val_every", 1, "--save_every", 3, *more, **options)


@pytest.mark.parametrize(
    "of_steps, keep, left",
    [
        ([5, 4, 3, 2, 1], 0, [3, 5]),  # those of steps 1, 2 and 4 were saved only because they were the best
        ([5, 4, 3, 2, 1], 1, [5]),
        ([5, 2, 3, 4, 6], 1, [2, 5]),
        ([5, 4, 1, 2, 3, 4, 3], 1, [3, 7]),
        ([float("nan"), 4, float("inf"), 5], 1, [2, 4]),
    ],
)
def test_the_best_weights_are_saved_and_kept(of_steps, keep, left, losses, bach_data, tmp_path):
    losses.update(enumerate(of_steps, 1))
    done = run(tmp_path / "run", bach_data, "--steps", len(of_steps), "--keep", keep)
    assert steps(done.folder) == left
    lowest = min((loss, step) for step, loss in losses.items() if loss == loss)[1]
    assert best(done.folder) == lowest
    assert f"the best of {len(of_steps)} validations is that of step {lowest} " in done.output.splitlines()[-1]


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing handles it."""


@contextmanager
def killed_after(operations: int) -> Iterator[None]:
    """A context in which a run dies while it trains, before a file operation: that one and all later ones fail."""
    done = 0
    trains = False

    def counted(operation: Callable) -> Callable:
        def wrapper(*arguments, **options):
            nonlocal done
            done += trains
            if done > operations:
                raise Killed
            return operation(*arguments, **options)

        return wrapper

    def executor(*arguments, **options):
        return stack.enter_context(pool(*arguments, **options))  # its thread ends before the operations work again

    def start(loop: Loop) -> None:
        nonlocal trains
        trains = True
        started(loop)

    pool, started = saving.ThreadPoolExecutor, Loop.run
    with ExitStack() as stack:
        for place, name in [(os, "replace"), (os, "fsync"), (os, "symlink"), (os, "unlink"), (shutil, "rmtree")]:
            stack.enter_context(mock.patch.object(place, name, counted(getattr(place, name))))
        stack.enter_context(mock.patch.object(saving, "ThreadPoolExecutor", executor))
        stack.enter_context(mock.patch.object(Loop, "run", start))
        yield


@pytest.mark.parametrize("seed", [0])  # any other takes other moments
def test_killed_at_any_file_operation_the_best_is_whole_and_the_best_seen(seed, losses, bach_data, tmp_path):
    random, folder, n = np.random.default_rng(seed), tmp_path / "run", 6
    losses.update(enumerate(random.permutation(n).tolist(), 1))
    kills = 0
    while True:
        try:
            with killed_after(int(random.integers(5, 60))):
                done = run(folder, bach_data, "--steps", n, "--keep", 1)
        except Killed:
            kills += 1
            if saved := steps(folder):
                # The newest checkpoint may not have been validated yet. The others have been, and so has each step
                # before the newest: the ones that were the best at their time have checkpoints.
                chosen = read_progress(choose_checkpoint(folder)[0]).step
                seen = range(1, saved[-1] + 1)
                assert chosen in (min(seen[:-1], key=losses.get, default=1), min(seen, key=losses.get)), saved
        else:
            break
    assert kills > 1
    lowest = min(losses, key=losses.get)
    assert best(folder) == lowest and steps(folder) == sorted({lowest, n}), done.output


def test_patience_ends_a_run_that_resumes_only_with_more(losses, bach_data, tmp_path):
    losses.update({1: 5, 2: 3, 3: 4, 4: 3, 5: 6, 6: 7})
    arguments = ["--steps", 6, "--patience", 2, "--save_every", 0]
    done = run(tmp_path / "run", bach_data, *arguments)
    assert steps(done.folder) == [2, 4] and best(done.folder) == 2
    again = run(tmp_path / "run", bach_data, *arguments)
    for ended in (done, again):
        assert "the last 2 validations" in ended.output and "--patience" in ended.output
        assert "Trained to step 4; the best of 4 validations is that of step 2 (3.0000 nats" in ended.output
    more = run(tmp_path / "run", bach_data, *arguments, "--patience", 3)
    assert "the last 3 validations" in more.output and steps(done.folder) == [2, 4, 5]  # from the last one
    run(tmp_path / "run", bach_data, *arguments, "--patience", 0)
    assert steps(done.folder) == [2, 4, 5, 6] and best(done.folder) == 2
    without = run(tmp_path / "other", bach_data, "--patience", 1, "--val_every", 0, check=False)
    assert without.status == 1 and "--patience 1" in without.output and "--val_every" in without.output


def test_losses_on_other_rows_are_not_compared(losses, bach_data, tmp_path):
    folder = tmp_path / "run"
    losses.update({1: 2, 2: 1, 3: 3})
    run(folder, bach_data, "--stop_after", 3)
    assert best(folder) == 2
    run(folder, bach_data, "--stop_after", 3, "--val_rows", 4)  # there is no step to take
    assert best(folder) == 2
    losses.update({3: 9, 4: 8, 5: 8})
    run(folder, bach_data, "--stop_after", 5, "--val_rows", 4)
    assert [(entry.step, entry.loss) for entry in Validations.read(folder).entries] == [(3, 9), (4, 8), (5, 8)]
    assert best(folder) == 4


def test_other_ranks_continue_the_record(bach_data, tmp_path):
    """The learning rate is so high that the loss soon rises."""
    more = ["--steps", 12, "--lr", 0.05, "--warmup_steps", 0, "--val_every", 2, "--patience", 3, "--save_every", 0]
    two = run(tmp_path / "run", bach_data, *more, "--stop_after", 4, ranks=2)
    before = Validations.read(two.folder).entries
    one = run(tmp_path / "run", bach_data, *more)
    after = Validations.read(two.folder)
    assert [entry.step for entry in before] == [2, 4] and after.entries[:2] == before
    lowest = min(after.entries, key=lambda entry: entry.loss)
    last = after.entries[-1].step
    assert best(one.folder) == lowest.step and last == min(12, lowest.step + 6) and last in steps(one.folder)


def test_a_rollback_forgets_the_losses_after_it(losses, bach_data, tmp_path, monkeypatch):
    """At step 4 comes a spike, once. Step 2 is the last one without, and the best one, 3, is taken again."""
    losses.update({1: 4, 2: 3, 3: 1, 4: 5, 5: 5})

    def is_spike(self, loss: float) -> bool:
        return seen.append(loss) or len(seen) == 2

    seen: list[float] = []
    monkeypatch.setattr(SpikeDetector, "is_spike", is_spike)
    measured = []
    measure = Validation.measure
    monkeypatch.setattr(Validation, "measure", lambda *x: measured.append(x[2].__self__.progress.step) or measure(*x))
    done = run(tmp_path / "run", bach_data, "--steps", 5, "--log_every", 2, "--save_every", 2, "--on_spike", "rollback")
    assert "returning to step_00000002" in done.output
    assert measured == [1, 2, 3, 3, 4, 5] and steps(done.folder) == [2, 3, 4, 5] and best(done.folder) == 3


@pytest.fixture(scope="module")
def trained(bach_data, tmp_path_factory) -> Run:
    """A run of five steps whose second one is the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "measure", lambda *x: {"val/loss": abs(x[2].__self__.progress.step - 2.25)})
        return run(tmp_path_factory.mktemp("trained") / "run", bach_data, "--steps", 5)


BEST = "step 2 (the best of 5 validations, 0.2500 nats per token; the last is step_00000005)"


@pytest.mark.parametrize(
    "choice, says, step",
    [
        ([], BEST, 2),
        (["--checkpoint", "best"], BEST, 2),
        (["--checkpoint", "last"], "step 5 (the last one)", 5),
        (["--checkpoint", "3"], "step 3 (chosen with --checkpoint)", 3),
    ],
)
def test_commands_take_the_best_unless_told_otherwise(
    choice, says, step, trained, bach_data, bach_midi, tmp_path, capsys
):
    folder, out = str(trained.folder), tmp_path / "a.safetensors"
    assert rwkv_music(["export", folder, *choice, "--format", "safetensors", "--dtype", "fp32", "--out", str(out)]) == 0
    assert says in capsys.readouterr().out
    exported, saved = open_weights(out), open_weights(trained.folder / "checkpoints" / f"step_{step:08d}")
    for name in ("emb.weight", "head.weight"):
        assert exported.read(name, torch.float32).equal(saved.read(name, torch.float32))
    prompt = str(min(bach_midi.iterdir()))
    generate = ["generate", folder, *choice, "--prompt", prompt, "--bars", "1", "--out", str(tmp_path / "o.mid")]
    assert rwkv_music(generate) == 0 and f"generated with the weights of {says}" in capsys.readouterr().out
    if not choice:
        assert rwkv_music(["evaluate", folder, "--data", str(bach_data)]) == 0
        assert f"{folder} at {says}, on" in capsys.readouterr().out
        assert open_weights(folder).step == open_weights(trained.folder / "checkpoints" / "best").step == 2


@pytest.mark.parametrize(
    "path, choice, says",
    [
        ("", "4", "no checkpoint of step 4"),
        ("checkpoints/best", "last", "is a checkpoint, not a run folder"),
        ("checkpoints/step_00000003", "best", "is a checkpoint, not a run folder"),
    ],
)
def test_a_checkpoint_that_cannot_be_chosen_is_one_sentence(path, choice, says, trained, tmp_path, capsys):
    line = ["export", str(trained.folder / path), "--checkpoint", choice, "--out", str(tmp_path / "x.pth")]
    assert rwkv_music(line) == 1
    [error] = capsys.readouterr().err.splitlines()
    assert says in error and "Traceback" not in error


def test_a_damaged_best_checkpoint_is_named_and_the_next_one_used(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run", symlinks=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    (checkpoint / "index.json").write_text("{}")
    chosen, reason = choose_checkpoint(tmp_path / "run")
    assert chosen.name == "step_00000003" and "step_00000002 has a lower loss" in reason and "index.json" in reason
    (tmp_path / "run" / "validations.json").write_text("{")
    with pytest.raises(UserError, match=r"validations.json cannot be read"):
        choose_checkpoint(tmp_path / "run")
    assert choose_checkpoint(tmp_path / "run", "last")[0].name == "step_00000005"


def test_without_validation_the_last_is_taken_and_nothing_is_said(bach_data, tmp_path, capsys):
    done = run(tmp_path / "run", bach_data, "--steps", 3, "--val_every", 0)
    assert done.output.strip().splitlines()[-1].startswith("Trained to step 3; the checkpoint is in ")
    assert not (tmp_path / "run" / "validations.json").exists()
    assert rwkv_music(["export", str(done.folder), "--out", str(tmp_path / "x.pth")]) == 0
    assert f"from {done.folder} at step 3\n" in capsys.readouterr().out
