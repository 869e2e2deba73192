"""Convolutions, with weights as torch.nn.Conv2d and torch.nn.ConvTranspose2d store them."""

from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class ConvTranspose:
    weight: Float[Array, "I O h w"]
    bias: Float[Array, "O"]


def upsample(p: ConvTranspose, x: Float[Array, "B I Y X"]) -> Float[Array, "B O v u"]:
    """Twice the height and width: the transpose of a convolution of stride 2, padding 1, with kernels of 4.

    Computed as a convolution: of x with a row of zeros between its rows and a column between its columns, with kernels
    turned by half a turn. Source: torch.nn.ConvTranspose2d.
    """
    batch, channels, height, width = x.shape
    spread = np.zeros((batch, channels, 2 * height - 1, 2 * width - 1), x.dtype)
    spread[:, :, ::2, ::2] = x
    turned = p.weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return conv(Conv(turned, p.bias), spread, padding=p.weight.shape[2] - 2)
