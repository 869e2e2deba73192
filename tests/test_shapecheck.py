"""The checker refuses what it is there to refuse, and nothing of the package escapes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import shapecheck
from shapecheck import ShapeError, checked

import npgemma.decoding.loop
import npgemma.models.gemma
import npgemma.models.siglip
from npgemma.layers import ops
from npgemma.layers.linear import embed, linear
from npgemma.layers.shapes import Array, Bits, Bool, Float, Int, Weight

# functions and classes with annotations of every sort


@dataclass(frozen=True)
class Layer:
    weight: Weight[Array, "F D"]
    bias: Float[Array, "F"] | None = None


@dataclass(frozen=True)
class Other:
    weight: Weight[Array, "F D"]
    bias: Float[Array, "F"] | None = None


@dataclass(frozen=True)
class Stack:
    layers: tuple[Layer, ...]


class Piece(NamedTuple):
    ids: Int[Array, "T"]
    mask: Bool[Array, "T T"]


@checked
def layer(p: Layer, x: Float[Array, "*R D"], scale: Float[Array, "3"] | None = None) -> Float[Array, "*R F"]:
    return np.zeros((*x.shape[:-1], len(p.weight)))


@checked
def stack(p: Stack, x: Float[Array, "T D"], pieces: Sequence[Piece] = ()) -> Float[Array, "T D"]:
    return x


@checked
def two(pair: tuple[Float[Array, "D"], Float[Array, "D"]], many: list[Float[Array, "D"]]) -> None:
    return None


@checked
def to_bits(x: Float[Array, "*R"]) -> Bits[Array, "*R"]:
    return x  # a float: what it promises is never true


@checked
def add(left: Float[Array, "*R D"], right: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    return left[..., :1]  # one column, whatever D is


def floats(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def ints(*shape: int) -> Array:
    return np.zeros(shape, np.int64)


def bools(*shape: int) -> Array:
    return np.zeros(shape, bool)


def test_what_fits_passes() -> None:
    """Any number of leading axes, none included, packed weights, options left out, sequences of several sizes."""
    packed = Layer(np.zeros((5, 7), np.uint16), floats(5))
    for leading in ((), (2,), (2, 3)):
        assert layer(packed, floats(*leading, 7)).shape == (*leading, 5)
    layer(packed, floats(7), floats(3))
    layer(packed, floats(7), scale=None)
    pieces = [Piece(ints(2), bools(2, 2)), Piece(ints(3), bools(3, 3))]
    stack(Stack((Layer(floats(5, 7)), Layer(floats(2, 3)))), floats(4, 11), pieces)
    two((floats(2), floats(2)), [floats(3), floats(4)])


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        pytest.param(layer, (Layer(floats(5, 7)), floats(2, 5)), id="swapped axes: D of weights and of rows"),
        pytest.param(layer, (Layer(floats(5, 7)), floats(7), floats(4)), id="another size than the digit"),
        pytest.param(layer, (Layer(floats(5, 7)), np.float32(1)), id="too few axes"),
        pytest.param(layer, (Layer(floats(5, 7)), ints(7)), id="whole numbers for floats"),
        pytest.param(layer, (Layer(floats(5, 7)), [0.0] * 7), id="a list"),
        pytest.param(layer, (Layer(floats(5, 7)), None), id="None where it is not offered"),
        pytest.param(layer, (Layer(floats(5, 7), floats(7)), floats(7)), id="within the weights"),
        pytest.param(layer, (Layer(ints(5, 7)), floats(7)), id="weights of whole numbers"),
        pytest.param(layer, (Layer(floats(5, 7, 1)), floats(7)), id="too many axes"),
        pytest.param(layer, (Other(floats(5, 7)), floats(7)), id="the weights of something else"),
        pytest.param(stack, (Stack((Layer(floats(5, 7), floats(7)),)), floats(4, 11)), id="weights within weights"),
        pytest.param(stack, (Stack((Other(floats(5, 7)),)), floats(4, 11)), id="something else within weights"),
        pytest.param(stack, (Stack(()), floats(4, 11), [Piece(ints(2), bools(2, 3))]), id="one letter, two sizes"),
        pytest.param(stack, (Stack(()), floats(4, 11), [Piece(ints(2), ints(2, 2))]), id="whole numbers for a mask"),
        pytest.param(two, ((floats(2), floats(3)), []), id="in a tuple"),
        pytest.param(two, ((floats(2), floats(2)), [ints(2)]), id="in a list"),
        pytest.param(to_bits, (floats(2),), id="the kind of the result"),
        pytest.param(add, (floats(2, 3), floats(2, 3)), id="the shape of the result"),
        pytest.param(add, (floats(2, 1), floats(3, 1)), id="leading axes that differ"),
        pytest.param(add, (floats(2, 1), floats(1)), id="leading axes that broadcast"),
    ],
)
def test_what_does_not_fit_is_refused(function, arguments) -> None:
    with pytest.raises(ShapeError):
        function(*arguments)


def test_the_packages_functions_are_checked_where_they_are_defined_and_where_they_are_imported() -> None:
    """A test that takes `rope` from ops and a model that took it by name both hold the checked one."""
    heads = floats(2, 3, 4)
    for module in (ops, npgemma.models.gemma):
        with pytest.raises(ShapeError, match="rope: positions"):
            module.rope(heads, np.arange(3), 10000.0)
    for module in (npgemma.models.gemma, npgemma.models.paligemma):
        assert module.logits is npgemma.models.gemma.logits
    with pytest.raises(ShapeError, match="linear: w"):
        linear(floats(2, 3), floats(3, 2))
    with pytest.raises(ShapeError, match="embed: ids"):
        embed(floats(2), floats(5, 3), np.dtype(np.float32))
    with pytest.raises(ShapeError, match="append: values"):
        npgemma.models.gemma.Cache(4, 2, 6, np.dtype(np.float32)).append(floats(3, 2, 6), floats(3, 6, 2))


def test_weights_are_checked_when_they_are_made() -> None:
    """Field against field, and a part against the whole: a norm as wide as its table."""
    norm = ops.LayerNorm(floats(3), floats(3), 1e-6)
    with pytest.raises(ShapeError, match="bias"):
        replace(norm, bias=floats(4))
    with pytest.raises(ShapeError, match="norm"):
        npgemma.models.gemma.Decoder(floats(5, 3), (), ops.RMSNorm(floats(4), 1e-6), floats(5, 3))


def test_the_attention_of_one_model_does_not_pass_for_the_others() -> None:
    q, o = floats(3, 4, 12), floats(12, 3, 4)
    text = npgemma.models.gemma.Attention(q, q, q, 10000.0, o)
    with pytest.raises(ShapeError, match=r"gemma\.Attention"):
        npgemma.models.siglip.attention(text, floats(1, 5, 12))


def test_no_annotated_function_of_the_package_escapes() -> None:
    """Every function that every module holds is either checked or has nothing to check."""
    held = [(home, name, x) for module in shapecheck.modules() for home, name, x in shapecheck.homes(module)]
    assert not [(home, name) for home, name, x in held if checked(x) is not x]
    caught = {x.__qualname__ for _, _, x in held if hasattr(x, "unchecked")}
    assert caught >= {"widen", "linear", "attend", "patch_embedding", "Cache.append", "Attention.__init__", "prefill"}
    assert caught >= {
        "generate_tokens",
        "write_next",
        "keep_top_p",
        "probabilities",
        "choose",
        "VisionLanguageModel.forward",
    }
