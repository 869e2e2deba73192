"""Generation with drafts: whatever is drafted, right or wrong, the tokens are those of a run without drafts."""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import FAMILIES, IDS, weights

from npgemma.decoding.lookup import Draft, no_drafts
from npgemma.decoding.loop import (
    CREDIT,
    Limits,
    Token,
    choose_next,
    generate_tokens,
    prefill_sequences,
    step_sequences,
)
from npgemma.decoding.options import Sampling
from npgemma.layers.taps import Recorder
from npgemma.models.gemma import MOST_ROWS
from npgemma.models.prefix_lm import Prompt, causal_prompt

F64 = np.dtype(np.float64)
V = 31  # of Gemma 2 and 3 here; Gemma 1 has more, which are not chosen
NEW = 1 + 5 + 8  # of a first step, of a second one that spends the credit, and of one with as many rows as there may be
NEVER = (V,)  # an end token that cannot be chosen
GREEDY = Sampling()
# Beyond the window of three tokens, within it, and so long that a cache with a window lets go of most.
PROMPTS = [IDS, IDS[:2], np.resize(IDS, 25)]
# Sums of float64 in another order: keys, values and log-probabilities of a few tens at most are off by some 1e-14.
ROUNDINGS = dict(rtol=0, atol=1e-9)
every_family = pytest.mark.parametrize("family", FAMILIES)


def prompts(family: str) -> list[Prompt]:
    return [causal_prompt(weights(family), ids, F64) for ids in PROMPTS]


def run(family: str, limits: Limits, sampling: Sampling, drafter=no_drafts, samples: int = 1) -> list[list[Token]]:
    """The tokens of each sequence."""
    tokens = list(generate_tokens(weights(family), prompts(family), limits, sampling, samples, drafter=drafter))
    return [[token for token in tokens if token.sequence == i] for i in range(len(PROMPTS) * samples)]


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


@functools.cache
def free(family: str) -> list[list[int]]:
    """The greedy tokens of each prompt, as many as NEW."""
    return [ids(each) for each in run(family, Limits(NEW, NEVER, V), GREEDY)]


def assert_same(found: list[list[Token]], expected: list[list[Token]]) -> None:
    """Ids and reasons are equal, log-probabilities up to rounding."""
    assert [[token[:3] for token in each] for each in found] == [[token[:3] for token in each] for each in expected]
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose([t.logprob for t in each], [t.logprob for t in wanted], **ROUNDINGS)


def oracle(answers: Sequence[Sequence[int]]) -> Callable[[np.ndarray], Draft]:
    """A drafter that knows the answers, which are to be those of different prompts."""
    known = {len(prompt): answer for prompt, answer in zip(PROMPTS, answers, strict=True)}
    return lambda prompt: lambda written: known[len(prompt)][len(written) :]


def mixed(answers: Sequence[Sequence[int]], rng: np.random.Generator) -> Callable[[np.ndarray], Draft]:
    """A drafter that is right up to anywhere, and then says anything."""
    right = oracle(answers)

    def drafter(prompt: np.ndarray) -> Draft:
        return lambda written: [*right(prompt)(written)[: rng.integers(5)], *rng.integers(0, 61, rng.integers(9))]

    return drafter


@every_family
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.0, 0.2, 2.0]),
    penalty=st.sampled_from([1.0, 1.5]),
    new=st.integers(1, 9),
    ends=st.sets(st.integers(0, V - 1), max_size=3),
    samples=st.integers(1, 2),
)
@settings(max_examples=4, deadline=None)
def test_no_draft_changes_a_token(family, seed, temperature, penalty, new, ends, samples) -> None:
    """Nor a reason, nor the generators of samples: several sequences, with windows, ends and limits inside drafts."""
    sampling = Sampling(temperature=temperature, repetition_penalty=penalty, top_p=0.95, seed=seed)
    limits = Limits(new, tuple(ends), V, lambda written: sum(written[-2:]) == V, never=(3,))
    plain = run(family, limits, sampling, samples=samples)
    drafter = mixed(free(family), np.random.default_rng(seed))
    assert_same(run(family, limits, sampling, drafter, samples), plain)


def logits_of(family: str, drafter, new: int = NEW) -> list[int]:
    """How many rows of logits each pass has."""
    taps = Recorder("*logits")
    tokens = generate_tokens(weights(family), prompts(family), Limits(new, NEVER, V), GREEDY, 1, taps, drafter)
    assert len(list(tokens)) == new * len(PROMPTS)
    return [len(taps[name]) for name in taps]


@every_family
def test_right_drafts_save_steps(family: str) -> None:
    """Of three sequences."""
    assert MOST_ROWS == 8
    assert logits_of(family, oracle(free(family))) == [3, 3 * 5, 3 * 8]
    assert logits_of(family, no_drafts) == [3] * NEW


@pytest.mark.parametrize("wrong", [1, 3, 20])
def test_drafts_stop_once_the_credit_is_lost(wrong: int) -> None:
    """Of tokens that are never chosen."""
    absent = next(i for i in range(V) if not any(i in each for each in free("Gemma 1")))
    rows = logits_of("Gemma 1", lambda prompt: lambda written: [absent] * wrong)
    assert len(rows) == NEW
    assert sum(rows) == 3 * (NEW + CREDIT)


def test_a_draft_ends_before_a_token_that_is_never_chosen() -> None:
    """It may have no row in the embedding table, as an image token."""
    limits = Limits(9, (), 5, never=(1,))
    assert [limits.possible(draft) for draft in ([4, 2, 5, 3], [3, 1, 2], [7], [])] == [[4, 2], [3], [], []]
    assert logits_of("Gemma 1", lambda prompt: lambda written: [10**6]) == [3] * NEW


@every_family
def test_caches_forget_what_was_not_chosen(family: str) -> None:
    """They hold what they hold without drafts; and what is behind that is not read: here it is NaN."""
    p, limits = weights(family), Limits(NEW, NEVER, V)
    drafter = mixed(free(family), np.random.default_rng(1))
    sequences = prefill_sequences(p, prompts(family), limits, GREEDY, drafter=drafter)
    plain = prefill_sequences(p, prompts(family), limits, GREEDY)
    pairs, dropped = list(zip(sequences, plain, strict=True)), 0
    while True:
        filled = sum(sequence.caches[0].length for sequence, _ in pairs)
        pairs = [each for each in pairs if choose_next(each[0], limits, GREEDY)[-1][1] is None]
        dropped += sum(sequence.caches[0].length for sequence, _ in pairs) < filled
        if not pairs:
            break
        for sequence, other in pairs:
            while len(other.written) < len(sequence.written) - 1:
                other.written.append(sequence.written[len(other.written)])
                step_sequences(p, [other], limits)
            for cache, expected in zip(sequence.caches, other.caches, strict=True):
                assert cache.length == expected.length == len(sequence.input_ids) + len(sequence.written) - 1
                np.testing.assert_allclose(cache.rows(cache.keys), expected.rows(expected.keys), **ROUNDINGS)
                np.testing.assert_allclose(cache.rows(cache.values), expected.rows(expected.values), **ROUNDINGS)
                cache.keys[cache.end :] = cache.values[cache.end :] = np.nan
        step_sequences(p, [sequence for sequence, _ in pairs], limits)
    assert dropped > 2


def test_the_tokens_of_a_step_come_together_and_sequences_in_order() -> None:
    tokens = generate_tokens(
        weights("Gemma 1"), prompts("Gemma 1"), Limits(NEW, NEVER, V), GREEDY, drafter=oracle(free("Gemma 1"))
    )
    found = [(sequence, len(list(each))) for sequence, each in itertools.groupby(token.sequence for token in tokens)]
    assert found[:6] == [(0, 1), (1, 1), (2, 1), (0, 1 + CREDIT), (1, 1 + CREDIT), (2, 1 + CREDIT)]
