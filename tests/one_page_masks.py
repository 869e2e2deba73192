"""The mask decoder on one page: from codes to masks with NumPy alone, by the names of big_vision's file.

The second spelling of `npgemma.models.mask_vqvae.decode_mask`. A convolution is a sum over the places of its kernel, a
transposed one adds each pixel, times the kernel, to the picture. Source: big_vision, pp/proj/paligemma/segmentation.py.
"""

from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]


def masks(w: Tensors, codes: np.ndarray) -> np.ndarray:
    """Masks [B 64 64] of codes [B 16]."""
    x = np.moveaxis(w["_vq_vae._embedding"][codes].reshape(-1, 4, 4, w["_vq_vae._embedding"].shape[1]), -1, 1)
    x = relu(conv(w, "decoder.0", x))
    for i in (2, 3):
        y = relu(conv(w, f"decoder.{i}.net.0", x))
        y = relu(conv(w, f"decoder.{i}.net.2", y))
        x = x + conv(w, f"decoder.{i}.net.4", y)
    for i in (4, 6, 8, 10):
        x = relu(transposed_conv(w, f"decoder.{i}", x))
    return conv(w, "decoder.12", x)[:, 0]


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0)


def conv(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """Stride 1; the result is as large as x [B I Y X]."""
    kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    side, (height, width) = kernel.shape[2], x.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), (side // 2, side // 2), (side // 2, side // 2)])
    y = np.zeros((len(x), len(bias), height, width)) + bias[:, None, None]
    for j, k in np.ndindex(side, side):
        y += np.einsum("oi,biyx->boyx", kernel[:, :, j, k], x[:, :, j : j + height, k : k + width])
    return y


def transposed_conv(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """Stride 2, a kernel of 4 x 4, and one row and column cut off on each side: twice as large as x [B I Y X]."""
    kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    height, width = x.shape[2:]
    y = np.zeros((len(x), len(bias), 2 * height + 2, 2 * width + 2))
    for j, k in np.ndindex(4, 4):
        y[:, :, j : j + 2 * height : 2, k : k + 2 * width : 2] += np.einsum("io,biyx->boyx", kernel[:, :, j, k], x)
    return y[:, :, 1:-1, 1:-1] + bias[:, None, None]
