"""Layouts: what a table line says, and what does not fit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgemma.checkpoints.layout import Part, copied, in_memory, make_layout, name_of, not_finite, table
from npgemma.errors import BadModel
from npgemma.layers.bits import pack
from npgemma.layers.norms import RMSNorm
from npgemma.layers.shapes import Array, Float, Weight
from npgemma.layers.tree import SLOT, leaves, sized

SIZES = {"L": 2, "D": 5, "N": 2, "H": 3}


@dataclass(frozen=True)
class Layer:
    q: Weight[Array, "N H D"]
    norm: RMSNorm


@dataclass(frozen=True)
class Model:
    table: Weight[Array, "D N"]
    layers: tuple[Layer, ...]
    head: Float[Array, "D"] | None


def blank(head: object = None) -> Model:
    layer = Layer(SLOT, RMSNorm(SLOT, 1e-6))
    return sized(Model(SLOT, (layer, layer), head), SIZES)


LINES = """
    table                    top.weight               N D
    layers[i].q              layers.{i}.q.weight      (N H) D
    layers[i].norm.weight    layers.{i}.norm          1 D
    head                     head                     D
"""


def layout(lines: str = LINES, head: object = None, **prefixes: str):
    return make_layout(blank(head), Part(table(lines), SIZES, **prefixes))


def line(axes: str, name: str = "w", field: str = "q") -> str:
    return f"    {field}    {name}    {axes}"


def one_line(axes: str, wanted: str, x: np.ndarray, **sizes: int) -> np.ndarray:
    """x, stored with `axes`, as the field `wanted` gets it."""
    field = dataclass(frozen=True)(type("Field", (), {"__annotations__": {"q": Float[Array, wanted]}}))
    return make_layout(sized(field(SLOT), sizes), Part(table(line(axes)), sizes)).fill({"w": x}).q


# ------------------------------------------------------------------------------------------------------- a line's axes


def test_a_group_of_axes_is_split() -> None:
    x = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    expected = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    np.testing.assert_array_equal(one_line("(N H) D", "N H D", x, N=2, H=2, D=2), expected, strict=True)


def test_axes_are_permuted_to_the_order_of_the_field() -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(one_line("I O", "O I", x, I=2, O=3), x.T, strict=True)


def test_an_axis_of_one_is_dropped() -> None:
    x = np.array([[[1, 2, 3]]], np.float32)
    np.testing.assert_array_equal(one_line("1 1 D", "D", x, D=3), x[0, 0], strict=True)


def test_an_index_takes_a_layer_and_a_part_of_a_fused_tensor() -> None:
    made = layout("""
        table                    top          N D
        layers[i].q              q[i, 1]      N D H
        layers[i].norm.weight    norms[i]     D
    """)
    assert made.shapes == {"top": (2, 5), "q": (2, 2, 2, 5, 3), "norms": (2, 5)}
    stored = tensors(made)
    model = made.fill(stored)
    for i, layer in enumerate(model.layers):
        np.testing.assert_array_equal(layer.q, stored["q"][i, 1].transpose(0, 2, 1), strict=True)
        np.testing.assert_array_equal(layer.norm.weight, stored["norms"][i], strict=True)


@given(st.permutations(["N", "H", "D"]), st.booleans())
def test_from_field_undoes_to_field(order: list[str], grouped: bool) -> None:
    axes = f"({order[0]} {order[1]}) {order[2]}" if grouped else " ".join(order)
    made = layout(LINES.replace("(N H) D", axes))
    stored = next(each for each in made.stored if each.leaf.path == "layers[0].q")
    x = np.arange(30).reshape(stored.shape)
    np.testing.assert_array_equal(stored.from_field(stored.to_field(x)), x, strict=True)


# ------------------------------------------------------------------------------------------------------------- layouts


def tensors(made, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in made.shapes.items()}


def test_a_prefix_comes_before_names() -> None:
    made = layout(name="model.")
    assert list(made.shapes) == [
        *("model.top.weight", "model.layers.0.q.weight", "model.layers.0.norm"),
        *("model.layers.1.q.weight", "model.layers.1.norm"),
    ]


def test_filled_matrices_are_views_and_vectors_become_float32() -> None:
    made = layout()
    stored = {name: pack(x) for name, x in tensors(made).items()}
    model = made.fill(stored)
    assert np.shares_memory(model.layers[1].q, stored["layers.1.q.weight"])
    assert model.layers[1].norm.weight.dtype == np.float32
    assert [leaf.value.shape for leaf in leaves(model)] == [leaf.value.shape for leaf in leaves(made.skeleton)]


def test_a_line_about_a_part_that_the_model_lacks_is_skipped() -> None:
    assert "head" not in layout().shapes
    assert layout(head=SLOT).shapes["head"] == (5,)


def test_a_field_without_a_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="table has 0 lines in the tables; every array has one"):
        layout("\n".join(LINES.splitlines()[2:]))


def test_a_field_with_two_lines_is_an_error() -> None:
    with pytest.raises(ValueError, match="table has 2 lines in the tables; every array has one"):
        layout(LINES + line("N D", "other", "table"))


def test_a_line_about_a_field_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a line for layers\[0\]\.k; the weights have no such field"):
        layout(LINES + line("(N H) D", "layers.{i}.k", "layers[i].k"))


def test_a_line_about_a_layer_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a line for layers\[2\]\.q; the weights have no such field"):
        make_layout(blank(), Part(table(LINES), SIZES | {"L": 3}))


@pytest.mark.parametrize("axes", ["(N H)", "N D", "(N H) D D", "(N H) F"])
def test_a_line_with_other_axes_than_the_field_is_an_error(axes: str) -> None:
    with pytest.raises(ValueError, match=r"layers\[0\]\.q has the axes 'N H D'; its table line says"):
        layout(LINES.replace("(N H) D", axes))


def test_name_of_gives_the_stored_name() -> None:
    parts = [Part(table(LINES), SIZES, "left.", "a."), Part(table(LINES), SIZES, "right.", "b.")]
    assert name_of("right.head", parts) == "b.head"


def test_check_names_missing_unexpected_and_misshaped_tensors() -> None:
    made = layout()
    found = tensors(made)
    found["extra"] = found.pop("layers.1.norm")
    found["top.weight"] = found["top.weight"].T
    with pytest.raises(BadModel) as error:
        made.check(found, Path("model.bin"), "its table")
    assert str(error.value).splitlines() == [
        "model.bin: the tensors do not fit its table (1 missing, 1 unexpected, 1 mis-shaped)",
        "  missing     layers.1.norm (1, 5)",
        "  unexpected  extra (1, 5)",
        "  mis-shaped  top.weight: stored (5, 2), expected (2, 5)",
    ]
    made.check(tensors(made), Path("model.bin"))


# ------------------------------------------------------------------------------------------------------------- tensors


def test_in_memory_copies_what_is_not_in_memory_in_that_dtype() -> None:
    own, view = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)[1:]
    found = in_memory({"own": own, "view": view, "packed": pack(view)}, np.dtype(np.float32))
    assert found["own"] is own
    assert not np.shares_memory(found["view"], view)
    assert all(x.flags.owndata and x.dtype == np.float32 for x in found.values())
    np.testing.assert_array_equal(found["packed"], view, strict=True)


def test_a_large_matrix_is_copied_in_blocks() -> None:
    """Of 262,144 elements and more."""
    x = (np.arange(600 * 700) % 2048).astype(np.float16).reshape(600, 700)
    np.testing.assert_array_equal(copied(x[::-1], np.dtype(np.float64))[::-1], x.astype(np.float64), strict=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 299_999])
def test_not_finite_names_tensors_with_nan_or_infinity(bad: float, where: int) -> None:
    good, wrong = np.ones((600, 500), np.float32), np.ones((600, 500), np.float32)
    wrong.reshape(-1)[where] = bad
    found = {"good": good, "wrong": wrong, "good bits": pack(good), "wrong bits": pack(wrong)}
    assert not_finite(found) == ["wrong", "wrong bits"]


# -------------------------------------------------------------------------------- fused rows, and tensors of one number


@dataclass(frozen=True)
class Fused:
    q: Weight[Array, "N H D"]
    v: Weight[Array, "N H D"]
    bias: Float[Array, "N H"]
    scale: Float[Array, ""]


FUSED = """
    q       qv.weight[0]    (2 N H) D
    v       qv.weight[1]    (2 N H) D
    bias    qv.bias[0]      (2 N H)
    scale   scale           -
"""


def fused_layout():
    return make_layout(sized(Fused(SLOT, SLOT, SLOT, SLOT), SIZES), Part(table(FUSED), SIZES))


def test_rows_one_behind_the_other_are_several_arrays_and_views() -> None:
    weight, bias = np.arange(60.0).reshape(12, 5), np.arange(12.0)
    p = fused_layout().fill({"qv.weight": weight, "qv.bias": bias, "scale": np.array(7.0)})
    np.testing.assert_array_equal(p.q, weight[:6].reshape(2, 3, 5), strict=True)
    np.testing.assert_array_equal(p.v, weight[6:].reshape(2, 3, 5), strict=True)
    assert np.shares_memory(p.v, weight)
    assert p.bias.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (p.scale.shape, float(p.scale)) == ((), 7.0)


def test_the_shape_of_a_fused_tensor_counts_all_its_rows() -> None:
    assert fused_layout().shapes == {"qv.weight": (12, 5), "qv.bias": (12,), "scale": ()}


def test_what_is_written_to_a_part_stands_in_the_tensor() -> None:
    tensor = np.zeros((12, 5))
    v = next(each for each in fused_layout().stored if each.leaf.path == "v")
    v.part(tensor)[...] = v.from_field(np.ones((2, 3, 5)))
    assert tensor.sum(1).tolist() == [0] * 6 + [5] * 6


def test_a_single_number_may_be_in_memory_and_must_be_finite() -> None:
    tensors = {"scale": np.array(7, np.float16)}
    found = in_memory(tensors, np.dtype(np.float32))["scale"]
    assert (found.shape, found.dtype, float(found)) == ((), np.float32, 7.0)
    assert not_finite(tensors | {"bias": np.array(np.inf)}) == ["bias"]
