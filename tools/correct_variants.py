"""Correct runs that round differently: what ports in other languages and frameworks compute in another order.

Each replaces a function of npgemma's by another spelling of the same formula, in float32, or changes tensors in a way
that no result depends on. None may be told that it is wrong: see mutation_study.py.
"""

import math
from collections.abc import Callable

import numpy as np
from correct_attention import ATTENTIONS, ROTATIONS, attending, rotating
from mutations import Variant, changing

from npgemma.layers import activations, packed
from npgemma.layers.bits import widened
from npgemma.layers.norms import LayerNorm, RMSNorm
from npgemma.models import gemma, paligemma, siglip, vit

Array = np.ndarray
Product = Callable[[Array, Array], Array]  # x [T I] and w [O I] -> x w^T [T O]

# ----------------------------------------------------------------------------------------------------------- products


def chunked(x: Array, w: Array) -> Array:
    """Products of 16 columns at a time, summed from the last to the first."""
    y = np.zeros((len(x), len(w)), x.dtype)
    for start in reversed(range(0, w.shape[1], 16)):
        y += x[:, start : start + 16] @ w[:, start : start + 16].T
    return y


def in_double(x: Array, w: Array) -> Array:
    return x.astype(np.float64) @ w.T.astype(np.float64)


def row_by_row(x: Array, w: Array) -> Array:
    return np.array([w @ row for row in x])


def one_accumulator(x: Array, w: Array, first: Array | float = 0) -> Array:
    """A loop over the columns, which adds one term after the other."""
    y = np.zeros((len(x), len(w)), x.dtype) + first
    for column, weight in zip(x.T, np.ascontiguousarray(w.T), strict=True):
        y += column[:, None] * weight
    return y


def backwards(x: Array, w: Array) -> Array:
    return one_accumulator(x[:, ::-1], w[:, ::-1])


def four_accumulators(x: Array, w: Array) -> Array:
    """Every fourth column, as a loop with vectors of four numbers adds up."""
    a, b, c, d = (one_accumulator(x[:, i::4], w[:, i::4]) for i in range(4))
    return (a + b) + (c + d)


def halves(x: Array, w: Array) -> Array:
    """The two halves of the columns on two machines."""
    middle = w.shape[1] // 2
    return x[:, :middle] @ w[:, :middle].T + x[:, middle:] @ w[:, middle:].T


def fused_multiply_add(x: Array, w: Array) -> Array:
    """One accumulator, rounded once for each multiplication and addition together."""
    y = np.zeros((len(x), len(w)), x.dtype)
    for column, weight in zip(x.T.astype(np.float64), w.T.astype(np.float64), strict=True):
        y = (y + column[:, None] * weight).astype(x.dtype)
    return y


def three_bfloat16(x: Array, w: Array) -> Array:
    """Each number as the sum of three bfloat16 numbers, and the six largest of nine products, as matrix units do."""
    (a, b, c), (d, e, f) = thirds(x), thirds(w)
    return (a @ f.T + b @ e.T + c @ d.T) + (a @ e.T + b @ d.T) + a @ d.T


def thirds(x: Array) -> list[Array]:
    parts = []
    for _ in range(3):
        parts.append((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
        x = x - parts[-1]
    return parts


def multiplying(product: Product) -> Variant:
    """Every linear layer uses `product`."""

    def multiply(x: Array, w: Array, out: Array) -> None:
        out[:] = product(np.ascontiguousarray(x), np.ascontiguousarray(w))

    return Variant(replacements=((packed, "multiply", multiply),))


PRODUCTS = {
    "sums in chunks, backwards": chunked,
    "sums in float64": in_double,
    "products row by row": row_by_row,
    "products in one accumulator": one_accumulator,
    "products in one accumulator, backwards": backwards,
    "products in four accumulators": four_accumulators,
    "products in two halves": halves,
    "fused multiply-adds": fused_multiply_add,
    "products of three bfloat16 parts": three_bfloat16,
    "products by einsum": lambda x, w: np.einsum("ti,oi->to", x, w),
    "products transposed": lambda x, w: (np.asfortranarray(w) @ x.T).T,
    "gate, up, q, k and v in larger products": lambda x, w: (x @ np.concatenate([w, -w, w]).T)[:, : len(w)],
}


def bias_first(x: Array, w: Array, bias: Array | None = None) -> Array:
    """The bias is the first term of the sum."""
    y = one_accumulator(x.reshape(-1, w.shape[1]), widened(w, x.dtype), 0 if bias is None else bias)
    return y.reshape(*x.shape[:-1], len(w))


# -------------------------------------------------------------------------------------------------------------- norms


def looped(x: Array) -> Array:
    """The sum over the last axis by a loop that adds one number after the other."""
    y = np.zeros(x.shape[:-1], x.dtype)
    for i in range(x.shape[-1]):
        y = y + x[..., i]
    return y[..., None]


def rms_in_a_loop(p: RMSNorm, x: Array) -> Array:
    return x / np.sqrt(looped(x * x) / x.shape[-1] + p.eps) * (1 + p.weight)


def rms_by_inverse_root(p: RMSNorm, x: Array) -> Array:
    """x * (1 / sqrt(mean + eps)) * (1 + w), in another order."""
    scale = np.float32(1) / np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps)
    return x * (scale * (1 + p.weight))


def rms_by_reciprocal(p: RMSNorm, x: Array) -> Array:
    """The mean as the sum times 1 / D."""
    mean = np.square(x).sum(-1, keepdims=True) * np.float32(1 / x.shape[-1])
    return x * np.float32(1) / np.sqrt(mean + p.eps) * (1 + p.weight)


def rms_by_length(p: RMSNorm, x: Array) -> Array:
    """x sqrt(D) / sqrt(x . x + D eps), the product by einsum, and 1 + w as two terms."""
    width = x.shape[-1]
    length = np.sqrt(np.einsum("...d,...d->...", x, x) + np.float32(width * p.eps))[..., None]
    y = x * (np.float32(math.sqrt(width)) / length)
    return y + y * p.weight


def layer_norm_in_a_loop(p: LayerNorm, x: Array) -> Array:
    centred = x - looped(x) / x.shape[-1]
    return centred / np.sqrt(looped(centred * centred) / x.shape[-1] + p.eps) * p.weight + p.bias


def two_moments(p: LayerNorm, x: Array) -> Array:
    """The variance as mean(x^2) - mean(x)^2."""
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x).mean(-1, keepdims=True) - np.square(mean)
    return (x - mean) / np.sqrt(variance + p.eps) * p.weight + p.bias


def welford(p: LayerNorm, x: Array) -> Array:
    """A running mean and a running variance."""
    mean, squares = np.zeros(x.shape[:-1], x.dtype), np.zeros(x.shape[:-1], x.dtype)
    for i in range(x.shape[-1]):
        delta = x[..., i] - mean
        mean = mean + delta / np.float32(i + 1)
        squares = squares + delta * (x[..., i] - mean)
    variance = squares[..., None] / x.shape[-1]
    return (x - mean[..., None]) / np.sqrt(variance + p.eps) * p.weight + p.bias


def scale_and_shift(p: LayerNorm, x: Array) -> Array:
    """y = x scale + shift."""
    mean = x.mean(-1, keepdims=True)
    scale = np.float32(1) / np.sqrt(np.square(x - mean).mean(-1, keepdims=True) + p.eps) * p.weight
    return x * scale + (p.bias - mean * scale)


def layer_normed(norm: Callable[[LayerNorm, Array], Array]) -> Variant:
    return Variant(replacements=((vit, "layer_norm", norm), (siglip, "layer_norm", norm)))


def rms_normed(norm: Callable[[RMSNorm, Array], Array]) -> Variant:
    return Variant(replacements=((gemma, "rms_norm", norm),))


# --------------------------------------------------------------------------------------------------------- gelu, rest


def cubic_gelu(x: Array) -> Array:
    """The polynomial in Horner's form, the tanh as 1 - 2 / (exp(2 y) + 1)."""
    y = np.float32(math.sqrt(2 / math.pi)) * x * (1 + np.float32(0.044715) * x * x)
    return 0.5 * x * (2 - 2 / (np.exp(np.minimum(2 * y, 80)) + 1))


def sigmoid_gelu(x: Array) -> Array:
    """x sigmoid(2 y), since (1 + tanh y) / 2 is the sigmoid of 2 y."""
    y = np.float32(2 * math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return x / (1 + np.exp(np.minimum(-y, 80)))


def activated(gelu: Callable[[Array], Array]) -> Variant:
    return Variant(replacements=((activations, "gelu", gelu), (siglip, "gelu", gelu)))


def geglu_of_product(gate: Array, up: Array, tap: Callable[..., Array]) -> Array:
    """(gate up / 2) (1 + tanh), without gelu(gate)."""
    y = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
    return gate * up * 0.5 * (1 + np.tanh(y))


def from_bytes(x: Array) -> Array:
    """Pixels as (p / 255 - 0.5) / 0.5, where p is a byte."""
    pixels = np.rint((x.astype(np.float64) + 1) * 127.5).astype(np.float32)
    return (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def there_and_back(x: Array) -> Array:
    """Image features over sqrt(D), and later times sqrt(D)."""
    width = np.float32(math.sqrt(x.shape[-1]))
    return x / width * width


BENIGN: dict[str, Variant] = {
    "npgemma itself": Variant(),
    **{name: multiplying(product) for name, product in PRODUCTS.items()},
    "bias is the first term": Variant(
        replacements=tuple((module, "linear", bias_first) for module in (vit, siglip, paligemma))
    ),
    "rms norm in a loop": rms_normed(rms_in_a_loop),
    "rms norm by an inverse root": rms_normed(rms_by_inverse_root),
    "mean as a sum times 1 / D": rms_normed(rms_by_reciprocal),
    "rms norm by the length of a row": rms_normed(rms_by_length),
    "layer norm in a loop": layer_normed(layer_norm_in_a_loop),
    "variance of two moments": layer_normed(two_moments),
    "running variance": layer_normed(welford),
    "layer norm as scale and shift": layer_normed(scale_and_shift),
    "gelu by exponentials": activated(cubic_gelu),
    "gelu by a sigmoid": activated(sigmoid_gelu),
    "gelu of gate times up": Variant(replacements=((gemma, "geglu", geglu_of_product),), absent=("*.mlp.act",)),
    **{name: attending(attend, absent) for name, (attend, absent) in ATTENTIONS.items()},
    **{name: rotating(rotate) for name, rotate in ROTATIONS.items()},
    "positions from 0": Variant(tap=changing("*positions", lambda x: x - 1)),
    "pixels from bytes": Variant(tap=changing("pixel_values", from_bytes)),
    "image features scaled and scaled back": Variant(tap=changing("projector", there_and_back)),
    "logits with a constant": Variant(tap=changing("*logits", lambda x: x - x.max(-1, keepdims=True))),
    "log-probabilities": Variant(
        tap=changing("*logits", lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True, dtype=x.dtype)))
    ),
}
