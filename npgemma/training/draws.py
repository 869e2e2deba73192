"""Random numbers that are a function of a key, such as (seed, epoch): equal in every process and NumPy version.

A generator has a state that a resumed run would have to restore, and NumPy may change what its generators draw.
"""

import hashlib

import numpy as np

from npgemma.layers.shapes import Array, Float, Int

GOLDEN_RATIO, FIRST, SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def words(count: int, *key: int | str) -> Int[Array, "count"]:
    """So many 64 random bits for a key: SplitMix64 (Steele et al. 2014), started at a hash of the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        z = np.uint64(int.from_bytes(digest[:8], "little")) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN_RATIO
        z = (z ^ (z >> np.uint64(30))) * FIRST
        z = (z ^ (z >> np.uint64(27))) * SECOND
        return z ^ (z >> np.uint64(31))


def uniform(count: int, *key: int | str) -> Float[Array, "count"]:
    """So many numbers for a key, uniform in [0, 1)."""
    return (words(count, *key) >> np.uint64(11)) * 2.0**-53


def permutation(size: int, *key: int | str) -> Int[Array, "size"]:
    """The numbers below `size` in a random order for a key."""
    return np.argsort(words(size, *key), kind="stable")
