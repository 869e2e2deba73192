"""The examples of a step, and what a model reads of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NOISE
from PIL import Image

import npgemma
from npgemma.io.pixels import pixel_values
from npgemma.layers.tree import thawed
from npgemma.models.paligemma import PaliGemma, image_features
from npgemma.models.paligemma_grad import loss_and_feature_gradient
from npgemma.training.batches import Batch, batch_of, parts_of, places, steps_of
from npgemma.training.encoding import PictureEncoder, TextEncoder
from npgemma.training.examples import Example

# A weight is one division, or two.
ROUNDING = 4 * np.finfo(np.float64).eps
# Logits of about 20 are off by some 10 units of float32 in the last place, and so are the losses of about 10.
FLOAT32 = 20 * np.finfo(np.float32).eps

# ---------------------------------------------------------------------------------------------------------------- order


@settings(max_examples=30)
@given(seed=st.integers(0), size=st.integers(1, 20), batch=st.integers(1, 7), epochs=st.integers(1, 4))
def test_every_epoch_has_each_example_once(seed: int, size: int, batch: int, epochs: int) -> None:
    steps = steps_of(epochs, size, batch)
    seen = [place for step in range(steps) for place in places(seed, step, size, batch)]
    assert [place.number for place in seen] == list(range(steps * batch))
    assert 0 <= len(seen) - epochs * size < batch
    for epoch in range(epochs):
        of_epoch = [place.example for place in seen[epoch * size : (epoch + 1) * size]]
        assert sorted(of_epoch) == list(range(size))


def test_the_order_differs_between_epochs_and_seeds_and_not_between_calls() -> None:
    orders = [tuple(place.example for place in places(seed, step, 40, 40)) for seed in (0, 1) for step in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[3] == tuple(place.example for place in places(1, 1, 40, 40))


def test_the_examples_of_a_step_do_not_depend_on_the_batches_before_it() -> None:
    """Two batches of 3 are one of 6: the sequence is that of the seed."""
    wide = places(5, 1, 10, 6)
    assert wide == places(5, 2, 10, 3) + places(5, 3, 10, 3)


@pytest.mark.parametrize(
    ("epochs", "size", "batch", "steps"), [(1, 10, 5, 2), (1, 11, 5, 3), (0.5, 10, 4, 2), (3, 2, 4, 2), (0.1, 3, 4, 1)]
)
def test_steps_see_all_examples_as_often_as_asked(epochs: float, size: int, batch: int, steps: int) -> None:
    assert steps_of(epochs, size, batch) == steps


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_sequence_has_image_tokens_bos_prefix_newline_suffix_and_eos(encoder: PictureEncoder, folder: Path) -> None:
    tokenizer, tokens = encoder.processor.tokenizer, encoder.processor.tokens_per_image
    example = Example((folder / "a.png", folder / "b.png"), "caption en", "a red ring")
    batch = batch_of([example], encoder)
    (prompt,) = batch.prompts
    before = [tokenizer.image_id] * 2 * tokens + [tokenizer.ids["<bos>"], *tokenizer.encode("caption en\n")]
    learned = [*tokenizer.encode("a red ring"), tokenizer.ids["<eos>"]]
    assert prompt.input_ids.tolist() == before + learned
    assert prompt.token_type_ids.tolist() == [0] * len(before) + [1] * len(learned)
    assert prompt.weights.tolist() == [0] * len(before) + [1 / len(learned)] * len(learned)
    assert prompt.pictures == (0, 1)
    read = [Image.open(path).convert("RGB") for path in example.images]
    np.testing.assert_array_equal(batch.pixel_values, pixel_values(read, encoder.processor.side), strict=True)


def test_a_distinct_picture_stands_once_in_the_batch(encoder: PictureEncoder, folder: Path) -> None:
    """The same path in several lines, and the same image; equal images in two objects are two."""
    a, b, turned = folder / "a.png", folder / "b.png", NOISE.rotate(90)
    images = [(a,), (b, a), (turned,), (turned,), (NOISE.rotate(90),), ()]
    batch = batch_of([Example(each, "caption en", "x") for each in images], encoder)
    assert [prompt.pictures for prompt in batch.prompts] == [(0,), (1, 0), (2,), (2,), (3,), ()]
    assert len(batch.pixel_values) == 4


SUFFIXES = ("a", "a red ring and a blue star", "red ring")


def weights(encoder: PictureEncoder | TextEncoder, mean: str) -> list[np.ndarray]:
    return [each.weights for each in batch_of([Example((), "q", text) for text in SUFFIXES], encoder, mean).prompts]


def test_by_token_every_learned_token_has_the_same_weight(encoder: PictureEncoder) -> None:
    tokens = [len(encoder.processor.suffix_ids(text)) for text in SUFFIXES]
    assert len(set(tokens)) == 3
    for row, count in zip(weights(encoder, "token"), tokens, strict=True):
        assert row[row > 0].tolist() == [1 / sum(tokens)] * count


def test_by_example_every_example_has_the_same_weight(encoder: PictureEncoder) -> None:
    for row in weights(encoder, "example"):
        np.testing.assert_allclose(row.sum(), 1 / 3, rtol=ROUNDING)
        assert len(set(row[row > 0])) == 1


@pytest.mark.parametrize("mean", ["token", "example"])
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_the_parts_of_a_batch_have_its_sequences_pictures_and_weights(
    mean: str, most: int, encoder: PictureEncoder, folder: Path
) -> None:
    """Each part holds its own pictures alone; the weights stay those of the whole batch."""
    a, b = folder / "a.png", folder / "b.png"
    images = [(b,), (a, b), (), (a,), (b, a)]
    batch = batch_of([Example(each, "q", "a red ring"[:i]) for i, each in enumerate(images, 6)], encoder, mean)
    parts = parts_of(batch, most)
    assert [len(part.prompts) for part in parts] == [len(images[i : i + most]) for i in range(0, 5, most)]
    prompts = [(part, prompt) for part in parts for prompt in part.prompts]
    for (part, prompt), whole in zip(prompts, batch.prompts, strict=True):
        assert prompt._replace(pictures=()) == whole._replace(pictures=())
        own, wanted = part.pixel_values[list(prompt.pictures)], batch.pixel_values[list(whole.pictures)]
        np.testing.assert_array_equal(own, wanted, strict=True)
    for part in parts:
        used = Counter(row for prompt in part.prompts for row in prompt.pictures)
        assert set(used) == set(range(len(part.pixel_values)))
    np.testing.assert_allclose(sum(prompt.weights.sum() for _, prompt in prompts), 1, rtol=ROUNDING)


def test_the_loss_of_a_batch_is_the_mean_of_what_score_gives(encoder: PictureEncoder, folder: Path) -> None:
    """Over all tokens, or over the means of the examples; the losses of parts add up to it."""
    model = npgemma.load()
    a, b = folder / "a.png", folder / "b.png"
    asked = [((a,), "caption en", "a"), ((b, a), "detect star", "<loc0001>" * 4), ((), "say", "two rings")]
    examples = [Example(*each) for each in asked]
    scores = [model.score([list(images)], [prefix], [suffix])[0] for images, prefix, suffix in asked]
    by_token = -sum(each.total for each in scores) / sum(len(each.logprobs) for each in scores)
    by_example = sum(each.loss for each in scores) / len(scores)
    for mean, most, wanted in (("token", 3, by_token), ("token", 2, by_token), ("example", 3, by_example)):
        parts = parts_of(batch_of(examples, encoder, mean), most)
        loss = sum(loss_of(model.weights, part) for part in parts)
        np.testing.assert_allclose(loss, wanted, rtol=FLOAT32)


def loss_of(weights: PaliGemma, batch: Batch) -> float:
    """The loss of a batch, for which every weight is frozen."""
    frozen = thawed(weights, lambda path: False, np.float32)
    return loss_and_feature_gradient(frozen, image_features(frozen, batch.pixel_values), batch.prompts)[0]


def test_a_language_model_learns_the_suffix_and_the_end_token_causally(text_encoder: TextEncoder) -> None:
    tokenizer = text_encoder.processor.tokenizer
    batch = batch_of([Example((), "two and three are", " five")], text_encoder)
    (prompt,) = batch.prompts
    before = [text_encoder.processor.bos_id, *tokenizer.encode("two and three are")]
    learned = [*tokenizer.encode(" five"), text_encoder.eos_id]
    assert prompt.input_ids.tolist() == before + learned
    assert prompt.token_type_ids.tolist() == [1] * len(prompt.input_ids)
    assert prompt.weights.tolist() == [0] * len(before) + [1 / len(learned)] * len(learned)
    assert batch.pixel_values.shape[0] == 0
