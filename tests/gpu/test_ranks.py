"""Runs on two GPUs over NCCL: that they learn what one learns, replayed or not, and what ends them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rwkv_music.checkpoint.run_folder import checkpoints
from tests.gpu.test_training import PROJECT, data  # noqa: F401
from tests.training.conftest import free_port

SMALL = "--preset tiny --ctx_len 256 --batch_size 16 --lr 2e-3 --warmup_steps 10 --log_every 1 --val_every 0".split()
# train.py, which says at its end how many steps it has replayed.
COUNTED = """
import sys, train
from rwkv_music.training import signals
from rwkv_music.training.deepspeed_engine import engine
from rwkv_music.training.deepspeed_engine.fast import cuda_graphs
from rwkv_music.training.deepspeed_engine.fast import flat_params
from rwkv_music.training import setup
counted, replay = [], cuda_graphs.Graphs.replay
cuda_graphs.Graphs.replay = lambda *batch: counted.append(1) or replay(*batch)
status = train.main(sys.argv[1:])
print(f"replayed {len(counted)} times")
signals.leave(status)
"""
# None is small enough for it.
LAUNCHED = COUNTED.replace("counted, replay", "cuda_graphs.LAYER_FLOP = 0\ncounted, replay", 1)
# To every rank the other one is on another machine.
APART = COUNTED.replace("counted, replay", "setup.ranks_share_a_host = lambda: False\ncounted, replay", 1)

# Rank 1 dies. Rank 0's program waits for the GPU, which waits for rank 1, so that only NCCL's watchdog can end it.
WAITING = """
import os, signal, torch
from rwkv_music.training.process_group import init_process_group
from torch import distributed as dist
rank = int(os.environ["RANK"])
torch.cuda.set_device(rank)
init_process_group("nccl", 30)
x = torch.ones(2**20, device="cuda")
dist.all_reduce(x)
torch.cuda.synchronize()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
dist.all_reduce(x)
torch.cuda.synchronize()
"""

# Under ZeRO-3 no tensor is on every rank all the time, so every layer has to be gathered after the update.
NOTHING_STAYS = {"stage3_param_persistence_threshold": 0}


def start(
    data: Path,  # noqa: F811
    run: Path,
    *more: object,
    ranks: int = 2,
    stage: int = 2,
    program: tuple = ("train.py",),
    **environment: object,
) -> subprocess.Popen:
    """`train.py`, or another program with its arguments, on so many GPUs."""
    line = [sys.executable, PROJECT / "launch" / "node.py", ranks, *program, "--data", data, "--out", run, *SMALL]
    line += ["--deepspeed_config", PROJECT / "ds_configs" / f"zero{stage}.json", *more]
    paths = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONPATH": paths, **environment}
    return subprocess.Popen(
        list(map(str, line)),
        env={**os.environ, **{name: str(value) for name, value in own.items()}},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def curve(run: Path, tag: str = "train/loss") -> list[float]:
    return [event.value for event in EventAccumulator(str(run)).Reload().Scalars(tag)]


def losses(*arguments: object, replays: bool | None = None, **options: object) -> list[float]:
    """Of a run to its end. `replays`: whether its program, which says it, must have replayed every step or none."""
    running = start(*arguments, **options)
    said = running.communicate(timeout=300)[0]
    assert running.returncode == 0, said[-3000:]
    if replays is not None:
        times = [int(n) for n in re.findall(r"replayed (\d+) times", said)]
        assert len(times) == 2 and all((n > 0) == replays for n in times), times
    return curve(arguments[1])


def furthest(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def one_gpu(data, tmp_path_factory) -> list[float]:  # noqa: F811
    return losses(data, tmp_path_factory.mktemp("one") / "run", "--steps", 40, "--micro_batch_size", 8, ranks=1)


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_two_gpus_learn_what_one_does(stage, one_gpu, data, tmp_path):  # noqa: F811
    two = losses(data, tmp_path / "run", "--steps", 40, "--micro_batch_size", 8, stage=stage)
    assert two[-1] < 0.6 * two[0]
    assert furthest(two[:20], one_gpu[:20]) < 5e-3


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_two_gpus_that_share_rows_learn_what_one_does(stage, one_gpu, data, tmp_path):  # noqa: F811
    """Also stopped and resumed, first with the rows shared and then with rows of their own."""
    more = ["--steps", 40, "--micro_batch_size", 8]
    losses(data, tmp_path / "run", *more, "--context_parallel", 2, "--stop_after", 20, stage=stage)
    two = losses(data, tmp_path / "run", *more, "--context_parallel", 1 if stage == 2 else 2, stage=stage)
    assert two[-1] < 0.6 * two[0]
    assert furthest(two[:20], one_gpu[:20]) < 5e-3


@pytest.fixture(scope="module")
def muon_on_one_gpu(data, tmp_path_factory) -> list[float]:  # noqa: F811
    more = ["--optimizer", "muon", "--steps", 20, "--micro_batch_size", 8]
    return losses(data, tmp_path_factory.mktemp("muon") / "run", *more, ranks=1)


@pytest.mark.parametrize("stage, fast", [(1, "auto"), (2, "auto"), (3, "auto"), (3, "off")])
def test_muon_learns_on_two_gpus_what_it_does_on_one(stage, fast, muon_on_one_gpu, data, tmp_path):  # noqa: F811
    more = ["--optimizer", "muon", "--steps", 20, "--micro_batch_size", 8, "--fast", fast]
    two = losses(data, tmp_path / "run", *more, stage=stage)
    assert two[-1] < 0.6 * two[0]
    assert furthest(two, muon_on_one_gpu) < 5e-3


@pytest.mark.parametrize("stage", (2, 3))
def test_a_replayed_step_is_the_launched_one(stage, data, tmp_path):  # noqa: F811
    """Also with rows accumulated, and where the ranks' batches make recordings at different steps."""
    for name, rows in (("whole", 8), ("accumulated", 2)):
        more = ["--steps", 30, "--micro_batch_size", rows]
        options = {"stage": stage, "replays": True}
        replayed = losses(data, tmp_path / name / "replayed", *more, program=("-c", COUNTED), **options)
        options["replays"] = False
        launched = losses(data, tmp_path / name / "launched", *more, program=("-c", LAUNCHED), **options)
        print(f"{name}: {furthest(replayed, launched):.1e} apart at most")
        assert furthest(replayed[:20], launched[:20]) < 5e-3, name


# It fails unless ZeRO-3 gathers all blocks at once, and replays them or not.
AT_ONCE = """
can_replay, cuda_graphs.can_replay = cuda_graphs.can_replay, lambda *run: replays and can_replay(*run)
gathered = engine._zero3_section
def at_once(model, flat, zero, at_once):
    assert at_once
    return gathered(model, flat, zero, at_once)
engine._zero3_section = at_once
"""
MANY_FLAT = LAUNCHED.replace(
    "cuda_graphs.LAYER_FLOP = 0", "cuda_graphs.LAYER_FLOP, flat_params.MIN_ELEMENTS = 0, 2**22"
)
REPLAYED = COUNTED.replace("counted, replay", f"replays = True{AT_ONCE}counted, replay", 1)
SENT = {
    "1": (1, {}, MANY_FLAT),
    "2": (2, {}, MANY_FLAT),
    "2_scattered": (2, {"reduce_scatter": True}, MANY_FLAT),
    "3_by_block": (3, {}, MANY_FLAT),
    "3_nothing_stays": (3, NOTHING_STAYS, MANY_FLAT),
    "3_at_once": (3, NOTHING_STAYS, REPLAYED.replace("replays = True", "replays = False")),
    "3_replayed": (3, NOTHING_STAYS, REPLAYED),
}


@pytest.mark.parametrize("stage, more_of_file, program", SENT.values(), ids=SENT)
def test_what_is_sent_beside_the_computation_is_the_same_bits(stage, more_of_file, program, data, tmp_path):  # noqa: F811
    """Of a model with many flat parameters larger than DeepSpeed's bucket, whose memory is used again at once."""
    seen = []
    for overlap in (False, True):
        file = json.loads((PROJECT / "ds_configs" / f"zero{stage}.json").read_text())
        file["zero_optimization"] |= {"overlap_comm": overlap, "reduce_bucket_size": 2**22, **more_of_file}
        (tmp_path / f"{overlap}.json").write_text(json.dumps(file))
        more = ["--preset", "0.1b", "--steps", 20, "--deepspeed_config", tmp_path / f"{overlap}.json"]
        run = tmp_path / str(overlap)
        replays = program == REPLAYED
        more += ["--micro_batch_size", 4] if replays else []  # so that gradients are added up
        seen.append((losses(data, run, *more, program=("-c", program), replays=replays), curve(run, "train/grad_norm")))
    assert seen[0] == seen[1] and len(seen[0][1]) == 20


def test_quantized_weights_and_gradients_learn_too(data, tmp_path):  # noqa: F811
    """zeropp.json, on a machine of two GPUs instead of eight."""
    file = json.loads((PROJECT / "ds_configs" / "zeropp.json").read_text())
    file["zero_optimization"]["zero_hpz_partition_size"] = 2
    (tmp_path / "zeropp.json").write_text(json.dumps(file))
    seen = losses(data, tmp_path / "run", "--steps", 40, "--deepspeed_config", tmp_path / "zeropp.json")
    assert seen[-1] < 0.6 * seen[0]


def test_half_of_it_resumes_on_one_gpu_under_another_stage(data, tmp_path):  # noqa: F811
    more = ["--steps", 40, "--micro_batch_size", 8]
    whole = losses(data, tmp_path / "whole", *more)
    losses(data, tmp_path / "parts", *more, "--stop_after", 20)
    parts = losses(data, tmp_path / "parts", *more, ranks=1, stage=3)
    assert furthest(whole, parts) < 5e-3


def test_a_nan_in_one_ranks_gradient_skips_that_step_on_both_and_no_other(data, tmp_path):  # noqa: F811
    program = (PROJECT / "tests" / "training" / "troubled.py", "nan-gradient")
    finite = losses(data, tmp_path / "run", "--steps", 20, program=program)
    assert curve(tmp_path / "run", "train/skipped_steps") == [0] * 6 + [1] * 14
    assert len(finite) == 19 and all(loss == loss for loss in finite) and finite[-1] < finite[0] - 0.5


def test_nccls_watchdog_ends_a_rank_within_seconds_when_its_program_cannot():
    """8 s by our setting; 60 s by torch's default."""
    own = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    own |= {"NCCL_P2P_DISABLE": 1, "NCCL_SHM_DISABLE": 1}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING],
            env={**os.environ, **{name: str(value) for name, value in own.items()}, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    ranks[1].communicate(timeout=100)
    died = time.monotonic()
    said = ranks[0].communicate(timeout=100)[1]
    seconds = time.monotonic() - died
    print(f"the watchdog ended it after {seconds:.1f} s", said[-1500:])
    assert seconds < 20 and ranks[0].returncode == -signal.SIGABRT, said[-3000:]


@pytest.mark.parametrize("machines", (1, 2))
def test_a_rank_that_dies_ends_the_other_within_a_minute(machines, data, tmp_path):  # noqa: F811
    """Of two machines each has its own launcher and nothing but the network between them."""
    more = ["--steps", 10**6, "--save_every", 5, "--keep", 1]
    if machines == 1:
        launchers = [start(data, tmp_path / "run", *more)]
    else:
        network = {"NCCL_P2P_DISABLE": 1, "NCCL_SHM_DISABLE": 1, "NODES": 2, "MASTER_PORT": free_port()}
        launchers = [
            start(
                data,
                tmp_path / "run",
                *more,
                ranks=1,
                program=("-c", APART),
                NODE_RANK=node,
                CUDA_VISIBLE_DEVICES=node,
                **network,
            )
            for node in (0, 1)
        ]
    deadline = time.monotonic() + 120
    try:
        while not checkpoints(tmp_path / "run"):
            ended = [launcher for launcher in launchers if launcher.poll() is not None]
            assert not ended, ended[0].communicate()[0][-3000:]
            assert time.monotonic() < deadline, "no checkpoint within 120 s"
            time.sleep(0.1)
        # The launcher's children are its ranks and launch/guard.py, which has no RANK.
        (rank,) = [x for x in psutil.Process(launchers[-1].pid).children() if x.environ().get("RANK") == "1"]
        rank.kill()
        killed = time.monotonic()
        said = [launcher.communicate(timeout=120)[0] for launcher in launchers]
        seconds = time.monotonic() - killed
    finally:
        for launcher in launchers:
            launcher.kill()  # launch/guard.py ends its ranks
    print(f"all have ended {seconds:.1f} s after the kill: {[x.returncode for x in launchers]}", said[0][-1500:])
    assert seconds < 60 and all(launcher.returncode not in (0, 1) for launcher in launchers)
    last = checkpoints(tmp_path / "run")[-1].name
    again = start(data, tmp_path / "run", *more, "--stop_after", int(last.removeprefix("step_")) + 5)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0 and last in said, said[-3000:]
