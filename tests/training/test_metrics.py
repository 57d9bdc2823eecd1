"""Throughput, utilisation and the memory formula."""

import time

import pytest
import torch

from rwkv_music.training.metrics import Stopwatch, gib, model_flop_utilisation, model_state_bytes, peak_flops


def test_mfu_is_six_flop_a_matrix_parameter_and_token():
    assert model_flop_utilisation(100_000_000, 500_000, 600e12) == pytest.approx(0.5)


def test_the_stopwatch_counts_neither_pauses_nor_earlier_laps():
    watch = Stopwatch()
    watch.tokens = 1000
    time.sleep(0.05)
    watch.pause()
    time.sleep(0.3)
    watch.go_on()
    assert 1000 / 0.2 < watch.lap() < 1000 / 0.05
    assert watch.lap() == 0


def test_the_cpu_has_a_measured_peak():
    flops, source = peak_flops(torch.device("cpu"))
    assert 1e8 < flops < 1e14 and "measured" in source


def test_model_states_follow_the_zero_paper():
    # 7.5 billion parameters on 64 ranks: 120 GB without ZeRO, 31.4, 16.6 and 1.9 GB under stages 1 to 3 (its table 1).
    parameters = 7_500_000_000
    assert model_state_bytes(parameters, 1, 64, bf16=True) / 1e9 == pytest.approx(31.4, abs=0.05)
    assert model_state_bytes(parameters, 2, 64, bf16=True) / 1e9 == pytest.approx(16.6, abs=0.05)
    assert model_state_bytes(parameters, 3, 64, bf16=True) / 1e9 == pytest.approx(1.9, abs=0.05)


def test_sizes_read_well():
    assert gib(23.7 * 2**20) == "23.7 MiB" and gib(3 * 2**30) == "3.00 GiB"
