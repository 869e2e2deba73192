"""The mask auto-encoder against a second spelling in loops, layer by layer; torch itself is asked in tests/live."""

from pathlib import Path

import numpy as np
import pytest
from mask_codecs import random_codec, random_tensors

from npgemma.checkpoints.mask_vqvae import mask_codec
from npgemma.layers.conv import Conv, ConvTranspose, conv, upsample
from npgemma.models.mask_vqvae import decode_mask, encode_mask, residual_block

RNG = np.random.default_rng(0)
FLOAT64 = dict(rtol=1e-12, atol=1e-12)


def slow_conv(weight, bias, x, padding: int, stride: int) -> np.ndarray:
    outs, ins, height, width = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows, columns = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    y = np.empty((len(x), outs, rows, columns))
    for b, o, v, u in np.ndindex(y.shape):
        patch = x[b, :, v * stride : v * stride + height, u * stride : u * stride + width]
        y[b, o, v, u] = bias[o] + sum(weight[o, i, j, k] * patch[i, j, k] for i, j, k in np.ndindex(ins, height, width))
    return y


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(1, 0, 1), (3, 1, 1), (4, 1, 2), (3, 0, 2)])
def test_a_convolution_is_the_sum_of_its_definition(kernel: int, padding: int, stride: int) -> None:
    weight, bias, x = (RNG.standard_normal(shape) for shape in ((5, 3, kernel, kernel), (5,), (2, 3, 7, 9)))
    expected = slow_conv(weight, bias, x, padding, stride)
    np.testing.assert_allclose(conv(Conv(weight, bias), x, padding, stride), expected, **FLOAT64, strict=True)


def test_upsampling_adds_each_pixel_s_kernel_where_it_stands() -> None:
    """The transpose of a convolution: every input pixel spreads its kernel over the output, two apart, one cut off."""
    weight, bias, x = (RNG.standard_normal(shape) for shape in ((3, 5, 4, 4), (5,), (2, 3, 4, 6)))
    wide = np.zeros((2, 5, 2 * 4 + 2, 2 * 6 + 2))
    for b, i, v, u in np.ndindex(x.shape):
        wide[b, :, 2 * v : 2 * v + 4, 2 * u : 2 * u + 4] += x[b, i, v, u] * weight[i]
    expected = wide[:, :, 1:-1, 1:-1] + bias[:, None, None]
    np.testing.assert_allclose(upsample(ConvTranspose(weight, bias), x), expected, **FLOAT64, strict=True)


def test_a_residual_block_adds_what_it_makes_and_ends_without_relu() -> None:
    block = random_codec().decoder.blocks[0]
    first, second, third = block.convs
    channels = len(first.bias)
    x = RNG.standard_normal((2, channels, 4, 5))
    y = np.maximum(slow_conv(first.weight, first.bias, x, 1, 1), 0)
    y = np.maximum(slow_conv(second.weight, second.bias, y, 1, 1), 0)
    expected = x + slow_conv(third.weight, third.bias, y, 0, 1)
    np.testing.assert_allclose(residual_block(block, x), expected, rtol=1e-6, atol=1e-6)
    assert (residual_block(block, x) < 0).any()


def test_codes_are_laid_out_along_rows() -> None:
    """Without residual blocks, which look around, a code moves its own sixteenth of the mask and a rim about it."""
    tensors = {name: x * (0 if ".net.4." in name else 1) for name, x in random_tensors().items()}
    p = mask_codec(tensors, Path("random"))
    codes = np.zeros((1, 16), int)
    plain = decode_mask(p, codes)
    assert plain.shape == (1, 64, 64)
    for place in range(16):
        changed = codes.copy()
        changed[0, place] = 77
        moved = np.abs(decode_mask(p, changed) - plain)[0].reshape(4, 16, 4, 16).mean((1, 3))
        assert divmod(place, 4) == np.unravel_index(moved.argmax(), (4, 4))


def test_rows_of_codes_do_not_depend_on_each_other() -> None:
    p, codes = random_codec(), RNG.integers(0, 128, (3, 16))
    alone = np.concatenate([decode_mask(p, row[None]) for row in codes])
    np.testing.assert_allclose(decode_mask(p, codes), alone, rtol=1e-5, atol=1e-6)
    assert decode_mask(p, codes[:0]).shape == (0, 64, 64)


@pytest.mark.parametrize("bad", [-1, 128])
def test_a_code_without_a_row_is_refused(bad: int) -> None:
    with pytest.raises(IndexError, match="128 rows"):
        decode_mask(random_codec(), np.full((1, 16), bad))


def test_an_encoding_is_the_nearest_row_and_the_first_of_equals() -> None:
    p = random_codec()
    codes = encode_mask(p, RNG.uniform(-1, 1, (2, 64, 64)).astype(np.float32))
    assert codes.shape == (2, 16)
    twins = np.concatenate([p.codebook[:1]] * 128)
    same = type(p)(twins, p.decoder, p.encoder)
    assert (encode_mask(same, np.ones((1, 64, 64), np.float32)) == 0).all()
