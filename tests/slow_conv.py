"""A convolution in loops: the second spelling of `npgemma.layers.conv.conv`."""

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
