"""The table of taps and the taps of a run are the same, in both directions."""

import re

import pytest

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden
from npgemma.golden.names import LEVELS, block_of, entry_of, is_in_level, is_tap, row_axes
from npgemma.golden.tap_table import TABLE
from npgemma.layers.taps import Recorder
from npgemma.models.paligemma import forward

# The sizes of the embedded model, where a letter has one size in all its taps.
SIZES = {"C": 3, "N": 4, "H": 32, "D": 128, "F": 512, "V": 1792, "K": 1, "J": 16}


def test_every_tap_of_a_run_is_in_the_table_with_its_axes(golden: Golden, golden_2: Golden, golden_3: Golden) -> None:
    for each in (golden, golden_2, golden_3):
        assert [name for name, axes in each.taps.items() if not is_tap(name) or entry_of(name).axes != axes] == []


def test_every_entry_of_the_table_is_a_tap_of_the_models_that_it_names(
    golden: Golden, golden_2: Golden, golden_3: Golden
) -> None:
    goldens = (golden, golden_2, golden_3)
    one, two, three = ({entry_of(name).pattern for name in each.taps} for each in goldens)
    named = {entry.pattern: re.findall(r"Gemma [23](?:, 3)?$", entry.meaning) for entry in TABLE}
    assert one == {pattern for pattern, models in named.items() if not models}
    assert two == {pattern for pattern, models in named.items() if models != ["Gemma 3"]}
    assert {pattern for pattern, models in named.items() if models == ["Gemma 3"]} == three - two
    assert not three & {pattern for pattern, models in named.items() if models == ["Gemma 2"]}


def test_axes_of_a_run_have_the_sizes_of_their_letters(golden: Golden) -> None:
    for name, axes in golden.taps.items():
        shape = dict(zip(axes.split(), golden.truth[name].shape, strict=True))
        wrong = {letter: size for letter, size in shape.items() if SIZES.get(letter, size) != size}
        assert not wrong, name


def test_taps_of_two_pictures_are_in_the_table(model: VisionLanguageModel) -> None:
    picture = npgemma.sample_picture()
    taps = Recorder()
    inputs = model.processor([[picture, picture]], ["caption en"], tap=taps)
    forward(model.weights, inputs.input_ids[0], inputs.pixel_values, inputs.token_type_ids[0], tap=taps)
    assert all(is_tap(name) for name in taps)
    assert "vision.layers.3.attn.pictures.1.probs" in taps
    assert taps["pictures.1.resized"].shape == (84, 84, 3)


@pytest.mark.parametrize("name", ["logit", "text.layers.0", "text.layers.x.out", "vision.layers.0.attn.q_rope", "a"])
def test_a_name_that_is_not_a_tap_has_no_entry(name: str) -> None:
    assert not is_tap(name)
    with pytest.raises(KeyError):
        entry_of(name)


def test_each_level_includes_those_before_it(golden: Golden) -> None:
    io, blocks, ops = ({name for name in golden.taps if is_in_level(name, level)} for level in LEVELS)
    assert io < blocks < ops == set(golden.taps)
    assert {"logits", "projector", "prompts.0.mask", "positions", "steps.1.logits"} <= io
    assert {"text.layers.0.out", "text.layers.0.attn.segments.0.keys"} <= blocks - io
    assert "steps.1.text.layers.0.attn.segments.0.keys" in ops - blocks


@pytest.mark.parametrize(
    ("axes", "rows"),
    [
        ("T N H", (0,)),
        ("B P N H", (0, 1)),
        ("N T S", (1,)),
        ("S K H", (0,)),
        ("T S", (0,)),
        ("B C Y X", (0,)),
        ("J", ()),
        ("", ()),
    ],
)
def test_rows_are_tokens_patches_and_pictures(axes: str, rows: tuple[int, ...]) -> None:
    assert row_axes(axes) == rows


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("text.layers.12.attn.segments.0.probs", "text.layers.12"),
        ("steps.2.text.layers.0.out", "steps.2.text.layers.0"),
        ("vision.layers.3.mlp.fc1", "vision.layers.3"),
        ("vision.embedding.patches", "vision.embedding"),
        ("text.scale", "text.embedding"),
        ("steps.1.logits.uncapped", "steps.1.logits"),
        ("projector", "projector"),
        ("steps.1.logits", "steps.1.logits"),
    ],
)
def test_block_of_a_tap(name: str, block: str) -> None:
    assert block_of(name) == block


def test_no_name_matches_two_entries(golden: Golden, golden_2: Golden) -> None:
    """Apart from the entries for steps alone, which precede the general ones."""
    patterns = [re.sub(r"\\\{.\\\}", r"\\d+", re.escape(entry.pattern)) for entry in TABLE]
    for name in (*golden.taps, *golden_2.taps):
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) <= 1
