"""npgemma's encoders have the properties of npgemma.testing; and each check catches a model that lacks its property."""

from collections.abc import Callable
from functools import partial

import encoder_configs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import npgemma
from npgemma import testing
from npgemma.models import clip, siglip, vit
from npgemma.testing import DrawnEncoder

FUNCTIONS = {"siglip": siglip, "clip": clip}
EXAMPLES = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Port:
    """npgemma as the callables that the properties take."""

    def __init__(self, model: DrawnEncoder, dtype: str = "float64") -> None:
        self.model, self.dtype = model, np.dtype(dtype)
        self.functions = FUNCTIONS.get(model.model_type, vit)
        self.weights = self.read(model.config, model.tensors)

    def read(self, config, tensors):
        return self.model.checkpoint.weights(tensors, config, self.dtype)

    def images(self, pixels: np.ndarray, weights=None) -> np.ndarray:
        run = vit.forward if self.functions is vit else self.functions.encode_images
        return run(self.weights if weights is None else weights, pixels.astype(self.dtype))

    def texts(self, ids: np.ndarray) -> np.ndarray:
        return self.functions.encode_texts(self.weights, ids, self.dtype)

    def scores(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return self.functions.logits(self.weights, images, texts)

    def build(self, config, tensors) -> Callable:
        return partial(self.images, weights=self.read(config, tensors))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model_type", ["siglip", "clip", "vit"])
@EXAMPLES
@given(data=st.data())
def test_npgemma_has_every_property(model_type: str, dtype: str, data: st.DataObject) -> None:
    model = data.draw(testing.encoders(model_type))
    port, pixels = Port(model, dtype), data.draw(testing.pixel_rows(model.config))
    testing.check_batch(port.images, pixels)
    testing.check_patches_permuted(port.build, model, pixels)
    if model_type == "vit":
        return
    ids, end = data.draw(testing.text_ids(model.config)), model.config.eos_token_id
    testing.check_batch(port.texts, ids)
    testing.check_length(port.images, pixels)
    testing.check_length(port.texts, ids)
    testing.check_scores_of_cosines(port.scores, port.images(pixels), port.texts(ids))
    testing.check_tokens_seen(port.texts, ids, end)
    if model_type == "clip":
        testing.check_behind_the_end(port.texts, ids, end)
    else:
        testing.check_padding_seen(port.texts, ids, end)


@pytest.mark.parametrize("model_type", ["siglip", "clip", "vit"])
@EXAMPLES
@given(data=st.data())
def test_a_drawn_encoder_is_a_folder_that_loads(tmp_path_factory, model_type: str, data: st.DataObject) -> None:
    model = data.draw(testing.encoders(model_type))
    loaded = npgemma.load(model.write(tmp_path_factory.mktemp("drawn")), "float64")
    assert loaded.config == model.config
    pixels = data.draw(testing.pixel_rows(model.config))
    run = loaded.forward if model_type == "vit" else partial(loaded.functions.encode_images, loaded.weights)
    testing.assert_rows_equal("from a file", run(pixels.astype(np.float64)), Port(model).images(pixels))


# ------------------------------------------------------------------------------------------------------------- mutants


SIGLIP, CLIP, VIT = (
    Port(DrawnEncoder(model_type, config, seed=3))
    for model_type, config in (
        ("siglip", encoder_configs.SIGLIP),
        ("clip", encoder_configs.CLIP),
        ("vit", encoder_configs.VIT),
    )
)
PIXELS = np.random.default_rng(0).uniform(-1, 1, (3, 3, 14, 14))
# Two texts, whose end token is 1 for the SigLIP and 9 for the CLIP.
SIGLIP_IDS, CLIP_IDS = (np.array([[5, 6, 7, end, end, end, end], [8, 4, end, end, end, end, end]]) for end in (1, 9))
ROWS = SIGLIP.images(PIXELS), SIGLIP.texts(SIGLIP_IDS)


def less_the_mean_of_the_batch(pixels: np.ndarray) -> np.ndarray:
    return VIT.images(pixels - pixels.mean(0))


def of_the_first_token(ids: np.ndarray) -> np.ndarray:
    """What a CLIP would give that pools at the first row instead of that of the end token."""
    return CLIP.texts(np.where(np.arange(ids.shape[1]) > 0, 9, ids))


def not_a_number(x: np.ndarray) -> np.ndarray:
    return SIGLIP.images(x) * np.nan


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: testing.check_batch(less_the_mean_of_the_batch, PIXELS), "a batch is not its items one by one: row 0"),
        (lambda: testing.check_length(lambda x: 2 * SIGLIP.images(x), PIXELS), "does not have length 1: row 0"),
        (lambda: testing.check_length(not_a_number, PIXELS), "row 0 is off by nan"),
        (lambda: testing.check_scores_of_cosines(lambda x, y: (x @ y.T) ** 3, *ROWS), "not affine in the cosines"),
        (
            lambda: testing.check_scores_of_cosines(lambda x, y: -x @ y.T, *ROWS),
            "largest cosine is not the largest",
        ),
        (lambda: testing.check_behind_the_end(SIGLIP.texts, SIGLIP_IDS, 1), "behind the end token are seen: row 0"),
        (lambda: testing.check_padding_seen(CLIP.texts, CLIP_IDS, 9), "padding is not seen: row 0 moved by 0"),
        (lambda: testing.check_tokens_seen(of_the_first_token, CLIP_IDS, 9), "token 1 is not seen: row 0 moved by 0"),
        (lambda: testing.check_patches_permuted(lambda *_: VIT.images, VIT.model, PIXELS), "move with their positions"),
    ],
)
def test_an_encoder_without_a_property_is_caught_by_its_check(check: Callable[[], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check()
