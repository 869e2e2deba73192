"""A schedule rounds the tensors it names and no others, to the dtype it names; the model goes on with what it made."""

import numpy as np
import pytest

from npgemma.golden.rounding import FLOAT32, HF_EAGER, HF_SDPA, SCHEDULES, rounding
from npgemma.layers.bits import round_to_bfloat16
from npgemma.layers.taps import Recorder

X = np.array([1 / 3, 1.00390625, -7.77e-5], np.float32)


@pytest.mark.parametrize("name", ["q", "text.layers.3.attn.q"])
def test_what_a_schedule_names_by_its_last_word_is_rounded_and_heard_rounded(name: str) -> None:
    heard = Recorder()
    y = rounding(heard, {"q": "bfloat16"})(name, X)
    np.testing.assert_array_equal(y, round_to_bfloat16(X), strict=True)
    np.testing.assert_array_equal(heard[name], y, strict=True)
    assert (y != X).any()


@pytest.mark.parametrize("name", ["k", "q.k", "attn_q", "qq"])
def test_what_it_does_not_name_passes_as_it_is(name: str) -> None:
    heard = Recorder()
    assert rounding(heard, {"q": "bfloat16"})(name, X) is X
    assert list(heard) == [name]


def test_a_float64_tensor_is_moved_to_the_float32_grid_and_stays_float64() -> None:
    x = np.array([1 / 3, 2**-60 + 1])
    y = rounding(lambda name, x: x, FLOAT32)("q_rope.angle", x)
    np.testing.assert_array_equal(y, np.array([float(np.float32(1 / 3)), 1.0]), strict=True)


def test_a_float64_run_is_not_rounded_to_bfloat16() -> None:
    with pytest.raises(TypeError, match="float64"):
        rounding(lambda name, x: x, HF_EAGER)("attn.q", X.astype(np.float64))


def test_the_two_attentions_differ_in_nothing_but_their_insides() -> None:
    assert SCHEDULES == {"float32": FLOAT32, "hf_eager": HF_EAGER, "hf_sdpa": HF_SDPA}
    assert HF_EAGER.items() ^ HF_SDPA.items() == {(leaf, "bfloat16") for leaf in ("dots", "scores", "probs", "exp")}
