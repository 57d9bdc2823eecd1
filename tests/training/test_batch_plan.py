"""How a step's rows are divided, where the command line and the DeepSpeed file may both say."""

import json

import pytest

from rwkv_music.config import TrainConfig
from rwkv_music.errors import UserError
from rwkv_music.training.batch_plan import largest_micro_batch, plan_batches
from rwkv_music.training.deepspeed_file import read_deepspeed_file
from tests.training.conftest import PROJECT

STAGE = {"zero_optimization": {"stage": 2}}


def plan(file: dict, world_size: int = 1, **given):
    return plan_batches(TrainConfig(**given), set(given), {**STAGE, **file}, "ds.json", world_size)


def test_rows_are_shared_among_ranks_and_accumulated():
    made = plan({}, world_size=4, batch_size=64, micro_batch_size=4)
    assert (made.accumulation, made.train.micro_batch_size) == (4, 4)
    assert made.deepspeed["train_batch_size"] == 64
    assert made.deepspeed["train_micro_batch_size_per_gpu"] == 4
    assert made.deepspeed["gradient_accumulation_steps"] == 4
    assert made.deepspeed["zero_optimization"] == STAGE["zero_optimization"]
    assert plan({}, world_size=4, batch_size=64).train.micro_batch_size == 16


def test_what_only_the_file_says_holds():
    file = {"train_batch_size": 24, "gradient_accumulation_steps": 3, "gradient_clipping": 0.25}
    made = plan(file, world_size=2)
    assert (made.train.batch_size, made.train.micro_batch_size, made.train.grad_clip) == (24, 4, 0.25)
    assert made.accumulation == 3 and made.deepspeed["gradient_clipping"] == 0.25


def test_auto_and_agreement_are_no_contradiction():
    file = {"train_batch_size": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": 2.0}
    assert plan(file, batch_size=8, grad_clip=2.0).train.batch_size == 8


@pytest.mark.parametrize(
    "file, given, says",
    [
        ({"train_batch_size": 8}, {"batch_size": 4}, "--batch_size is 4"),
        ({"train_micro_batch_size_per_gpu": 2}, {"micro_batch_size": 4}, "--micro_batch_size is 4"),
        ({"gradient_accumulation_steps": 3}, {"batch_size": 4}, "choose a multiple of 3"),
        ({"gradient_accumulation_steps": 3}, {"batch_size": 4, "micro_batch_size": 2}, "needs 2"),
    ],
)
def test_contradictions_are_errors(file, given, says):
    with pytest.raises(UserError, match=says):
        plan(file, **given)


def test_ranks_that_share_rows_count_as_one():
    made = plan({}, world_size=8, batch_size=24, micro_batch_size=4, context_parallel=4)
    assert (made.groups, made.accumulation) == (2, 3)
    assert made.deepspeed["train_batch_size"] == 8 * 4 * 3  # DeepSpeed counts every rank's part as rows of its own
    assert [made.row_ranges(rank, 0) for rank in (0, 3)] == [made.row_ranges(0, 0)] * 2
    rows = [row for rank in (0, 4) for part in made.row_ranges(rank, 0) for row in part]
    assert sorted(rows) == list(range(24))
    assert made.tokens(ctx_len=101) == 101
    with pytest.raises(UserError, match="--context_parallel 3 .* 8 ranks"):
        plan({}, world_size=8, batch_size=24, context_parallel=3)
    with pytest.raises(UserError, match="batch_size 3 .* 2 groups of 4 ranks"):
        plan({}, world_size=8, batch_size=3, context_parallel=4)


@pytest.mark.parametrize("path", sorted((PROJECT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_files_that_we_ship_are_plain_deepspeed_files(path):
    file = read_deepspeed_file(path)
    assert file == json.loads(path.read_text())
    assert plan_batches(TrainConfig(batch_size=8), {"batch_size"}, file, path, 4).train.micro_batch_size == 2


@pytest.mark.parametrize("world_size, given, shares, rows", [(7, {}, 1, 37), (7, {"micro_batch_size": 8}, 5, 8)])
def test_an_elastic_runs_rows_need_not_divide(world_size, given, shares, rows):
    made = plan({}, world_size=world_size, batch_size=256, elastic=1, **given)
    assert made.accumulation == made.deepspeed["gradient_accumulation_steps"] == shares
    assert made.deepspeed["train_micro_batch_size_per_gpu"] == rows <= made.train.micro_batch_size
    assert made.train.batch_size == 256
    with pytest.raises(UserError, match="batch_size 6 .* 7 ranks"):
        plan({}, world_size=7, batch_size=6, elastic=1)


@pytest.mark.parametrize("world_size, rows", [(8, 4), (40, 4), (96, 2), (7, 0)])
def test_on_other_ranks_no_more_rows_are_taken_at_once(world_size, rows):
    assert largest_micro_batch(960, world_size, limit=4) == rows


def test_row_ranges_cover_a_step_once():
    made = plan({}, world_size=3, batch_size=24, micro_batch_size=4)
    rows = [row for rank in range(3) for part in made.row_ranges(rank, 100) for row in part]
    assert sorted(rows) == list(range(100, 124)) and made.row_ranges(1, 100) == [range(104, 108), range(116, 120)]
