"""What the tests of products share: stored dtypes, whole numbers with exact sums, and the bound of a dot product."""

import numpy as np

from npgemma.layers.bits import pack

STORED = ["float32", "float64", "float16", "bfloat16"]
COMPUTED = ["float32", "float64"]


def stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    return pack(numbers.astype(np.float32)) if dtype == "bfloat16" else numbers.astype(dtype)


def whole_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """-8 .. 8: every stored dtype holds them, and sums of 2^18 products are exact in float32 in any order."""
    return rng.integers(-8, 9, shape).astype(np.float64)


def envelope(x: np.ndarray, w: np.ndarray, dtype: np.dtype, bias: np.ndarray | None = None) -> np.ndarray:
    """The bound of a sum of n products in any order: (n + 1) roundings of the sum of the absolute values."""
    roundings = (x.shape[-1] + 1) * np.finfo(dtype).eps
    return roundings * (np.abs(x) @ np.abs(w).T + (0 if bias is None else np.abs(bias)))


def assert_close_to_the_dot_product(
    y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None
) -> None:
    """`y` is within its bound of x W^T + b, which is itself within the bound of float64."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    expected = np.einsum("...i,oi->...o", x, w) + (0 if bias is None else bias)
    assert np.all(np.abs(y - expected) <= 2 * envelope(x, w, y.dtype, bias))
