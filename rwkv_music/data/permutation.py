"""A seeded pseudo-random permutation of 0..n-1 that is computed on demand: constant memory and random access for any n.

For any round function, a Feistel network is a bijection on the numbers of 2h bits. With the smallest h for which these
include 0..n-1, there are at most 4n of them. A result outside 0..n-1 is encrypted again until it is inside ("cycle
walking"). On average, this takes at most four encryptions. The round function has to mix well, but need not be
cryptographic.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002); the mixer is the finalizer of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import hashlib

ROUNDS = 6
MASK64 = (1 << 64) - 1


def mix64(x: int) -> int:
    """Return a bijective mix of the bits of a 64-bit number."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


class Permutation:
    """A permutation of 0..n-1, determined by `keys`. `p[i]` is the image of i, and `p.index(p[i])` is i."""

    def __init__(self, n: int, *keys: int):
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, not {n}")
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        digest = hashlib.blake2b(repr(keys).encode(), digest_size=8 * ROUNDS).digest()
        self._round_keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        self._check(i)
        while True:
            i = self._encipher(i)
            if i < self.n:
                return i

    def index(self, j: int) -> int:
        self._check(j)
        while True:
            j = self._decipher(j)
            if j < self.n:
                return j

    def _check(self, i: int) -> None:
        if not 0 <= i < self.n:
            raise IndexError(f"{i} is not in 0..{self.n - 1}")

    def _encipher(self, x: int) -> int:
        left, right = x >> self._half_bits, x & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (mix64(right ^ key) & self._half_mask)
        return left << self._half_bits | right

    def _decipher(self, x: int) -> int:
        left, right = x >> self._half_bits, x & self._half_mask
        for key in reversed(self._round_keys):
            left, right = right ^ (mix64(left ^ key) & self._half_mask), left
        return left << self._half_bits | right
