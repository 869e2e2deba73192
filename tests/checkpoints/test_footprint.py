"""The memory of a run, computed from the config: by hand, and larger for everything that needs more."""

import dataclasses

import pytest

from npgemma.checkpoints.footprint import BASE, Footprint, Run
from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, footprint
from npgemma.checkpoints.towers import VisionConfig
from npgemma.io.system_memory import size

MB, GB = 10**6, 10**9
# vision: D 5, F 7, a picture of 6 x 6 pixels in 9 patches; text: D 4, F 10, 3 layers, 2 key heads of width 6, V 50
SMALL = PaliGemmaConfig(
    VisionConfig(hidden_size=5, intermediate_size=7, num_attention_heads=1, image_size=6, patch_size=2),
    GemmaConfig(
        hidden_size=4,
        intermediate_size=10,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=50,
    ),
)
# Numbers of a patch: the rows that go into the encoder and come out of it, in a block the stream and its norm, both
# sides of gelu, and features. So few patches are all computed at a time.
VISION = 2 * 5 + 2 * 5 + 2 * 7 + 4
TEXT = 4 * 4 + 3 * 10  # numbers of a row of the decoder
CACHE = 2 * 3 * 2 * 6  # keys and values of a token in every layer
FEATURES = 9 * 4  # numbers of the features of a picture


def test_a_footprint_by_hand():
    """Two prompts of 11 and 20 tokens with 3 pictures between them, in float32, 5 new tokens."""
    found = footprint(SMALL, Run(1000, 4, 3, [11, 20], 5))
    assert (3 * 3 * 6 * 6 + 3 * 9 * VISION, 31 * TEXT) == (1350, 1426)  # so the decoder needs more than the tower
    logits = (
        2 * 4 * 50 * 4 + 4 * 8 * 50
    )  # of the last token of each prompt and 3 drafted; of one row in float64, and its logs
    masks = 11 * 11 + 20 * 20 + 20 * 20  # of each prompt, and what one of them is combined with while it is made
    caches = (31 + 2 * 5) * CACHE * 4 + 16 * FEATURES * 4  # and the features of 16 pictures
    assert found == Footprint(weights=1000, caches=caches, activations=1426 * 4 + logits + masks)
    assert found.total == BASE + 1000 + 11_808 + 2304 + 8904 + 921


def test_a_footprint_by_hand_where_pictures_need_most():
    """8 pictures, a prompt that is short without them, in float64; 3 samples share the prompt, and not its caches."""
    found = footprint(SMALL, Run(0, 8, 8, [5], 2, samples=3))
    logits = 8 * 2 * 3 * 50 + 4 * 8 * 50
    masks = 5 * 5 + 5 * 5
    assert found.activations == 8 * (8 * 3 * 36 + 8 * 9 * VISION) + logits + masks
    assert found.caches == 8 * 3 * (5 + 2) * CACHE + 8 * 16 * FEATURES
    for run in (Run(0, 8, 0, [5], 2, samples=3), Run(0, 8, 0, [5], 2, logit_rows=3)):
        assert footprint(SMALL, run).activations == 8 * 5 * TEXT + logits + masks


@pytest.mark.parametrize(
    ("new", "rows"), [(0, 2), (1, 2), (2, 2), (3, 2), (4, 3), (9, 8), (10, 8), (100, 8)], ids=lambda each: str(each)
)
@pytest.mark.parametrize(("cap", "copies"), [(None, 1), (30.0, 4)])
def test_logits_of_drafts_by_hand(new: int, rows: int, cap: float | None, copies: int) -> None:
    """Of two answers to a long prompt, no more than may still be written; or those of a step and of the one before."""
    config = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, final_logit_softcapping=cap))
    run = Run(0, 4, 0, [40], new, samples=2)
    needed = footprint(config, run).activations - (4 * 40 * TEXT + 2 * 40 * 40 + 4 * 8 * 50)
    assert needed == 4 * 2 * 50 * max(2, copies * min(8, max(1, new - 1)))
    assert copies > 1 or needed == 4 * 2 * 50 * rows


@pytest.mark.parametrize(
    "more",
    [
        {"weights": 1001},
        {"itemsize": 8},
        {"pictures": 21},
        {"new_tokens": 6},
        {"samples": 3},
        {"logit_rows": 50},
        {"prompts": [12, 20]},
        {"prompts": [11, 20, 1]},
        {"prompts": [11, 21]},
    ],
    ids=str,
)
def test_everything_that_a_run_does_needs_memory(more):
    run = Run(weights=1000, itemsize=4, pictures=20, prompts=[11, 20], new_tokens=5, samples=2)
    assert footprint(SMALL, run._replace(**more)).total > footprint(SMALL, run).total
    assert footprint(SMALL, run._replace(prompts=[20, 11])) == footprint(SMALL, run)


@pytest.mark.parametrize(
    ("part", "pictures", "name"),
    [
        *(("vision", 50, name) for name in ("hidden_size", "intermediate_size", "image_size")),
        *(("text", 0, name) for name in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers")),
        *(("text", 0, name) for name in ("num_key_value_heads", "head_dim")),
    ],
)
def test_a_larger_model_needs_more_memory(part, pictures, name):
    """The tower with many pictures, the decoder with a long prompt."""
    sizes = getattr(SMALL, part)
    doubled = dataclasses.replace(sizes, **{name: 2 * getattr(sizes, name)})
    run = Run(0, 4, pictures, [40])
    assert footprint(dataclasses.replace(SMALL, **{part: doubled}), run).total > footprint(SMALL, run).total


def test_a_footprint_is_shown_with_its_parts():
    found = Footprint(5 * GB, 250 * MB, 40 * MB)
    assert found.total == BASE + 5290 * MB
    assert str(found) == f"{size(found.total)} (5.00 GB of weights, 0.25 GB of caches, 0.04 GB of activations)"
