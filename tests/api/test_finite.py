"""NaN, infinity and overflow: one error that names the tensor, and not a word from NumPy, however the model is used."""

import itertools
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.api.finite import Overflows, watched
from npgemma.checkpoints.paligemma import names_of, read_config, read_tensors
from npgemma.golden.record import record
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.tree import map_tree

SAMPLE = npgemma.sample_picture()
JOB = npgemma.Job("a", (SAMPLE.name,), "ocr", SAMPLE.parent)
CONFIG = read_config(EMBEDDED)
NAMES = list(read_tensors(EMBEDDED, CONFIG))
KINDS = [name for name in NAMES if not any(f"layers.{i}." in name for i in range(1, 9))]


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """NumPy warns, as it does by default, and a warning is a failure of the test."""
    with np.errstate(all="warn", under="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def model() -> npgemma.VisionLanguageModel:
    return npgemma.load(resident=True)


def copy_of(model: npgemma.VisionLanguageModel, change) -> npgemma.VisionLanguageModel:
    """A model whose weights are `change(name, array)`."""
    names = names_of(model.weights, model.config)
    weights = map_tree(lambda leaf: change(names[leaf.path], leaf.value), model.weights)
    return npgemma.VisionLanguageModel(model.folder, model.config, weights, model.dtype)


def planted(model, name: str, value: float, at: int = -1) -> npgemma.VisionLanguageModel:
    """The model with one number of one tensor replaced."""

    def change(each, x):
        if each != name:
            return x
        x = x.copy()
        x.reshape(-1)[at] = value
        return x

    return copy_of(model, change)


def scaled(model, name: str, factor: float) -> npgemma.VisionLanguageModel:
    return copy_of(model, lambda each, x: x * np.float32(factor) if each == name else x)


def in_float64(model: npgemma.VisionLanguageModel) -> npgemma.VisionLanguageModel:
    return npgemma.VisionLanguageModel(model.folder, model.config, model.weights, np.dtype(np.float64))


def ids_and_pixels(model):
    inputs = model.processor([SAMPLE], ["ocr"])
    return inputs.input_ids[0], inputs.pixel_values


USES = {
    "forward": lambda m: m.forward(*ids_and_pixels(m)),
    "forward with a tap": lambda m: m.forward(*ids_and_pixels(m), tap=npgemma.Recorder("logits")),
    "generate": lambda m: m.generate(SAMPLE, "ocr", max_new_tokens=4),
    "generate several": lambda m: m.generate([SAMPLE, SAMPLE], ["ocr", "caption en"], max_new_tokens=4),
    "samples": lambda m: m.generate(SAMPLE, "ocr", temperature=1.0, num_return_sequences=2, max_new_tokens=4),
    "beams": lambda m: m.generate(SAMPLE, "ocr", num_beams=2, max_new_tokens=4),
    "stream": lambda m: list(m.stream(SAMPLE, "ocr")),
    "generate_ids": lambda m: m.generate_ids(*ids_and_pixels(m)),
    "score": lambda m: m.score(SAMPLE, "ocr", "FNY"),
    "batch": lambda m: list(npgemma.answer_jobs(m, [JOB], max_new_tokens=4)),
}


@pytest.mark.parametrize(("name", "value"), [*zip(KINDS, itertools.cycle([np.nan, np.inf, -np.inf]))])
def test_a_tensor_of_each_kind_is_named(name, value, model):
    with pytest.raises(npgemma.BadModel) as error:
        planted(model, name, value).forward(*ids_and_pixels(model))
    assert str(error.value) == (
        f"the model's weights are not finite: {name} contains NaN or infinity; "
        f"run 'npgemma verify {EMBEDDED}', and download or save the model again"
    )
    assert type(error.value) is npgemma.BadModel


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_model_names_the_tensor(use, model):
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    with pytest.raises(npgemma.BadModel, match=f"not finite: {name} contains NaN"):
        USES[use](planted(model, name, np.nan))


def test_image_features_name_a_tensor_of_the_vision_tower(model):
    name = "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias"
    with pytest.raises(npgemma.BadModel, match=f"not finite: {name} contains NaN"):
        planted(model, name, np.inf).image_features(SAMPLE)


def test_a_golden_file_names_the_tensor_and_is_not_written(model, tmp_path):
    name = "multi_modal_projector.linear.weight"
    with pytest.raises(npgemma.BadModel, match=f"not finite: {name} contains NaN"):
        record(planted(model, name, np.nan), [SAMPLE], "ocr", tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_at_most_three_of_many_tensors_are_named(model):
    broken = copy_of(model, lambda name, x: np.full_like(x, np.nan))
    with pytest.raises(npgemma.BadModel) as error:
        broken.generate(SAMPLE, "ocr")
    assert f" and {len(NAMES) - 3} more contain NaN" in str(error.value)
    assert str(error.value).count(".weight") + str(error.value).count(".bias") == 3


# ------------------------------------------------------------------------------------------------------------- overflow


@pytest.mark.parametrize("use", USES)
def test_an_overflow_that_would_leave_all_tokens_equally_likely_is_an_error(use, model):
    """The square in the norm after it is infinite, so the norm is 0, and so are all logits: finite, and nonsense."""
    with pytest.raises(npgemma.BadModel, match="weights are finite, and its activations overflow float32") as error:
        USES[use](scaled(model, "language_model.model.layers.1.mlp.up_proj.weight", 1e30))
    assert "at the tap text.layers.1.mlp.up; compute in float64 (--dtype float64), or" in str(error.value)


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", "vision.embedding.patches"),
        ("multi_modal_projector.linear.weight", "projector"),
        ("language_model.model.layers.0.self_attn.v_proj.weight", "text.layers.0.attn.v"),
        ("language_model.model.layers.2.self_attn.o_proj.weight", "text.layers.2.attn.out"),
    ],
)
def test_the_tap_where_an_overflow_begins_is_named(name, tap, model):
    with pytest.raises(npgemma.BadModel, match=f"overflow float32 at the tap {tap};"):
        scaled(model, name, 1e36).generate(SAMPLE, "ocr")


def test_a_float64_run_has_room_for_what_overflows_in_float32(model):
    large = in_float64(scaled(model, "language_model.model.layers.1.mlp.up_proj.weight", 1e30))
    logits = large.forward(*ids_and_pixels(model))
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 1


def test_a_golden_file_is_not_recorded_if_float32_overflows(model, tmp_path):
    broken = scaled(model, "language_model.model.layers.1.mlp.up_proj.weight", 1e30)
    with pytest.raises(npgemma.BadModel, match="finite in float64 and overflows in float32"):
        record(broken, [SAMPLE], "ocr", tmp_path / "g.safetensors")


def test_a_harmless_overflow_gives_the_answer(model):
    """The cube in gelu overflows above 7e12, and tanh of infinity is 1: gelu(x) = x, as it should be."""
    name = "language_model.model.layers.3.mlp.gate_proj.weight"
    large = scaled(model, name, 1e14)
    exact = in_float64(large).forward(*ids_and_pixels(model))
    error = np.abs(large.forward(*ids_and_pixels(model)) - exact).max()
    assert (
        error < 1e-4 * np.abs(exact).max()
    )  # 1e3 times the roundoff of float32, for a sum of 1e2 products in 12 layers


def test_a_run_is_repeated_once_for_its_harmless_overflows(model):
    """And once more where something new begins, as jobs of a batch do."""
    overflows, repeated = Overflows(), []
    tensors = [np.ones(3, np.float32), np.ones(3, np.float32), np.full(3, 1e30, np.float32)]

    def run():
        for i, x in enumerate(tensors):
            overflows.harmless &= i < 2
            _ = np.square(x * np.float32(1e25))
            yield i

    def again(tap):
        repeated.append(len(repeated))
        tap("x", tensors[2 * (len(repeated) - 1)], "T")

    found = watched(model, run(), again, overflows)
    assert [next(found), next(found), repeated] == [0, 1, [0]]
    with pytest.raises(npgemma.BadModel, match="overflow float32 at the tap x;"):
        next(found)
    assert repeated == [0, 1]


# ------------------------------------------------------------------------------------------------------ taps and pixels


def test_what_a_tap_makes_infinite_is_returned(model):
    """Whoever replaces a tensor sees what becomes of it."""

    def broken(name, x, axes):
        return np.full_like(x, np.nan) if name == "text.layers.3.out" else x

    assert np.isnan(model.forward(*ids_and_pixels(model), tap=broken)).all()


@pytest.mark.parametrize("use", ["forward", "generate_ids"])
def test_pixels_that_are_not_finite_are_told_from_weights(use, model):
    ids, pixels = ids_and_pixels(model)
    pixels[0, 1, 2, 3] = np.nan
    with pytest.raises(npgemma.BadPrompt, match="pixel_values are not finite: picture 0 has NaN"):
        getattr(model, use)(ids, pixels)


def test_numpy_still_raises_for_who_asks_it_to(model):
    """The tests of this package do: an overflow in a healthy model would be a fault."""
    large = scaled(model, "language_model.model.layers.3.mlp.gate_proj.weight", 1e14)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        large.forward(*ids_and_pixels(model))


def test_signalling_nans_of_a_file_are_named(tmp_path):
    """Widening one to float64 raises a flag of the processor, of which NumPy would warn while the model is loaded."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "model"))
    name, path = "language_model.model.layers.0.mlp.up_proj.weight", folder / "model.safetensors"
    stored = bytearray(path.read_bytes())
    length = int.from_bytes(stored[:8], "little")
    begin = 8 + length + json.loads(stored[8 : 8 + length])[name]["data_offsets"][0]
    stored[begin : begin + 2] = (0x7F81).to_bytes(2, "little")
    path.write_bytes(stored)
    for options in ({}, {"resident": True}, {"dtype": "float64", "resident": True}):
        with pytest.raises(npgemma.BadModel, match=f"not finite: {name} contains"):
            npgemma.load(folder, **options).generate(SAMPLE, "ocr")
