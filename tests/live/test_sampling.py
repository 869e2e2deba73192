"""npgemma's sampling against transformers' logits warpers, chained as generate chains them."""

import numpy as np
import pytest

from npgemma.sampling import Sampling, probabilities

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

# exp and the sum of up to a thousand numbers, each off by a rounding or two of float64, in another order
ROUNDINGS = 1e-13


def warped(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that transformers draws from, in float64."""
    warpers = [transformers.TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None:
        warpers.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(sampling.top_p))
    x = torch.from_numpy(scores.astype(np.float64))[None]
    for warper in warpers:
        x = warper(None, x)
    return x.softmax(-1)[0].numpy()


def compare(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The same tokens are kept, with the same probabilities."""
    np.testing.assert_array_equal(ours > 0, theirs > 0, strict=True)
    np.testing.assert_allclose(ours, theirs, rtol=ROUNDINGS, atol=0, strict=True)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 2, 7, 10_000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 2, 9, 257])
def test_the_same_distribution(size: int, temperature: float, top_k: int | None, top_p: float) -> None:
    """Random scores. Where many are equal, as many of them stay: which ones, torch's sort leaves open."""
    rng = np.random.default_rng(0)
    sampling = Sampling(temperature, top_k, top_p)
    distinct = rng.standard_normal(size).astype(np.float32) * 4
    compare(probabilities(distinct, sampling), warped(distinct, sampling))
    tied = rng.integers(-2, 3, size).astype(np.float32)
    compare(np.sort(probabilities(tied, sampling)), np.sort(warped(tied, sampling)))


@pytest.mark.parametrize("top_p", [0.125, 0.25, 0.5, 0.75])
def test_the_edge_itself(top_p: float) -> None:
    """Eight equal scores: exact probabilities reach top_p exactly, so how many stay is a matter of <= alone."""
    scores, sampling = np.zeros(8, np.float32), Sampling(1.0, None, top_p)
    ours = probabilities(scores, sampling)
    assert (ours > 0).sum() == 8 * top_p
    compare(np.sort(ours), np.sort(warped(scores, sampling)))


def test_top_k_ties_all_stay() -> None:
    """What equals the k-th largest stays, in both: the very same tokens, for nothing is sorted there."""
    scores = np.array([1, 3, 2, 3, 2, 0, 2], np.float32)
    sampling = Sampling(temperature=0.7, top_k=3)
    assert np.flatnonzero(probabilities(scores, sampling)).tolist() == [1, 2, 3, 4, 6]
    compare(probabilities(scores, sampling), warped(scores, sampling))


def test_the_comparison_notices_another_order() -> None:
    """Temperature after top-p keeps other tokens: the chain is held, not its links alone."""
    scores = np.linspace(0, 5, 30, dtype=np.float32)
    late = Sampling(temperature=3.0, top_p=0.5)
    compare(probabilities(scores, late), warped(scores, late))
    early = warped(scores, Sampling(temperature=1.0, top_p=0.5))
    with pytest.raises(AssertionError, match="not equal"):
        compare(probabilities(scores, late), early)
