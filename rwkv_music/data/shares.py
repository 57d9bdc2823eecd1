"""A fixed pattern that divides sample numbers among tasks or among datasets in exact proportions."""

from collections.abc import Mapping
from fractions import Fraction


def assign(number: int, shares: Mapping[str, Fraction]) -> tuple[str, int]:
    """Return the name to which sample number `number` belongs, and how many samples of this name come before it.

    `shares` maps each name, of a task or a dataset, to its share of the samples. The shares are positive and add up to
    1. With two names, each has its share of the samples 0..n-1 for any n, rounded up or down. With k names, the number
    of samples of a name differs from its share of n by less than k - 1. If n is a multiple of the common denominator of
    the shares, the proportions are exact.
    """
    rest = Fraction(1)
    for name, weight in shares.items():
        share = weight / rest  # of the samples that do not belong to earlier names
        before = int(number * share)
        if int((number + 1) * share) > before:
            return name, before
        number, rest = number - before, rest - weight
    raise AssertionError("the shares do not add up to 1")
