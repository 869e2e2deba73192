"""The encoder that the towers of SigLIP and CLIP are made of, and ViT, which names what a picture shows.

    block:  x += attention(norm x)
            x += mlp(norm x)

    ViT:    pixels --> patches --> linear --> class token first --> + position --> L x block --> norm --> class row
            --> linear --> logits

The encoder takes from its tower which rows see which (`mask`), and the activation of its MLPs (`act`).

Source: ViT (Dosovitskiy et al. 2021), section 3.1; the order of operations of big_vision's models/vit.py.
"""

from dataclasses import dataclass, replace

import numpy as np

from npgemma.layers.activations import Activation, sigmoid, softmax
from npgemma.layers.attention import attend
from npgemma.layers.linear import embed, linear, project, unproject
from npgemma.layers.norms import LayerNorm, layer_norm
from npgemma.layers.resize import resize_positions
from npgemma.layers.shapes import Array, Bool, Float, Int, Weight
from npgemma.layers.taps import Renamed, Tap, at, silent
from npgemma.layers.threads import by_sequences


def patches(pixel_values: Float[Array, "B C Y X"], size: int) -> Float[Array, "B P I"]:
    """Each picture cut into squares of `size` x `size` pixels, row by row; I = C size size.

    Pixels that do not fill a last patch are left out, as in a 'valid' convolution.
    """
    images, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    cut = pixel_values[:, :, : rows * size, : columns * size].reshape(images, channels, rows, size, columns, size)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, channels * size * size)


@dataclass(frozen=True)
class TokenEmbedding:
    """What a text tower begins with, as patches are what a vision tower begins with."""

    tokens: Weight[Array, "V D"]
    position: Float[Array, "S D"]


def token_embedding(p: TokenEmbedding, input_ids: Int[Array, "U T"], dtype: np.dtype) -> Float[Array, "U T D"]:
    """x[u t] = tokens[id[u t]] + position[t]; T <= S."""
    x = embed(input_ids.reshape(-1), p.tokens, dtype)
    return x.reshape(*input_ids.shape, -1) + p.position[: input_ids.shape[1]]


@dataclass(frozen=True)
class Attention:
    q: Weight[Array, "N H D"]
    q_bias: Float[Array, "N H"]
    k: Weight[Array, "N H D"]
    k_bias: Float[Array, "N H"]
    v: Weight[Array, "N H D"]
    v_bias: Float[Array, "N H"]
    o: Weight[Array, "D N H"]
    o_bias: Float[Array, "D"]


def attention(
    p: Attention,
    x: Float[Array, "B Q D"],
    seen: Float[Array, "B P D"],
    mask: Bool[Array, "Q P"],
    tap: Tap = silent,
) -> Float[Array, "B Q D"]:
    """The rows `x` of each picture attend to the rows `seen` of the same picture, where `mask` is True."""
    q = tap("q", project(x, p.q, p.q_bias), "B Q N H")
    k = tap("k", project(seen, p.k, p.k_bias), "B P N H")
    v = tap("v", project(seen, p.v, p.v_bias), "B P N H")
    heads = np.empty_like(q)
    for i in range(len(x)):
        heads[i] = attend(q[i], k[i], v[i], mask, at(tap, f"pictures.{i}"))
    heads = tap("heads", heads, "B Q N H")
    return tap("out", unproject(heads, p.o, p.o_bias), "B Q D")


@dataclass(frozen=True)
class MLP:
    fc1: Weight[Array, "F D"]
    fc1_bias: Float[Array, "F"]
    fc2: Weight[Array, "D F"]
    fc2_bias: Float[Array, "D"]


def mlp(p: MLP, x: Float[Array, "B P D"], act: Activation, tap: Tap = silent) -> Float[Array, "B P D"]:
    """y = fc2(act(fc1(x)))."""
    hidden = tap("fc1", linear(x, p.fc1, p.fc1_bias), "B P F")
    hidden = tap("hidden", act(hidden), "B P F")
    return tap("out", linear(hidden, p.fc2, p.fc2_bias), "B P D")


@dataclass(frozen=True)
class Block:
    attn_norm: LayerNorm
    attn: Attention
    mlp_norm: LayerNorm
    mlp: MLP


def block(
    p: Block, x: Float[Array, "B P D"], mask: Bool[Array, "P P"], act: Activation, tap: Tap = silent
) -> Float[Array, "B P D"]:
    """x += attention(norm x); x += mlp(norm x)."""
    h = tap("attn_norm", layer_norm(p.attn_norm, x), "B P D")
    x = tap("mid", x + attention(p.attn, h, h, mask, at(tap, "attn", Q="P")), "B P D")
    h = tap("mlp_norm", layer_norm(p.mlp_norm, x), "B P D")
    return tap("out", x + mlp(p.mlp, h, act, at(tap, "mlp")), "B P D")


def encoder(
    blocks: tuple[Block, ...],
    x: Float[Array, "B P D"],
    mask: Bool[Array, "P P"],
    act: Activation,
    tap: Tap = silent,
) -> Float[Array, "B P D"]:
    """The blocks in turn, by sequences unless a tap must see all of them at once."""

    def in_turn(x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        for i, weights in enumerate(blocks):
            x = block(weights, x, mask, act, at(tap, f"layers.{i}"))
        return x

    return by_sequences(in_turn, x) if tap is silent else in_turn(x)


def every_row(count: int) -> Bool[Array, "P P"]:
    """The mask of rows that all see each other."""
    return np.ones((count, count), bool)


def sequences(tap: Tap, each: str, **letters: str) -> Tap:
    """The tap for the blocks of an encoder whose rows are not the patches of pictures alone.

    What attention taps of each sequence stands under `each` ("texts.0"), not "pictures.0"; `letters` rename axes.
    """
    return silent if tap is silent else Renamed(tap, "pictures", each, letters)


@dataclass(frozen=True)
class PatchEmbedding:
    weight: Weight[Array, "D C h w"]
    bias: Float[Array, "D"]
    class_token: Float[Array, "D"]
    position: Float[Array, "T D"]


def patch_embedding(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent
) -> Float[Array, "B T D"]:
    """x[b t] = row[t] + position[t], where row 0 is the class token and row 1 + i is W patch[b i] + bias; T = 1 + P."""
    width, _, size, _ = p.weight.shape
    x = tap("patches", linear(patches(pixel_values, size), p.weight.reshape(width, -1), p.bias), "B P D")
    first = np.broadcast_to(p.class_token.astype(x.dtype), (len(x), 1, width))
    return np.concatenate([first, x], 1) + p.position


@dataclass(frozen=True)
class Head:
    weight: Weight[Array, "A D"]
    bias: Float[Array, "A"]


@dataclass(frozen=True)
class ViT:
    embedding: PatchEmbedding
    blocks: tuple[Block, ...]
    act: Activation
    norm: LayerNorm
    head: Head


def resize_after_class(position: Float[Array, "T D"], rows: int, columns: int) -> Float[Array, "S D"]:
    """A table of positions for rows x columns patches; row 0, that of the class token, stays as it is."""
    return np.concatenate([position[:1], resize_positions(position[1:], rows, columns)])


def resized(p: ViT, rows: int, columns: int) -> ViT:
    """The same model for pictures of rows x columns patches; it was not trained with them."""
    position = resize_after_class(p.embedding.position, rows, columns)
    return replace(p, embedding=replace(p.embedding, position=position))


def forward(p: ViT, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B A"]:
    """The logit of each label for each picture, from the row of its class token."""
    x = tap("pixel_values", pixel_values, "B C Y X")
    x = tap("embedding", patch_embedding(p.embedding, x, at(tap, "embedding")), "B T D")
    x = encoder(p.blocks, x, every_row(x.shape[1]), p.act, sequences(tap, "pictures", P="T"))
    x = tap("norm", layer_norm(p.norm, x), "B T D")
    x = tap("class", x[:, 0], "B D")
    return tap("logits", linear(x, p.head.weight, p.head.bias), "B A")


def probabilities(logits: Float[Array, "B A"], tap: Tap = silent) -> Float[Array, "B A"]:
    """The softmax over the labels."""
    return tap("probabilities", softmax(logits), "B A")


def independent_probabilities(logits: Float[Array, "B A"], tap: Tap = silent) -> Float[Array, "B A"]:
    """The sigmoid of each logit: whether a label fits, whatever the others are, of a model trained to find several."""
    return tap("probabilities", sigmoid(logits), "B A")
