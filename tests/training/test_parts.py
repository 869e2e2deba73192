"""What is trained, by presets and patterns; and new adapters, which begin as PEFT's do."""

import numpy as np
import pytest
import tiny

from npgemma.checkpoints.paligemma import blank
from npgemma.checkpoints.trained_model import adapted
from npgemma.errors import BadData
from npgemma.layers.linear import AdaptedRows, AdaptedWeight
from npgemma.layers.tree import leaves, map_tree
from npgemma.training.lora import with_adapters, with_rows
from npgemma.training.parts import adaptable, chosen, name_of

TREE = map_tree(lambda leaf: np.zeros(leaf.value.shape, np.float32), blank(tiny.CONFIG))
LEAVES = leaves(TREE)
LAYERS, TOWER = tiny.CONFIG.text.num_hidden_layers, tiny.CONFIG.vision.num_hidden_layers


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (("attention",), 4 * LAYERS),
        (("attention", "mlp"), 7 * LAYERS),
        (("decoder",), 9 * LAYERS + 2),
        (("projector",), 2),
        (("text.blocks.1.*",), 9),
        (("text.norm.weight", "*.attn.q"), 1 + LAYERS + TOWER),
        (("all",), len(LEAVES)),
    ],
)
def test_presets_and_patterns_choose_arrays(patterns: tuple[str, ...], count: int) -> None:
    assert len(chosen(LEAVES, patterns)) == count


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (("text.blocks.*",), 7 * LAYERS),
        (("vision",), 6 * TOWER),
        (("all",), 7 * LAYERS + 6 * TOWER + 1),
        (("projector",), 1),
    ],
)
def test_adapters_change_matrices_alone(patterns: tuple[str, ...], count: int) -> None:
    """Neither norms nor biases, tables nor patches."""
    assert len(adaptable(LEAVES, patterns)) == count


@pytest.mark.parametrize("pattern", ["text.block.*", "text.blocks[0].attn.q", "lora"])
def test_a_pattern_that_chooses_nothing_is_refused_with_the_names(pattern: str) -> None:
    with pytest.raises(BadData, match=r"names nothing that can be trained here.*text\.blocks\.\*\.attn\.q"):
        chosen(LEAVES, (pattern,))


def test_the_arrays_of_a_language_model_are_called_text_too() -> None:
    assert name_of("blocks[3].attn.q") == name_of("text.blocks[3].attn.q") == "text.blocks.3.attn.q"


def test_a_new_adapter_begins_as_that_of_peft() -> None:
    """A uniform in +-1/sqrt(inputs), B zero, scale alpha / rank."""
    found = adapted(with_adapters(TREE, {"text.blocks[0].mlp.up": (23, 11)}, 400, 8.0, 0), AdaptedWeight)
    update = found["text.blocks[0].mlp.up"]
    bound = 11**-0.5
    assert update.a.shape == (400, 11)
    assert update.b.shape == (23, 400)
    assert update.scale == 8 / 400
    assert not update.b.any()
    assert 0.99 * bound < np.abs(update.a).max() <= bound
    # the mean of 4,400 numbers, whose deviation is 1/sqrt 3 of the bound, within 4 of its own deviations
    assert abs(update.a.mean()) < 4 * bound / (3 * 4400) ** 0.5


def test_the_start_of_an_adapter_depends_on_its_seed_and_matrix_alone() -> None:
    shapes = {"text.blocks[0].attn.q": (60, 11), "text.blocks[1].attn.q": (60, 11)}
    both = adapted(with_adapters(TREE, shapes, 2, 8.0, 0), AdaptedWeight)
    alone = adapted(with_adapters(TREE, {"text.blocks[1].attn.q": (60, 11)}, 2, 8.0, 0), AdaptedWeight)
    other = adapted(with_adapters(TREE, shapes, 2, 8.0, 1), AdaptedWeight)
    first, second = both.values()
    np.testing.assert_array_equal(alone["text.blocks[1].attn.q"].a, second.a)
    assert not np.array_equal(first.a, second.a)
    assert not np.array_equal(other["text.blocks[1].attn.q"].a, second.a)


def test_rows_of_tokens_begin_as_those_of_the_table() -> None:
    table = np.random.default_rng(0).standard_normal(TREE.text.embedding.shape).astype(np.float32)
    tree = map_tree(lambda leaf: table if leaf.path == "text.embedding" else leaf.value, TREE)
    found = adapted(with_rows(tree, {"text.embedding"}, {9, 3}, np.dtype(np.float64)), AdaptedRows)
    assert found.keys() == {"text.embedding"}
    assert found["text.embedding"].ids.tolist() == [3, 9]
    np.testing.assert_array_equal(found["text.embedding"].rows, table[[3, 9]].astype(np.float64), strict=True)
