"""Generation: with its caches it writes what recomputing everything would, row by row as if each were alone."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import tiny

from npgemma.checkpoints.paligemma import hf_layout
from npgemma.decoding.loop import Limits, Token, generate_tokens
from npgemma.decoding.options import Sampling
from npgemma.decoding.sampling import probabilities
from npgemma.errors import BadModel, NpgemmaError
from npgemma.layers.taps import Recorder
from npgemma.models.paligemma import PaliGemma, forward, image_features, make_prompt
from npgemma.models.prefix_lm import Prompt

V = tiny.CONFIG.text.vocab_size
IMAGE = tiny.CONFIG.image_token_index
EACH = tiny.CONFIG.vision.num_patches
SIDE = tiny.CONFIG.vision.image_size
NEVER = (V,)  # an end token that cannot be chosen
NEW = 9
# What each row starts from: the number of its pictures and its text.
ROWS = [(1, [2, 7, 31, 5]), (0, [2, 11]), (2, [2, 44, 3, 8, 19, 5]), (1, [2])]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> PaliGemma:
    """Random weights that look around: with a tied head, every token would only be likeliest to come again.

    So the head is one of its own, and the embedding small beside what attention adds to it.
    """
    p = tiny.weights(tiny.write_folder(tmp_path_factory.mktemp("model")), tiny.CONFIG)
    head = np.random.default_rng(8).standard_normal(p.text.embedding.shape)
    return dataclasses.replace(p, text=dataclasses.replace(p.text, embedding=p.text.embedding / 8, head=head))


def inputs(row: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The ids of row `row` and the pixels of its pictures."""
    pictures, text = ROWS[row]
    pixels = np.random.default_rng(row).uniform(-1, 1, (pictures, 3, SIDE, SIDE)).astype(dtype)
    return np.array([IMAGE] * EACH * pictures + text), pixels


def prompts(model: PaliGemma, rows: Sequence[int], dtype: type = np.float64) -> list[Prompt]:
    made = []
    for row in rows:
        ids, pixels = inputs(row, dtype)
        made.append(make_prompt(model, ids, np.zeros_like(ids), image_features(model, pixels)))
    return made


def generate(model, rows, sampling=Sampling(), eos=NEVER, new=NEW, choices=V, dtype=np.float64):  # noqa: B008 - frozen
    """The tokens of the given rows, run together, by row."""
    tokens = list(generate_tokens(model.text, prompts(model, rows, dtype), Limits(new, eos, choices), sampling))
    return [[token for token in tokens if token.sequence == i] for i in range(len(rows))]


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def recomputed(model: PaliGemma, row: int, choices: int = V) -> list[int]:
    """Greedy tokens of one row, every one from a whole forward pass over all before it, which are a causal suffix."""
    prompt, pixels = inputs(row, np.float64)
    written: list[int] = []
    for _ in range(NEW):
        types = np.array([0] * len(prompt) + [1] * len(written))
        scores = forward(model, np.array([*prompt, *written]), pixels, types)[-1]
        written.append(int(scores[:choices].argmax()))
    return written


def test_tokens_depend_on_the_whole_prompt(model):
    """Else the tests below would hold for a model without attention: rows 0 and 2 end in one and the same token."""
    a, b = (ids(tokens) for tokens in generate(model, [0, 2]))
    assert ROWS[0][1][-1] == ROWS[2][1][-1]
    assert len(set(a)) > NEW // 2
    assert a != b


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_greedy_tokens_equal_those_of_whole_passes(row, model):
    """The cache is an economy and nothing else: pictures, text alone, several pictures."""
    assert ids(generate(model, [row])[0]) == recomputed(model, row)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [(0, 1), (2, 1, 0, 3), (3, 3, 0)])
def test_sequences_together_write_what_each_writes_alone(rows, dtype, model):
    alone = [ids(generate(model, [row], dtype=dtype)[0]) for row in rows]
    assert len({tuple(each) for each in alone}) > 1
    assert [ids(each) for each in generate(model, rows, dtype=dtype)] == alone


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=4)], ids=["greedy", "drawn"])
def test_a_recorder_changes_no_bit(sampling, dtype, model):
    made, taps = prompts(model, range(len(ROWS)), dtype), Recorder()
    seen = list(generate_tokens(model.text, made, Limits(NEW, NEVER, V), sampling, tap=taps))
    plain = list(generate_tokens(model.text, made, Limits(NEW, NEVER, V), sampling))
    assert seen == plain
    assert "text.layers.0.attn.q" in taps


def test_tokens_come_step_by_step_and_sequences_in_order(model):
    tokens = list(generate_tokens(model.text, prompts(model, range(4)), Limits(NEW, NEVER, V), Sampling()))
    assert [token.sequence for token in tokens] == [0, 1, 2, 3] * NEW


def test_a_token_is_given_before_the_next_is_computed(model):
    """Streaming would be a pretence otherwise."""
    computed: list[str] = []

    def tap(name, x, axes):
        computed.extend([name] * name.endswith("logits"))
        return x

    tokens = generate_tokens(model.text, prompts(model, [0, 1]), Limits(NEW, NEVER, V), Sampling(), tap=tap)
    assert computed == []
    for count in range(1, NEW + 1):
        next(tokens)
        assert len(computed) == count
        next(tokens)
    assert list(tokens) == []
    assert len(computed) == NEW


def test_a_tap_gets_the_logits_of_every_running_sequence(model):
    """Those of a step under a name of its own."""
    free = [ids(each) for each in generate(model, [0, 1, 2])]
    taps = Recorder("*logits")
    for _ in generate_tokens(
        model.text, prompts(model, [0, 1, 2]), Limits(NEW, (free[0][0],), V), Sampling(), tap=taps
    ):
        pass
    assert list(taps) == ["logits", *(f"steps.{count}.logits" for count in range(1, NEW))]
    assert taps["logits"].shape == (3, V)
    assert len(taps[f"steps.{NEW - 1}.logits"]) < 3


# ---------------------------------------------------------------------------------------------------------------- ends


def expected(free: list[int], eos: Sequence[int]) -> list[tuple[int, str | None]]:
    """What an endless row becomes with end tokens: up to the first, which it keeps and which is its reason."""
    first = next((i for i, token in enumerate(free) if token in eos), None)
    if first is not None:
        return [(token, None) for token in free[:first]] + [(free[first], "stop")]
    return [(token, None) for token in free[:-1]] + [(free[-1], "length")]


def test_an_end_token_ends_its_own_sequence_alone(model):
    """For every token that any row writes, and for pairs of them, as the end tokens."""
    rows = range(len(ROWS))
    free = [ids(each) for each in generate(model, rows)]
    written = sorted({token for each in free for token in each})
    assert len(written) > 4
    ends = [(token,) for token in written] + list(itertools.pairwise(written))
    some_stop_alone = False
    for eos in ends:
        found = [[(token.id, token.finish_reason) for token in each] for each in generate(model, rows, eos=eos)]
        assert found == [expected(each, eos) for each in free]
        some_stop_alone |= len({each[-1][1] for each in found}) == 2
    assert some_stop_alone


def test_an_end_token_as_the_last_token_is_a_stop(model):
    free = ids(generate(model, [0])[0])
    last = next(i for i, token in enumerate(free) if token not in free[:i] and i > 0)
    tokens = generate(model, [0], eos=(free[last],), new=last + 1)[0]
    assert [token.finish_reason for token in tokens] == [None] * last + ["stop"]


@pytest.mark.parametrize("new", [1, 2, NEW])
def test_max_new_tokens_limits_the_answer_and_changes_no_token(new, model):
    free = [ids(each) for each in generate(model, [0, 1, 2])]
    found = generate(model, [0, 1, 2], new=new)
    assert [ids(each) for each in found] == [each[:new] for each in free]
    assert [[token.finish_reason for token in each] for each in found] == [[None] * (new - 1) + ["length"]] * 3


# ------------------------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize("choices", [1, 5, 30, V - 1])
def test_ids_from_choices_on_are_never_chosen(choices, model):
    """The greedy token is the likeliest of those allowed, not the likeliest if it happens to be one of them."""
    assert max(recomputed(model, 0)) >= 5
    assert ids(generate(model, [0], choices=choices)[0]) == recomputed(model, 0, choices)
    drawn = generate(model, [0, 1], Sampling(temperature=50.0), choices=choices)
    assert max(itertools.chain(*map(ids, drawn))) < choices


# ------------------------------------------------------------------------------------------------------------ sampling


def test_a_seed_gives_the_same_tokens_alone_and_among_others(model):
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.95, seed=7)
    alone = [ids(generate(model, [row], sampling)[0]) for row in range(4)]
    for rows in ((0, 1, 2, 3), (3, 0), (2, 2, 1)):
        assert [ids(each) for each in generate(model, rows, sampling)] == [alone[row] for row in rows]


def test_a_sequence_that_ends_changes_no_draw_of_another(model):
    sampling = Sampling(temperature=1.5, seed=3)
    free = [ids(each) for each in generate(model, [0, 1, 2], sampling)]
    end = free[0][1]
    found = [[(t.id, t.finish_reason) for t in each] for each in generate(model, [0, 1, 2], sampling, eos=(end,))]
    assert found == [expected(each, (end,)) for each in free]


def test_another_seed_gives_other_tokens(model):
    written = {tuple(ids(generate(model, [0], Sampling(temperature=1.5, seed=seed))[0])) for seed in range(4)}
    assert len(written) == 4


def test_the_first_token_is_drawn_from_the_probabilities_of_the_last_row(model):
    """With one token allowed by top-k at most, and over many seeds: what is drawn is the support, and all of it."""
    prompt, pixels = inputs(0, np.float64)
    scores = forward(model, prompt, pixels, np.zeros_like(prompt))[-1]
    sampling = Sampling(temperature=1.0, top_k=3)
    drawn = {ids(generate(model, [0], dataclasses.replace(sampling, seed=seed), new=1)[0])[0] for seed in range(60)}
    assert drawn == set(np.flatnonzero(probabilities(scores, sampling)))


# ----------------------------------------------------------------------------------------------------------- not finite


NAMES = hf_layout(tiny.CONFIG).shapes
KINDS = sorted({name.replace("layers.1.", "layers.0.").replace("layers.2.", "layers.0.") for name in NAMES})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", KINDS)
def test_a_weight_that_is_not_finite_is_an_error(name, value, tmp_path):
    """One number in a tensor of each kind, as a damaged file would have it."""
    tensors = tiny.random_tensors()
    tensors[name].reshape(-1)[-1] = value
    tiny.write_folder(tmp_path)
    stored = {tiny.spell(each, "saved 5.x"): x for each, x in tensors.items()}
    tiny.save(stored, tmp_path / "model.safetensors")
    with np.errstate(all="ignore"), pytest.raises(NpgemmaError, match="not finite") as error:
        generate(tiny.weights(tmp_path, tiny.CONFIG), [0], dtype=np.float32)
    assert isinstance(error.value, BadModel)
