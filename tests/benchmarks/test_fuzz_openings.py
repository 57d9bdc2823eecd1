"""benchmarks/fuzz_openings.py on a few files. The benchmark itself takes 2,000."""

import pytest

from tests.benchmarks.test_scaling import benchmarks  # noqa: F401


@pytest.mark.parametrize("tokenizer", ["multitrack", "midi-llm"])
def test_openings_are_kept(tokenizer, benchmarks):  # noqa: F811
    import fuzz_openings

    found = fuzz_openings.run(tokenizer, range(5000, 5014))
    kept, refused = found.pop("kept"), sum(found.pop(name) for name in list(found) if name.startswith("refused"))
    assert not found and kept >= 8 and kept + refused == 14
