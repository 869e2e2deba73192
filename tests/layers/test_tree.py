"""Trees of arrays: their leaves, maps over them, and skeletons with Slots."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from npgemma.layers.shapes import Array, Float, Weight
from npgemma.layers.tree import SLOT, Leaf, Slot, arrays, leaves, map_tree, sized


@dataclass(frozen=True)
class Layer:
    weight: Weight[Array, "F D"]
    eps: float
    bias: Float[Array, "F"] | None = None


@dataclass(frozen=True)
class Model:
    table: Weight[Array, "16 D"]
    layers: tuple[Layer, ...]
    last: Layer
    name: str = "model"
    head: Weight[Array, "V D"] | None = None


def model() -> Model:
    """Leaves that are numbered in the order of the fields."""
    layers = tuple(Layer(np.full((2, 3), i), 0.5, np.full(2, i + 1)) for i in (1, 3))
    return Model(np.zeros((16, 3)), layers, Layer(np.full((2, 3), 5), 0.25))


def test_leaves_come_in_the_order_of_the_fields() -> None:
    """With path, owner, kind and axes. Numbers, strings and parts that are None are not leaves."""
    assert [leaf[:-1] for leaf in leaves(model())] == [
        ("table", Model, "weight", "16 D"),
        ("layers[0].weight", Layer, "weight", "F D"),
        ("layers[0].bias", Layer, "float", "F"),
        ("layers[1].weight", Layer, "weight", "F D"),
        ("layers[1].bias", Layer, "float", "F"),
        ("last.weight", Layer, "weight", "F D"),
    ]
    assert [leaf.value.flat[0] for leaf in leaves(model())] == [0, 1, 2, 3, 4, 5]


def test_an_optional_part_that_is_there_is_a_leaf_with_its_annotation() -> None:
    head = np.ones((7, 3))
    last = leaves(replace(model(), head=head))[-1]
    assert last[:-1] == ("head", Model, "weight", "V D")
    assert last.value is head


def test_a_tuple_of_blocks_is_a_tree() -> None:
    assert [leaf.path for leaf in leaves(model().layers)] == ["[0].weight", "[0].bias", "[1].weight", "[1].bias"]


@pytest.mark.parametrize("tree", [None, 3.0, "name", (), (None, 1)], ids=repr)
def test_a_tree_without_arrays_has_no_leaves_and_maps_to_itself(tree) -> None:
    assert leaves(tree) == []
    assert map_tree(lambda leaf: 1 / 0, tree) == tree


def test_arrays_are_the_values_of_the_leaves() -> None:
    tree = model()
    found = arrays(tree)
    assert found[0] is tree.table
    assert found[-1] is tree.last.weight
    assert len(found) == 6


def test_a_map_replaces_each_leaf_and_keeps_everything_else() -> None:
    """The function gets each leaf once, in order; the tree that it is given stays as it was."""
    before, seen = model(), []

    def negative(leaf: Leaf) -> Array:
        seen.append(leaf.path)
        return -leaf.value - 1

    after = map_tree(negative, before)
    assert seen == [leaf.path for leaf in leaves(before)]
    assert [x.flat[0] for x in arrays(after)] == [-1, -2, -3, -4, -5, -6]
    assert [x.flat[0] for x in arrays(before)] == [0, 1, 2, 3, 4, 5]
    assert (after.name, after.head, after.last.eps, after.last.bias) == ("model", None, 0.25, None)
    assert (type(after), type(after.layers), type(after.layers[1])) == (Model, tuple, Layer)


def test_mapping_a_tree_to_itself_gives_equal_leaves() -> None:
    tree = model()
    for one, other in zip(arrays(map_tree(lambda leaf: leaf.value, tree)), arrays(tree), strict=True):
        assert one is other


def skeleton() -> Model:
    return Model(SLOT, (Layer(SLOT, 0.5, SLOT),), Layer(SLOT, 0.5))


def test_sized_gives_every_slot_the_shape_of_its_axes() -> None:
    """A digit is itself."""
    found = sized(skeleton(), {"D": 3, "F": 2})
    assert [(leaf.path, leaf.value) for leaf in leaves(found)] == [
        ("table", Slot((16, 3))),
        ("layers[0].weight", Slot((2, 3))),
        ("layers[0].bias", Slot((2,))),
        ("last.weight", Slot((2, 3))),
    ]


def test_sized_raises_key_error_for_a_letter_without_a_size() -> None:
    with pytest.raises(KeyError, match="F"):
        sized(skeleton(), {"D": 3})


def test_a_slot_has_the_size_of_its_shape() -> None:
    assert Slot((3, 4)).size == 12
    assert Slot((0, 4)).size == 0
    assert Slot(()).size == 1
