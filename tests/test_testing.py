"""npgemma has the properties that npgemma.testing gives to others; and each of them catches a model that lacks it."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from PIL import Image
from sequences import counting_from

import npgemma
from npgemma import testing
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.gemma_config import IN_PALIGEMMA, GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout
from npgemma.checkpoints.paligemma import weights as weights_of
from npgemma.checkpoints.towers import VisionConfig
from npgemma.models import paligemma, prefix_lm
from npgemma.models.gemma import logits, new_caches
from npgemma.testing import DrawnModel, Row

DTYPES = ("float32", "float64")
EXAMPLES = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Port:
    """npgemma as the callables that the properties take."""

    def __init__(self, config, tensors, dtype: str = "float64") -> None:
        self.weights = weights_of(tensors, config)
        self.dtype = np.dtype(dtype)

    def full_at(self, row: Row, first: int) -> np.ndarray:
        pixels = row.pixel_values.astype(self.dtype)
        moved = counting_from(self.weights, first)
        return paligemma.forward(moved, row.input_ids, pixels, row.token_type_ids)

    def full(self, row: Row) -> np.ndarray:
        return self.full_at(row, 1)

    def prompt(self, row: Row) -> prefix_lm.Prompt:
        features = paligemma.image_features(self.weights, row.pixel_values.astype(self.dtype))
        return paligemma.make_prompt(self.weights, row.input_ids, row.token_type_ids, features)

    def batch(self, rows: Sequence[Row]) -> list[np.ndarray]:
        caches = [new_caches(self.weights.text, len(row.input_ids), self.dtype) for row in rows]
        hidden = prefix_lm.prefill(self.weights.text, [self.prompt(row) for row in rows], caches)
        ends = np.cumsum([len(row.input_ids) for row in rows])
        return np.split(logits(self.weights.text, hidden), ends[:-1])

    def decode(self, row: Row, following: Sequence[int]) -> np.ndarray:
        caches = [new_caches(self.weights.text, len(row.input_ids) + len(following), self.dtype)]
        found = [prefix_lm.start(self.weights.text, [self.prompt(row)], caches)]
        found += [prefix_lm.step(self.weights.text, np.array([token]), caches) for token in following]
        return np.concatenate(found)


@pytest.mark.parametrize("dtype", DTYPES)
@EXAMPLES
@given(st.data(), testing.models())
def test_npgemma_has_every_property(dtype: str, data: st.DataObject, model: DrawnModel) -> None:
    port = Port(model.config, model.tensors, dtype)
    row, other = (data.draw(testing.token_rows(model.config)) for _ in range(2))
    testing.check_cached_decoding(port.full, port.decode, row)
    testing.check_suffix_causality(port.full, row)
    testing.check_prefix_bidirectionality(port.full, row)
    testing.check_rows_independent(port.batch, [row, other])
    testing.check_position_shift(port.full_at, row, 37)
    testing.check_grouped_heads(lambda config, tensors: Port(config, tensors, dtype).full, model, row)


# ------------------------------------------------------------------------------------------------------------- mutants

GROUPED = DrawnModel(
    PaliGemmaConfig(
        VisionConfig(6, 7, 1, 2, image_size=8, patch_size=4), GemmaConfig(9, 11, 2, 6, 2, 8, 40, 512), True, 38
    ),
    seed=3,
)
ROW = testing.draw_row(GROUPED.config)
PORT = Port(GROUPED.config, GROUPED.tensors)


PALIGEMMA_2 = DrawnModel(
    replace(
        GROUPED.config,
        text=replace(
            IN_PALIGEMMA["gemma2"],
            hidden_size=12,
            intermediate_size=11,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=40,
            query_pre_attn_scalar=3,
            sliding_window=4,
        ),
    ),
    seed=3,
)


def with_text(**changes: object) -> Port:
    """The PaliGemma 2 above with other values in its text_config."""
    config = PALIGEMMA_2.config
    return Port(replace(config, text=replace(config.text, **changes)), PALIGEMMA_2.tensors)


def types_of(row: Row, types: np.ndarray) -> Row:
    return row._replace(token_type_ids=types)


def causal(row: Row) -> np.ndarray:
    return PORT.full(types_of(row, np.ones_like(row.token_type_ids)))


def all_prefix(row: Row) -> np.ndarray:
    return PORT.full(types_of(row, np.zeros_like(row.token_type_ids)))


def one_step_late(row: Row, following: Sequence[int]) -> np.ndarray:
    """The first token is fed twice."""
    return PORT.decode(row, [following[0], *following[:-1]])


def leaking(rows: Sequence[Row]) -> list[np.ndarray]:
    """All sequences run as one: later ones see earlier ones."""
    joined = Row(*(np.concatenate([getattr(row, name) for row in rows]) for name in Row._fields))
    ends = np.cumsum([len(row.input_ids) for row in rows])
    return np.split(PORT.full(joined), ends[:-1])


def absolute(row: Row, first: int) -> np.ndarray:
    """Positions enter the logits themselves."""
    return PORT.full(row) + 1e-3 * first


def wrong_groups(config, tensors) -> Callable[[Row], np.ndarray]:
    """Query head n reads key head n % K."""
    text = config.text
    order = np.arange(text.num_attention_heads).reshape(text.num_key_value_heads, -1).T.reshape(-1)
    changed = {
        name: x.reshape(-1, text.head_dim, x.shape[1])[np.argsort(order)].reshape(x.shape)
        if name.startswith("language_model.") and name.endswith("q_proj.weight")
        else x.reshape(x.shape[0], -1, text.head_dim)[:, np.argsort(order)].reshape(x.shape)
        if name.endswith("o_proj.weight")
        else x
        for name, x in tensors.items()
    }
    return Port(config, changed).full


NO_WINDOW = with_text(sliding_window=512)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: testing.check_cached_decoding(PORT.full, one_step_late, ROW), "cached step.*row 2 is off by"),
        (lambda: testing.check_cached_decoding(PORT.full, lambda *_: np.ones((2, 3)), ROW), r"shape \[2, 3\]"),
        (lambda: testing.check_cached_decoding(all_prefix, PORT.decode, ROW), "cached step"),
        (
            lambda: testing.check_cached_decoding(with_text().full, NO_WINDOW.decode, ROW),
            "cached step.*row 1 is off by",
        ),
        (lambda: testing.check_suffix_causality(all_prefix, ROW), "is seen before its place: row 0"),
        (lambda: testing.check_prefix_bidirectionality(causal, ROW), "prefix row 0 does not see"),
        (lambda: testing.check_rows_independent(leaking, [ROW, ROW]), "sequence 0 depends on its neighbours"),
        (lambda: testing.check_position_shift(absolute, ROW, 5), "positions from 6"),
        (lambda: testing.check_grouped_heads(wrong_groups, GROUPED, ROW), "grouped key heads"),
        (lambda: testing.check_suffix_causality(lambda row: PORT.full(row) * np.nan, ROW), "row 0 is off by nan"),
    ],
)
def test_a_model_without_a_property_is_caught_by_its_check(check: Callable[[], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message), np.errstate(invalid="ignore"):
        check()


def test_a_tolerance_is_a_hundred_units_of_the_largest_logit() -> None:
    big = np.array([[1.0, -8.0]], np.float32)
    assert testing.tolerance(big) == pytest.approx(100 * 2.0**-23 * 8)
    assert testing.tolerance(big, 2.0**-8) == pytest.approx(100 / 32)
    assert testing.tolerance(big.astype(np.float64)) == pytest.approx(100 * 2.0**-52 * 8)


# ---------------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize("family", IN_PALIGEMMA)
def test_paligemmas_of_both_kinds_are_drawn(family: str) -> None:
    generated = settings(database=None, phases=[Phase.generate])
    find(testing.configs(), lambda config: config.text.model_type == family, settings=generated)


@pytest.mark.parametrize(
    "without",
    [
        {"sliding_window": 512},
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"query_pre_attn_scalar": None},
    ],
)
@settings(max_examples=5)
@given(testing.decoder_configs("gemma2"), st.integers(0, 99))
def test_what_paligemma_2_adds_is_felt_by_every_drawn_model(without: dict, text: GemmaConfig, seed: int) -> None:
    """A port that leaves it out has other logits, by far more than rounding."""
    model = DrawnModel(replace(GROUPED.config, text=text, image_token_index=29), seed)
    row = testing.draw_row(model.config, prefix=9, suffix=4)
    full = Port(model.config, model.tensors).full(row)
    other = Port(replace(model.config, text=replace(text, **without)), model.tensors).full(row)
    assert np.abs(full - other).max() > 100 * testing.tolerance(full)


@EXAMPLES
@given(st.data(), testing.models(), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_a_drawn_model_is_a_folder_that_loads(tmp_path_factory, data, model: DrawnModel, dtype: str) -> None:
    """In every stored dtype, with the same logits: its numbers lie on the grid of all three."""
    row = data.draw(testing.token_rows(model.config))
    loaded: VisionLanguageModel = npgemma.load(model.write(tmp_path_factory.mktemp("drawn"), dtype), "float64")
    assert loaded.config == model.config
    found = loaded.forward(row.input_ids, row.pixel_values, row.token_type_ids)
    testing.assert_rows_equal("from a file", found, Port(model.config, model.tensors).full(row))


@EXAMPLES
@given(st.data(), testing.configs())
def test_drawn_weights_have_the_shapes_of_the_config(data: st.DataObject, config) -> None:
    tensors = data.draw(testing.weights(config))
    assert {name: x.shape for name, x in tensors.items()} == hf_layout(config).shapes
    assert ("lm_head.weight" in tensors) == (not config.tied)
    assert all(x.dtype == np.float32 for x in tensors.values())


@EXAMPLES
@given(testing.pictures())
def test_pictures_are_pictures(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8
    assert Image.fromarray(picture).mode == "RGB"
    assert npgemma.io.pixels.pixel_values([npgemma.io.picture.read_picture(picture)], 14).shape == (1, 3, 14, 14)


@EXAMPLES
@given(testing.prompts())
def test_prompts_are_taken_by_the_processor(prompt: str) -> None:
    inputs = npgemma.load().processor([[]], [prompt])
    assert inputs.input_ids[0][0] == 2


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['hypothesis'] = None; import npgemma, npgemma.testing"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'npgemma[test]'" in done.stderr.splitlines()[-1]
