"""Generation over ids: against recomputing everything at each token, alone and beside others, to each kind of end."""

import numpy as np
import pytest
import tiny

import npgemma
from npgemma.errors import BadModel
from npgemma.generate import generate_tokens
from npgemma.models.paligemma import Prompt, image_features
from npgemma.sampling import Sampling

V = tiny.CONFIG.text.vocab_size
P = tiny.CONFIG.vision.num_patches
NEW = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return npgemma.load(tiny.write_folder(tmp_path_factory.mktemp("model"), seed=5), dtype="float64")


def made(model, seed: int, words: int, pictures: int = 1) -> Prompt:
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-1, 1, (pictures, 3, 35, 35))
    features = image_features(model.weights, pixels)
    ids = np.concatenate([np.full(P * pictures, tiny.CONFIG.image_token_index), rng.integers(3, 50, words)])
    return Prompt(ids, np.zeros_like(ids), features.reshape(-1, features.shape[-1]))


def run(model, prompts, max_new_tokens=NEW, sampling=Sampling(), eos=(), choices=V):  # noqa: B008 (frozen)
    return list(generate_tokens(model.weights, prompts, max_new_tokens, sampling, eos, choices))


def ids_of(tokens, row=0):
    return [token.id for token in tokens if token.row == row]


def test_greedy_equals_recomputing_everything_at_each_token(model):
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (1, 3, 35, 35))
    ids = np.concatenate([np.full(P, tiny.CONFIG.image_token_index), rng.integers(3, 50, 6)])
    written = model.generate_ids(ids, pixels, NEW, eos_ids=())
    types = np.zeros(len(ids), int)
    for token in written:
        assert model.forward(ids, pixels, types)[-1].argmax() == token
        ids, types = np.append(ids, token), np.append(types, 1)
    assert len(written) == NEW


def test_a_row_writes_the_same_alone_and_beside_others(model):
    """float64 leaves no room for a tie to fall the other way."""
    prompts = [made(model, 1, 3), made(model, 2, 9, pictures=2), made(model, 3, 1, pictures=0)]
    together = run(model, prompts)
    for row, prompt in enumerate(prompts):
        assert ids_of(together, row) == ids_of(run(model, [prompt]))


def test_an_end_token_ends_its_row_and_no_other(model):
    prompts = [made(model, 1, 3), made(model, 2, 9)]
    free = run(model, prompts, sampling=Sampling(1.5, seed=4))
    end = ids_of(free, 0)[2]
    cut = ids_of(free, 0).index(end)
    tokens = run(model, prompts, sampling=Sampling(1.5, seed=4), eos=(end,))
    assert ids_of(tokens, 0) == ids_of(free, 0)[: cut + 1]
    assert [token.finish_reason for token in tokens if token.row == 0] == [None] * cut + ["stop"]
    other = ids_of(free, 1)
    assert ids_of(tokens, 1) == (other[: other.index(end) + 1] if end in other else other)


def test_the_last_token_allowed_says_so(model):
    tokens = run(model, [made(model, 1, 3)])
    assert [token.finish_reason for token in tokens] == [None] * (NEW - 1) + ["length"]


def test_rows_come_in_order_within_a_step(model):
    tokens = run(model, [made(model, 1, 3), made(model, 2, 4)], max_new_tokens=3)
    assert [token.row for token in tokens] == [0, 1] * 3


@pytest.mark.parametrize("choices", [1, 7, V])
def test_only_the_first_choices_are_chosen(model, choices):
    tokens = run(model, [made(model, 1, 3)], max_new_tokens=20, sampling=Sampling(5.0), choices=choices)
    assert max(ids_of(tokens)) < choices
    assert len(tokens) == 20


def test_a_seed_fixes_the_draws_and_another_changes_them(model):
    prompt = made(model, 1, 3)
    first, again, other = (run(model, [prompt], 20, Sampling(2.0, seed=seed)) for seed in (1, 1, 2))
    assert ids_of(first) == ids_of(again) != ids_of(other)


def test_draws_do_not_depend_on_what_runs_beside(model):
    prompts = [made(model, 1, 3), made(model, 2, 9)]
    together = run(model, prompts, 12, Sampling(1.0, top_k=9, seed=8))
    assert ids_of(together, 1) == ids_of(run(model, prompts[1:], 12, Sampling(1.0, top_k=9, seed=8)))


def test_no_tokens_at_all_is_refused(model):
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        run(model, [made(model, 1, 3)], max_new_tokens=0)


def test_weights_that_are_no_numbers_are_said(model):
    prompt = made(model, 1, 3)
    with np.errstate(all="ignore"), pytest.raises(BadModel, match="not finite"):
        run(model, [prompt._replace(image_rows=prompt.image_rows * np.nan)])
