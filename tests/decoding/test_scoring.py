"""A score is the log-probability of an answer, token by token, as a step-by-step decoding would have it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import npgemma
from npgemma import Score
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.activations import log_softmax, softmax

SAMPLE = EMBEDDED.parent / "sample.png"
PROMPT = "answer en what color is the star?"
# Sums of a dozen layers in another order, in float64.
FLOAT64 = dict(rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return npgemma.load(dtype="float64")


def test_a_score_is_that_of_forward_and_ends_with_the_end_token(model: VisionLanguageModel) -> None:
    score = model.score(SAMPLE, PROMPT, "blue")
    assert score.token_ids == [*model.tokenizer.encode("blue"), model.config.eos_token_ids[0]]
    inputs = model.processor([[SAMPLE]], [PROMPT])
    ids = np.concatenate([inputs.input_ids[0], score.token_ids])
    types = (np.arange(len(ids)) >= len(inputs.input_ids[0])).astype(int)
    logits = model.forward(ids, inputs.pixel_values, types)
    rows = np.arange(len(inputs.input_ids[0]) - 1, len(ids) - 1)
    expected = np.log(softmax(logits))[rows, ids[rows + 1]]
    np.testing.assert_allclose(score.logprobs, expected, **FLOAT64)


def test_probabilities_of_all_next_tokens_sum_to_one(model: VisionLanguageModel) -> None:
    """Over every answer of one token, the end token taken off."""
    prompts = model.processor([[SAMPLE]], [PROMPT])
    logits = model.forward(prompts.input_ids[0], prompts.pixel_values)[-1:]
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)


def test_the_greedy_answer_is_likelier_than_others(model: VisionLanguageModel) -> None:
    said = model.generate(SAMPLE, PROMPT).text
    scores = {answer: model.score(SAMPLE, PROMPT, answer).total for answer in (said, "red", "two", "")}
    assert max(scores, key=scores.__getitem__) == said == "blue"


def test_scores_do_not_depend_on_what_runs_beside_them(model: VisionLanguageModel) -> None:
    suffixes = ["blue", "a very long and unlikely answer", "red"]
    together = model.score([SAMPLE] * 3, [PROMPT, "caption en", PROMPT], suffixes)
    alone = [
        model.score(SAMPLE, prompt, suffix)
        for prompt, suffix in zip([PROMPT, "caption en", PROMPT], suffixes, strict=True)
    ]
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, **FLOAT64)


def test_sum_loss_and_perplexity_are_of_the_log_probabilities() -> None:
    score = Score([5, 6], [math.log(0.5), math.log(0.125)])
    assert score.total == pytest.approx(math.log(1 / 16))
    assert score.loss == pytest.approx(math.log(4))
    assert score.perplexity == pytest.approx(4)


def test_no_prompts_have_no_scores_and_unpaired_ones_are_refused(model: VisionLanguageModel) -> None:
    assert model.score([], [], []) == []
    with pytest.raises(npgemma.BadPrompt, match="2 prompts and 1 suffixes"):
        model.score([SAMPLE, SAMPLE], ["a", "b"], ["c"])


def test_a_suffix_too_long_for_the_model_is_refused(model: VisionLanguageModel) -> None:
    with pytest.raises(npgemma.BadPrompt, match="positions"):
        model.score(SAMPLE, PROMPT, "blue " * 1024)


def test_image_features_equal_the_projector_tap(model: VisionLanguageModel) -> None:
    taps = npgemma.Recorder("projector")
    inputs = model.processor([[SAMPLE]], ["caption en"])
    model.forward(inputs.input_ids[0], inputs.pixel_values, tap=taps)
    np.testing.assert_allclose(model.image_features([SAMPLE]), taps["projector"], **FLOAT64)
    np.testing.assert_array_equal(model.image_features(SAMPLE), model.image_features([SAMPLE]), strict=True)
    assert model.image_features([SAMPLE, SAMPLE]).shape == (2, 36, 128)
    assert model.image_features([]).shape == (0, 36, 128)


def test_the_command_ranks_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(SAMPLE), PROMPT, "red", "blue"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == ["blue", "red"]
    assert float(lines[0][0]) > float(lines[1][0])
    assert main(["score", str(SAMPLE), PROMPT, "red", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["suffix"] == "red"
    assert found["total"] == pytest.approx(sum(found["logprobs"]))
    assert len(found["token_ids"]) == len(found["logprobs"])


def test_logits_that_are_not_finite_are_refused(model: VisionLanguageModel) -> None:
    """Otherwise the score would be NaN, which JSON cannot hold."""
    text = model.weights.text
    head = np.array(text.embedding)
    head[-1] = 0x7FC0  # bfloat16's NaN, in a row that no token has
    broken = replace(model.weights, text=replace(text, head=head))
    with pytest.raises(npgemma.BadModel, match=r"not finite: lm_head.weight contains NaN"):
        VisionLanguageModel(model.folder, model.config, broken, model.dtype).score(SAMPLE, "ocr", "FNY")
