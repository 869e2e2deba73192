"""The mask auto-encoder: its blocks in loops, and the properties of codes and masks; tests/live compares with torch."""

from pathlib import Path

import numpy as np
import pytest
from agreement import FLOAT64
from mask_codecs import random_codec, random_tensors
from slow_conv import slow_conv

from npgemma.checkpoints.mask_vqvae import mask_codec
from npgemma.models.mask_vqvae import decode_mask, encode_mask, residual_block

RNG = np.random.default_rng(0)
# Ten layers of sums of a hundred float32 products: 5e-7 was seen.
FLOAT32 = dict(rtol=1e-5, atol=1e-6, strict=True)


def test_a_residual_block_adds_its_result_and_ends_without_relu() -> None:
    block = random_codec().decoder.blocks[0]
    first, second, third = block.convs
    channels = len(first.bias)
    x = RNG.standard_normal((2, channels, 4, 5))
    y = np.maximum(slow_conv(first.weight, first.bias, x, 1, 1), 0)
    y = np.maximum(slow_conv(second.weight, second.bias, y, 1, 1), 0)
    expected = x + slow_conv(third.weight, third.bias, y, 0, 1)
    np.testing.assert_allclose(residual_block(block, x), expected, **FLOAT64)
    assert (residual_block(block, x) < 0).any()


def test_codes_are_laid_out_along_rows() -> None:
    """Without residual blocks, which mix neighbours, a code changes its own sixteenth of the mask and a rim."""
    tensors = {name: x * (0 if ".net.4." in name else 1) for name, x in random_tensors().items()}
    p = mask_codec(tensors, Path("random"))
    codes = np.zeros((1, 16), int)
    plain = decode_mask(p, codes)
    assert plain.shape == (1, 64, 64)
    for place in range(16):
        changed = codes.copy()
        changed[0, place] = 77
        change = np.abs(decode_mask(p, changed) - plain)[0].reshape(4, 16, 4, 16).mean((1, 3))
        assert divmod(place, 4) == np.unravel_index(change.argmax(), (4, 4))


def test_masks_do_not_depend_on_each_other() -> None:
    p, codes = random_codec(), RNG.integers(0, 128, (3, 16))
    alone = np.concatenate([decode_mask(p, row[None]) for row in codes])
    np.testing.assert_allclose(decode_mask(p, codes), alone, **FLOAT32)
    assert decode_mask(p, codes[:0]).shape == (0, 64, 64)


@pytest.mark.parametrize("bad", [-1, 128])
def test_a_code_outside_the_codebook_is_refused(bad: int) -> None:
    with pytest.raises(IndexError, match="128 rows"):
        decode_mask(random_codec(), np.full((1, 16), bad))


def test_a_mask_is_encoded_as_the_nearest_rows_and_the_first_of_equal_ones() -> None:
    p = random_codec()
    codes = encode_mask(p, RNG.uniform(-1, 1, (2, 64, 64)).astype(np.float32))
    assert codes.shape == (2, 16)
    twins = np.concatenate([p.codebook[:1]] * 128)
    same = type(p)(twins, p.decoder, p.encoder)
    assert (encode_mask(same, np.ones((1, 64, 64), np.float32)) == 0).all()
