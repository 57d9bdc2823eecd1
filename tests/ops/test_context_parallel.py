"""The operators and the model over several ranks compute what one rank does; what the ranks exchange."""

import json
from pathlib import Path

import pytest

from rwkv_music.ops.context_parallel import cut, exchanged_bytes
from tests.training.conftest import environment
from tests.training.rank_process import run_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    """Return what context_ranks.py writes."""
    folder = tmp_path_factory.mktemp("context_parallel")
    line = [str(Path(__file__).with_name("context_ranks.py")), str(folder / "found.json")]
    status = run_ranks(line, 4, environment(), folder / "log", seconds=300)
    assert status == 0, (folder / "log").read_text()[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("dtype, bound, cases", [("float32", 1e-6, 14), ("float64", 1e-12, 46)])
def test_ranks_compute_what_one_rank_does(found, dtype, bound, cases):
    errors = {name: error for name, error in found["errors"].items() if dtype in name}
    assert len(errors) == cases
    assert max(errors.values()) < bound, errors


def test_the_ranks_exchange_as_much_as_the_formula_says_for_any_number_of_tokens(found):
    by_tokens = found["received"]
    assert len(by_tokens) == 2
    for received in by_tokens.values():
        assert received == {str(ranks): exchanged_bytes(ranks, 32, 16, 4) for ranks in (2, 4)}


@pytest.mark.parametrize(
    "cu_seqlens, ranks, bounds",
    [
        ([0, 7], 3, [[0, 2], [2, 4], [4, 7]]),
        ([0, 1, 2, 4, 6, 8], 2, [[0, 1, 2, 4], [4, 6, 8]]),
        ([0, 3, 8], 4, [[0, 2], [2, 3, 4], [4, 6], [6, 8]]),
    ],
)
def test_tokens_are_cut_evenly(cu_seqlens, ranks, bounds):
    assert cut(cu_seqlens, ranks) == bounds
