"""hypothesis, or an error that says how to get it; and strategies for what every model reads."""

import numpy as np

from npgemma.layers.shapes import Array

try:
    from hypothesis import strategies as st
except ImportError:
    raise ImportError("npgemma.testing needs hypothesis: pip install 'npgemma[test]'") from None

__all__ = ["pictures", "prompts", "st"]


def pictures(side: int = 40) -> st.SearchStrategy[Array]:
    """RGB pictures as uint8 [Y X 3] of any proportions: noise, which no two resizers forgive, and single colours."""
    sizes = st.tuples(st.integers(1, side), st.integers(1, side), st.booleans(), st.integers(0, 1 << 16))

    def picture(drawn: tuple[int, int, bool, int]) -> Array:
        height, width, noise, seed = drawn
        shape = (height, width, 3) if noise else (1, 1, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        return np.broadcast_to(pixels, (height, width, 3)).copy()

    return sizes.map(picture)


def prompts() -> st.SearchStrategy[str]:
    """Prompts as people write them and as they should not: tasks, Unicode, nothing at all, location and mask words."""
    tasks = st.sampled_from(["caption en", "answer en what is this?", "detect cat ; dog", "segment cat", "ocr", ""])
    words = st.sampled_from(["<loc0000>", "<loc1023>", "<seg127>", "<bos>", "<eos>", "\n", "  "])
    return st.one_of(tasks, st.text(max_size=40), st.tuples(st.text(max_size=9), words).map("".join))
