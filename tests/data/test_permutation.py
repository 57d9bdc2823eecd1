"""The permutation: a bijection for any size, well mixed, and determined by its keys."""

import numpy as np
import pytest

from rwkv_music.data.permutation import Permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 255, 1000, 4097])
def test_is_a_bijection(n):
    permutation = Permutation(n, 0, 0)
    assert sorted(permutation[i] for i in range(n)) == list(range(n))
    assert all(permutation.index(permutation[i]) == i for i in range(n))


@pytest.mark.parametrize("n", [10**9, 2**40 + 1])
def test_large_ranges(n):
    permutation = Permutation(n, 7, 3)
    positions = [*range(2000), *np.random.default_rng(0).integers(0, n, 2000).tolist(), n - 1]
    images = {i: permutation[i] for i in positions}
    assert all(0 <= j < n for j in images.values())
    assert len(set(images.values())) == len(images)
    assert all(permutation.index(j) == i for i, j in images.items())


def test_looks_shuffled():
    n = 10_000
    image = np.array([Permutation(n, 0, 0)[i] for i in range(n)])
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    # The first thousand images are spread over the whole range.
    tenths = np.bincount(image[:1000] * 10 // n, minlength=10)
    assert tenths.min() > 60 and tenths.max() < 140


def test_keys_determine_the_order():
    def order(*keys):
        return [Permutation(1000, *keys)[i] for i in range(1000)]

    assert order(0, 1) == order(0, 1)
    same = sum(a == b for a, b in zip(order(0, 1), order(1, 0), strict=True))
    assert same < 10
    assert order(0, 1) != order(0, 2)


def test_out_of_range_arguments_raise():
    with pytest.raises(ValueError):
        Permutation(0)
    with pytest.raises(IndexError):
        Permutation(3)[3]
    with pytest.raises(IndexError):
        Permutation(3).index(-1)
