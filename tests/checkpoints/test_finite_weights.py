"""not_finite names every tensor with an infinity or a NaN, whatever its dtype and wherever the number is."""

import numpy as np
import pytest
import tiny

from npgemma.checkpoints.layout import BLOCK, not_finite
from npgemma.checkpoints.paligemma import read_config, read_tensors
from npgemma.layers.bits import pack
from npgemma.layers.packed import row_blocks

STORED = {"float32": lambda x: x, "float16": lambda x: x.astype(np.float16), "bfloat16": pack}
# A table, matrices, a convolution with four axes, a norm and a bias.
TENSORS = [
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.2.mlp.down_proj.weight",
    "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
    "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "language_model.model.layers.0.input_layernorm.weight",
    "multi_modal_projector.linear.bias",
]


def weights_with(value: float, name: str, at: int, dtype: str) -> dict[str, np.ndarray]:
    """Random weights of a stored dtype, one number of one tensor replaced."""
    tensors = tiny.random_tensors()
    tensors[name].reshape(-1)[at] = value
    return {name: STORED[dtype](x) for name, x in tensors.items()}


@pytest.mark.parametrize("dtype", STORED)
def test_the_largest_and_the_smallest_numbers_of_a_dtype_are_finite(dtype):
    largest = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}[dtype]
    smallest = {"float32": 1e-45, "float16": 6e-8, "bfloat16": 1e-40}[dtype]
    for value in (largest, -largest, smallest, -0.0):
        found = weights_with(value, TENSORS[0], 0, dtype)
        assert found[TENSORS[0]].dtype == {"bfloat16": "uint16"}.get(dtype, dtype)
        assert not_finite(found) == []


@pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_with_an_infinity_or_a_nan_is_named(name, dtype, value, at):
    assert not_finite(weights_with(value, name, at, dtype)) == [name]


@pytest.mark.parametrize("dtype", STORED)
def test_an_infinity_is_found_in_every_block(dtype):
    """In the first and the last row of each of the three blocks of a table of 24,000 rows."""
    x = np.zeros((24_000, 44), np.float32)
    blocks = row_blocks(x, BLOCK)
    assert len(blocks) >= 3
    for block in blocks:
        for row in (block.start, min(block.stop, len(x)) - 1):
            damaged = x.copy()
            damaged[row, 43] = np.inf
            assert not_finite({"good": STORED[dtype](x), "bad": STORED[dtype](damaged)}) == ["bad"]


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7F81, 0xFFFF, 0x7FC0])
def test_bfloat16_bits_with_an_exponent_of_ones_are_not_finite(bits):
    assert not_finite({"x": np.array([0x7F7F, 0xFF7F, 0x0080, bits], np.uint16)}) == ["x"]


@pytest.mark.parametrize("dtype", STORED)
def test_every_tensor_of_a_folder_that_is_not_finite_is_named(dtype, tmp_path):
    bad = [TENSORS[0], TENSORS[4], TENSORS[2]]
    tensors = tiny.random_tensors()
    for name in bad:
        tensors[name].reshape(-1)[3] = np.nan
    tiny.write_folder(tmp_path)
    spelled = {tiny.spell(name, "saved 5.x"): x for name, x in tensors.items()}
    tiny.save(spelled, tmp_path / "model.safetensors", dtype)
    assert sorted(not_finite(read_tensors(tmp_path, read_config(tmp_path)))) == sorted(bad)
