"""Truncated backpropagation through time: equal to one long window, in the memory of one; and whole runs."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_music.__main__ import main as command
from rwkv_music.checkpoint.safetensors_io import TensorFile
from rwkv_music.config import ModelConfig, TrainConfig
from rwkv_music.data.binidx import BinIdxWriter
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.streams import DocumentStreams, document_states
from rwkv_music.model_v8 import RWKV, State
from rwkv_music.training.batch_plan import plan_batches
from rwkv_music.training.deepspeed_engine.engine import FastPaths, make_engine, select_device
from rwkv_music.training.tbptt import StreamStates
from tests.data.test_dataset import make
from tests.training.conftest import one_rank, train
from tests.training.plain_engine import PlainEngine
from tests.training.test_training import largest_difference, tensor_hashes

SIZES = [300, 250, 3, 40, 1, 17, 130]


def model(n_layer: int = 2, recompute: str = "none") -> RWKV:
    torch.manual_seed(0)
    made = RWKV(ModelConfig(n_layer=n_layer, n_embd=64, vocab_size=sum(SIZES) + 1))
    with torch.no_grad():
        for p in made.parameters():  # from zero many gradients would be zero
            p += 0.05 * torch.randn_like(p)
    made.recompute = recompute
    return made


def gradients(net: RWKV) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    return found


def check_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-5) -> None:
    for name, wanted in expected.items():
        difference = (found[name] - wanted).norm() / wanted.norm()
        assert difference < within, f"{name}: {difference:.1e}"


SCALE = torch.tensor(1 / sum(SIZES))


@pytest.mark.parametrize("ctx_len, micro_batches", [(32, 1), (32, 2), (7, 1), (200, 1)])
def test_cut_nowhere_it_equals_one_long_window(tmp_path, ctx_len, micro_batches):
    make(tmp_path, SIZES)
    net = model()
    streams = DocumentStreams(MusicDataset(tmp_path, "train", ctx_len), 2)
    windows = range(streams.windows_per_pass)
    rows = [range(0, 2)] if micro_batches == 1 else [range(0, 1), range(1, 2)]
    batches = [streams.batch(w, own.start, own.stop) for own in rows for w in windows]
    states = StreamStates(PlainEngine(net), net.config, rows)
    nats = states.step(PlainEngine(net), batches, SCALE)
    found = gradients(net)

    whole = DocumentStreams(MusicDataset(tmp_path, "train", ctx_len * len(windows)), 2).batch(0)
    loss, after = net(**whole.arguments(), state=net.init_state(whole.cu_seqlens.numel() - 1), reduction="sum")
    (loss * SCALE).backward()
    assert abs(nats.item() / loss.item() - 1) < 1e-5
    check_gradients(found, gradients(net))
    # Where a stream has tokens in the last window, both end with the same padding.
    carried, last = states.tensors(), streams.batch(windows[-1])
    for kind, x in after.rows(whole.edges.last)._asdict().items():
        for stream in np.flatnonzero(last.input_ids.any(1)):
            assert (carried[f"{stream}.{kind}"] - x[:, stream]).norm() <= 1e-5 * x[:, stream].norm()


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_cut_every_n_windows_it_equals_a_loop_that_cuts_there(tmp_path, together, recompute):
    make(tmp_path, SIZES)
    net = model(recompute=recompute)
    streams = DocumentStreams(MusicDataset(tmp_path, "train", 32), 2, together)
    states, engine = StreamStates(PlainEngine(net), net.config, [range(0, 2)]), PlainEngine(net)
    by_hand = net.init_state(2)
    for first in range(0, streams.windows_per_pass + together, together):  # into the second pass
        batches = [streams.batch(window) for window in range(first, first + together)]
        nats = states.step(engine, batches, SCALE)
        found = gradients(net)
        total = 0
        by_hand = State(*(x.detach() for x in by_hand))
        for batch in batches:
            loss, after = net(**batch.arguments(), state=document_states(by_hand, batch), reduction="sum")
            by_hand = after.rows(batch.edges.last)
            total = total + loss
        (total * SCALE).backward()
        assert abs(nats.item() - total.item()) < 1e-4
        check_gradients(found, gradients(net))


def test_a_state_that_is_not_finite_is_not_carried_on(tmp_path):
    make(tmp_path, SIZES)
    net = model()
    streams = DocumentStreams(MusicDataset(tmp_path, "train", 32), 2)
    states = StreamStates(PlainEngine(net), net.config, [range(0, 2)])
    states.tensors()["0.wkv"].fill_(float("nan"))
    states.step(PlainEngine(net), [streams.batch(1)], SCALE)
    tensors = states.tensors()
    assert all(x.isfinite().all() for x in tensors.values())
    assert not tensors["0.wkv"].any() and tensors["1.wkv"].any()


class Kept:
    """Counts the bytes that autograd keeps: those there are, and the most there were."""

    now = most = 0

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._count(x.untyped_storage().nbytes() if x._base is None else x.numel() * x.element_size())

    def _count(self, size: int) -> None:
        Kept.now += size
        Kept.most = max(Kept.most, Kept.now)
        weakref.finalize(self, Kept._release, size)

    @staticmethod
    def _release(size: int) -> None:
        Kept.now -= size


def test_thirty_two_windows_take_the_memory_of_one(tmp_path):
    make(tmp_path, [40_000])
    with BinIdxWriter(tmp_path / "train") as writer:
        writer.add(np.arange(40_000) % 50)
    torch.manual_seed(0)
    net = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=50))
    streams = DocumentStreams(MusicDataset(tmp_path, "train", 1024), 1)
    most = {}
    for windows in (1, 3, 32):
        Kept.now = Kept.most = 0
        states = StreamStates(PlainEngine(net), net.config, [range(0, 1)])
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
            states.step(PlainEngine(net), [streams.batch(window) for window in range(windows)], SCALE)
        most[windows] = Kept.most
    state = sum(x.numel() * x.element_size() for x in states.tensors().values())
    assert most[1] > 20 * 1024 * 64 * 4  # the whole of a window was counted
    assert most[3] < most[1] + 4 * state
    assert most[32] <= most[3]


@pytest.mark.parametrize("stage, at_once", [(1, False), (2, False), (3, False), (3, True)])
def test_deepspeeds_gradient_is_the_plain_one(stage, at_once, tmp_path):
    make(tmp_path, SIZES)
    net, windows = model(), 3
    streams = DocumentStreams(MusicDataset(tmp_path, "train", 32), 2)
    batches = [streams.batch(window) for window in range(windows)]
    nats = StreamStates(PlainEngine(net), net.config, [range(0, 2)]).step(PlainEngine(net), batches, SCALE).item()
    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm().item()

    file = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    train_config = TrainConfig(batch_size=2, micro_batch_size=1, grad_clip=0)
    plan = plan_batches(train_config, set(), file, "ds.json", 1, windows)
    rows = [range(0, 1), range(1, 2)]
    with one_rank():
        engine = make_engine(model(), plan, select_device(), FastPaths(True, False, gathers_at_once=at_once), 32)
        own = [streams.batch(w, part.start, part.stop) for part in rows for w in range(windows)]
        found = StreamStates(engine, net.config, rows).step(engine, own, SCALE).item()
        assert engine.grad_norm() == pytest.approx(norm, rel=1e-5)
    assert found == pytest.approx(nats, rel=1e-6)
    assert engine._engine.global_steps == 1


TBPTT = "--n_layer 2 --n_embd 64 --ctx_len 64 --batch_size 4 --steps 12 --log_every 1 --val_every 6 --warmup_steps 2"
TBPTT = [*TBPTT.split(), "--tbptt", "2"]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory) -> dict[int, Path]:
    """DeepSpeed files without bf16, by stage."""
    folder = tmp_path_factory.mktemp("fp32")
    files = {stage: folder / f"zero{stage}.json" for stage in (1, 2, 3)}
    for stage, path in files.items():
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return files


@pytest.fixture(scope="module")
def carried(bach_data, tmp_path_factory, fp32):
    """12 steps of two windows in one process under ZeRO-2, two streams at once."""
    folder = tmp_path_factory.mktemp("carried") / "run"
    return train(folder, "--data", bach_data, *TBPTT, "--micro_batch_size", 2, config=fp32[2])


@pytest.mark.parametrize("stage, ranks", [(1, 2), (2, 2)])
def test_the_losses_are_the_same_under_each_zero_stage_on_one_rank_and_two(
    stage, ranks, carried, bach_data, tmp_path, fp32
):
    run = train(tmp_path / "run", "--data", bach_data, *TBPTT, ranks=ranks, config=fp32[stage])
    assert "4 rows x 64 tokens x 2 windows of document streams = 512 tokens per step" in run.output
    assert largest_difference(run.curve(), carried.curve()) < 1e-5
    assert largest_difference(run.curve("val/loss"), carried.curve("val/loss")) < 1e-5
    assert run.curve("train/grad_norm") == pytest.approx(carried.curve("train/grad_norm"), rel=1e-5)


def test_stop_and_resume_equals_going_on(carried, bach_data, tmp_path, fp32):
    """Bit for bit on as many ranks; on another number, where sums are in another order, all but that.

    The two ranks are those of ZeRO-3, whose losses are held to the same curve by this.
    """
    arguments = ["--data", bach_data, *TBPTT, "--micro_batch_size", 2]
    train(tmp_path / "run", *arguments, "--stop_after", 7, config=fp32[2])
    resumed = train(tmp_path / "run", "--micro_batch_size", 2, config=fp32[2])
    assert resumed.curve() == carried.curve()
    assert tensor_hashes(resumed.last_checkpoint) == tensor_hashes(carried.last_checkpoint)
    assert any(name.startswith("lanes_") for name in tensor_hashes(resumed.last_checkpoint))

    train(tmp_path / "two", "--data", bach_data, *TBPTT, "--stop_after", 7, ranks=2, config=fp32[3])
    one = train(tmp_path / "two", config=fp32[1])
    assert largest_difference(one.curve(), carried.curve()) < 1e-5

    other = train(tmp_path / "two", "--batch_size", 2, "--steps", 14, config=fp32[1], check=False)
    assert other.status == 1 and "batch_size 4, not 2" in other.output


def test_evaluate_prints_the_trainers_own_validation_loss(carried, bach_data, capsys):
    assert command(["evaluate", str(carried.folder), "--data", str(bach_data), "--batch-size", "2"]) == 0
    val = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("val")).split()
    assert float(val[2]) == pytest.approx(carried.curve("val/loss")[-1], abs=1e-4)


def test_an_elastic_run_with_fewer_streams_than_shares_equals_one_rank(bach_data, tmp_path, fp32):
    """Each of three ranks takes two shares of the 4 streams, of which two are empty. Validation has 3 streams."""
    few = ["--data", bach_data, *TBPTT, "--tbptt", 1, "--steps", 3, "--val_every", 3]
    alone = train(tmp_path / "alone", *few, config=fp32[2])
    elastic = train(tmp_path / "elastic", *few, "--elastic", 1, "--micro_batch_size", 1, ranks=3, config=fp32[2])
    for curve in ("train/loss", "val/loss", "val/bits_per_note"):
        assert elastic.curve(curve) == pytest.approx(alone.curve(curve), rel=1e-5), curve
    assert saved_streams(elastic.last_checkpoint) == [0, 1, 2, 3]


@pytest.mark.parametrize("stage, parts", [(1, [(4, 4)]), (2, [(2, 2), (2, 1)]), (3, [(1, 1), (4, 2)])])
def test_ranks_that_share_rows_train_as_one_rank(stage, parts, carried, bach_data, tmp_path, fp32):
    """With other numbers of ranks, and of ranks that share rows, after six steps."""
    arguments = ["--data", bach_data, *TBPTT, "--micro_batch_size", 1]
    for (ranks, context_parallel), stop_after in zip(parts, (6, 12), strict=False):
        more = ["--context_parallel", context_parallel, "--stop_after", stop_after if len(parts) > 1 else 12]
        run = train(tmp_path / "run", *arguments, *more, ranks=ranks, config=fp32[stage])
        assert saved_streams(run.last_checkpoint) == [0, 1, 2, 3]
    assert largest_difference(run.curve(), carried.curve()) < 1e-5
    assert largest_difference(run.curve("val/loss"), carried.curve("val/loss")) < 1e-5
    assert run.curve("train/grad_norm") == pytest.approx(carried.curve("train/grad_norm"), rel=1e-5)


def saved_streams(checkpoint: Path) -> list[int]:
    """The streams whose states the files of a checkpoint hold, each as often as it is saved."""
    names = [name for path in checkpoint.glob("lanes_*") for name in TensorFile(path).shapes]
    return sorted(int(name.removesuffix(".wkv")) for name in names if name.endswith(".wkv"))


def test_in_bf16_the_loss_falls(bach_data, tmp_path):
    run = train(tmp_path / "run", "--data", bach_data, *TBPTT, "--steps", 30, "--lr", "2e-3", ranks=1)
    curve = run.curve()
    assert len(curve) == 30 and np.isfinite(curve).all() and curve[-1] < curve[0] - 0.5
