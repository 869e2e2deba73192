"""Beam search against a second spelling of its rules, on whole forward passes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny

from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.decoding.beams import Beam, beam_search
from npgemma.decoding.loop import Limits
from npgemma.errors import BadModel
from npgemma.models.paligemma import PaliGemma, forward, image_features, make_prompt
from npgemma.models.prefix_lm import Prompt

V = tiny.CONFIG.text.vocab_size
IMAGE = tiny.CONFIG.image_token_index
EACH = tiny.CONFIG.vision.num_patches
SIDE = tiny.CONFIG.vision.image_size
NEVER = (V,)  # an end token that cannot be chosen
# What each row starts from: the number of its pictures and its text.
ROWS = [(0, [2, 15]), (1, [2, 7, 31, 5])]
NUM_BEAMS = (1, 2, 3, 4)
NEW = 5
# Sums of float64 in another order: the log-probabilities, of a few tens at most, are off by some 1e-14.
ROUNDINGS = 1e-9


def random_weights(folder: Path, config: PaliGemmaConfig) -> PaliGemma:
    """With a head of their own, and a small embedding: what is written hangs on all before it."""
    p = tiny.weights(tiny.write_folder(folder, config), config)
    head = np.random.default_rng(4).standard_normal(p.text.embedding.shape)
    return dataclasses.replace(p, text=dataclasses.replace(p.text, embedding=p.text.embedding / 8, head=head))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PaliGemma:
    return random_weights(tmp_path_factory.mktemp("model"), tiny.CONFIG)


def inputs(row: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of row `row` and the pixels of its pictures."""
    pictures, text = ROWS[row]
    pixels = np.random.default_rng(row).uniform(-1, 1, (pictures, 3, SIDE, SIDE))
    return np.array([IMAGE] * EACH * pictures + text), pixels


@pytest.fixture(scope="module")
def prompts(model: PaliGemma) -> list[Prompt]:
    made = []
    for ids, pixels in map(inputs, range(len(ROWS))):
        made.append(make_prompt(model, ids, np.zeros_like(ids), image_features(model, pixels)))
    return made


# ------------------------------------------------------------------------------------------------- the second spelling


class Answer(NamedTuple):
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.logprobs)


def best(answers: Sequence[Answer], count: int) -> list[Answer]:
    return sorted(answers, key=lambda answer: -answer.total)[:count]


Scorer = Callable[[tuple[int, ...]], np.ndarray]


@pytest.fixture(scope="module")
def scorers(model: PaliGemma) -> list[Scorer]:
    """For each row: the log-probability of every token after what was written, from a whole pass over everything."""

    def scorer(row: int) -> Scorer:
        prompt, pixels = inputs(row)

        @functools.cache
        def score(written: tuple[int, ...]) -> np.ndarray:
            types = np.array([0] * len(prompt) + [1] * len(written))
            logits = forward(model, np.array([*prompt, *written]), pixels, types)[-1]
            return logits - np.logaddexp.reduce(logits)

        return score

    return [scorer(row) for row in range(len(ROWS))]


def textbook(
    score: Scorer, num_beams: int, limits: Limits, kept: int | None = None, enders: int = 1, hasty: bool = False
) -> tuple[list[Answer], int]:
    """The finished answers, the likeliest first, and how many tokens were looked ahead.

    `kept`, `enders` and `hasty` are other rules, to see that the right ones matter: so many continuations kept for each
    beam; those that end count among so many times as many as there are beams; an end as soon as enough answers are in.
    """

    def ends(answer: Answer) -> bool:
        last = answer.ids[-1] in limits.eos_ids or len(answer.ids) == limits.max_new_tokens
        return last or limits.has_stopped(answer.ids)

    going, finished = [Answer((), ())], []
    while going:
        options = [
            Answer((*ids, token), (*logprobs, float(score(ids)[token])))
            for ids, logprobs in going
            for token in range(limits.choices)
        ]
        options = best(options, kept * num_beams if kept else len(options))
        finished = best(finished + [x for x in options[: enders * num_beams] if ends(x)], num_beams)
        steps = len(options[0].ids)
        going = [x for x in options if not ends(x)][:num_beams]
        if len(finished) == num_beams and (hasty or not going or going[0].total <= finished[-1].total):
            break
    return finished, steps


def compare(found: Sequence[Beam], expected: Sequence[Answer]) -> None:
    """The same ids in the same order, every token's log-probability, and totals that are their sums."""
    assert [beam.ids for beam in found] == [answer.ids for answer in expected]
    for beam, answer in zip(found, expected, strict=True):
        np.testing.assert_allclose(beam.logprobs, answer.logprobs, rtol=0, atol=ROUNDINGS, strict=True)
        assert beam.total == pytest.approx(answer.total, rel=0, abs=ROUNDINGS)


# ------------------------------------------------------------------------------------------------------------- answers


def some_ends(score: Scorer, num_beams: int) -> list[tuple[int, ...]]:
    """End tokens: none; one, two and three of those that are written without; and nearly all that are likely at first.

    Of the last, more than there are beams, so that a search that kept too few continuations would run dry.
    """
    free, _ = textbook(score, max(NUM_BEAMS), Limits(NEW, NEVER, IMAGE))
    liked = sorted({token for answer in free for token in answer.ids})
    first = np.argsort(-score(())[:IMAGE])[: 2 * num_beams].tolist()
    crowd = tuple(first[: num_beams - 1] + first[num_beams:])
    pairs, threes = zip(liked[::2], liked[1::2], strict=False), zip(liked, liked[2:], liked[5:], strict=False)
    return [NEVER, *((token,) for token in liked), *pairs, *threes, crowd]


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_answers_equal_those_of_the_second_spelling(row, num_beams, prompts, model, scorers):
    """For many end tokens; and for some of them with a length limit that comes at once, or soon."""
    many = some_ends(scorers[row], num_beams)
    for new, ends in ((NEW, many), (2, many[::6]), (1, many[::12])):
        for eos in ends:
            limits = Limits(new, eos, IMAGE)
            expected, _ = textbook(scorers[row], num_beams, limits)
            compare(beam_search(model.text, prompts[row], num_beams, limits), expected)


@pytest.mark.parametrize("rule", [{"kept": 1}, {"kept": 2}, {"enders": 9}, {"hasty": True}], ids=str)
def test_every_rule_of_the_second_spelling_matters(rule, scorers):
    """Some of the cases above has other answers by another rule, so they tell them apart."""
    noticed = 0
    for score, num_beams in itertools.product(scorers, NUM_BEAMS):
        for eos in some_ends(score, num_beams):
            limits = Limits(NEW, eos, IMAGE)
            noticed += textbook(score, num_beams, limits, **rule)[0] != textbook(score, num_beams, limits)[0]
    assert noticed > 0


def test_beams_find_what_greedy_misses(prompts, model):
    for prompt in prompts:
        (greedy,), (likeliest, *_) = (
            beam_search(model.text, prompt, count, Limits(NEW, NEVER, IMAGE)) for count in (1, 8)
        )
        assert likeliest.total > greedy.total + ROUNDINGS


def note_length(asked: list[int], written: Sequence[int]) -> bool:
    """An `ends` that ends nothing, and tells how far the search went."""
    asked.append(len(written))
    return False


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
def test_the_search_ends_when_nothing_better_can_come(num_beams, prompts, model, scorers):
    """The longest answer that it asks `ends` about has as many tokens as there were steps."""
    made = set()
    for eos in some_ends(scorers[0], num_beams)[::2]:
        asked: list[int] = []
        limits = Limits(7, eos, IMAGE, functools.partial(note_length, asked))
        beam_search(model.text, prompts[0], num_beams, limits)
        _, steps = textbook(scorers[0], num_beams, Limits(7, eos, IMAGE))
        assert max(asked) == steps
        made.add(steps)
    assert min(made) < 7 == max(made)


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_stop_condition_ends_an_answer(row, num_beams, prompts, model, scorers):
    """So often that fewer go on than there are beams."""
    for eos in some_ends(scorers[row], num_beams)[:4]:
        limits = Limits(NEW, eos, IMAGE, lambda written: sum(written) % 4 > 0)
        compare(beam_search(model.text, prompts[row], num_beams, limits), textbook(scorers[row], num_beams, limits)[0])


@pytest.mark.parametrize("choices", [2, 5, 30])
def test_ids_from_choices_on_are_never_chosen(choices, prompts, model, scorers):
    """And what they would have taken of the probability is not shared out among the others."""
    limits = Limits(NEW, (1,), choices)
    found = beam_search(model.text, prompts[0], 3, limits)
    assert max(token for beam in found for token in beam.ids) < choices
    compare(found, textbook(scorers[0], 3, limits)[0])


@pytest.mark.parametrize("eos", [NEVER, (1,), (0, 1)], ids=str)
@pytest.mark.parametrize(("choices", "new"), [(2, 3), (3, 2), (3, 3), (4, 2), (7, 1)])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_enough_beams_find_the_likeliest_answers(row, choices, new, eos, prompts, model, scorers):
    """Then the answers are the likeliest of all there are, in order."""
    every = set()
    for tokens in itertools.product(range(choices), repeat=new):
        length = next((i for i, token in enumerate(tokens, 1) if token in eos), new)
        ids = tokens[:length]
        every.add(Answer(ids, tuple(float(scorers[row](ids[:i])[token]) for i, token in enumerate(ids))))
    num_beams = choices ** (new - 1)
    compare(beam_search(model.text, prompts[row], num_beams, Limits(new, eos, choices)), best(list(every), num_beams))


def test_answers_are_distinct_and_no_more_than_exist(prompts, model):
    """Three of one token, of which one is an end, and six of two; none comes twice."""
    found = beam_search(model.text, prompts[0], 50, Limits(2, (1,), 3))
    assert {beam.ids for beam in found} == {(1,), *itertools.product((0, 2), range(3))}
    assert len(found) == 7


# ------------------------------------------------------------------------------------------------------------- refusal


def broken(model: PaliGemma, part: str, token: int, value: float) -> PaliGemma:
    """The model with one row of the embedding or of the head not finite."""
    table = getattr(model.text, part).copy()
    table[token] = value
    return dataclasses.replace(model, text=dataclasses.replace(model.text, **{part: table}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value, prompts, model):
    with np.errstate(all="ignore"), pytest.raises(BadModel, match="not finite"):
        beam_search(broken(model, "head", 40, value).text, prompts[0], 2, Limits(NEW, NEVER, IMAGE))


def test_logits_of_one_beam_that_are_not_finite_are_an_error(prompts, model):
    """In a later step, and not in the likeliest beam, so the answer could do without it."""
    _, (second, *_) = (beam.ids for beam in beam_search(model.text, prompts[0], 2, Limits(1, NEVER, IMAGE)))
    with np.errstate(all="ignore"), pytest.raises(BadModel, match="not finite"):
        beam_search(broken(model, "embedding", second, np.nan).text, prompts[0], 2, Limits(2, NEVER, IMAGE))
