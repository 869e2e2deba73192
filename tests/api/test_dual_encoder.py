"""`DualEncoder`: pictures and texts become rows, scores, probabilities and a loss, as the second spelling has them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from agreement import assert_agrees
from encoder_folders import CLIP, SIGLIP, Second, write, write_clip, write_siglip
from PIL import Image

import npgemma
from npgemma import testing
from npgemma.checkpoints import clip, siglip
from npgemma.checkpoints.footprint import Run
from npgemma.errors import BadModel, BadPicture, BadPrompt, TooLittleMemory

TEXTS = ["a red cat", "the dogs", "blue"]
WRITERS = {"siglip": write_siglip, "clip": write_clip}
SECOND = {"siglip": Second(siglip, SIGLIP), "clip": Second(clip, CLIP)}
LOGISTIC = {"siglip": lambda x: 1 / (1 + np.exp(-x)), "clip": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)}


@pytest.fixture(scope="module", params=WRITERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return WRITERS[kind](tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def model(folder):
    return npgemma.DualEncoder.load(folder, "float64")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (20 + i, 17, 3), np.uint8) for i in range(5)]


def embedded(kind, model, pictures, texts):
    """The rows of pictures and texts by the second spelling."""
    second = SECOND[kind]
    pixels, ids = model.processor(pictures), model.text_rows(texts).ids
    return second(f"{kind}_images", pixels), second(f"{kind}_texts", ids)


# -------------------------------------------------------------------------------------------------------------- values


def test_rows_scores_and_probabilities_are_those_of_the_second_spelling(kind, model, pictures):
    images, texts = embedded(kind, model, pictures, TEXTS)
    assert_agrees(model.encode_images(pictures), images)
    assert_agrees(model.encode_texts(TEXTS), texts)
    scores = SECOND[kind](kind, model.processor(pictures), model.text_rows(TEXTS).ids)
    assert_agrees(model.logits(pictures, TEXTS), scores)
    assert_agrees(model.classify(pictures, TEXTS), LOGISTIC[kind](scores))


def test_the_loss_is_that_of_the_papers(kind, model, pictures):
    """Equation 1 of SigLIP; figure 3 of CLIP."""
    scores = model.logits(pictures[:3], TEXTS)
    right = np.eye(3)
    if kind == "siglip":
        expected = -np.log(LOGISTIC[kind]((2 * right - 1) * scores)).sum() / 3
    else:
        rows, columns = LOGISTIC[kind](scores), LOGISTIC[kind](scores.T)
        expected = -(np.log(rows.diagonal()).mean() + np.log(columns.diagonal()).mean()) / 2
    assert model.loss(pictures[:3], TEXTS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_the_batch_size_does_not_matter(batch_size, model, pictures):
    assert_agrees(model.encode_images(pictures, batch_size), model.encode_images(pictures))
    texts = [*TEXTS, "", "a"]
    assert_agrees(model.encode_texts(texts, batch_size=batch_size), model.encode_texts(texts))


def test_rows_have_length_one_and_the_dtype_of_the_model(folder, pictures):
    single = npgemma.load(folder)
    for rows in (single.encode_images(pictures), single.encode_texts(TEXTS)):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, rtol=0, atol=4 * np.finfo(np.float32).eps)


def test_a_single_picture_and_a_single_text_are_lists_of_one(model, pictures):
    assert_agrees(model.logits(pictures[0], "blue"), model.logits(pictures[:1], ["blue"]))


def test_empty_lists_give_no_rows(model, pictures):
    width = model.config.embedding_size
    assert model.encode_images([]).shape == model.encode_texts([]).shape == (0, width)
    assert model.logits(pictures, []).shape == (5, 0)
    assert model.classify([], TEXTS).shape == (0, 3)


def test_all_texts_without_words_are_the_same_to_siglip_1(kind, model):
    """It deletes punctuation; CLIP reads it."""
    one, two, three = model.text_rows(["?!", "", "..."]).ids.tolist()
    assert (one == two == three) == (kind == "siglip")
    assert np.isfinite(model.encode_texts(["?!", "", "..."])).all()


# ------------------------------------------------------------------------------------------------------- texts too long


def test_a_long_text_keeps_its_beginning_and_its_end_token(model):
    context = model.config.text.max_position_embeddings
    rows = model.text_rows(["blue", "the cat " * 40])
    assert rows.ids.shape == (2, context)
    assert rows.truncated == [1]
    assert rows.ids[1, -1] == model.tokenizer.end_id
    assert rows.ids[1, :-1].tolist() == model.tokenizer.encode("the cat " * 40)[: context - 1]


def test_strict_refuses_a_long_text(model, pictures):
    for run in (model.encode_texts, model.text_rows):
        with pytest.raises(BadPrompt, match=r"the text 'the cat the .*' has \d+ tokens, and the model reads 12, the"):
            run(["blue", "the cat " * 40], strict=True)
    with pytest.raises(BadPrompt, match="use fewer words"):
        model.classify(pictures, ["the cat " * 40], strict=True)


# ---------------------------------------------------------------------------------------------------------------- taps


def test_taps_pass_every_tensor_and_may_change_it(model, pictures):
    taps = npgemma.Recorder()
    images, texts = model.encode_images(pictures, tap=taps), model.encode_texts(TEXTS, tap=taps)
    assert {"pixel_values", "image_embeds", "text_embeds"} < set(taps)
    assert_agrees(taps["image_embeds"], images)
    assert_agrees(taps["text_embeds"], texts)

    def zero(name, x):
        return np.zeros_like(x) if name == "pixel_values" else x

    rows = model.encode_images(pictures, tap=zero)
    assert_agrees(rows, np.broadcast_to(rows[:1], rows.shape))
    assert np.abs(rows - images).max() > 0.01


def test_what_is_no_tap_is_refused(model, pictures):
    with pytest.raises(TypeError, match="is not a tap"):
        model.encode_images(pictures, tap=lambda x: x)


# --------------------------------------------------------------------------------------------- folders that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "{kind}_text_model"}, "this is the text tower alone; give the folder of the whole model"),
        ({"model_type": "{kind}_vision_model"}, "this is the vision tower alone; give the folder of the whole model"),
        ({"model_type": "siglip2"}, "a SigLIP 2 for pictures of any shape"),
        ({"model_type": "vit"}, "does not hold a DualEncoder; npgemma.load loads any model"),
    ],
)
def test_a_folder_of_another_kind_is_refused(change, message, kind, tmp_path):
    made = WRITERS[kind](tmp_path)
    content = json.loads((made / "config.json").read_text())
    content |= {key: value.format(kind=kind) for key, value in change.items()}
    (made / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadModel, match=message):
        npgemma.DualEncoder.load(made)


def test_the_tokenizer_of_another_model_is_refused(kind, tmp_path):
    """Of more tokens than the table has rows, or with another end."""
    made = WRITERS[kind](tmp_path / "made")
    other = WRITERS["clip" if kind == "siglip" else "siglip"](tmp_path / "other")
    file = other / ("vocab.json" if kind == "siglip" else "spiece.model")
    with pytest.raises(BadModel, match=r"vocab\.json|spiece\.model"):
        npgemma.load(made, tokenizer=file).encode_texts("a cat")


def test_a_clip_that_ends_texts_with_another_token_than_its_tokenizer_is_refused(tmp_path):
    made = write_clip(tmp_path)
    content = json.loads((made / "config.json").read_text())
    content["text_config"]["eos_token_id"] = 7
    (made / "config.json").write_text(json.dumps(content))
    model = npgemma.load(made)
    with pytest.raises(BadModel, match="the tokenizer ends texts with token 520, and the model with 7"):
        model.encode_texts("a cat")


def test_a_tokenizer_of_fewer_than_half_the_pieces_is_refused(tmp_path):
    """SigLIP 1 has 32,000 pieces and SigLIP 2 has 256,000, and both end texts with token 1."""
    for rows, fits in ((102, True), (103, False)):
        folder = write(tmp_path / str(rows), siglip, replace(SIGLIP, text=replace(SIGLIP.text, vocab_size=rows)))
        model = npgemma.load(folder, tokenizer=write_siglip(tmp_path / "other") / "spiece.model")
        if fits:
            assert model.encode_texts("a cat").shape == (1, 16)
        else:
            with pytest.raises(BadModel, match="the tokenizer has 51 pieces, and the embedding table 103 rows"):
                model.encode_texts("a cat")


def test_an_adapter_is_refused(folder, tmp_path):
    with pytest.raises(BadModel, match="npgemma merges adapters into PaliGemma and Gemma only"):
        npgemma.load(folder, adapter=tmp_path)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda m, p: m.classify(p, []), BadPrompt, "there are no texts to choose from; give at least one"),
        (lambda m, p: m.encode_texts(["a", "b\ud800"]), BadPrompt, "not valid text: surrogates not allowed"),
        (lambda m, p: m.loss(p, TEXTS), BadPrompt, "there are 5 pictures and 3 texts; a loss needs"),
        (lambda m, p: m.loss([], []), BadPrompt, "there are 0 pictures and 0 texts; a loss needs"),
        (lambda m, p: m.encode_images(["no.png"]), BadPicture, r"no\.png was not found"),
        (lambda m, p: m.encode_images(p, 0), ValueError, "batch_size is 0; it must be a whole number"),
    ],
)
def test_wrong_inputs_are_refused(run, error, message, model, pictures):
    with pytest.raises(error, match=message):
        run(model, pictures)


def test_memory_is_refused_for_a_batch_and_not_for_all_pictures(folder):
    """A picture of one pixel costs as much as any: it is resized."""
    guard = npgemma.load(folder).guard
    small, large = (guard.footprint(Run(guard.budget.weights, 4, count, [])).total for count in (2, 40))
    limited = npgemma.load(folder, max_memory=(small + large) // 2)
    pictures = [Image.new("RGB", (1, 1))] * 40
    assert limited.encode_images(pictures, 2).shape[0] == 40
    with pytest.raises(TooLittleMemory, match=r"; use a smaller batch_size \(embed --batch-size\), or fewer pictures"):
        limited.encode_images(pictures, 40)


def test_a_file_that_is_cut_short_is_an_error(kind, tmp_path, pictures):
    made = WRITERS[kind](tmp_path)
    model = npgemma.load(made)
    file = made / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 100)
    for run in (lambda: model.encode_images(pictures), lambda: model.encode_texts(TEXTS)):
        with pytest.raises(BadModel, match="has been cut short"):
            run()


def test_a_weight_that_is_nan_is_named(kind, tmp_path, pictures):
    made = WRITERS[kind](tmp_path)
    tensors = dict(SECOND[kind].tensors)
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    testing.save_tensors(tensors, made / "model.safetensors")
    model = npgemma.load(made)
    assert np.isfinite(model.encode_texts(TEXTS)).all()
    with pytest.raises(BadModel, match=rf"weights are not finite: {name} contains NaN"):
        model.encode_images(pictures)


def test_a_scale_that_overflows_is_named(kind, tmp_path, pictures):
    """No training makes one; e^800 is infinite in float64."""
    made = WRITERS[kind](tmp_path)
    tensors = SECOND[kind].tensors
    tensors |= {"logit_scale": np.full_like(tensors["logit_scale"], 800)}
    testing.save_tensors(tensors, made / "model.safetensors")
    model = npgemma.load(made, "float64")
    for run in (model.logits, model.loss):
        with pytest.raises(BadModel, match="its activations overflow float64 at the tap scale"):
            run(pictures[:3], TEXTS)
