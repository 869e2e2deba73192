"""A convention is told as harmless, and a mistake that looks like it in some rows, layers or steps is found."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Dump, Golden, Report, compare, replay

PORT = dict[str, np.ndarray]
FROM_0 = "positions count from 0; harmless"
INTERLEAVED = "its rotary pairs are interleaved; harmless"
ROTATED = r"(steps\.\d\.)?text\.layers\.\d\.attn\.(q_rope|k_rope|segments\.0\.keys)"
JUDGED = rf"{ROTATED}|(steps\.\d\.)?positions|prompts\.0\.mask|(steps\.\d\.)?text\.(embedding|layers\.[01]\.out)"


@pytest.fixture(scope="module")
def few(golden: Golden) -> Golden:
    """The golden file with the taps that these tests are about."""
    return replace(golden, taps={tap: axes for tap, axes in golden.taps.items() if re.fullmatch(JUDGED, tap)})


def earlier(x: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """Rotated heads, as if the positions of `rows` were one less: pairs are complex numbers, turned by e^(-i f)."""
    first, second = np.split(x.astype(np.float64), 2, -1)
    turned = (first + 1j * second) * np.exp(-1j * 10000.0 ** -(np.arange(16) / 16))
    found = x.copy()
    found[rows] = np.concatenate([turned.real, turned.imag], -1)[rows]
    return found


def pairs(x: np.ndarray) -> np.ndarray:
    """Heads with their halves as interleaved pairs."""
    return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)


def changed(port: PORT, pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> PORT:
    """The port with the taps that match `pattern` changed."""
    return {name: change(x) if re.fullmatch(pattern, name) else x for name, x in port.items()}


def from_0(port: PORT) -> PORT:
    return changed(changed(port, r"(steps\.\d\.)?positions", lambda x: x - 1), ROTATED, earlier)


def judged(golden: Golden, port: PORT) -> Report:
    return compare(golden, Dump({name: port[name] for name in golden.taps if name in port}), allow_missing=["*"])


def wrong(report: Report) -> list[str]:
    return [verdict.name for verdict in report.verdicts if not verdict.explained]


def noted(report: Report, note: str) -> list[str]:
    return [verdict.name for verdict in report.verdicts if note in verdict.note]


def matching(golden: Golden, pattern: str) -> list[str]:
    return [tap for tap in golden.taps if re.fullmatch(pattern, tap)]


def test_port_of_the_same_conventions_has_no_note(few: Golden, float32_port: PORT) -> None:
    report = judged(few, float32_port)
    assert (wrong(report), {verdict.note for verdict in report.verdicts}) == ([], {""})


def test_positions_from_0_are_harmless(few: Golden, float32_port: PORT) -> None:
    report = judged(few, from_0(float32_port))
    assert (report.status, wrong(report)) == (0, [])
    assert noted(report, FROM_0) == matching(few, rf"{ROTATED}|(steps\.\d\.)?positions")


def test_positions_from_0_are_harmless_where_they_alone_are_dumped(few: Golden, float32_port: PORT) -> None:
    positions = {name: float32_port[name] - 1 for name in matching(few, r"(steps\.\d\.)?positions")}
    assert wrong(judged(few, positions)) == []
    positions["steps.2.positions"] += 1
    assert wrong(judged(few, positions)) == ["steps.2.positions"]


def test_interleaved_pairs_are_harmless_also_with_positions_from_0(few: Golden, float32_port: PORT) -> None:
    report = judged(few, changed(from_0(float32_port), ROTATED, pairs))
    assert wrong(report) == []
    assert noted(report, INTERLEAVED) == matching(few, ROTATED)


LAYER = r"(steps\.\d\.)?text\.layers\.2\.attn\.(q_rope|k_rope|segments\.0\.keys)"
OF_STEPS = r"steps\.\d\.text\.layers\.\d\.attn\.(q_rope|k_rope|segments\.0\.keys)"


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (LAYER, earlier),
        (LAYER, pairs),
        (r"text\.layers\.2\.attn\.k_rope", earlier),
        (OF_STEPS, earlier),
        (r"(steps\.\d\.)?text\.layers\.\d\.attn\.q_rope", earlier),
        (r"(steps\.\d\.)?positions", lambda x: x - 1),
    ],
    ids=["layer", "pairs of a layer", "k of a layer", "steps", "q alone", "positions alone"],
)
@pytest.mark.parametrize("count_from_0", [False, True])
def test_layer_or_step_that_does_not_follow_the_others_is_wrong(
    count_from_0: bool, pattern: str, change: Callable, few: Golden, float32_port: PORT
) -> None:
    port = from_0(float32_port) if count_from_0 else float32_port
    report = judged(few, changed(port, pattern, change))
    assert wrong(report) == matching(few, pattern)


@pytest.mark.parametrize(("rows", "bad"), [(slice(36, 40), range(36, 40)), (slice(0, 36), range(36)), (7, [7])])
@pytest.mark.parametrize("count_from_0", [False, True])
def test_rows_that_do_not_follow_the_others_are_wrong(
    count_from_0: bool, rows: slice | int, bad: range, few: Golden, float32_port: PORT
) -> None:
    """If most rows count from 0, the few others are wrong."""
    port = from_0(float32_port) if count_from_0 else float32_port
    late = changed(port, r"text\.layers\.\d\.attn\.[qk]_rope", lambda x: earlier(x, rows))
    found = [v for v in judged(few, late).verdicts if re.fullmatch(r"text\.layers\.\d\.attn\.[qk]_rope", v.name)]
    expected = set(range(40)) - set(bad) if len(bad) > 20 else set(bad)
    for verdict in found:
        assert not verdict.explained
        assert set(verdict.bad_rows) in (set(bad), expected)


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -1e9, -65504.0])
def test_additive_mask_is_harmless_and_a_hidden_row_is_found(hidden: float, few: Golden, float32_port: PORT) -> None:
    mask = np.zeros((1, 1, 40, 40), np.float32)
    report = judged(few, float32_port | {"prompts.0.mask": mask})
    assert (wrong(report), noted(report, "its mask is additive; harmless")) == ([], ["prompts.0.mask"])
    mask[..., 3, 4] = hidden
    report = judged(few, float32_port | {"prompts.0.mask": mask})
    assert (wrong(report), report.first_divergence.bad_rows) == (["prompts.0.mask"], (3,))


def test_numbers_added_to_scores_that_hide_nothing_are_not_a_mask(few: Golden, float32_port: PORT) -> None:
    report = judged(few, float32_port | {"prompts.0.mask": np.full((40, 40), -0.5, np.float32)})
    assert wrong(report) == ["prompts.0.mask"]


def test_embeddings_that_are_scaled_back_later_are_harmless(few: Golden, float32_port: PORT) -> None:
    small = changed(float32_port, r"(steps\.\d\.)?text\.embedding", lambda x: x / np.sqrt(np.float32(128)))
    report = judged(few, small)
    assert wrong(report) == []
    assert noted(report, "it is scaled by 0.08839, and scaled back later") == matching(few, r".*text\.embedding")


def test_embeddings_that_are_not_scaled_back_or_not_all_scaled_are_wrong(few: Golden, float32_port: PORT) -> None:
    text = float32_port["text.embedding"].copy()
    text[36:] /= np.sqrt(128)
    assert wrong(judged(few, float32_port | {"text.embedding": text})) == ["text.embedding"]
    small = float32_port["text.embedding"] / np.sqrt(np.float32(128))
    out = {"text.layers.0.out": float32_port["text.layers.0.out"] * 1.1}
    assert "text.embedding" in wrong(judged(few, float32_port | {"text.embedding": small} | out))
    alone = {"text.embedding": small, "positions": float32_port["positions"]}
    assert wrong(judged(few, alone)) == ["text.embedding"]


def test_replay_continues_with_the_port_in_the_conventions_of_the_model(
    model: VisionLanguageModel, golden: Golden, float32_port: PORT
) -> None:
    port = changed(from_0(float32_port), ROTATED, pairs)
    port["text.layers.1.attn.k_rope"] = np.roll(port["text.layers.1.attn.k_rope"], 1, 0)
    kept = {name: x for name, x in port.items() if re.fullmatch(rf"{ROTATED}|text\.layers\.\d\.out|logits", name)}
    dump = Dump(kept)
    report = replay(model, golden, dump, compare(golden, dump, allow_missing=["*"]))
    assert [verdict.name for verdict in report.culprits][:1] == ["text.layers.1.attn.k_rope"]
    assert all(verdict.block.endswith("text.layers.1") for verdict in report.culprits)  # the caches follow from it
