"""`Classifier`: logits and labels of pictures, as the second spelling has them."""

import json

import numpy as np
import pytest
from agreement import assert_agrees
from encoder_folders import VIT, Second, write_clip, write_vit

import npgemma
from npgemma import testing
from npgemma.checkpoints import vit
from npgemma.errors import BadModel, BadPicture, BadPrompt

SECOND = Second(vit, VIT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def model(folder):
    return npgemma.Classifier.load(folder, "float64")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (20 + i, 17, 3), np.uint8) for i in range(5)]


def test_logits_are_those_of_the_second_spelling(model, pictures):
    pixels = model.processor(pictures)
    assert_agrees(model.forward(pixels), SECOND("vit", pixels))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_labels_come_with_their_probabilities_the_likeliest_first(batch_size, model, pictures):
    scores = np.exp(SECOND("vit", model.processor(pictures)))
    expected = scores / scores.sum(-1, keepdims=True)
    found = model.classify(pictures, top=3, batch_size=batch_size)
    for labels, row in zip(found, expected, strict=True):
        best = np.argsort(-row)[:3]
        assert [label.name for label in labels] == [VIT.labels[i] for i in best]
        assert_agrees(np.array([label.probability for label in labels]), row[best])


def test_several_labels_may_fit_if_the_config_says_so(model, pictures, tmp_path):
    content = vit.config_json(VIT) | {"problem_type": "multi_label_classification"}
    folder = write_vit(tmp_path)
    (folder / "config.json").write_text(json.dumps(content))
    several = npgemma.Classifier.load(folder, "float64")
    expected = 1 / (1 + np.exp(-SECOND("vit", model.processor(pictures))))
    for labels, row in zip(several.classify(pictures), expected, strict=True):
        assert [label.name for label in labels] == [VIT.labels[i] for i in np.argsort(-row)]
        assert_agrees(np.array([label.probability for label in labels]), np.sort(row)[::-1])


def test_there_are_five_labels_by_default_and_never_more_than_the_model_has(model, pictures):
    (five,), (all_of_them,) = model.classify(pictures[0]), model.classify(pictures[0], top=1000)
    assert five == all_of_them
    assert sorted(label.name for label in five) == sorted(VIT.labels)
    assert sum(label.probability for label in five) == pytest.approx(1)
    assert model.classify([]) == []


def test_taps_pass_every_tensor(model, pictures):
    taps = npgemma.Recorder()
    logits = model.forward(model.processor(pictures), tap=taps)
    np.testing.assert_array_equal(taps["logits"], logits, strict=True)
    assert taps.axes["logits"] == "B A"


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (
            lambda m: m.forward(np.zeros((1, 3, 15, 14))),
            BadPrompt,
            r"\[pictures, 3, 14, 14\], not float64 \[1, 3, 15",
        ),
        (lambda m: m.forward(np.full((1, 3, 14, 14), np.nan)), BadPrompt, "picture 0 has NaN or infinity"),
        (lambda m: m.classify("no.png"), BadPicture, r"no\.png was not found"),
        (lambda m: m.classify([], top=0), ValueError, "top is 0; it must be a whole number, 1 or more"),
    ],
)
def test_wrong_inputs_are_refused(run, error, message, model):
    with pytest.raises(error, match=message):
        run(model)


def test_none_comes_with_npgemma():
    with pytest.raises(BadModel, match="npgemma comes without a model for Classifier; give the path of one"):
        npgemma.Classifier.load()


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(BadModel, match=r"does not hold a Classifier; npgemma\.load loads any model"):
        npgemma.Classifier.load(write_clip(tmp_path))


def test_a_deit_with_a_distillation_token_is_refused_by_name(tmp_path):
    made = write_vit(tmp_path)
    content = json.loads((made / "config.json").read_text()) | {"model_type": "deit"}
    (made / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadModel, match="this is a DeiT with a distillation token"):
        npgemma.load(made)


def test_a_weight_that_is_infinite_is_named(tmp_path, pictures):
    made = write_vit(tmp_path)
    tensors = SECOND.tensors | {"classifier.bias": np.full(5, np.inf)}
    testing.save_tensors(tensors, made / "model.safetensors")
    with pytest.raises(BadModel, match=r"weights are not finite: classifier\.bias contains NaN or infinity"):
        npgemma.load(made).classify(pictures)
