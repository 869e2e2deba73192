"""What holds for every architecture: see tests/architectures.py."""

from functools import cache

import numpy as np
import pytest
from agreement import assert_agrees
from architectures import ARCHITECTURES, Architecture
from gradient_cases import CASES, moved, protect

from npgemma import testing
from npgemma.checkpoints.layout import Layout
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Recorder, silent
from npgemma.layers.tree import leaves, map_tree

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
every_architecture = pytest.mark.parametrize("a", ARCHITECTURES.values(), ids=ARCHITECTURES)
every_layout = pytest.mark.parametrize(
    "layout",
    [layout for a in ARCHITECTURES.values() for layout in a.layouts.values()],
    ids=[f"{name}-{kind}" for name, a in ARCHITECTURES.items() for kind in a.layouts],
)
both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=str)


@cache
def weights(a: Architecture) -> object:
    layout = next(iter(a.layouts.values()))
    return layout.fill(testing.layout_tensors(layout))


@every_architecture
@both_dtypes
def test_forward_equals_the_second_spelling(a: Architecture, dtype: np.dtype) -> None:
    tensors = testing.layout_tensors(next(iter(a.layouts.values())))
    wide = {name: x.astype(np.float64) for name, x in tensors.items()}
    y = a.forward(weights(a), dtype, silent)
    assert y.dtype == dtype
    assert_agrees(y, a.second_spelling(wide))


@every_architecture
@both_dtypes
def test_cached_decoding_equals_the_full_pass(a: Architecture, dtype: np.dtype) -> None:
    if a.cached is None:
        pytest.skip("this architecture has no cache")
    rows = a.cached(weights(a), dtype)
    assert rows.dtype == dtype
    assert_agrees(rows, a.forward(weights(a), F64, silent)[-len(rows) :])


# ------------------------------------------------------------------------------------------------------------- layouts


@every_layout
def test_a_table_fills_every_slot_with_an_array_of_its_shape(layout: Layout) -> None:
    filled = layout.fill(testing.layout_tensors(layout))
    slots, arrays = leaves(layout.skeleton), leaves(filled)
    assert [slot.path for slot in slots] == [leaf.path for leaf in arrays]
    assert [slot.value.shape for slot in slots] == [leaf.value.shape for leaf in arrays]


@every_layout
def test_no_two_arrays_are_stored_in_one_place(layout: Layout) -> None:
    places = [(stored.name, stored.index) for stored in layout.stored]
    assert len(set(places)) == len(places)


@every_architecture
def test_every_format_holds_the_same_weights(a: Architecture) -> None:
    """Written in any other format and read back, not a bit differs."""
    expected = leaves(weights(a))
    for layout in a.layouts.values():
        tensors = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}
        values = {leaf.path: leaf.value for leaf in expected}
        for stored in layout.stored:
            stored.part(tensors[stored.name])[...] = stored.from_field(values[stored.leaf.path])
        for leaf, other in zip(expected, leaves(layout.fill(tensors)), strict=True):
            np.testing.assert_array_equal(other.value, leaf.value, err_msg=leaf.path, strict=True)


@every_architecture
def test_every_array_of_the_weights_matters(a: Architecture) -> None:
    """Changing any one of them changes the result."""
    p = weights(a)
    expected = a.forward(p, F64, silent)
    for leaf in leaves(p):
        noise = np.random.default_rng(0).standard_normal(leaf.value.shape).astype(np.float32)
        other = {leaf.path: leaf.value + noise}
        changed = map_tree(lambda each, other=other: other.get(each.path, each.value), p)
        assert np.abs(a.forward(changed, F64, silent) - expected).max() > 1e-6 or keeps_keys(leaf.path), leaf.path


def keeps_keys(path: str) -> bool:
    """A bias of the keys moves every score of a query alike, and softmax does not see it."""
    return path.endswith("attn.k_bias")


# ---------------------------------------------------------------------------------------------------------------- taps


@every_architecture
def test_taps_have_the_axes_they_claim(a: Architecture) -> None:
    """A letter for every axis, and one size for each letter of the tower and of the decoder."""
    taps = Recorder()
    a.forward(weights(a), F32, taps)
    sizes: dict[tuple[str, str], int] = {}
    for name, x in taps.items():
        letters = taps.axes[name].split()
        assert len(letters) == x.ndim, name
        for letter, size in zip(letters, x.shape, strict=True):
            assert sizes.setdefault((name.partition(".")[0], letter), size) == size, f"{letter} of {name}"


@every_architecture
@both_dtypes
def test_a_tap_changes_no_bit(a: Architecture, dtype: np.dtype) -> None:
    expected = a.forward(weights(a), dtype, silent)
    np.testing.assert_array_equal(a.forward(weights(a), dtype, Recorder()), expected, strict=True)


@every_architecture
def test_the_model_goes_on_with_what_a_tap_returns(a: Architecture) -> None:
    """Every floating-point tensor that is tapped matters: changing one of its numbers in two changes the result."""
    taps = Recorder()
    expected = a.forward(weights(a), F64, taps)
    for changed in (name for name, x in taps.items() if x.dtype.kind == "f"):

        def change(name: str, x: Array, axes: str, changed: str = changed) -> Array:
            return x * (2 - np.arange(x.size).reshape(x.shape) % 2) if name == changed else x

        assert np.abs(a.forward(weights(a), F64, change) - expected).max() > 1e-9, changed


@every_architecture
def test_nothing_is_written_to_a_tensor_that_has_passed_a_tap(a: Architecture) -> None:
    expected = a.forward(weights(a), F32, silent)
    np.testing.assert_array_equal(a.forward(weights(a), F32, protect), expected)


# ----------------------------------------------------------------------------------------------------------- gradients

# A step of h along the gradient: the slope is off by h^2 and by 1e-16 / h, and by h where a relu has its corner.
STEP, DIFFERENCED = 1e-6, 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Along the gradient itself, the loss changes by the gradient's length; tests/models/test_gradients.py looks at
    every weight.
    """
    case = CASES[name](1)
    _, gradient = case.gradient(case.weights)
    found = {leaf.path: leaf.value for leaf in leaves(gradient)}
    length = np.sqrt(sum(np.square(x).sum() for x in found.values()))
    above, below = (moved(case, lambda leaf, h=h: h / length * found.get(leaf.path, 0)) for h in (STEP, -STEP))
    assert (above - below) / (2 * STEP) == pytest.approx(length, rel=DIFFERENCED)
