"""The embedded pair of towers names shapes, tells which texts are true, and finds pictures by their captions."""

import json

import numpy as np
import pytest
from evaluate_pair import EMBEDDED_PAIR, Npgemma, best_is_right, captioned, encoded, labelled
from pair_world import unseen_scenes

# The card gives at least 99% for labels and captions on 500 pictures: 40 pictures may miss two. Of about 80 texts that
# are true, of which it gives 95%, ten may seem not to be: three standard errors more than 5%.
PICTURES, MOST, TRUE = 40, 0.95, 0.87
# A float32 row of 96 numbers, divided by its length, has a length of 1 to within a few roundings.
ROUNDING = 4 * np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def model():
    return Npgemma(EMBEDDED_PAIR)


def test_the_label_of_a_picture_is_found_among_all(model):
    case = labelled(unseen_scenes(PICTURES, 1))
    assert len(case.texts) == 42
    assert best_is_right(model.logits(*encoded(model, case)), case.right).mean() >= MOST


def test_texts_are_likely_exactly_where_they_are_true(model):
    case = labelled(unseen_scenes(PICTURES))
    likely = model.logits(*encoded(model, case)) > 0
    assert likely[case.right].mean() >= TRUE
    assert likely[~case.right].mean() <= 0.01


def test_pictures_and_captions_find_each_other(model):
    case = captioned(PICTURES, 0)
    scores = model.logits(*encoded(model, case))
    assert best_is_right(scores, case.right).mean() >= MOST
    assert best_is_right(scores.T, case.right).mean() >= MOST


def test_what_is_not_a_shape_is_unlikely(model):
    images = model.images([scene.image for scene in unseen_scenes(PICTURES)])
    texts = model.texts(["a cat", "a photo of a dog", "a red bus", "a green tree", "xylophones"])
    assert (model.logits(images, texts) < 0).mean() >= MOST


@pytest.mark.parametrize(
    ("text", "same"),
    [("A Blue Star!", "a blue star"), ("a  blue\nstar.", "a blue star"), ("a blue_star", "a bluestar")],
)
def test_case_punctuation_and_spaces_change_nothing(model, text, same):
    np.testing.assert_array_equal(model.texts([text]), model.texts([same]))


def test_embeddings_have_length_1(model):
    case = labelled(unseen_scenes(4))
    for rows in encoded(model, case):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=ROUNDING)


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in EMBEDDED_PAIR.iterdir()) < 3_000_000


def test_the_config_has_only_what_differs_from_siglip_base():
    config = json.loads((EMBEDDED_PAIR / "config.json").read_text())
    assert config.keys() == {"architectures", "model_type", "text_config", "torch_dtype", "vision_config"}
    assert "layer_norm_eps" not in config["text_config"] | config["vision_config"]
