"""CLIP's towers, scores and loss; tests/test_architectures.py compares the whole with another spelling."""

import math
from dataclasses import replace

import encoder_configs
import numpy as np
import pytest
from agreement import FLOAT64, assert_agrees, normal
from tap_axes import under, vit_block

from npgemma import testing
from npgemma.checkpoints import clip as checkpoint
from npgemma.layers.activations import gelu_erf
from npgemma.layers.taps import Recorder
from npgemma.models import clip

C = encoder_configs.CLIP
LAYOUT = checkpoint.hf_layout(C)
P = LAYOUT.fill(testing.layout_tensors(LAYOUT))
F64 = np.dtype(np.float64)
PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 3, 14, 14))
END = C.eos_token_id
IDS = np.array([[1, 20, END, END, END], [1, 21, 22, 23, END], [1, 30, END, 40, END]])


def test_a_patch_embedding_of_a_literal() -> None:
    """The class token first, then the patches along the rows of the picture, without a bias; a position each."""
    weight = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
    p = clip.PatchEmbedding(weight, np.array([7.0]), np.arange(3.0)[:, None] / 10)
    y = clip.patch_embedding(p, np.arange(8.0).reshape(1, 1, 2, 4))
    expected = np.array([[[7.0], [0 + 10 + 400 + 5000 + 0.1], [2 + 30 + 600 + 7000 + 0.2]]])
    np.testing.assert_allclose(y, expected, rtol=1e-15, atol=0, strict=True)


def test_the_first_end_token_is_the_end() -> None:
    np.testing.assert_array_equal(clip.end_rows(IDS, END), [2, 4, 2])


def test_a_text_without_an_end_token_is_refused() -> None:
    """transformers takes its first row."""
    with pytest.raises(ValueError, match="text 1 has no end token, 9"):
        clip.encode_texts(P, np.array([[1, END], [1, 2]]), F64)


def test_what_follows_the_end_of_a_text_does_not_matter() -> None:
    changed = IDS.copy()
    changed[0, 3:], changed[2, 3:] = 33, 34
    y = clip.encode_texts(P, IDS, F64)
    assert_agrees(clip.encode_texts(P, changed, F64), y)
    assert_agrees(clip.encode_texts(P, IDS[:1, :3], F64), y[:1])


@pytest.mark.parametrize("place", range(4))
def test_what_precedes_the_end_of_a_text_matters(place: int) -> None:
    changed = IDS.copy()
    changed[1, place] = 45
    assert np.abs(clip.encode_texts(P, changed, F64) - clip.encode_texts(P, IDS, F64))[1].max() > 1e-4


def test_no_row_of_a_text_sees_those_behind_it() -> None:
    taps, changed = Recorder("norm"), IDS.copy()
    clip.text_tower(P.text, IDS, F64, taps)
    expected = taps["norm"]
    changed[1, 3] = 45
    clip.text_tower(P.text, changed, F64, taps)
    np.testing.assert_array_equal(taps["norm"][1, :3], expected[1, :3], strict=True)
    assert np.abs(taps["norm"][1, 3:] - expected[1, 3:]).max(-1).min() > 1e-4


def test_each_tower_has_the_activation_of_its_config() -> None:
    assert (P.vision.act.__name__, P.text.act.__name__) == ("quick_gelu", "gelu_erf")
    other = replace(P, vision=replace(P.vision, act=gelu_erf))
    assert np.abs(clip.encode_images(other, PIXELS) - clip.encode_images(P, PIXELS)).max() > 1e-4


@pytest.mark.parametrize("patch", [0, 8])
def test_every_patch_reaches_the_class_token(patch: int) -> None:
    changed = PIXELS.copy()
    y, x = divmod(patch, 3)
    changed[0, :, 4 * y, 4 * x] += 1
    difference = clip.encode_images(P, changed) - clip.encode_images(P, PIXELS)
    assert np.abs(difference[0]).max() > 1e-4
    np.testing.assert_array_equal(difference[1], np.zeros(11), strict=True)


def test_scores_of_a_literal() -> None:
    """Cosines of 1 and 0 times e^2."""
    y = clip.logits(replace(P, log_scale=np.array(2.0)), np.eye(2), np.eye(2)[:1])
    np.testing.assert_allclose(y, np.array([[math.exp(2)], [0]]), **FLOAT64)


def test_the_loss_is_that_of_the_scores() -> None:
    images, texts = clip.encode_images(P, PIXELS), clip.encode_texts(P, IDS[:2], F64)
    scores = np.exp(clip.logits(P, images, texts))
    right = scores.diagonal()
    expected = -(np.log(right / scores.sum(0)) + np.log(right / scores.sum(1))).sum() / 4
    np.testing.assert_allclose(clip.loss(P, images, texts), expected, rtol=FLOAT64["rtol"])


def test_other_grids_keep_the_position_of_the_class_token() -> None:
    p = clip.resized(P, 3, 5)
    np.testing.assert_array_equal(p.vision.embedding.position[0], P.vision.embedding.position[0], strict=True)
    assert clip.encode_images(p, normal(2, 3, 12, 20)).shape == (2, 11)
    assert_agrees(clip.encode_images(clip.resized(P, 3, 3), PIXELS), clip.encode_images(P, PIXELS))


def test_a_run_taps_every_step_with_its_axes() -> None:
    taps = Recorder()
    images = clip.encode_images(P, PIXELS, taps)
    clip.logits(P, images, clip.encode_texts(P, IDS, F64, taps), taps)
    outer = {
        "pixel_values": "B C Y X",
        "vision.embedding.patches": "B P D",
        "vision.embedding": "B T D",
        "vision.pre_norm": "B T D",
        "vision.class": "B D",
        "vision.post_norm": "B D",
        "vision.projection": "B E",
        "image_embeds.length": "B",
        "image_embeds": "B E",
        "input_ids": "U T",
        "text.embedding": "U T D",
        "text.norm": "U T D",
        "text.end": "U D",
        "text.projection": "U E",
        "text_embeds.length": "U",
        "text_embeds": "U E",
        "cosine": "B U",
        "scale": "",
        "logits_per_image": "B U",
    }
    assert {name: axes for name, axes in taps.axes.items() if ".layers." not in name} == outer
    block = {name: axes.replace("P", "T") for name, axes in under("vision.layers.0", vit_block(pictures=2)).items()}
    assert taps.axes.items() >= block.items()
    np.testing.assert_array_equal(taps["vision.post_norm"].shape, (2, 16))
