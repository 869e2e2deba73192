"""The axis alphabet, and the annotations that carry it.

Upper-case letters are sizes; one letter has one meaning within a file:

    B images        T rows          S rows seen     Q rows that attend      D width         V vocabulary
    N query heads   K key heads     H head width    F MLP width             P patches       G query heads per key head
    C channels      Y X pixels      h w of a patch  I in                    O out           L layers
    R image rows    E width of the vision tower, where D is the decoder's           J pairs of numbers of a head
    U texts         E width of an embedding, where D is that of its tower           A labels

`Float[Array, "T D"]` is an array to a type checker and a shape to the reader. `"*R D"` stands for any number of leading
axes, a number for exactly that size. Nothing is checked at run time; the tests bind the letters on every call.

A **weight** is an array of float32, float16 or float64 numbers, or of uint16: the bits of bfloat16 numbers, for which
NumPy has no type. It is usually a view of a memory-mapped file. Only `linear` and `embed` compute with it.
"""

from typing import TYPE_CHECKING

import numpy as np

Array = np.ndarray

if TYPE_CHECKING:
    from typing import Annotated as Bits
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Weight
else:
    from typing import Annotated

    class _Kind:
        """`Kind[Array, "T D"]` is `Annotated[Array, (kind, "T D")]`, so that a checker can read both back."""

        def __init__(self, kind: str) -> None:
            self.kind = kind

        def __getitem__(self, item):
            array, shape = item
            return Annotated[array, (self.kind, shape)]

    Float, Int, Bool, Bits, Weight = map(_Kind, ("float", "int", "bool", "bits", "weight"))

__all__ = ["Array", "Bits", "Bool", "Float", "Int", "Weight"]
