"""The annotations can be read back at run time, which is all that they do there."""

from typing import get_args

import numpy as np
import pytest

from npgemma.layers.shapes import Array, Bits, Bool, Float, Int, Weight


@pytest.mark.parametrize(
    ("annotation", "kind"), [(Float, "float"), (Int, "int"), (Bool, "bool"), (Bits, "bits"), (Weight, "weight")]
)
def test_an_annotation_holds_the_array_its_kind_and_its_axes(annotation, kind: str) -> None:
    assert get_args(annotation[Array, "*R D"]) == (np.ndarray, (kind, "*R D"))


def test_an_optional_annotation_keeps_its_shape() -> None:
    annotation, nothing = get_args(Float[Array, "D"] | None)
    assert get_args(annotation)[1] == ("float", "D")
    assert nothing is type(None)
