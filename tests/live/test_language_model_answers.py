"""What Gemma 1, 2 and 3 write past their windows, against transformers in float64: beams, draws, scores, chat."""

import json
from pathlib import Path
from types import SimpleNamespace

import chat_templates
import numpy as np
import pytest
from small_model import TOKENIZER, with_tokenizer

import npgemma
from npgemma.decoding.loop import Limits

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
jinja2 = pytest.importorskip("jinja2", reason="transformers fills chat templates with jinja2")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import in_float64, truth  # noqa: E402
from torch_beams import ROUNDINGS, as_answers, compare, transformers_beams  # noqa: E402
from torch_gemmas import EVERY, UNTIED, inputs_of, noisy, save_as  # noqa: E402
from torch_logits import logits_of  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

NEW = 24
PIECES = TOKENIZER.image_id  # a language model has no image token; those of turns follow the pieces
START_ID, END_ID = PIECES, PIECES + 1
CHOICES = PIECES + 2
ENDS = tuple(range(1, PIECES, 9))  # many, so that texts end at various lengths
# Of various lengths, the window of five tokens among them.
PROMPTS = [
    "caption en",
    "",
    "answer en how many red squares and green circles are there?",
    "ocr",
    "a blue star and a 7",
]
SUFFIXES = ["a blue star", " and", "two red squares and a shoe on a green table", "\n\n", "7"]


def add_turns(folder: Path, model_type: str) -> None:
    """A tokenizer with the two tokens of turns, and the chat template of the family."""
    added = {START_ID: "<start_of_turn>", END_ID: "<end_of_turn>"}
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "added_tokens_decoder": {str(id_): {"content": text, "special": True} for id_, text in added.items()},
        "chat_template": chat_templates.BY_MODEL_TYPE[model_type],
    }
    (with_tokenizer(folder) / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=EVERY)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """npgemma's model, transformers' model in float64, and transformers' tokenizer. Seven rows are never chosen."""
    case, folder = EVERY[request.param].changed(**UNTIED, vocab_size=CHOICES + 7), tmp_path_factory.mktemp("model")
    model = noisy(case, torch.Generator().manual_seed(2))
    model.generation_config.eos_token_id = list(ENDS)
    save_as(model, case, folder)
    add_turns(folder, case.model_type)
    return SimpleNamespace(
        ours=npgemma.load(folder, "float64"),
        theirs=in_float64(model),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        system=case.model_type == "gemma3_text",
    )


def prompt_ids(models: SimpleNamespace, prompt: str) -> list[int]:
    """As transformers' tokenizer makes them, with <bos>."""
    return models.tokenizer(prompt).input_ids


def logprobs_of(models: SimpleNamespace, prompt: str, answer: list[int]) -> np.ndarray:
    """log P of each token of a continuation, of transformers' logits of one pass."""
    with truth():
        rows = logits_of(models.theirs, inputs_of([*prompt_ids(models, prompt), *answer]))
        found = torch.from_numpy(rows[-len(answer) - 1 : -1]).log_softmax(-1).numpy()
    return found[np.arange(len(answer)), answer]


def assert_logprobs(found: list[float], expected: np.ndarray | list[float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDINGS, strict=True)


@pytest.mark.parametrize(("prompt", "num_beams", "new"), [(PROMPTS[2], 1, NEW), (PROMPTS[2], 4, 8), (PROMPTS[3], 2, 8)])
def test_answers_equal_those_of_transformers(prompt: str, num_beams: int, new: int, models) -> None:
    """Ids, order, log-probabilities and totals; greedy with one beam."""
    found = models.ours.generate(prompt, num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=new)
    with truth():
        inputs = inputs_of(prompt_ids(models, prompt))
        expected = transformers_beams(models.theirs, inputs, num_beams, Limits(new, ENDS, CHOICES))
    compare(as_answers(found if num_beams > 1 else [found]), expected)


def assert_same(found: npgemma.Generation, expected: npgemma.Generation) -> None:
    """Text, ids, reason and, up to the rounding of float64, log-probabilities."""
    for name in ("text", "token_ids", "finish_reason"):
        assert getattr(found, name) == getattr(expected, name)
    assert_logprobs(found.logprobs, expected.logprobs)


@pytest.fixture(scope="module")
def alone(models) -> list[npgemma.Generation]:
    """What follows each prompt in a run of its own, as likely as transformers finds it in one pass."""
    answers = [models.ours.generate(prompt, max_new_tokens=NEW) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert_logprobs(answer.logprobs, logprobs_of(models, prompt, answer.token_ids))
    assert len({len(answer.token_ids) for answer in answers}) > 2
    return answers


def test_several_prompts_together(models, alone: list[npgemma.Generation]) -> None:
    """Prompts of unequal lengths are rows of one pass, and each has caches of its own."""
    for found, expected in zip(models.ours.generate(PROMPTS, max_new_tokens=NEW), alone, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("in_flight", [2, 9])
def test_jobs_together(in_flight: int, models, alone: list[npgemma.Generation], tmp_path: Path) -> None:
    """With two in flight, a job joins another in the middle of its answer. Each is scored in passing."""
    pairs = zip(PROMPTS, SUFFIXES, strict=True)
    jobs = [npgemma.Job(i, (), prompt, tmp_path, suffix) for i, (prompt, suffix) in enumerate(pairs)]
    results = list(npgemma.answer_jobs(models.ours, jobs, in_flight, score=True, max_new_tokens=NEW))
    assert sorted(result.job.id for result in results) == list(range(len(PROMPTS)))
    for result in results:
        assert_same(result.generation, alone[result.job.id])
        assert_logprobs(result.score.logprobs, logprobs_of(models, result.job.prompt, result.score.token_ids))


def test_drawn_tokens_have_the_log_probabilities_of_transformers(models) -> None:
    """Two texts after each prompt, all in one run."""
    answers = models.ours.generate(PROMPTS, temperature=2.0, num_return_sequences=2, max_new_tokens=NEW)
    for first, second, prompt in zip(answers[::2], answers[1::2], PROMPTS, strict=True):
        assert first.token_ids != second.token_ids
        for answer in (first, second):
            assert_logprobs(answer.logprobs, logprobs_of(models, prompt, answer.token_ids))


def test_scores_have_the_log_probabilities_of_transformers(models) -> None:
    """All prompts at once, and all suffixes to one prompt."""
    together, one = models.ours.score(PROMPTS, SUFFIXES), models.ours.score(PROMPTS[0], SUFFIXES)
    cases = [
        *zip(PROMPTS, SUFFIXES, together, strict=True),
        *zip(PROMPTS[:1] * len(SUFFIXES), SUFFIXES, one, strict=True),
    ]
    for prompt, suffix, score in cases:
        assert score.token_ids == models.tokenizer(suffix, add_special_tokens=False).input_ids
        assert_logprobs(score.logprobs, logprobs_of(models, prompt, score.token_ids))


def test_a_whole_text_has_the_loss_of_transformers(models) -> None:
    text = " ".join(SUFFIXES)
    inputs = inputs_of(prompt_ids(models, text))
    with truth(), torch.no_grad():
        loss = models.theirs(**inputs, labels=inputs["input_ids"]).loss.item()
    assert models.ours.score("", text).loss == pytest.approx(loss, rel=0, abs=ROUNDINGS)


CONVERSATION = [
    {"role": "user", "content": " how many stars?\n"},
    {"role": "model", "content": "two blue stars"},
    {"role": "user", "content": "and  squares?"},
]
SYSTEM = {"role": "system", "content": "answer en "}
CONVERSATIONS = {
    "one question": CONVERSATION[:1],
    "three turns": CONVERSATION,
    "assistant": [*CONVERSATION[:1], CONVERSATION[1] | {"role": "assistant"}, CONVERSATION[2]],
    "system": [SYSTEM, *CONVERSATION],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chat_writes_what_transformers_writes_after_its_template(name: str, models) -> None:
    messages = CONVERSATIONS[name]
    if name == "system" and not models.system:
        with pytest.raises(jinja2.TemplateError, match="System role not supported"):
            models.tokenizer.apply_chat_template(messages)
        with pytest.raises(npgemma.BadPrompt, match="a system message, which Gemma 1 and 2 do not have"):
            models.ours.chat(messages)
        return
    ids = models.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(START_ID) == len(CONVERSATION[:1] if name == "one question" else CONVERSATION) + 1
    with truth():
        limits = Limits(NEW, (*ENDS, END_ID), CHOICES)
        expected = transformers_beams(models.theirs, inputs_of(ids), 1, limits)
    found = models.ours.chat(messages, max_new_tokens=NEW)
    compare(as_answers([found]), expected)
    text = models.tokenizer.decode(expected[0].ids, skip_special_tokens=True)
    assert found.text == text or "\ufffd" in text  # for bytes that are not text, it writes other signs
    assert "".join(models.ours.stream_chat(messages, max_new_tokens=NEW)) == found.text
