"""Features of pictures are computed once, and those of another picture, tower or dtype are never taken for them."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

import npgemma
from npgemma.api.features import FeatureCache
from npgemma.checkpoints.gemma_config import LANGUAGE_MODELS
from npgemma.checkpoints.paligemma import PaliGemmaConfig, pictures_kept
from npgemma.checkpoints.towers import VisionConfig
from npgemma.layers.shapes import Array
from npgemma.layers.tree import thawed
from npgemma.models.paligemma import image_features

MOST = 3


@pytest.fixture(scope="module")
def model() -> npgemma.VisionLanguageModel:
    return npgemma.VisionLanguageModel.load()


@pytest.fixture
def pixels(model: npgemma.VisionLanguageModel) -> Array:
    """Five random pictures as the model reads them."""
    rng = np.random.default_rng(5)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(5)]
    return model.processor([pictures], ["caption en"]).pixel_values


@pytest.mark.parametrize(
    "asked",
    [[[0], [0]], [[0, 0, 1]], [[0, 1], [1, 2], [0]], [[0, 1, 2, 3, 4], [0, 4]], [[0], [1], [2], [3], [0]], [[]]],
)
def test_features_are_those_of_the_pictures_asked_for(
    model: npgemma.VisionLanguageModel, pixels: Array, asked: list[list[int]]
) -> None:
    cache = FeatureCache(np.dtype(np.float32), MOST)
    for pictures in asked:
        found = cache.features(model.weights, pixels[pictures])
        assert_array_equal(found, image_features(model.weights, pixels[pictures]), strict=True)
        assert len(cache.kept) <= MOST


def test_a_picture_goes_through_the_tower_once(model: npgemma.VisionLanguageModel, pixels: Array) -> None:
    cache, p = FeatureCache(np.dtype(np.float32), MOST), model.weights
    first = cache.features(p, pixels[:2])
    key = next(iter(cache.kept))
    cache.kept[key] = first[0] + 1  # so that it shows where the features come from
    assert_array_equal(cache.features(p, pixels[[0]])[0], first[0] + 1)


def test_the_picture_asked_for_last_is_kept_longest(model: npgemma.VisionLanguageModel, pixels: Array) -> None:
    cache, p = FeatureCache(np.dtype(np.float32), MOST), model.weights
    for i in (0, 1, 2):
        cache.features(p, pixels[[i]])
    oldest, *others = cache.kept
    cache.features(p, pixels[[0]])
    cache.features(p, pixels[[3]])
    assert oldest in cache.kept
    assert others[0] not in cache.kept


def test_another_tower_has_features_of_its_own(model: npgemma.VisionLanguageModel, pixels: Array) -> None:
    cache, p = FeatureCache(np.dtype(np.float32), MOST), model.weights
    cache.features(p, pixels[:1])
    bias = p.projector.bias + np.float32(1)
    bias.flags.writeable = False
    other = replace(p, projector=replace(p.projector, bias=bias))
    assert_array_equal(cache.features(other, pixels[:1]), image_features(other, pixels[:1]))


def test_nothing_is_kept_of_a_tower_that_learns(model: npgemma.VisionLanguageModel, pixels: Array) -> None:
    p = thawed(model.weights, lambda path: path == "projector.bias", model.dtype)
    cache = FeatureCache(np.dtype(np.float32), MOST)
    cache.features(p, pixels[:1])
    p.projector.bias[...] += 1
    assert_array_equal(cache.features(p, pixels[:1]), image_features(p, pixels[:1]))


@pytest.mark.parametrize("options", [{}, {"resident": True}, {"dtype": "float64"}])
def test_loaded_models_keep_features(options: dict[str, object]) -> None:
    model = npgemma.VisionLanguageModel.load(**options)  # type: ignore[arg-type]
    picture = npgemma.sample_picture()
    model.score(picture, "answer en what color is the star?", "blue")
    model.generate([picture, picture], ["ocr", "caption en"])
    assert len(model.features.kept) == 1


@pytest.mark.parametrize(("side", "kept"), [(224, 16), (448, 10), (896, 2), (1792, 1)])
def test_134_mb_are_kept_or_one_picture(side: int, kept: int) -> None:
    c = PaliGemmaConfig(VisionConfig(image_size=side, patch_size=14), LANGUAGE_MODELS["gemma"])
    assert pictures_kept(c, 4) == kept
