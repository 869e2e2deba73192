"""SigLIP's vision tower, which PaliGemma has, against a hand-sized literal and the second spelling, for many grids."""

from dataclasses import replace

import numpy as np
import one_page
import pytest
import tiny
from agreement import assert_agrees
from hypothesis import given
from hypothesis import strategies as st
from tap_axes import under, vit_block

from npgemma.layers.taps import Recorder
from npgemma.models.siglip import PatchEmbedding, patch_embedding, vision_tower

DTYPES = ["float32", "float64"]
C = tiny.CONFIG.vision


def pictures(count: int, side: int = C.image_size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)


def test_patch_embedding_of_a_literal() -> None:
    """A picture 0 .. 15, patches of 2 x 2: each becomes its pixels as the digits of a number, the upper left one last.

    Patches run along the rows of the picture, and so do the positions, a hundredth each.
    """
    weight = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
    p = PatchEmbedding(weight, np.array([0.5]), np.arange(4.0)[:, None] / 100)
    picture = np.arange(16.0).reshape(1, 1, 4, 4)
    by_hand = np.array([0 + 10 + 400 + 5000, 2 + 30 + 600 + 7000, 8 + 90 + 1200 + 13000, 10 + 110 + 1400 + 15000])
    expected = (by_hand + 0.5 + np.arange(4) / 100).reshape(1, 4, 1)
    np.testing.assert_allclose(patch_embedding(p, picture), expected, rtol=1e-15, atol=0, strict=True)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_patch_embedding_agrees_with_the_second_spelling(
    images: int, channels: int, size: int, grid: int, left: int
) -> None:
    """Any grid, patch size and number of channels; fewer pixels left over than a patch has."""
    rng = np.random.default_rng(size)
    side = grid * size + left % size
    weight, bias = rng.standard_normal((5, channels, size, size)), rng.standard_normal(5)
    position, picture = rng.standard_normal((grid * grid, 5)), rng.standard_normal((images, channels, side, side))
    named = {"patch_embedding.weight": weight, "patch_embedding.bias": bias, "position_embedding.weight": position}
    tensors = {f"vision_tower.vision_model.embeddings.{name}": x for name, x in named.items()}
    y = patch_embedding(PatchEmbedding(weight, bias, position), picture)
    assert_agrees(y, one_page.patch_embedding(tensors, {"vision_config": {"patch_size": size}}, picture))


def test_pixels_that_do_not_fill_a_patch_change_no_bit(load) -> None:
    """A side of 38 holds five patches of 7; the last three rows and columns are not used."""
    p = load(replace(tiny.CONFIG, vision=replace(C, image_size=38))).vision
    x = pictures(2, 38)
    changed = x.copy()
    changed[:, :, 35:], changed[:, :, :, 35:] = 5, -5
    np.testing.assert_array_equal(vision_tower(p, changed), vision_tower(p, x), strict=True)
    x[:, :, 34, 34] += 1
    assert np.abs(vision_tower(p, changed) - vision_tower(p, x)).max() > 0.01


def test_a_grid_that_does_not_fit_the_positions_is_refused(load) -> None:
    """28 pixels are 16 patches, and there are 25 positions. (The checker of the tests would be the first to say so.)"""
    with pytest.raises(ValueError, match="broadcast"):
        patch_embedding.unchecked(load().vision.embedding, pictures(1, 28))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="5 x 5"),
        pytest.param({"image_size": 38}, id="5 x 5, three pixels left over"),
        pytest.param({"image_size": 9, "patch_size": 3}, id="3 x 3"),
        pytest.param({"image_size": 13, "patch_size": 5}, id="2 x 2, three pixels left over"),
        pytest.param({"image_size": 7}, id="one patch"),
        pytest.param({"image_size": 3, "patch_size": 1}, id="patches of one pixel"),
        pytest.param({"num_hidden_layers": 1}, id="one block"),
        pytest.param({"num_attention_heads": 1}, id="one head"),
        pytest.param({"layer_norm_eps": 1e-2}, id="another eps"),
    ],
)
def test_the_tower_agrees_with_the_second_spelling(load, spelled, changes: dict, dtype: str) -> None:
    config = replace(tiny.CONFIG, vision=replace(C, **changes))
    x = pictures(2, config.vision.image_size).astype(dtype)
    assert_agrees(vision_tower(load(config).vision, x), one_page.vision_tower(*spelled(config), x))


def test_pictures_of_a_stack_do_not_depend_on_each_other(load) -> None:
    """Changing one changes no bit of the others, and each is what it is alone."""
    p, x = load().vision, pictures(3).astype(np.float64)
    together = vision_tower(p, x)
    for i in range(3):
        assert_agrees(vision_tower(p, x[i : i + 1])[0], together[i])
    x[1] = -x[1]
    np.testing.assert_array_equal(vision_tower(p, x)[[0, 2]], together[[0, 2]], strict=True)


def test_no_pictures_give_no_rows(load) -> None:
    """A prompt without pictures runs through the same functions."""
    assert vision_tower(load().vision, pictures(0)).shape == (0, C.num_patches, C.hidden_size)


def test_the_tower_taps_every_step_with_its_axes(load) -> None:
    taps = Recorder()
    y = vision_tower(load().vision, pictures(2), taps)
    embedding, block = {"embedding.patches": "B P D", "embedding": "B P D"}, vit_block(pictures=2)
    expected = embedding | under("layers.0", block) | under("layers.1", block) | {"norm": "B P D"}
    assert list(taps.axes.items()) == list(expected.items())
    np.testing.assert_array_equal(taps["norm"], y, strict=True)
    position = load().vision.embedding.position
    np.testing.assert_array_equal(taps["embedding.patches"] + position, taps["embedding"], strict=True)


def test_a_recorder_changes_no_bit_of_the_tower(load) -> None:
    p, x = load().vision, pictures(2)
    np.testing.assert_array_equal(vision_tower(p, x, Recorder()), vision_tower(p, x), strict=True)


@pytest.mark.parametrize("name", ["embedding.patches", "embedding", "layers.1.mid", "norm"])
def test_the_tower_continues_with_what_a_tap_returns(load, name: str) -> None:
    p, x = load().vision, pictures(1)
    squared = vision_tower(p, x, lambda tapped, x, axes: x * x if tapped == name else x)
    assert np.abs(squared - vision_tower(p, x)).max() > 1e-3
