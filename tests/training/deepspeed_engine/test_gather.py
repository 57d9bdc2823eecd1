"""ZeRO-3's gathering: when it is done at once, and what a single rank waits for."""

from types import SimpleNamespace

import pytest
from deepspeed.runtime.zero import partition_parameters

from rwkv_music.training.deepspeed_engine.fast import gather
from rwkv_music.training.deepspeed_engine.fast.gather import may_gather_at_once


@pytest.mark.parametrize(
    "zero, parameters, may",
    [
        ({"stage": 3}, 121_238_784, True),
        ({"stage": 3}, 1_344_428_032, False),
        ({"stage": 2}, 121_238_784, False),
        ({"stage": 3, "stage3_max_live_parameters": 1e8}, 121_238_784, False),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, 121_238_784, False),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, 121_238_784, False),
        ({"stage": 3, "zero_quantized_weights": True}, 121_238_784, False),
    ],
)
def test_only_a_small_model_without_memory_savings_is_gathered_at_once(zero, parameters, may):
    assert may_gather_at_once(zero, parameters) is may


def test_waiting_marks_a_single_ranks_weights_available_once(monkeypatch):
    """A weight released since is not marked available again when another of the same gathering is waited for."""
    status = partition_parameters.ZeroParamStatus
    monkeypatch.setattr(
        gather, "_no_gather_of_deepspeed", lambda parameters: SimpleNamespace(asked_for=list(parameters))
    )
    both = [SimpleNamespace(ds_status=status.INFLIGHT) for _ in range(2)]
    handle = gather._no_gather(iter(both))
    assert handle.asked_for == both and both[0].ds_status == status.INFLIGHT
    handle.wait(handle_dependency=False)
    assert [one.ds_status for one in both] == [status.AVAILABLE] * 2
    both[0].ds_status = status.NOT_AVAILABLE
    handle.wait(handle_dependency=False)
    assert [one.ds_status for one in both] == [status.NOT_AVAILABLE, status.AVAILABLE]
