"""The golden files in the package: the long one finds mistakes that show after many steps or in many rows alone."""

import re
from collections.abc import Callable

import numpy as np
import pytest

import npgemma
from npgemma.golden import Dump, Golden, Report, compare, read_golden
from npgemma.golden.cases import case_of
from npgemma.golden.file import EMBEDDED
from npgemma.layers.bits import round_to_bfloat16
from npgemma.layers.taps import Recorder

Change = Callable[[str, np.ndarray], np.ndarray]


def judged(golden: Golden, change: Change = lambda name, x: x) -> Report:
    """The report on a run of the embedded model in float32, whose tensors are changed."""
    model, taps = npgemma.load(), Recorder()
    case_of(model, golden).run(model, lambda name, x, axes: taps(name, change(name, x), axes))
    return compare(golden, Dump({name: taps[name] for name in golden.taps if name in taps}), allow_missing=["pict*"])


def cache_off_after_step_3(name: str, x: np.ndarray) -> np.ndarray:
    """Once three tokens are in the cache, the keys lie one row too far."""
    step = re.fullmatch(r"steps\.(\d+)\.text\.layers\.0\.attn\.segments\.0\.keys", name)
    return np.roll(x, 1, 0) if step and int(step[1]) > 3 else x


def positions_in_bfloat16(name: str, x: np.ndarray) -> np.ndarray:
    """Exact up to 256."""
    return round_to_bfloat16(x.astype(np.float32)).astype(x.dtype) if name.endswith("positions") else x


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_run_in_float32_is_explained(name: str) -> None:
    assert judged(read_golden(EMBEDDED[name])).status == 0


@pytest.mark.parametrize(
    ("change", "block"),
    [(cache_off_after_step_3, "steps.4.text.layers.0"), (positions_in_bfloat16, "text.layers.0")],
)
def test_the_long_file_finds_what_the_short_one_cannot(change: Change, block: str) -> None:
    assert judged(read_golden(EMBEDDED["embedded"]), change).status == 0
    report = judged(read_golden(EMBEDDED["embedded-long"]), change)
    assert report.status == 1
    assert report.first_divergence is not None
    assert report.first_divergence.block == block
