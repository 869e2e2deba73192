"""The mask auto-encoder: its blocks in loops, and the properties of codes and masks; tests/live compares with torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from agreement import FLOAT64, assert_agrees
from mask_codecs import random_codec, random_tensors
from slow_conv import slow_conv, slow_upsample

from npgemma.checkpoints.mask_vqvae import mask_codec
from npgemma.models.mask_vqvae import MaskVQVAE, ResidualBlock, decode_mask, encode_mask, residual_block

RNG = np.random.default_rng(0)
# Ten layers of sums of a hundred float32 products: 5e-7 was seen.
FLOAT32 = dict(rtol=1e-5, atol=1e-6, strict=True)


def slow_residual_block(block: ResidualBlock, x: np.ndarray) -> np.ndarray:
    first, second, third = block.convs
    y = np.maximum(slow_conv(first.weight, first.bias, x, 1, 1), 0)
    y = np.maximum(slow_conv(second.weight, second.bias, y, 1, 1), 0)
    return x + slow_conv(third.weight, third.bias, y, 0, 1)


def slow_decode(p: MaskVQVAE, codes: np.ndarray) -> np.ndarray:
    """The mask [64 64] of 16 codes, in float64."""
    first, last = p.decoder.ends
    x = np.array([[[p.codebook[codes[4 * v + u]] for u in range(4)] for v in range(4)]], np.float64)
    x = np.maximum(slow_conv(first.weight, first.bias, x.transpose(0, 3, 1, 2), 0, 1), 0)
    for block in p.decoder.blocks:
        x = slow_residual_block(block, x)
    for up in p.decoder.up:
        x = np.maximum(slow_upsample(up.weight, up.bias, x), 0)
    return slow_conv(last.weight, last.bias, x, 0, 1)[0, 0]


def slow_encode(p: MaskVQVAE, mask: np.ndarray) -> list[int]:
    """The code of each place of a mask [64 64]: the row of the codebook at the least distance."""
    x = mask[None, None]
    for down in p.encoder.down:
        x = np.maximum(slow_conv(down.weight, down.bias, x, 1, 2), 0)
    for block in p.encoder.blocks:
        x = slow_residual_block(block, x)
    x = slow_conv(p.encoder.last.weight, p.encoder.last.bias, x, 0, 1)[0]
    places = [x[:, v, u] for v in range(4) for u in range(4)]
    return [min(range(128), key=lambda code: np.linalg.norm(place - p.codebook[code])) for place in places]


def test_a_residual_block_adds_its_result_and_ends_without_relu() -> None:
    block = random_codec().decoder.blocks[0]
    x = RNG.standard_normal((2, len(block.convs[0].bias), 4, 5))
    np.testing.assert_allclose(residual_block(block, x), slow_residual_block(block, x), **FLOAT64)
    assert (residual_block(block, x) < 0).any()


def test_masks_are_encoded_as_by_the_second_spelling() -> None:
    p, masks = random_codec(), RNG.uniform(-1, 1, (2, 64, 64)).astype(np.float32)
    codes = encode_mask(p, masks)
    assert codes.tolist() == [slow_encode(p, mask) for mask in masks]
    assert len(np.unique(codes)) > 3


def test_codes_are_decoded_as_by_the_second_spelling() -> None:
    p, codes = random_codec(), RNG.integers(0, 128, (2, 16))
    assert_agrees(decode_mask(p, codes), np.array([slow_decode(p, row) for row in codes]))


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


def test_the_first_of_equal_rows_is_chosen() -> None:
    p = random_codec()
    same = replace(p, codebook=np.repeat(p.codebook[:1], 128, 0))
    assert (encode_mask(same, np.ones((1, 64, 64), np.float32)) == 0).all()


def test_no_masks_give_no_codes() -> None:
    assert encode_mask(random_codec(), np.ones((0, 64, 64), np.float32)).shape == (0, 16)
