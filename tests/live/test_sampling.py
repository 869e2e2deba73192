"""npgemma's sampling against transformers' logits warpers, chained as generate chains them."""

import numpy as np
import pytest

import npgemma
from npgemma.decoding.options import Sampling
from npgemma.decoding.sampling import penalize, probabilities
from npgemma.io.model_folder import EMBEDDED

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from dump_transformers import load_model, make_inputs  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

# exp and the sum of up to a thousand numbers, each off by a rounding or two of float64, in another order
ROUNDINGS = 1e-13
# Both runs are in float32, and their logits are off by about 1e-5.
FLOAT32 = 1e-4


def warped(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that transformers draws from, in float64."""
    warpers = [transformers.TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None:
        warpers.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(transformers.MinPLogitsWarper(sampling.min_p))
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
def test_distributions_are_equal(size: int, temperature: float, top_k: int | None, top_p: float) -> None:
    """Of equal scores, equally many are kept; which of them, torch's sort does not define."""
    rng = np.random.default_rng(0)
    sampling = Sampling(temperature, top_k, top_p)
    distinct = rng.standard_normal(size).astype(np.float32) * 4
    compare(probabilities(distinct, sampling), warped(distinct, sampling))
    tied = rng.integers(-2, 3, size).astype(np.float32)
    compare(np.sort(probabilities(tied, sampling)), np.sort(warped(tied, sampling)))


@pytest.mark.parametrize("top_p", [0.125, 0.25, 0.5, 0.75])
def test_probabilities_that_reach_top_p_exactly(top_p: float) -> None:
    """Eight equal scores have exact probabilities, so how many are kept depends only on < or <=."""
    scores, sampling = np.zeros(8, np.float32), Sampling(1.0, None, top_p)
    ours = probabilities(scores, sampling)
    assert (ours > 0).sum() == 8 * top_p
    compare(np.sort(ours), np.sort(warped(scores, sampling)))


def test_top_k_keeps_all_ties() -> None:
    """Both keep every score that equals the k-th largest, and so the same tokens."""
    scores = np.array([1, 3, 2, 3, 2, 0, 2], np.float32)
    sampling = Sampling(temperature=0.7, top_k=3)
    assert np.flatnonzero(probabilities(scores, sampling)).tolist() == [1, 2, 3, 4, 6]
    compare(probabilities(scores, sampling), warped(scores, sampling))


def test_the_comparison_notices_another_order() -> None:
    """Temperature after top-p keeps other tokens."""
    scores = np.linspace(0, 5, 30, dtype=np.float32)
    late = Sampling(temperature=3.0, top_p=0.5)
    compare(probabilities(scores, late), warped(scores, late))
    early = warped(scores, Sampling(temperature=1.0, top_p=0.5))
    with pytest.raises(AssertionError, match="not equal"):
        compare(probabilities(scores, late), early)


@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.9, 1.0])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, None, 1.0), (0.3, 20, 0.9), (2.5, None, 0.5)])
def test_min_p_after_the_others(min_p: float, temperature: float, top_k: int | None, top_p: float) -> None:
    scores = np.random.default_rng(1).standard_normal(257).astype(np.float32) * 4
    sampling = Sampling(temperature, top_k, top_p, min_p)
    compare(probabilities(scores, sampling), warped(scores, sampling))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_the_repetition_penalty(penalty: float) -> None:
    rng = np.random.default_rng(2)
    scores, seen = rng.standard_normal(50), rng.integers(0, 50, 30)
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.from_numpy(seen)[None], torch.from_numpy(scores)[None])[0].numpy()
    np.testing.assert_array_equal(penalize(scores, seen, penalty), theirs, strict=True)


PROMPTS = ("caption en", "answer en how many shapes are there?", "detect blue star")


@pytest.mark.parametrize("penalty", [1.0, 1.2, 3.0])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_and_log_probabilities_equal_those_of_transformers(prompt: str, penalty: float) -> None:
    """The log-probabilities are those of the logits before the penalty."""
    sample = npgemma.sample_picture()
    ours = npgemma.load().generate(sample, prompt, max_new_tokens=20, repetition_penalty=penalty)
    inputs = make_inputs(EMBEDDED, [sample], prompt)
    out = load_model(EMBEDDED, torch.float32, "eager").generate(
        **inputs,
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=penalty,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert ours.token_ids == out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    logprobs = torch.cat(out.logits).double().log_softmax(-1).numpy()
    chosen = logprobs[np.arange(len(ours.token_ids)), ours.token_ids]
    np.testing.assert_allclose(ours.logprobs, chosen, rtol=0, atol=FLOAT32, strict=True)
