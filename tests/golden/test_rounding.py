"""A schedule rounds the tensors that it names, to the dtype that it names, and no others."""

import numpy as np
import pytest

from npgemma.golden.rounding import (
    FLOAT32,
    HF_EAGER,
    HF_SDPA,
    SCHEDULES,
    RoundedQuickGelu,
    rounded_quick_gelu,
    rounding,
)
from npgemma.layers.activations import quick_gelu, quick_gelu_backward
from npgemma.layers.bits import round_to_bfloat16
from npgemma.layers.taps import Recorder, silent

X = np.array([1 / 3, 1.00390625, -7.77e-5], np.float32)


@pytest.mark.parametrize("name", ["q", "text.layers.3.attn.q"])
def test_tensor_whose_last_word_is_in_the_schedule_is_rounded_for_the_tap_and_the_model(name: str) -> None:
    taps = Recorder()
    y = rounding(taps, {"q": "bfloat16"})(name, X, "D")
    np.testing.assert_array_equal(y, round_to_bfloat16(X), strict=True)
    np.testing.assert_array_equal(taps[name], y, strict=True)
    assert (y != X).any()


@pytest.mark.parametrize("name", ["k", "q.k", "attn_q", "qq"])
def test_other_tensors_pass_unchanged(name: str) -> None:
    taps = Recorder()
    assert rounding(taps, {"q": "bfloat16"})(name, X, "D") is X
    assert list(taps) == [name]


def test_float64_tensor_on_the_float32_grid_stays_float64() -> None:
    x = np.array([1 / 3, 2**-60 + 1])
    y = rounding(silent, FLOAT32)("q_rope.angle", x, "J")
    np.testing.assert_array_equal(y, np.array([float(np.float32(1 / 3)), 1.0]), strict=True)


def test_float64_tensor_cannot_be_rounded_to_bfloat16() -> None:
    with pytest.raises(TypeError, match="float64"):
        rounding(silent, HF_EAGER)("attn.q", X.astype(np.float64), "D")


def test_two_bfloat16_schedules_differ_inside_attention_alone() -> None:
    assert SCHEDULES == {"hf_eager": HF_EAGER, "hf_sdpa": HF_SDPA}
    leaves = ("dots", "scores", "capped", "probs", "exp")
    assert HF_EAGER.items() ^ HF_SDPA.items() == {(leaf, "bfloat16") for leaf in leaves}


def test_rounded_quick_gelu_is_quick_gelu_but_for_the_roundings() -> None:
    """Rounding 1.702 x by a relative 2^-8 moves the exponent by up to 8 * 1.702 * 2^-8; the sigmoid is rounded, too."""
    x = round_to_bfloat16(np.linspace(-8, 8, 999, dtype=np.float32))
    found, exact = rounded_quick_gelu(round_to_bfloat16, x), quick_gelu(x)
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, rtol=(1 + 8 * 1.702) * 2.0**-8, strict=True)
    assert np.isfinite(rounded_quick_gelu(round_to_bfloat16, np.array([-1e4, 1e4], np.float32))).all()


def test_the_slope_of_a_rounded_quick_gelu_is_that_of_quick_gelu() -> None:
    """Five operations, each rounded by at most half a unit of 2^-8; terms of both signs may cancel."""
    x = round_to_bfloat16(np.linspace(-6, 6, 97, dtype=np.float32))
    dy, act = np.full_like(x, 1.5), RoundedQuickGelu(round_to_bfloat16)
    np.testing.assert_allclose(act.backward(x, dy), quick_gelu_backward(x, dy), rtol=0, atol=5 * 1.5 * 2.0**-9)
    assert np.isfinite(act.backward(np.float32([-1e4, 1e4]), dy[:2])).all()
