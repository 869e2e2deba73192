"""npgemma against results of transformers, which tools/make_fixtures.py stored in tests/data."""

from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

import numpy as np
import pytest
import safetensors

import npgemma

DATA = Path(__file__).parent / "data"
CASES = ("grouped", "multihead", "multiquery", "text")
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# The error of transformers' float32 run shows how much the model amplifies rounding. A float64 run has the same sums,
# rounded 2^29 times finer, so its error is at most that share of it; 8 for another order of the sums.
FLOAT64_SHARE = 8 * 2.0**-29
# Both float32 runs round the same sums in another order, so the ratio of their errors is about 1. A factor of 2 is the
# limit of the mean over a case; a single tensor has few rows, and its ratio varies with the BLAS: twice that.
FLOAT32_RATIO = 2.0
FLOAT32_RATIO_OF_ONE = 4.0


class Case(NamedTuple):
    """A model folder, the inputs without a batch axis, and the results of transformers."""

    folder: Path
    ids: np.ndarray
    types: np.ndarray
    pixels: np.ndarray | None
    float64: dict[str, np.ndarray]
    float32: dict[str, np.ndarray]
    greedy: list[int]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A case from its file; the weights go into a folder byte for byte as they are stored."""
    path = DATA / f"{request.param}.safetensors"
    entries = dict(safetensors.deserialize(path.read_bytes()))
    arrays = {name: np.frombuffer(e["data"], DTYPES[e["dtype"]]).reshape(e["shape"]) for name, e in entries.items()}
    specs = {
        name.removeprefix("weights/"): safetensors.TensorSpec(
            dtype=STORED[entries[name]["dtype"]], shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes
        )
        for name, x in arrays.items()
        if name.startswith("weights/")
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors.serialize(specs))
    with safetensors.safe_open(path, framework="numpy") as file:
        (tmp_path / "config.json").write_text(file.metadata()["config"])
    return Case(
        tmp_path,
        arrays["inputs/input_ids"][0],
        arrays["inputs/token_type_ids"][0],
        arrays.get("inputs/pixel_values"),
        *(
            {key.removeprefix(run): x for key, x in arrays.items() if key.startswith(run)}
            for run in ("float64/", "float32/")
        ),
        arrays["greedy"].tolist(),
    )


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def assert_exact(actual: np.ndarray, case: Case, name: str) -> None:
    """`actual` equals tensor `name` of the float64 run up to float64 rounding, in shape and dtype too."""
    truth = case.float64[name]
    atol = FLOAT64_SHARE * float(np.abs(case.float32[name] - truth).max())
    np.testing.assert_allclose(actual, truth, rtol=0, atol=atol, strict=True)


def test_every_tensor_equals_transformers_in_float64(case: Case) -> None:
    """Embeddings, the output of every layer of both towers, projector, norms, keys and logits."""
    model, taps = npgemma.load(case.folder, "float64"), npgemma.Recorder()
    model.forward(case.ids, case.pixels, case.types, tap=taps)
    config = model.config
    layers = config.text.num_hidden_layers + (config.vision.num_hidden_layers if case.pixels is not None else 0)
    # embedding, keys, norm and logits of the decoder; embedding and norm of the vision tower, projector
    ends = 4 if case.pixels is None else 7
    assert len(case.float64) == ends + layers - 1  # transformers gives the last text layer after the norm alone
    for name in case.float64:
        assert_exact(taps[name], case, name)


def test_float32_is_as_accurate_as_transformers(case: Case) -> None:
    """The errors of every tensor are rounding alone: about those of transformers' float32 run."""
    taps = npgemma.Recorder()
    npgemma.load(case.folder).forward(case.ids, case.pixels, case.types, tap=taps)
    assert {taps[name].dtype for name in case.float64} == {np.dtype(np.float32)}
    ratios = {name: rms(taps[name] - truth) / rms(case.float32[name] - truth) for name, truth in case.float64.items()}
    assert max(ratios.values()) <= FLOAT32_RATIO_OF_ONE, ratios
    assert geometric_mean(ratios.values()) <= FLOAT32_RATIO, ratios


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_greedy_ids_equal_transformers(case: Case, dtype: str) -> None:
    """With the cache, until the end token or the limit of new tokens."""
    prefix = case.ids[case.types == 0]
    assert npgemma.load(case.folder, dtype).generate_ids(prefix, case.pixels, 12) == case.greedy


def test_the_comparison_notices_float32(case: Case) -> None:
    """The tolerance is far below the rounding of float32: transformers' own float32 logits do not pass as exact."""
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_exact(case.float32["logits"].astype(np.float64), case, "logits")


def test_the_comparison_notices_a_wrong_angle(case: Case) -> None:
    """A rotary base that is wrong by one part in a million fails: constants are compared, not only shapes."""
    config = case.folder / "config.json"
    text = config.read_text()
    theta = npgemma.load(case.folder).config.text.rope_theta
    assert text.count(f'"rope_theta": {theta}') == 1
    config.write_text(text.replace(f'"rope_theta": {theta}', f'"rope_theta": {theta * (1 + 1e-6)}'))
    logits = npgemma.load(case.folder, "float64").forward(case.ids, case.pixels, case.types)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_exact(logits, case, "logits")
