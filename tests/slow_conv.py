"""Convolutions in loops: the second spelling of `npgemma.layers.conv`."""

import numpy as np


def slow_conv(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, padding: int, stride: int) -> np.ndarray:
    outs, _, height, width = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows, columns = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    y = np.empty((len(x), outs, rows, columns))
    for b, o, v, u in np.ndindex(y.shape):
        patch = x[b, :, v * stride : v * stride + height, u * stride : u * stride + width]
        y[b, o, v, u] = bias[o] + (weight[o] * patch).sum()
    return y


def slow_upsample(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Each pixel adds its 4 x 4 kernel at its place: neighbours are two apart, and a rim of one is cut off."""
    batch, _, height, width = x.shape
    y = np.zeros((batch, len(bias), 2 * height + 2, 2 * width + 2))
    for b, i, v, u in np.ndindex(x.shape):
        y[b, :, 2 * v : 2 * v + 4, 2 * u : 2 * u + 4] += x[b, i, v, u] * weight[i]
    return y[:, :, 1:-1, 1:-1] + bias[:, None, None]
