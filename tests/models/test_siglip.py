"""SigLIP's tower against hand-sized literals and the second spelling, on grids of every sort."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers.taps import Recorder
from npgemma.models.siglip import MLP, Attention, PatchEmbedding, attention, block, mlp, patch_embedding, vision_tower

DTYPES = ["float32", "float64"]
C = tiny.CONFIG.vision

BLOCK_TAPS = [
    *["attn_norm", "attn.q", "attn.k", "attn.v"],
    *(f"attn.pictures.0.{name}" for name in ("dots", "scores", "exp", "probs")),
    *["attn.heads", "attn.out", "mid", "mlp_norm", "mlp.fc1", "mlp.hidden", "mlp.out", "out"],
]


def pictures(count: int, side: int = C.image_size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, C.num_patches, C.hidden_size))


def test_patch_embedding_of_a_literal() -> None:
    """A picture 0 .. 15, patches of 2 x 2: each becomes its pixels as the digits of a number, the upper left one last.

    Patches run along the rows of the picture, as the positions, a hundredth each, do.
    """
    weight = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
    p = PatchEmbedding(weight, np.array([0.5]), np.arange(4.0)[:, None] / 100)
    picture = np.arange(16.0).reshape(1, 1, 4, 4)
    by_hand = np.array([0 + 10 + 400 + 5000, 2 + 30 + 600 + 7000, 8 + 90 + 1200 + 13000, 10 + 110 + 1400 + 15000])
    expected = (by_hand + 0.5 + np.arange(4) / 100).reshape(1, 4, 1)
    np.testing.assert_allclose(patch_embedding(p, picture), expected, rtol=1e-15, atol=0, strict=True)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_patch_embedding_is_the_second_spelling(images: int, channels: int, size: int, grid: int, left: int) -> None:
    """Any grid, patch and number of channels; up to a patch less one of pixels left over."""
    rng = np.random.default_rng(size)
    side = grid * size + left % size
    weight, bias = rng.standard_normal((5, channels, size, size)), rng.standard_normal(5)
    position, picture = rng.standard_normal((grid * grid, 5)), rng.standard_normal((images, channels, side, side))
    tensors = {"patch_embedding.weight": weight, "patch_embedding.bias": bias, "position_embedding.weight": position}
    y = patch_embedding(PatchEmbedding(weight, bias, position), picture)
    oracle.assert_agrees(y, oracle.patch_embedding(tensors, picture))


def test_pixels_that_fill_no_patch_change_no_bit(load) -> None:
    """A side of 38 holds five patches of 7; the last three rows and columns are not looked at."""
    p = load(replace(tiny.CONFIG, vision=replace(C, image_size=38))).vision
    seen = pictures(2, 38)
    changed = seen.copy()
    changed[:, :, 35:], changed[:, :, :, 35:] = 5, -5
    np.testing.assert_array_equal(vision_tower(p, changed), vision_tower(p, seen), strict=True)
    seen[:, :, 34, 34] += 1
    assert np.abs(vision_tower(p, changed) - vision_tower(p, seen)).max() > 0.01


def test_a_grid_that_does_not_fit_the_positions_is_refused(load) -> None:
    """28 pixels are 16 patches, and there are 25 positions. (The tests' own checker would be the first to say so.)"""
    with pytest.raises(ValueError, match="broadcast"):
        patch_embedding.unchecked(load().vision.embedding, pictures(1, 28))


def test_attention_without_queries_is_the_mean_of_the_picture() -> None:
    """All scores are 0, so each patch gets the mean of all values, 2 and 6 with their bias of 1, times ten, plus 3."""
    nothing, none = np.zeros((1, 1, 1)), np.zeros((1, 1))
    p = Attention(
        nothing, none, nothing, none, np.ones((1, 1, 1)), np.ones((1, 1)), np.full((1, 1, 1), 10.0), np.array([3.0])
    )
    y = attention(p, np.array([[[1.0], [5.0]]]))
    np.testing.assert_array_equal(y, np.full((1, 2, 1), (2 + 6) / 2 * 10 + 3), strict=True)


def test_mlp_of_a_literal() -> None:
    """gelu(2) = 1.954598 in the tanh form (1.954500 in the exact one), times ten, plus one."""
    p = MLP(np.ones((1, 1)), np.ones(1), np.full((1, 1), 10.0), np.ones(1))
    np.testing.assert_allclose(mlp(p, np.ones((1, 1, 1))), np.full((1, 1, 1), 20.54598), rtol=0, atol=5e-6, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_the_second_spelling(load, tensors, dtype: str) -> None:
    x = rows(2).astype(dtype)
    layer = oracle.under(tensors, "vision.encoder.layers.1")
    expected = [oracle.vision_block(layer, one.astype(np.float64), C.num_attention_heads, 1e-6) for one in x]
    oracle.assert_agrees(block(load().vision.blocks[1], x), np.array(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("side", "patch"),
    [
        pytest.param(35, 7, id="5 x 5"),
        pytest.param(38, 7, id="5 x 5, three pixels left over"),
        pytest.param(9, 3, id="3 x 3"),
        pytest.param(13, 5, id="2 x 2, three pixels left over"),
        pytest.param(7, 7, id="one patch"),
        pytest.param(3, 1, id="patches of a pixel"),
    ],
)
def test_the_tower_is_the_second_spelling(load, side: int, patch: int, dtype: str) -> None:
    config = replace(tiny.CONFIG, vision=replace(C, image_size=side, patch_size=patch))
    x = pictures(2, side).astype(dtype)
    oracle.assert_agrees(
        vision_tower(load(config).vision, x), oracle.vision_tower(tiny.random_tensors(config), config, x)
    )


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_every_norm_takes_the_eps_of_the_config(load, eps: float) -> None:
    config = replace(tiny.CONFIG, vision=replace(C, layer_norm_eps=eps))
    x = pictures(1).astype(np.float64)
    oracle.assert_agrees(
        vision_tower(load(config).vision, x), oracle.vision_tower(tiny.random_tensors(config), config, x)
    )


def test_pictures_of_a_stack_do_not_see_each_other(load) -> None:
    """Changing one changes no bit of the others, and each is what it is alone."""
    p = load().vision
    x = pictures(3).astype(np.float64)
    together = vision_tower(p, x)
    for i in range(3):
        oracle.assert_agrees(vision_tower(p, x[i : i + 1])[0], together[i])
    x[1] = -x[1]
    np.testing.assert_array_equal(vision_tower(p, x)[[0, 2]], together[[0, 2]], strict=True)


def test_no_picture_is_no_rows(load) -> None:
    """A prompt without pictures runs through the same functions."""
    assert vision_tower(load().vision, pictures(0)).shape == (0, C.num_patches, C.hidden_size)


def test_a_block_does_not_know_the_order_of_its_patches(load) -> None:
    """Patches that change places take what they become along: only the position table knows where they were."""
    p, x = load().vision.blocks[0], rows(1)
    order = np.random.default_rng(1).permutation(C.num_patches)
    oracle.assert_agrees(block(p, x[:, order]), block(p, x)[:, order])


def test_every_patch_sees_every_other(load) -> None:
    """Nothing is causal about a picture: a change in the first or the last patch reaches all."""
    p, x = load().vision.blocks[0], rows(1)
    for patch in (0, -1):
        changed = x.copy()
        changed[0, patch, 0] += 1  # one number of the row: a layer norm does not see them all shift
        assert np.abs(block(p, changed) - block(p, x)).max(-1).min() > 1e-4


def test_the_tower_taps_every_step(load) -> None:
    """In the order in which they are computed; scores and probabilities picture by picture."""
    taps = Recorder()
    seen = vision_tower(load().vision, pictures(1), taps)
    layers = [f"layers.{i}.{name}" for i in range(C.num_hidden_layers) for name in BLOCK_TAPS]
    assert list(taps) == ["embedding.patches", "embedding", *layers, "norm"]
    np.testing.assert_array_equal(taps["norm"], seen, strict=True)
    assert taps["layers.0.attn.pictures.0.probs"].shape == (C.num_attention_heads, C.num_patches, C.num_patches)


@pytest.mark.parametrize("name", ["embedding", *(f"layers.0.{name}" for name in BLOCK_TAPS), "norm"])
def test_what_a_tap_returns_is_what_the_tower_goes_on_with(load, name: str) -> None:
    def halve(tapped: str, x: np.ndarray) -> np.ndarray:
        return x / 2 if tapped == name else x

    p, x = load().vision, pictures(1)
    assert np.abs(vision_tower(p, x, halve) - vision_tower(p, x)).max() > 1e-3
