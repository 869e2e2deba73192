"""The encoder of all towers: patches, attention, MLP and block; and ViT, whose whole test_architectures compares."""

from dataclasses import replace

import encoder_configs
import numpy as np
import pytest
import tiny
from agreement import assert_agrees, normal
from tap_axes import under, vit_block

from npgemma import testing
from npgemma.checkpoints import vit as checkpoint
from npgemma.layers.activations import gelu
from npgemma.layers.taps import Recorder
from npgemma.models.vit import (
    MLP,
    Attention,
    PatchEmbedding,
    attention,
    block,
    encoder,
    every_row,
    forward,
    mlp,
    patch_embedding,
    patches,
    resized,
)

C = tiny.CONFIG.vision

BLOCK_AXES = vit_block(pictures=2)
EVERY = every_row(C.num_patches)


def rows(count: int) -> np.ndarray:
    return normal(count, C.num_patches, C.hidden_size)


def test_patches_of_a_literal() -> None:
    """A picture 0 .. 15 in squares of 2 x 2, along its rows; within a patch, pixels along its rows."""
    y = patches(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    expected = np.array([[[0.0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]])
    np.testing.assert_array_equal(y, expected, strict=True)


def test_patches_keep_channels_one_after_the_other() -> None:
    x = normal(2, 3, 6, 4)
    np.testing.assert_array_equal(patches(x, 2)[1, 3], x[1, :, 2:4, 2:4].reshape(-1), strict=True)


def test_pixels_that_do_not_fill_a_patch_are_left_out() -> None:
    x = normal(1, 3, 8, 7)
    np.testing.assert_array_equal(patches(x, 3), patches(x[:, :, :6, :6], 3), strict=True)
    assert patches(x, 9).shape == (1, 0, 3 * 81)


def test_attention_without_queries_gives_the_mean_of_the_values() -> None:
    """All scores are 0, so each patch gets the mean of all values, 2 and 6 with their bias of 1, times ten, plus 3."""
    zero, zeros = np.zeros((1, 1, 1)), np.zeros((1, 1))
    p = Attention(
        zero, zeros, zero, zeros, np.ones((1, 1, 1)), np.ones((1, 1)), np.full((1, 1, 1), 10.0), np.array([3.0])
    )
    x = np.array([[[1.0], [5.0]]])
    y = attention(p, x, x, every_row(2))
    np.testing.assert_array_equal(y, np.full((1, 2, 1), (2 + 6) / 2 * 10 + 3), strict=True)


def test_mlp_of_a_literal() -> None:
    """gelu(2) = 1.954598 in the tanh form (1.954500 in the exact one), times ten, plus one."""
    p = MLP(np.ones((1, 1)), np.ones(1), np.full((1, 1), 10.0), np.ones(1))
    np.testing.assert_allclose(
        mlp(p, np.ones((1, 1, 1)), gelu), np.full((1, 1, 1), 20.54598), rtol=0, atol=5e-6, strict=True
    )


def test_a_block_does_not_depend_on_the_order_of_its_patches(load) -> None:
    """Permuted patches give permuted rows: only the position table says where a patch is."""
    p, x = load().vision.blocks[0], rows(1)
    order = np.random.default_rng(1).permutation(C.num_patches)
    assert_agrees(block(p, x[:, order], EVERY, gelu), block(p, x, EVERY, gelu)[:, order])


@pytest.mark.parametrize("patch", [0, -1])
def test_every_patch_sees_every_other(load, patch: int) -> None:
    """A change in the first or the last patch reaches all: no mask is causal here."""
    p, x = load().vision.blocks[0], rows(1)
    changed = x.copy()
    changed[0, patch, 0] += 1  # one number of the row: a layer norm would not see all of them shift
    assert np.abs(block(p, changed, EVERY, gelu) - block(p, x, EVERY, gelu)).max(-1).min() > 1e-4


def test_pictures_do_not_depend_on_each_other(load) -> None:
    p, x = load().vision.blocks, rows(3)
    together = encoder(p, x, EVERY, gelu)
    for i in range(3):
        assert_agrees(encoder(p, x[i : i + 1], EVERY, gelu)[0], together[i])
    x[1] = -x[1]
    np.testing.assert_array_equal(encoder(p, x, EVERY, gelu)[[0, 2]], together[[0, 2]], strict=True)


def test_an_encoder_without_blocks_returns_its_rows() -> None:
    x = rows(1)
    np.testing.assert_array_equal(encoder((), x, EVERY, gelu), x, strict=True)


def test_a_block_taps_every_step_with_its_axes(load) -> None:
    """In the order of computation; scores and probabilities picture by picture."""
    taps = Recorder()
    y = block(load().vision.blocks[0], rows(2), EVERY, gelu, taps)
    assert list(taps.axes.items()) == list(BLOCK_AXES.items())
    np.testing.assert_array_equal(taps["out"], y, strict=True)
    assert taps["attn.pictures.1.probs"].shape == (C.num_attention_heads, C.num_patches, C.num_patches)


def test_a_recorder_changes_no_bit_of_a_block(load) -> None:
    p, x = load().vision.blocks[0], rows(2)
    np.testing.assert_array_equal(block(p, x, EVERY, gelu, Recorder()), block(p, x, EVERY, gelu), strict=True)


@pytest.mark.parametrize("name", BLOCK_AXES)
def test_a_block_continues_with_what_a_tap_returns(load, name: str) -> None:
    p, x = load().vision.blocks[0], rows(2)
    squared = block(p, x, EVERY, gelu, lambda tapped, x, axes: x * x if tapped == name else x)
    assert np.abs(squared - block(p, x, EVERY, gelu)).max() > 1e-3


def test_rows_of_another_width_are_refused() -> None:
    p = MLP(np.ones((1, 2)), np.ones(1), np.ones((2, 1)), np.ones(2))
    with pytest.raises(AssertionError, match="D is 2"):
        mlp(p, np.ones((1, 1, 3)), gelu)


# ----------------------------------------------------------------------------------------------------------------- ViT

LAYOUT = checkpoint.hf_layout(encoder_configs.VIT)
P = LAYOUT.fill(testing.layout_tensors(LAYOUT))
PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 3, 14, 14))


def test_a_class_token_comes_first_and_every_row_has_a_position() -> None:
    """The patch is its pixels as the digits of a number, the upper left one last; a half is the bias."""
    weight = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
    p = PatchEmbedding(weight, np.array([0.5]), np.array([7.0]), np.array([[0.1], [0.2]]))
    y = patch_embedding(p, np.arange(4.0).reshape(1, 1, 2, 2))
    np.testing.assert_allclose(y, np.array([[[7.1], [0 + 10 + 200 + 3000 + 0.7]]]), rtol=1e-15, atol=0, strict=True)


def test_the_logits_are_read_from_the_row_of_the_class_token() -> None:
    taps = Recorder("norm")
    y = forward(P, PIXELS, taps)
    assert_agrees(y, taps["norm"][:, 0] @ P.head.weight.T.astype(np.float64) + P.head.bias)


def test_the_activation_is_that_of_the_config() -> None:
    assert P.act.__name__ == "gelu_erf"
    assert np.abs(forward(replace(P, act=gelu), PIXELS) - forward(P, PIXELS)).max() > 1e-5


def test_other_grids_keep_the_position_of_the_class_token() -> None:
    p = resized(P, 3, 5)
    np.testing.assert_array_equal(p.embedding.position[0], P.embedding.position[0], strict=True)
    assert forward(p, normal(2, 3, 12, 20)).shape == (2, 5)
    assert_agrees(forward(resized(P, 3, 3), PIXELS), forward(P, PIXELS))


def test_a_vit_taps_every_step_with_its_axes() -> None:
    taps = Recorder()
    y = forward(P, PIXELS, taps)
    blocks = {name: axes.replace("P", "T") for name, axes in under("layers.0", BLOCK_AXES).items()}
    ends = {"pixel_values": "B C Y X", "embedding.patches": "B P D", "embedding": "B T D"}
    assert list(taps.axes.items()) == list((ends | blocks | {"norm": "B T D", "class": "B D", "logits": "B A"}).items())
    np.testing.assert_array_equal(taps["logits"], y, strict=True)
