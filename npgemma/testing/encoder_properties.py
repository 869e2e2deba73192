"""Properties that every SigLIP, CLIP or ViT has; each `check_` holds one or says which row breaks it.

What the callables take and return:

    encode(pixel values [B 3 Y X]) -> rows [B E]      of pictures; for a ViT the logits of its labels
    encode(ids [U T]) -> rows [U E]                   of texts
    scores(rows of pictures, rows of texts) -> [B U]  what transformers calls logits_per_image
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from npgemma.layers.shapes import Array, Float, Int
from npgemma.testing.encoders import DrawnEncoder, EncoderConfig
from npgemma.testing.tolerances import ROUNDINGS, assert_rows_equal, tolerance

Encode: TypeAlias = Callable[[Array], Array]
Scores: TypeAlias = Callable[[Array, Array], Array]


def check_batch(encode: Encode, items: Array, eps: float | None = None) -> None:
    """Pictures or texts that run together, in any order, give what each gives alone."""
    alone = np.concatenate([np.asarray(encode(items[i : i + 1])) for i in range(len(items))])
    assert_rows_equal("a batch is not its items one by one", np.asarray(encode(items)), alone, eps)
    assert_rows_equal("a batch depends on its order", np.asarray(encode(items[::-1]))[::-1], alone, eps)


def check_length(encode: Encode, items: Array, eps: float | None = None) -> None:
    """Rows of pictures and texts have length 1, so that their products are cosines."""
    found = np.linalg.norm(np.asarray(encode(items)), axis=-1, keepdims=True)
    assert_rows_equal("a row does not have length 1", found, np.ones_like(found), eps)


def check_scores_of_cosines(
    scores: Scores, images: Float[Array, "B E"], texts: Float[Array, "U E"], eps: float | None = None
) -> None:
    """Scores are a times the cosines plus b, with one a above 0 and one b; CLIP's b is 0 (SigLIP, section 3)."""
    found, cosines = np.asarray(scores(images, texts)), images @ texts.T
    low, high = np.unravel_index(cosines.argmin(), cosines.shape), np.unravel_index(cosines.argmax(), cosines.shape)
    a = (found[high] - found[low]) / (cosines[high] - cosines[low])
    if not a > 0:
        raise AssertionError(f"the score of the largest cosine is not the largest: {found[high]:.3g}")
    assert_rows_equal("scores are not affine in the cosines", found, found[low] + a * (cosines - cosines[low]), eps)


def check_behind_the_end(encode: Encode, ids: Int[Array, "U T"], end: int, eps: float | None = None) -> None:
    """What follows the first end token moves no row of a CLIP: its texts are causal (CLIP, section 2.4)."""
    behind = (ids == end).cumsum(-1) - (ids == end) > 0
    found = np.asarray(encode(np.where(behind, 0 if end else 1, ids)))
    assert_rows_equal("tokens behind the end token are seen", found, np.asarray(encode(ids)), eps)


def check_tokens_seen(encode: Encode, ids: Int[Array, "U T"], end: int, eps: float | None = None) -> None:
    """Every token before the first end token moves the row of its text: the row of the end token sees them all."""
    before = np.asarray(encode(ids))
    for t in range(int((ids == end).argmax(-1).min())):
        assert_moved(f"token {t} is not seen", before, np.asarray(encode(other_ids(ids, t, end))), eps)


def check_padding_seen(encode: Encode, ids: Int[Array, "U T"], end: int, eps: float | None = None) -> None:
    """The last token moves every row of a SigLIP, padding or not: its texts have no mask (big_vision's two_towers)."""
    after = np.asarray(encode(other_ids(ids, ids.shape[1] - 1, end)))
    assert_moved("padding is not seen", np.asarray(encode(ids)), after, eps)


def check_patches_permuted(
    build: Callable[[EncoderConfig, Mapping[str, Array]], Encode],
    model: DrawnEncoder,
    pixels: Float[Array, "B 3 Y X"],
    eps: float | None = None,
) -> None:
    """Patches permuted together with their positions leave the row of a picture as it is: attention has no order.

    `build` makes a callable of a config and tensors, which have the names that transformers saves.
    """
    tensors, vision = model.tensors, model.config.vision
    layout = model.checkpoint.hf_layout(model.config)
    name = next(stored.name for stored in layout.stored if stored.leaf.path in ("vision.embedding.position", POSITION))
    position = tensors[name].reshape(-1, vision.hidden_size)
    first = len(position) - vision.num_patches  # a class token stays where it is
    moved = np.concatenate([position[:first], position[first:][::-1]]).reshape(tensors[name].shape)
    found = build(model.config, {**tensors, name: moved})(reversed_patches(pixels, vision.patch_size))
    expected = build(model.config, tensors)(pixels)
    assert_rows_equal("patches that move with their positions", np.asarray(found), np.asarray(expected), eps)


POSITION = "embedding.position"  # of a ViT


def reversed_patches(pixels: Float[Array, "B 3 Y X"], size: int) -> Float[Array, "B 3 Y X"]:
    """Pictures with their patches in the reverse order. Pixels that fill no patch stay."""
    side = pixels.shape[-1] // size
    found = pixels.copy()
    cut = pixels[:, :, : side * size, : side * size].reshape(*pixels.shape[:2], side, size, side, size)
    found[:, :, : side * size, : side * size] = cut[:, :, ::-1, :, ::-1].reshape(*pixels.shape[:2], side * size, -1)
    return found


def other_ids(ids: Int[Array, "U T"], t: int, end: int) -> Int[Array, "U T"]:
    """The same texts with another token at t, which is not the end token."""
    found, one, two = ids.copy(), *[i for i in range(3) if i != end][:2]
    found[:, t] = np.where(ids[:, t] == one, two, one)
    return found


def assert_moved(what: str, before: Array, after: Array, eps: float | None) -> None:
    """AssertionError, naming the first row that did not move by more than one rounding."""
    moved = np.abs(after - before).max(-1)
    still = np.flatnonzero(~(moved > tolerance(before, eps) / ROUNDINGS))
    if still.size:
        raise AssertionError(f"{what}: row {still[0]} moved by {moved[still[0]]:.3g}")
