"""The table of taps and what a run speaks are the same, both ways."""

import re

import pytest

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden
from npgemma.golden.names import LEVELS, TABLE, block_of, is_in_level, tap_name
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.taps import Recorder
from npgemma.models.paligemma import forward

SIZES = {"C": 3, "N": 4, "H": 32, "D": 128, "F": 512, "V": 1792, "K": 1, "J": 16}


def test_every_recorded_tap_is_in_the_table_with_its_axes(golden: Golden) -> None:
    for name, truth in golden.truth.items():
        axes = tap_name(name).axes.split()
        assert len(axes) == truth.ndim, name
        assert all(SIZES.get(letter, size) == size for letter, size in zip(axes, truth.shape, strict=True)), name


def test_every_entry_of_the_table_is_recorded(golden: Golden) -> None:
    found = {tap_name(name).pattern for name in golden.truth}
    assert found == {entry.pattern for entry in TABLE}


def test_two_pictures_speak_the_same_names(model: VisionLanguageModel) -> None:
    picture = EMBEDDED.parent / "sample.png"
    taps = Recorder()
    inputs = model.processor([[picture, picture]], ["caption en"], tap=taps)
    forward(model.weights, inputs.input_ids[0], inputs.pixel_values, inputs.token_type_ids[0], tap=taps)
    assert all(tap_name(name).axes.count(" ") + 1 == x.ndim for name, x in taps.items() if x.ndim)
    assert "vision.layers.3.attn.pictures.1.probs" in taps
    assert taps["pictures.1.resized"].shape == (84, 84, 3)


@pytest.mark.parametrize("name", ["logit", "text.layers.0", "text.layers.x.out", "vision.layers.0.attn.q_rope", "a"])
def test_what_is_no_tap_has_no_entry(name: str) -> None:
    with pytest.raises(KeyError):
        tap_name(name)


def test_each_level_holds_those_before_it(golden: Golden) -> None:
    held = [{name for name in golden.taps if is_in_level(name, level)} for level in LEVELS]
    assert held[0] < held[1] < held[2] == set(golden.taps)
    assert {"logits", "projector", "prompts.0.mask", "positions", "steps.1.logits"} <= held[0]
    assert {"text.layers.0.out", "text.layers.0.attn.segments.0.keys"} <= held[1] - held[0]
    assert "steps.1.text.layers.0.attn.segments.0.keys" in held[2] - held[1]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("text.layers.0.attn.q", (0,)),
        ("vision.layers.0.attn.q", (0, 1)),
        ("text.layers.0.attn.segments.0.probs", (1,)),
        ("text.layers.0.attn.segments.0.keys", (0,)),
        ("text.scale", ()),
        ("text.layers.0.attn.q_rope.frequencies", ()),
        ("pixel_values", (0,)),
    ],
)
def test_rows_are_tokens_patches_and_pictures(name: str, rows: tuple[int, ...]) -> None:
    assert tap_name(name).row_axes == rows


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("text.layers.12.attn.segments.0.probs", "text.layers.12"),
        ("steps.2.text.layers.0.out", "steps.2.text.layers.0"),
        ("vision.layers.3.mlp.fc1", "vision.layers.3"),
        ("vision.embedding.patches", "vision.embedding"),
        ("text.scale", "text.embedding"),
        ("projector", "projector"),
        ("steps.1.logits", "steps.1.logits"),
    ],
)
def test_the_block_of_a_tap(name: str, block: str) -> None:
    assert block_of(name) == block


def test_no_two_entries_claim_one_name(golden: Golden) -> None:
    """Apart from the steps' own entries, which stand before the general ones."""
    for name in golden.taps:
        patterns = [re.sub(r"\\\{.\\\}", r"\\d+", re.escape(entry.pattern)) for entry in TABLE]
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) <= 1
