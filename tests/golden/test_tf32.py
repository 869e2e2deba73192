"""TF32, which keeps 10 bits of the mantissa of each factor of a product: its rounding, and ports that multiply in it.

Ports round halves away from zero, as NVIDIA's instruction cvt.rna does, and as no honest run of a golden file does;
cuBLAS on an H200 breaks ties to even. Some add up in one running sum besides.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from gradient_study import GradientStudy, random_paligemma_2

import npgemma
from npgemma.errors import BadGolden
from npgemma.golden import Dump, Golden, Report, compare, read_golden
from npgemma.golden.arithmetic import (
    Arithmetic,
    InOneSum,
    Tf32Cut,
    Tf32Rounded,
    computing_as,
    precisions_of,
)
from npgemma.golden.cases import case_of
from npgemma.golden.file import EMBEDDED
from npgemma.golden.gradient_case import case_of as gradient_case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import SIGNS
from npgemma.golden.record import computing
from npgemma.golden.replay import replay
from npgemma.golden.rounding import cut_to_tf32, round_to_tf32
from npgemma.layers.linear import linear
from npgemma.layers.taps import Recorder

Change = Callable[[str, np.ndarray], np.ndarray]
HINT = "as in TF32 and float16"
PATCH_NUMBERS = 3 * 14 * 14  # of a patch of the embedded model
NO_PICTURES = {"allow_missing": ["pictures.*"]}


def away(x: np.ndarray) -> np.ndarray:
    """Float32 numbers rounded to 11 significant bits, halves away from zero, by way of integers."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.sign(fraction) * np.floor(np.abs(fraction) * 2**11 + 0.5), exponent - 11).astype(np.float32)


class Tf32Away(Arithmetic):
    @classmethod
    def product(cls, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return away(a) @ away(b)


class Tf32AwayInOneSum(InOneSum):
    @classmethod
    def product(cls, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return super().product(away(a), away(b))


class OnlyPatchesInTf32(Tf32Away):
    """What PyTorch does unless it is told otherwise: convolutions in TF32, other products in float32."""

    @classmethod
    def product(cls, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return super().product(a, b) if a.shape[-1] == PATCH_NUMBERS else a @ b


class ExactPatches(Tf32Away):
    """The reverse, as cuDNN on an H200 computes this convolution."""

    @classmethod
    def product(cls, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a @ b if a.shape[-1] == PATCH_NUMBERS else super().product(a, b)


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


def test_runs_in_tf32_count_as_no_more_exact_than_those_in_float32(golden: Golden) -> None:
    """A norm of text rows meets no product before it, and another order of sums is all that moves it."""
    for tap, errors in golden.envelopes["float32"].items():
        assert (golden.envelopes["tf32"][tap] >= errors).all(), tap
    assert precisions_of("tf32") == ("float32", "tf32")


# -------------------------------------------------------------------------------------------------------- forward pass


def forward(golden: Golden, arithmetic: type[Arithmetic] | None, change: Change = lambda name, x: x) -> Dump:
    """What a port of the embedded model dumps, whose tensors are changed."""
    model, taps = npgemma.load(), Recorder()
    case_of(model, golden).run(model, computing_as(lambda name, x, axes: taps(name, change(name, x), axes), arithmetic))
    return Dump({name: np.asarray(taps[name]) for name in golden.taps if name in taps})


def larger_row(name: str, x: np.ndarray) -> np.ndarray:
    """A mistake: one row of the second of four layers is one percent too large."""
    if name != "text.layers.1.out":
        return x
    x = x.copy()
    x[7] *= np.float32(1.01)
    return x


@pytest.mark.parametrize("arithmetic", [Tf32Away, Tf32AwayInOneSum, OnlyPatchesInTf32, ExactPatches])
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_port_that_multiplies_in_tf32_is_explained_in_tf32(name: str, arithmetic: type[Arithmetic]) -> None:
    golden = read_golden(EMBEDDED[name])
    dump = forward(golden, arithmetic)
    assert compare(golden, dump, dtype="float32", **NO_PICTURES).status == 1
    report = compare(golden, dump, dtype="tf32", **NO_PICTURES)
    assert report.status == 0
    assert replay(npgemma.load(), golden, dump, report).status == 0


@pytest.mark.parametrize("arithmetic", [Tf32Away, Tf32AwayInOneSum, OnlyPatchesInTf32, ExactPatches])
def test_a_port_that_multiplies_in_tf32_is_told_so_in_float32(arithmetic: type[Arithmetic]) -> None:
    golden = read_golden(EMBEDDED["embedded"])
    report = compare(golden, forward(golden, arithmetic), **NO_PICTURES)
    (hint,) = report.hints
    assert HINT in hint
    assert "rounding explains {0} of {0} taps. On a GPU".format(len(report.verdicts)) in hint


def test_a_port_that_multiplies_in_tf32_and_makes_a_mistake_is_told_of_both() -> None:
    golden = read_golden(EMBEDDED["embedded"])
    (hint,) = compare(golden, forward(golden, Tf32Away, larger_row), **NO_PICTURES).hints
    assert ", and text.layers.1.out is the first that it does not explain. On a GPU" in hint


def test_a_port_in_float32_is_explained_in_tf32_and_told_that_float32_explains_it() -> None:
    golden = read_golden(EMBEDDED["embedded"])
    dump = forward(golden, None)
    report = compare(golden, dump, dtype="tf32", **NO_PICTURES)
    assert (report.status, report.hints) == (0, ["rounding in float32 explains all of it, too; leave out --dtype tf32"])
    assert compare(golden, dump, **NO_PICTURES).hints == []


def test_few_taps_do_not_tell_tf32() -> None:
    golden = read_golden(EMBEDDED["embedded"])
    dump = forward(golden, Tf32Away)
    found = compare(golden, Dump({name: dump[name] for name in ("projector", "logits")}), allow_missing=["*"])
    assert (found.status, found.hints) == (1, [])


def test_a_file_of_an_older_release_has_no_errors_in_tf32() -> None:
    golden = read_golden(EMBEDDED["embedded"])
    older = replace(golden, envelopes={name: x for name, x in golden.envelopes.items() if name != "tf32"})
    dump = forward(golden, Tf32Away)
    assert compare(older, dump, **NO_PICTURES).hints == []
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


@pytest.mark.parametrize("arithmetic", [Tf32Away, Tf32AwayInOneSum])
def test_gradients_of_products_in_tf32_are_explained_in_tf32_and_told_so_in_float32(
    study: GradientStudy, arithmetic: type[Arithmetic]
) -> None:
    dump = gradients(study, arithmetic)
    found = judged(study, dump, "float32")
    assert found.status == 1
    assert [HINT in hint for hint in found.hints] == [True]
    report = judged(study, dump, "tf32")
    assert report.status == 0
    assert replay_gradients(study.model, study.golden, dump, report).status == 0


def test_gradients_in_float32_are_told_nothing(study: GradientStudy) -> None:
    assert judged(study, gradients(study, None), "float32").hints == []


def test_a_file_of_gradients_has_no_errors_in_float16(study: GradientStudy) -> None:
    with pytest.raises(BadGolden, match="a golden file of gradients has no errors of runs in float16"):
        judged(study, gradients(study, None), "float16")
