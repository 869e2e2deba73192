"""Convolutions against loops over their definition; tests/live compares with torch."""

import numpy as np
import pytest
from agreement import FLOAT64, normal
from slow_conv import slow_conv, slow_upsample

from npgemma.layers.conv import Conv, ConvTranspose, conv, upsample


def test_conv_of_a_literal() -> None:
    """A kernel (1, 10) over 1, 2, 3 with a zero on either side, plus 0.5."""
    p = Conv(np.array([[[[1.0, 10.0]]]]), np.array([0.5]))
    x = np.array([[[[0.0, 0, 0], [1, 2, 3], [0, 0, 0]]]])
    y = conv(p, x, padding=1)[:, :, 2]
    np.testing.assert_array_equal(y, np.array([[[10.5, 21.5, 32.5, 3.5]]]), strict=True)


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(1, 0, 1), (3, 1, 1), (4, 1, 2), (3, 0, 2)])
def test_conv_is_the_sum_of_its_definition(kernel: int, padding: int, stride: int) -> None:
    weight, bias, x = normal(5, 3, kernel, kernel), normal(5, seed=1), normal(2, 3, 7, 9, seed=2)
    expected = slow_conv(weight, bias, x, padding, stride)
    np.testing.assert_allclose(conv(Conv(weight, bias), x, padding, stride), expected, **FLOAT64)


def test_upsample_of_a_literal() -> None:
    """One pixel becomes the middle four numbers of its kernel, not turned."""
    kernel = np.arange(16.0).reshape(1, 1, 4, 4)
    y = upsample(ConvTranspose(kernel, np.array([0.5])), np.array([[[[2.0]]]]))
    np.testing.assert_array_equal(y, np.array([[[[10.5, 12.5], [18.5, 20.5]]]]), strict=True)


def test_upsample_adds_the_kernel_of_each_pixel_at_its_place() -> None:
    weight, bias, x = normal(3, 5, 4, 4), normal(5, seed=1), normal(2, 3, 4, 6, seed=2)
    expected = slow_upsample(weight, bias, x)
    np.testing.assert_allclose(upsample(ConvTranspose(weight, bias), x), expected, **FLOAT64)


def test_convolutions_keep_the_dtype() -> None:
    x, weight, bias = (each.astype(np.float32) for each in (normal(1, 3, 5, 5), normal(3, 3, 4, 4), normal(3)))
    assert conv(Conv(weight, bias), x, 1, 2).dtype == np.float32
    assert upsample(ConvTranspose(weight, bias), x).dtype == np.float32


def test_a_kernel_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        conv(Conv(normal(1, 1, 4, 4), normal(1)), normal(1, 1, 2, 2), padding=0)
