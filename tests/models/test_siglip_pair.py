"""SigLIP's pooling head, text tower, scores and loss; test_architectures compares the whole with a second spelling."""

import math
from dataclasses import replace

import encoder_configs
import numpy as np
import pytest
from agreement import FLOAT64, assert_agrees, normal
from tap_axes import under, vit_block

from npgemma import testing
from npgemma.checkpoints import siglip as checkpoint
from npgemma.layers.activations import gelu
from npgemma.layers.norms import layer_norm
from npgemma.layers.taps import Recorder
from npgemma.models import siglip
from npgemma.models.vit import mlp

C = encoder_configs.SIGLIP
LAYOUT = checkpoint.hf_layout(C)
P = LAYOUT.fill(testing.layout_tensors(LAYOUT))
F64 = np.dtype(np.float64)
PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 3, 14, 14))
IDS = np.random.default_rng(0).integers(0, 50, (3, 7))


def test_the_head_of_one_patch_is_its_value_and_an_mlp() -> None:
    """One patch has the whole attention, whatever the probe asks: r is its value, and neither is added to r."""
    head, x = P.vision_head, normal(2, 1, 16)
    values = np.einsum("bpd, nhd -> bnh", x, head.attn.v) + head.attn.v_bias
    r = (np.einsum("bnh, dnh -> bd", values, head.attn.o) + head.attn.o_bias)[:, None]
    expected = r + mlp(head.mlp, layer_norm(head.norm, r), gelu)
    assert_agrees(siglip.pooling_head(head, x), expected[:, 0])


def test_the_head_does_not_depend_on_the_order_of_the_patches() -> None:
    x, order = normal(2, 9, 16), np.random.default_rng(1).permutation(9)
    assert_agrees(siglip.pooling_head(P.vision_head, x[:, order]), siglip.pooling_head(P.vision_head, x))


def test_the_probe_chooses_among_the_patches() -> None:
    """A probe in the direction of what one patch answers, a thousand times as long, sees that patch alone."""
    head, x = P.vision_head, normal(1, 9, 16)
    keys = np.einsum("pd, nhd -> pnh", x[0], head.attn.k)
    asked = np.linalg.lstsq(head.attn.q.reshape(16, 16).astype(F64), keys[4].reshape(-1), rcond=None)[0]
    sharp = replace(head, probe=asked * 1000)
    taps = Recorder()
    siglip.pooling_head(sharp, x, taps)
    scores = np.einsum("nh, pnh -> np", keys[4], keys)
    np.testing.assert_array_equal(taps["attn.pictures.0.probs"][:, 0].argmax(-1), scores.argmax(-1))


@pytest.mark.parametrize("place", range(7))
def test_every_token_of_a_text_matters_those_of_padding_too(place: int) -> None:
    changed = IDS.copy()
    changed[0, place] = (changed[0, place] + 1) % 50
    difference = siglip.encode_texts(P, changed, F64) - siglip.encode_texts(P, IDS, F64)
    assert np.abs(difference[0]).max() > 1e-4
    np.testing.assert_array_equal(difference[1:], np.zeros((2, 16)), strict=True)


def test_a_text_is_read_from_its_last_row() -> None:
    taps = Recorder("norm", "head")
    y = siglip.text_tower(P.text, IDS, F64, taps)
    head = P.text.head
    np.testing.assert_allclose(y, taps["norm"][:, -1] @ head.weight.T.astype(F64) + head.bias, **FLOAT64)


def test_a_text_may_be_shorter_than_the_table_of_positions() -> None:
    """Its tokens have the first positions; one more token than there are positions is refused."""
    assert siglip.encode_texts(P, IDS[:, :3], F64).shape == (3, 16)
    with pytest.raises(ValueError, match="broadcast"):
        siglip.text_tower(P.text, np.zeros((1, 8), int), F64)


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(IndexError, match="rows 0 to 49"):
        siglip.encode_texts(P, IDS + 1000, F64)


def test_embeddings_have_the_length_1_and_pictures_do_not_depend_on_each_other() -> None:
    images, texts = siglip.encode_images(P, PIXELS), siglip.encode_texts(P, IDS, F64)
    for x in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), np.ones(len(x)), **FLOAT64)
    assert_agrees(siglip.encode_images(P, PIXELS[1:]), images[1:])


def test_scores_of_a_literal() -> None:
    """Cosines of 1 and 0 times e^2, less 3."""
    p = replace(P, log_scale=np.array(2.0), bias=np.array(-3.0))
    y = siglip.logits(p, np.eye(2), np.eye(2)[:1])
    np.testing.assert_allclose(y, np.array([[math.exp(2) - 3], [-3]]), **FLOAT64)


def test_the_loss_is_that_of_the_scores() -> None:
    images, texts = siglip.encode_images(P, PIXELS), siglip.encode_texts(P, IDS[:2], F64)
    scores = siglip.logits(P, images, texts) * np.array([[-1, 1], [1, -1]])
    expected = np.log1p(np.exp(scores)).sum() / 2
    np.testing.assert_allclose(siglip.loss(P, images, texts), expected, rtol=FLOAT64["rtol"])


def test_other_grids_take_pictures_of_other_sizes() -> None:
    """Three rows of five patches; nothing but the positions changes."""
    p = siglip.resized(P, 3, 5)
    assert siglip.encode_images(p, normal(2, 3, 12, 20)).shape == (2, 16)
    assert_agrees(siglip.encode_images(siglip.resized(P, 3, 3), PIXELS), siglip.encode_images(P, PIXELS))


def test_a_run_taps_every_step_with_its_axes() -> None:
    taps = Recorder()
    images = siglip.encode_images(P, PIXELS, taps)
    siglip.logits(P, images, siglip.encode_texts(P, IDS, F64, taps), taps)
    head = under("attn", dict.fromkeys("kv", "B P N H"))
    found = {name.removeprefix("vision.head."): axes for name, axes in taps.axes.items() if "vision.head." in name}
    scores = under("attn.pictures.0", dict.fromkeys(("dots", "scores", "exp", "probs"), "N Q S"))
    assert found.items() >= (head | scores | {"attn.q": "B Q N H", "norm": "B Q D", "out": "B Q D"}).items()
    letters = str.maketrans({"B": "U", "P": "T"})
    text = under("text.layers.1", vit_block(pictures=3)).items()
    expected = {name.replace("pictures", "texts"): axes.translate(letters) for name, axes in text}
    assert taps.axes.items() >= expected.items()
    outer = ["pixel_values", "image_embeds.length", "image_embeds"]
    outer += ["input_ids", "text.embedding", "text.norm", "text.last", "text.head", "text_embeds.length", "text_embeds"]
    assert [name for name in taps if name in outer] == outer
    assert list(taps.axes)[-4:] == ["cosine", "scale", "scaled", "logits_per_image"]
