"""Loading language models: which class a folder is, adapters, memory, damage, jobs, and pictures that are refused."""

import json
from pathlib import Path

import language_folders as small
import numpy as np
import pytest
from agreement import assert_agrees
from answers import assert_same
from language_folders import BOS, PIECES
from measure_memory import Recording, traced

import npgemma
from npgemma import testing
from npgemma.api.guard import TextGuard
from npgemma.api.language import LanguageModel
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.language_model import footprint
from npgemma.errors import BadModel, BadPrompt, TooLittleMemory

TEXT = "The capital of the cat is"
PICTURE = npgemma.sample_picture()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small.write_folder(tmp_path_factory.mktemp("language"), small.config_of("gemma2"))


@pytest.fixture(scope="module")
def model(folder) -> LanguageModel:
    return npgemma.load(folder)


# --------------------------------------------------------------------------------------------------------------- class


def test_the_model_type_decides_the_class(folder, small_folder):
    assert type(npgemma.load(folder)) is type(LanguageModel.load(folder)) is LanguageModel
    assert type(npgemma.load(small_folder)) is npgemma.VisionLanguageModel
    assert type(npgemma.load(folder / "model.safetensors")) is LanguageModel


def test_a_class_loads_its_own_models_alone(folder, small_folder):
    with pytest.raises(BadModel) as error:
        npgemma.VisionLanguageModel.load(folder)
    assert str(error.value) == f"{folder} does not hold a VisionLanguageModel; npgemma.load loads any model"
    with pytest.raises(BadModel) as error:
        LanguageModel.load(small_folder)
    assert str(error.value) == f"{small_folder} does not hold a LanguageModel; npgemma.load loads any model"


@pytest.mark.parametrize(
    ("kind", "found"), [("llama", "'llama'"), ("gemma3n", "'gemma3n'"), (None, "missing"), (["gemma"], "['gemma']")]
)
def test_another_model_type_is_refused_with_those_that_are_supported(kind, found, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(BadModel) as error:
        npgemma.load(tmp_path)
    supported = "paligemma, gemma, gemma2, gemma3_text, gemma3, siglip, clip, vit"
    assert str(error.value) == f"{tmp_path / 'config.json'}: model_type is {found}; npgemma reads {supported}"


@pytest.mark.parametrize(("dtype", "resident"), [("float32", True), ("float64", True), ("float64", False)])
def test_weights_may_be_resident(dtype, resident, folder):
    loaded = npgemma.load(folder, dtype, resident)
    ids = loaded.processor.encode(TEXT)
    assert loaded.weights.head.dtype == (dtype if resident else "float32")
    assert_agrees(loaded.forward(ids), small.logits(loaded.config, ids))


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("images", [[[PICTURE]], [PICTURE], [str(PICTURE)], [np.zeros((3, 3, 3), np.uint8)]], ids=str)
def test_a_picture_is_refused(images, model):
    with pytest.raises(BadPrompt, match="a language model reads no pictures; leave them out, or load a PaliGemma"):
        model.processor(images, [TEXT])


def test_the_processor_reads_texts_without_pictures(model):
    found = model.processor([[], ()], [TEXT, ""])
    assert [ids.tolist() for ids in found.input_ids] == [[BOS, *model.tokenizer.encode(TEXT)], [BOS]]
    assert [types.tolist() for types in found.token_type_ids] == [[1] * len(ids) for ids in found.input_ids]
    assert (found.images, len(found.pixel_values)) == ([0, 0], 0)
    with pytest.raises(BadPrompt, match="lists of equal length"):
        model.processor([[]], [TEXT, ""])


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_jobs_without_pictures_are_answered(model):
    texts = [TEXT, "cat", ""]
    jobs = [npgemma.Job(text, (), text, Path(), " red") for text in texts]
    jobs.insert(1, npgemma.Job("picture", (PICTURE.name,), "cat", PICTURE.parent, "s"))
    found = {result.job.id: result for result in npgemma.answer_jobs(model, jobs, 2, score=True, max_new_tokens=4)}
    assert found.pop("picture").error == "a language model reads no pictures; leave them out, or load a PaliGemma"
    assert_same([found[text].generation for text in texts], model.generate(texts, max_new_tokens=4))
    for text, score in zip(texts, model.score(texts, [" red"] * 3), strict=True):
        assert found[text].score.token_ids == score.token_ids
        np.testing.assert_allclose(found[text].score.logprobs, score.logprobs, rtol=0, atol=1e-5)  # float32
    assert {result.size for result in found.values()} == {(0, 0)}


def test_jobs_that_cannot_be_answered_are_errors_of_their_own(model):
    jobs = [npgemma.Job("long", (), "a" * 600, Path()), npgemma.Job("short", (), "a", Path())]
    found = {result.job.id: result for result in npgemma.answer_jobs(model, jobs, max_new_tokens=2)}
    assert "more than the 512 positions of this model" in found["long"].error
    assert len(found["short"].generation.token_ids) == 2


# -------------------------------------------------------------------------------------------------------------- damage


def test_weights_that_are_not_finite_are_named(tmp_path):
    config, name = small.config_of("gemma3_text"), "model.layers.2.self_attn.v_proj.weight"
    x = small.tensors_of(config)[name].copy()
    x[3, 4] = np.nan
    model = npgemma.load(small.write_folder(tmp_path, config, small.tensors_of(config) | {name: x}))
    hint = f"run 'npgemma verify {tmp_path}', and download or save the model again"
    for call in (
        lambda: model.forward(model.processor.encode("cat")),
        lambda: model.generate("cat"),
        lambda: model.generate("cat", num_beams=2),
        lambda: list(model.stream("cat")),
        lambda: model.score("cat", "s"),
        lambda: model.chat([{"role": "user", "content": "cat"}]),
        lambda: list(npgemma.answer_jobs(model, [npgemma.Job("a", (), "cat", Path())])),
    ):
        with pytest.raises(BadModel) as error:
            call()
        assert str(error.value) == f"the model's weights are not finite: {name} contains NaN or infinity; {hint}"


# ------------------------------------------------------------------------------------------------------------- adapter


def test_an_adapter_changes_a_language_model(folder, tmp_path):
    config, rng = small.config_of("gemma2"), np.random.default_rng(1)
    names = ["model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
    tensors, halves = dict(small.tensors_of(config)), {}
    for name in names:
        out, width = tensors[f"{name}.weight"].shape
        a, b = rng.standard_normal((2, width)).astype(np.float32), rng.standard_normal((out, 2)).astype(np.float32)
        halves |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + 0.5 * b.astype(np.float64) @ a  # alpha / r
    testing.save_tensors(halves, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1}))
    adapted = npgemma.load(folder, "float64", adapter=tmp_path)
    ids = adapted.processor.encode(TEXT)
    assert_agrees(adapted.forward(ids), small.logits(config, ids, tensors))


# -------------------------------------------------------------------------------------------------------------- memory


def test_too_little_memory_is_refused(folder):
    with pytest.raises(TooLittleMemory, match=r"more than the 0\.10 GB allowed"):
        npgemma.load(folder, max_memory=100_000_000)
    model = npgemma.load(folder, max_memory=155_000_000)
    assert model.generate(TEXT, max_new_tokens=2).token_ids
    with pytest.raises(TooLittleMemory, match=r"caches.*0\.15 GB allowed; use fewer or shorter prompts"):
        model.generate([TEXT] * 100, max_new_tokens=490)
    logits = np.resize(model.processor.encode(TEXT), 512)
    with pytest.raises(TooLittleMemory, match=r"use fewer or shorter prompts at a time"):
        model.forward(logits)


def test_a_footprint_by_hand():
    """Gemma 3 here has one layer without a window and two with one, of 32 tokens and seven more, so that it moves."""
    config = small.config_of("gemma3_text", sliding_window=32)
    token = 2 * 2 * 6  # key and value, heads, width
    found = footprint(config, Run(1000, 4, 0, [300, 10], 40, samples=3))
    assert found.caches == 4 * 3 * token * ((340 + 2 * 39) + (50 + 2 * 39))
    logits = 8 * 6 * PIECES_AND_TURNS * 4 + 4 * 8 * PIECES_AND_TURNS
    masks = 2 * (300 * 300 + 10 * 10) + 300 * 300
    assert found.activations == 4 * 310 * (4 * 12 + 3 * 20) + logits + masks
    assert found.weights == 1000


PIECES_AND_TURNS = PIECES + 2  # rows of the table of Gemma 3


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_the_caches_of_layers_with_a_window_stay_small(family, tmp_path):
    """In the footprint and in a run: an answer of a million tokens. Any token ends it, so the caches stay empty."""
    kinds = {} if family == "gemma" else {"sliding_window": 64, "layer_types": ("sliding_attention",) * 2}
    config = small.config_of(family, num_hidden_layers=2, max_position_embeddings=1 << 21, **kinds)
    model, budget = npgemma.load(small.write_folder(tmp_path, config)), Recording()
    model.guard = TextGuard(model.config, model.dtype, budget=budget)
    ids = np.resize(np.arange(5, 900), 300)
    peak = traced(lambda: model.generate_ids(ids, 1_000_000, range(config.text.vocab_size)))
    (needed,) = budget.asked
    layers, token = 2, 2 * 2 * 6 * 4  # key and value, heads, width, float32
    everything = layers * token * 1_000_300  # 192 MB
    if family == "gemma":
        assert needed.caches == everything < peak
    else:
        assert needed.caches == layers * token * (64 + 7)
        assert peak < everything / 3  # the blocks of weights and scores that are worked on
