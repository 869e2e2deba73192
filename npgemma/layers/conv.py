"""Convolutions, with weights as torch.nn.Conv2d and torch.nn.ConvTranspose2d store them."""

from dataclasses import dataclass

import numpy as np

from npgemma.layers.linear import linear_backward, reshaped, total
from npgemma.layers.shapes import Array, Float


@dataclass(frozen=True)
class Conv:
    weight: Float[Array, "O I h w"]
    bias: Float[Array, "O"]


def conv(p: Conv, x: Float[Array, "B I Y X"], padding: int, stride: int = 1) -> Float[Array, "B O v u"]:
    """y[b o v u] = bias[o] + sum over i, j, k of weight[o i j k] x[b i (v stride + j) (u stride + k)].

    x has `padding` zeros around it. Source: torch.nn.Conv2d.
    """
    height, width = p.weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (2, 3))[:, :, ::stride, ::stride]
    y = np.tensordot(windows, p.weight, ((1, 4, 5), (1, 2, 3)))  # B v u O
    return (y + p.bias).transpose(0, 3, 1, 2)


def conv_backward(
    p: Conv, x: Float[Array, "B I Y X"], padding: int, stride: int, dy: Float[Array, "B O v u"]
) -> tuple[Float[Array, "B I Y X"], Conv]:
    """forward: y = W window + bias, a linear layer on the windows of x, which overlap.

    A number of x gets the sum over all windows that it is in.
    """
    height, width = p.weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (2, 3))[:, :, ::stride, ::stride]
    windows, dy = windows.transpose(0, 2, 3, 1, 4, 5), dy.transpose(0, 2, 3, 1)  # B v u I h w, B v u O
    rows, columns = dy.shape[1:3]
    weight = reshaped(p.weight, (len(p.weight), -1))
    dwindows, dweight = linear_backward(windows.reshape(*dy.shape[:3], -1), weight, dy)
    dwindows = dwindows.reshape(windows.shape).transpose(0, 3, 1, 2, 4, 5)  # B I v u h w
    dx = np.zeros_like(x)
    for j in range(height):
        for k in range(width):
            dx[:, :, j : j + rows * stride : stride, k : k + columns * stride : stride] += dwindows[..., j, k]
    inside = slice(padding, x.shape[2] - padding), slice(padding, x.shape[3] - padding)
    return dx[:, :, *inside], Conv(reshaped(dweight, p.weight.shape), total(p.bias, dy))


@dataclass(frozen=True)
class ConvTranspose:
    weight: Float[Array, "I O h w"]
    bias: Float[Array, "O"]


def upsample(p: ConvTranspose, x: Float[Array, "B I Y X"]) -> Float[Array, "B O v u"]:
    """Twice the height and width: the transpose of a convolution of stride 2, padding 1, with kernels of 4.

    Computed as a convolution: of x with a row of zeros between its rows and a column between its columns, with kernels
    turned by half a turn. Source: torch.nn.ConvTranspose2d.
    """
    return conv(turned(p), spread(x), padding=p.weight.shape[2] - 2)


def upsample_backward(
    p: ConvTranspose, x: Float[Array, "B I Y X"], dy: Float[Array, "B O v u"]
) -> tuple[Float[Array, "B I Y X"], ConvTranspose]:
    """forward: the convolution of the spread x with the turned kernels. What is given to the zeros is dropped."""
    dspread, p_turned = conv_backward(turned(p), spread(x), p.weight.shape[2] - 2, 1, dy)
    weight = p_turned.weight if p_turned.weight is None else turn(p_turned.weight)
    return dspread[:, :, ::2, ::2], ConvTranspose(weight, p_turned.bias)


def spread(x: Float[Array, "B I Y X"]) -> Float[Array, "B I v u"]:
    """x with a row of zeros between its rows, and a column between its columns."""
    batch, channels, height, width = x.shape
    y = np.zeros((batch, channels, 2 * height - 1, 2 * width - 1), x.dtype)
    y[:, :, ::2, ::2] = x
    return y


def turned(p: ConvTranspose) -> Conv:
    """The convolution with the same kernels, turned by half a turn."""
    return Conv(turn(p.weight), p.bias)


def turn(weight: Float[Array, "I O h w"]) -> Float[Array, "O I h w"]:
    return weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
