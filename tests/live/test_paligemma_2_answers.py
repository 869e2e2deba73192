"""The answers of a PaliGemma 2 past its window, against transformers in float64: greedy, beams, sampled, scored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_model import IMAGE as IMAGE_ID
from small_model import PICTURES, with_tokenizer

import npgemma
from npgemma.decoding.loop import Limits

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import in_float64, truth  # noqa: E402
from paligemma_2_models import case, noisy, save  # noqa: E402
from torch_beams import ROUNDINGS, as_answers, compare, transformers_beams  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

CASE = replace(case(image_token=IMAGE_ID, vocab_size=IMAGE_ID + 8), tied=False)
NEW = 24
ENDS = tuple(range(1, IMAGE_ID, 20))  # many, so that answers end at various lengths
# Prompts of various lengths about no, one and two pictures; a picture has nine tokens, more than the window.
QUESTIONS = [
    (PICTURES[:1], "caption en"),
    ([], "answer en what color is the star?"),
    (PICTURES[:2], "detect blue star"),
    (PICTURES[1:2], "ocr"),
    (PICTURES[2:], "answer en how many red squares and green circles are there?"),
]
SUFFIXES = ["a blue star", "", "<loc0100><loc0200><loc0300><loc0400> blue star", "two red squares and a shoe", "7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = noisy(CASE, torch.Generator().manual_seed(2))
    model.generation_config.eos_token_id = list(ENDS)
    return with_tokenizer(save(model, CASE, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def ours(folder: Path) -> npgemma.VisionLanguageModel:
    return npgemma.load(folder, "float64")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> "transformers.PaliGemmaForConditionalGeneration":
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return in_float64(model)


def inputs_of(model: npgemma.VisionLanguageModel, pictures: list, prompt: str, answer: list[int] = []) -> dict:  # noqa: B006
    """What transformers receives: a prompt, and an answer as its suffix."""
    inputs = model.processor([pictures], [prompt])
    ids = torch.from_numpy(np.append(inputs.input_ids[0], answer).astype(np.int64))[None]
    types = torch.from_numpy(np.repeat([0, 1], [len(inputs.input_ids[0]), len(answer)]))[None]
    pixels = {"pixel_values": torch.from_numpy(inputs.pixel_values).double()} if pictures else {}
    return {"input_ids": ids, "token_type_ids": types} | pixels


@torch.no_grad()
def logprobs_of(model: torch.nn.Module, inputs: dict, answer: list[int]) -> np.ndarray:
    """log P of each token of an answer, of transformers' capped logits."""
    with truth():
        rows = model(**inputs).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return rows.numpy()[np.arange(len(answer)), answer]


@pytest.mark.parametrize(("num_beams", "new"), [(1, NEW), (2, 10), (5, 10)])
@pytest.mark.parametrize("question", QUESTIONS, ids=[prompt for _, prompt in QUESTIONS])
def test_answers_equal_those_of_transformers(question: tuple, num_beams: int, new: int, ours, theirs) -> None:
    """Ids, order, log-probabilities and totals; greedy with one beam."""
    answers = ours.generate(
        *([each] for each in question), num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=new
    )
    with truth():
        expected = transformers_beams(theirs, inputs_of(ours, *question), num_beams, Limits(new, ENDS, IMAGE_ID))
    compare(as_answers(answers), expected)


def assert_same(found: npgemma.Generation, expected: npgemma.Generation) -> None:
    """Ids, reason and, up to the rounding of float64, log-probabilities."""
    assert (found.token_ids, found.finish_reason) == (expected.token_ids, expected.finish_reason)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=ROUNDINGS, strict=True)


@pytest.fixture(scope="module")
def alone(ours) -> list[npgemma.Generation]:
    """The answer to each question in a run of its own; they end one after another, in both ways."""
    answers = [ours.generate(*question, max_new_tokens=NEW) for question in QUESTIONS]
    assert len({len(answer.token_ids) for answer in answers}) > 2
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    return answers


def test_several_prompts_together(ours, alone: list[npgemma.Generation]) -> None:
    """Prompts of unequal lengths are rows of one pass, and each has caches of its own."""
    together = ours.generate(*(list(each) for each in zip(*QUESTIONS, strict=True)), max_new_tokens=NEW)
    for found, expected in zip(together, alone, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("in_flight", [2, 9])
def test_jobs_together(in_flight: int, ours, theirs, alone: list[npgemma.Generation], tmp_path: Path) -> None:
    """With two in flight, a job joins another in the middle of its answer. Each is scored in passing."""
    jobs = []
    for i, (pictures, prompt) in enumerate(QUESTIONS):
        for k, picture in enumerate(pictures):
            picture.save(tmp_path / f"{i}-{k}.png")
        names = tuple(f"{i}-{k}.png" for k in range(len(pictures)))
        jobs += [npgemma.Job(i, names, prompt, tmp_path, suffix=SUFFIXES[i])] if names else []
    results = list(npgemma.answer_jobs(ours, jobs, in_flight, score=True, max_new_tokens=NEW))
    assert sorted(result.job.id for result in results) == [job.id for job in jobs]
    for result in results:
        assert_same(result.generation, alone[result.job.id])
        answer = result.score.token_ids
        expected = logprobs_of(theirs, inputs_of(ours, *QUESTIONS[result.job.id], answer), answer)
        np.testing.assert_allclose(result.score.logprobs, expected, rtol=0, atol=ROUNDINGS, strict=True)


@pytest.mark.parametrize("seed", range(2))
def test_log_probabilities_of_sampled_tokens_equal_those_of_transformers(seed: int, ours, theirs) -> None:
    for pictures, prompt in QUESTIONS:
        answer = ours.generate(pictures, prompt, temperature=2.0, seed=seed, max_new_tokens=NEW)
        expected = logprobs_of(theirs, inputs_of(ours, pictures, prompt, answer.token_ids), answer.token_ids)
        np.testing.assert_allclose(answer.logprobs, expected, rtol=0, atol=ROUNDINGS, strict=True)


def test_scores_equal_the_loss_of_transformers(ours, theirs) -> None:
    """All questions at once; the loss of labels is the mean of -log P of the answer and its end token."""
    scores = ours.score(*(list(each) for each in zip(*QUESTIONS, strict=True)), SUFFIXES)
    for score, question in zip(scores, QUESTIONS, strict=True):
        inputs = inputs_of(ours, *question, score.token_ids)
        expected = logprobs_of(theirs, inputs, score.token_ids)
        np.testing.assert_allclose(score.logprobs, expected, rtol=0, atol=ROUNDINGS, strict=True)
        labels = torch.where(inputs["token_type_ids"] == 1, inputs["input_ids"], -100)
        with truth(), torch.no_grad():
            loss = theirs(**inputs, labels=labels).loss.item()
        assert score.loss == pytest.approx(loss, rel=0, abs=ROUNDINGS)
