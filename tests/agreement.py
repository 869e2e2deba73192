"""Agreement of the package with a second spelling in float64, and the tolerances that the tests of layers share."""

import numpy as np

# How many units in the last place, of the largest entry of a tensor, its entries may be off after many layers. A whole
# forward is off by 2 to 6 in float64 and in float32 alike: float32 has the tolerance of float64, 2^29 times wider.
UNITS = 64

# Two spellings of a formula with about ten roundings, on numbers near one: 1e-15 was seen in float64.
FLOAT64 = dict(rtol=1e-12, atol=1e-12, strict=True)
# The same in float32, where a rounding is 2^29 times as large: 4e-7 was seen.
FLOAT32 = dict(rtol=5e-6, atol=5e-6, strict=True)


def assert_agrees(actual: np.ndarray, expected: np.ndarray) -> None:
    """`actual`, float32 or float64, is the float64 `expected` but for the rounding of its own dtype."""
    assert actual.dtype in (np.float32, np.float64)
    atol = UNITS * np.finfo(actual.dtype).eps * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=atol, strict=True)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def f32(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float32) for x in arrays]
