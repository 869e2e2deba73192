"""The checker of shapes refuses each kind of mistake, and every annotated function of the package is checked."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import shapecheck
from shapecheck import ShapeError, checked

import npgemma.layers.rope
import npgemma.models.gemma
import npgemma.models.paligemma
import npgemma.models.siglip
import npgemma.models.vit
from npgemma.layers.linear import embed, linear
from npgemma.layers.norms import LayerNorm, RMSNorm
from npgemma.layers.shapes import Array, Bits, Bool, Float, Int, Weight
from npgemma.layers.tree import SLOT, Slot

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


@dataclass
class Growing:
    rows: Float[Array, "T D"]


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
def part(piece: Piece, which: slice | Int[Array, "Q"], x: Float[Array, "T D"]) -> Float[Array, "Q D"]:
    return x[which]


@checked
def grow(growing: Growing, x: Float[Array, "T D"]) -> None:
    return None


@checked
def blocks(
    x: Float[Array, "T S"], wrong: str = ""
) -> Generator[tuple[str, Float[Array, "T S"]], Float[Array, "T S"], Float[Array, "T"]]:
    """Yields x twice and returns a sum, one of them with an axis too many."""
    x = yield "first", x[None] if wrong == "yield" else x
    x = yield "second", x
    return x if wrong == "result" else x.sum(-1)


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


def test_calls_that_fit_their_annotations_pass() -> None:
    """Any number of leading axes, none included, packed weights, options left out, sequences of several sizes, and a
    NamedTuple with another T than the call.
    """
    packed = Layer(np.zeros((5, 7), np.uint16), floats(5))
    for leading in ((), (2,), (2, 3)):
        assert layer(packed, floats(*leading, 7)).shape == (*leading, 5)
    layer(packed, floats(7), floats(3))
    layer(packed, floats(7), scale=None)
    pieces = [Piece(ints(2), bools(2, 2)), Piece(ints(3), bools(3, 3))]
    stack(Stack((Layer(floats(5, 7)), Layer(floats(2, 3)))), floats(4, 11), pieces)
    two((floats(2), floats(2)), [floats(3), floats(4)])
    part(Piece(ints(2), bools(2, 2)), ints(5), floats(5, 3))
    part(Piece(ints(2), bools(2, 2)), slice(None), floats(5, 3))


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
        pytest.param(part, (Piece(ints(2), bools(2, 3)), ints(5), floats(5, 3)), id="within a NamedTuple"),
        pytest.param(part, (None, ints(5), floats(5, 3)), id="None for a NamedTuple"),
        pytest.param(part, (Piece(ints(2), bools(2, 2)), 3, floats(5, 3)), id="neither a slice nor an array"),
        pytest.param(grow, (Growing(floats(2, 3)), floats(2, 4)), id="a dataclass that is not frozen"),
        pytest.param(two, ((floats(2), floats(3)), []), id="in a tuple"),
        pytest.param(two, ((floats(2), floats(2)), [ints(2)]), id="in a list"),
        pytest.param(to_bits, (floats(2),), id="the kind of the result"),
        pytest.param(add, (floats(2, 3), floats(2, 3)), id="the shape of the result"),
        pytest.param(layer, (Layer(SLOT), None), id="None beside weights without arrays"),
        pytest.param(add, (floats(2, 1), floats(3, 1)), id="leading axes that differ"),
        pytest.param(add, (floats(2, 1), floats(1)), id="leading axes that broadcast"),
    ],
)
def test_a_call_that_does_not_fit_its_annotations_is_refused(function, arguments) -> None:
    with pytest.raises(ShapeError):
        function(*arguments)


def test_an_error_says_where() -> None:
    with pytest.raises(
        ShapeError, match=r"^stack: p\.layers\[1\]\.bias has the shape \(7,\), annotated 'F', and F is 5$"
    ):
        stack(Stack((Layer(floats(5, 7)), Layer(floats(5, 7), floats(7)))), floats(4, 11))
    with pytest.raises(ShapeError, match=r"^layer: x has the shape"):
        layer(Layer(floats(5, 7)), x=floats(3, 8))


def test_frozen_weights_are_checked_again_with_other_rows() -> None:
    """What they bind is remembered; whether it fits the call is not."""
    p = Layer(floats(5, 7))
    for _ in range(2):
        layer(p, floats(2, 7))
        with pytest.raises(ShapeError, match="layer: x"):
            layer(p, floats(2, 5))
    wrong = Layer(floats(5, 7), floats(7))
    for _ in range(2):
        with pytest.raises(ShapeError, match=r"layer: p\.bias"):
            layer(wrong, floats(2, 7))


def test_new_weights_are_not_taken_for_old_ones() -> None:
    """Memory, and with it an id, is used again after weights are gone."""
    for _ in range(100):
        assert layer(Layer(floats(5, 7)), floats(2, 7)).shape == (2, 5)
        assert layer(Layer(floats(3, 4)), floats(2, 4)).shape == (2, 3)


def test_changed_rows_of_a_dataclass_that_is_not_frozen_are_checked() -> None:
    growing = Growing(floats(2, 3))
    grow(growing, floats(2, 3))
    growing.rows = floats(3, 3)
    with pytest.raises(ShapeError, match="grow: x"):
        grow(growing, floats(2, 3))


def test_a_slot_is_checked_as_an_array_of_its_shape() -> None:
    """A Slot without a shape fits."""
    for weight in (SLOT, Slot((5, 7))):
        stack(Stack((Layer(weight, SLOT),)), floats(2, 3))
    with pytest.raises(ShapeError, match=r"layer: p\.bias"):
        layer(Layer(Slot((5, 7)), Slot((7,))), floats(2, 7))


def test_a_generator_is_checked_at_each_yield() -> None:
    """What it yields, what it is sent and what it returns; it computes the same as without the checker."""
    x = floats(2, 3)
    running = blocks(x)
    assert next(running)[1] is x
    assert running.send(x + 1)[0] == "second"
    with pytest.raises(StopIteration) as end:
        running.send(x + 1)
    np.testing.assert_array_equal(end.value.value, np.full(2, 3, np.float32), strict=True)


@pytest.mark.parametrize(("wrong", "where"), [("yield", "the yield"), ("result", "the result"), ("", "what is sent")])
def test_a_generator_that_does_not_fit_is_refused(wrong: str, where: str) -> None:
    running = blocks(floats(2, 3), wrong)

    def run() -> None:
        next(running)
        running.send(floats(3, 2) if not wrong else floats(2, 3))
        running.send(floats(2, 3))

    with pytest.raises(ShapeError, match=f"blocks: {where}"):
        run()


def test_functions_are_checked_in_their_module_and_wherever_they_are_imported() -> None:
    """A test that takes `rope` from its module and a model that imported it by name both hold the checked function."""
    heads = floats(2, 3, 4)
    for module in (npgemma.layers.rope, npgemma.models.gemma):
        with pytest.raises(ShapeError, match="rope: positions"):
            module.rope(heads, np.arange(3), 10000.0)
    assert npgemma.models.prefix_lm.logits is npgemma.models.gemma.logits
    with pytest.raises(ShapeError, match="linear: w"):
        linear(floats(2, 3), floats(3, 2))
    with pytest.raises(ShapeError, match="embed: ids"):
        embed(floats(2), floats(5, 3), np.dtype(np.float32))
    with pytest.raises(ShapeError, match="append: values"):
        npgemma.models.gemma.Cache(4, 2, 6, np.dtype(np.float32)).append(floats(3, 2, 6), floats(3, 6, 2))


def test_weights_are_checked_when_they_are_made() -> None:
    """Field against field, and a part against the whole: a norm as wide as its table."""
    with pytest.raises(ShapeError, match="bias"):
        replace(LayerNorm(floats(3), floats(3), 1e-6), bias=floats(4))
    with pytest.raises(ShapeError, match="norm"):
        npgemma.models.gemma.Decoder(floats(5, 3), (), RMSNorm(floats(4), 1e-6))
    with pytest.raises(ShapeError, match="head"):
        npgemma.models.gemma.Decoder(floats(5, 3), (), RMSNorm(floats(3), 1e-6), floats(5, 4))


def test_the_attention_of_one_model_is_refused_by_another() -> None:
    q, o = floats(3, 4, 12), floats(12, 3, 4)
    text = npgemma.models.gemma.Attention(q, q, q, 10000.0, o)
    with pytest.raises(ShapeError, match=r"gemma\.Attention"):
        npgemma.models.vit.attention(text, floats(1, 5, 12))


def test_every_annotated_function_of_the_package_is_checked() -> None:
    """Every function that a module holds is either checked or has nothing to check."""
    held = [(home, name, x) for module in shapecheck.modules() for home, name, x in shapecheck.homes(module)]
    assert not [(home, name) for home, name, x in held if checked(x) is not x]
    found = {x.__qualname__ for _, _, x in held if hasattr(x, "unchecked")}
    assert found >= {"widen", "linear", "gelu", "attend", "attend_block", "patch_embedding", "decode_mask"}
    assert found >= {"Cache.append", "Attention.__init__", "PaliGemma.__init__", "prefill", "decoder"}
    assert found >= {"keep_top_p", "probabilities", "choose", "VisionLanguageModel.forward"}
