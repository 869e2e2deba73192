"""TF32, in which tensor cores read 10 bits of each factor of a product: its rounding, and ports that multiply in it.

The ports round halves away from zero, as NVIDIA's conversion does, and as no honest run of a golden file does.
"""

from dataclasses import replace

import numpy as np
import pytest
from gradient_study import GradientStudy, random_paligemma_2

import npgemma
from npgemma.errors import BadGolden
from npgemma.golden import Dump, Golden, Report, compare, read_golden
from npgemma.golden.arithmetic import Arithmetic, Tf32Cut, Tf32Rounded, computing_as
from npgemma.golden.cases import case_of
from npgemma.golden.file import EMBEDDED
from npgemma.golden.gradient_case import case_of as gradient_case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import SIGNS
from npgemma.golden.record import computing
from npgemma.golden.rounding import cut_to_tf32, round_to_tf32
from npgemma.layers.linear import linear
from npgemma.layers.taps import Recorder

HINT = "look like those of products in TF32"


def away(x: np.ndarray) -> np.ndarray:
    """Float32 numbers rounded to 11 significant bits, halves away from zero, by way of integers."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.sign(fraction) * np.floor(np.abs(fraction) * 2**11 + 0.5), exponent - 11).astype(np.float32)


class Tf32Away(Arithmetic):
    @classmethod
    def product(cls, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return away(a) @ away(b)


def numbers() -> np.ndarray:
    """Normal numbers, ties between neighbours of TF32, and numbers that round up to a power of 2."""
    rng = np.random.default_rng(0)
    ties = np.float32(1) + (2 * np.arange(200, dtype=np.float32) + 1) * np.float32(2**-11)
    return np.concatenate([rng.standard_normal(1000).astype(np.float32), ties, -ties, [1.9999999, 0, -0.0]], dtype="f4")


def test_rounding_keeps_11_significant_bits_and_breaks_ties_to_even() -> None:
    x = numbers()
    fraction, exponent = np.frexp(x.astype(np.float64))
    np.testing.assert_array_equal(round_to_tf32(x), np.ldexp(np.round(fraction * 2**11), exponent - 11))
    np.testing.assert_array_equal(cut_to_tf32(x), np.ldexp(np.trunc(fraction * 2**11), exponent - 11))
    for f in (round_to_tf32, cut_to_tf32):
        special = f(np.array([np.inf, -np.inf, np.nan], np.float32))
        np.testing.assert_array_equal(special, [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize(("arithmetic", "grid"), [(Tf32Rounded, round_to_tf32), (Tf32Cut, cut_to_tf32)])
def test_the_factors_of_a_linear_layer_are_rounded_and_its_sums_are_not(arithmetic, grid) -> None:
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 21), (5, 21), 5))
    y = linear(x.view(arithmetic), w, bias)
    np.testing.assert_array_equal(y, grid(x) @ grid(w).T + bias)
    assert not np.array_equal(y, round_to_tf32(y))
    np.testing.assert_array_equal(x.view(arithmetic) * w[:3], x * w[:3])


# -------------------------------------------------------------------------------------------------------- forward pass


def forward(golden: Golden, arithmetic: type[Arithmetic] | None) -> Dump:
    """What a port of the embedded model dumps."""
    model, taps = npgemma.load(), Recorder()
    case_of(model, golden).run(model, computing_as(taps, arithmetic))
    return Dump({name: np.asarray(taps[name]) for name in golden.taps if name in taps})


@pytest.mark.parametrize("arithmetic", [Tf32Away, Tf32Rounded, Tf32Cut])
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_port_that_multiplies_in_tf32_is_explained_in_tf32_and_told_so_in_float32(name: str, arithmetic) -> None:
    golden = read_golden(EMBEDDED[name])
    dump = forward(golden, arithmetic)
    found = compare(golden, dump, allow_missing=["pictures.*"])
    assert (found.dtype, found.status) == ("float32", 1)
    assert [HINT in hint for hint in found.hints] == [True]
    assert compare(golden, dump, dtype="tf32", allow_missing=["pictures.*"]).status == 0


def test_a_port_in_float32_is_explained_in_tf32_and_told_nothing() -> None:
    golden = read_golden(EMBEDDED["embedded"])
    dump = forward(golden, None)
    assert compare(golden, dump, dtype="tf32", allow_missing=["pictures.*"]).status == 0
    assert compare(golden, dump, allow_missing=["pictures.*"]).hints == []


def test_a_file_of_an_older_release_has_no_errors_in_tf32() -> None:
    golden = read_golden(EMBEDDED["embedded"])
    older = replace(golden, envelopes={name: x for name, x in golden.envelopes.items() if name != "tf32"})
    dump = forward(golden, Tf32Away)
    assert compare(older, dump, allow_missing=["pictures.*"]).hints == []
    with pytest.raises(BadGolden, match="no errors of runs in tf32: it was recorded by an older release"):
        compare(older, dump, dtype="tf32")


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GradientStudy:
    return random_paligemma_2(tmp_path_factory.mktemp("gradients"))


def gradients(study: GradientStudy, arithmetic: type[Arithmetic] | None) -> Dump:
    """What a port of the study's model dumps, without the sketches."""
    taps, golden = Recorder(), study.golden
    case = gradient_case_of(study.model, golden.truth, golden.metadata["gradients"])
    model = computing(study.model, "float32")
    for _ in run(case, model, golden.truth[SIGNS], True, computing_as(taps, arithmetic)):
        pass
    sketches = {name for name in taps if name.startswith(("grad.rows.", "grad.columns."))}
    return Dump({name: np.asarray(x) for name, x in taps.items() if name not in sketches})


def judged(study: GradientStudy, dump: Dump, dtype: str) -> Report:
    return compare_gradients(study.golden, dump, dtype=dtype)


def test_gradients_of_products_in_tf32_are_explained_in_tf32_and_told_so_in_float32(study: GradientStudy) -> None:
    dump = gradients(study, Tf32Away)
    found = judged(study, dump, "float32")
    assert found.status == 1
    assert [HINT in hint for hint in found.hints] == [True]
    assert judged(study, dump, "tf32").status == 0
    assert judged(study, gradients(study, None), "float32").hints == []
